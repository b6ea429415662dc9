# The algorithm's image, without weights: those are mounted at /opt/ml/model.
#
# Two tags from one build (build.sh makes both), which differ in their label and in what they do without a command:
#   --target invoke (default)  HTTP server, org.grand-challenge.api-method=invoke
#   --target exec              one case and out, org.grand-challenge.api-method=exec
# Either takes a command instead: serve, exec, predict, watch.
#
# The base image brings Python (3.11 or newer) and torch, and that torch stays: the platform's driver runs no CUDA 13.
ARG BASE_IMAGE=pytorch/pytorch:2.13.0-cuda12.6-cudnn9-runtime

FROM ${BASE_IMAGE} AS runtime
USER root

# pip's settings for the build alone, e.g. a company's package index; unset where not given.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG PIP_DEFAULT_TIMEOUT

COPY requirements/base.txt requirements/algorithm.txt requirements/constraints.txt requirements/kept_torch.py /opt/build/
RUN set -eu; \
    export PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1; \
    python3 /opt/build/kept_torch.py record /opt/build/torch.json /opt/build/torch.txt; \
    python3 -m pip install -c /opt/build/constraints.txt -c /opt/build/torch.txt -r /opt/build/algorithm.txt; \
    python3 /opt/build/kept_torch.py check /opt/build/torch.json

# A numeric user with a passwd entry. Its home is /tmp: the platform sets HOME from this entry, and nothing else is
# writable there. With bash, `docker run --user` may name any other number as well.
RUN groupadd --gid 10001 acouslic && \
    useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /bin/bash acouslic

COPY acouslic /opt/acouslic/acouslic
COPY algorithm /opt/acouslic/algorithm
# Compiled here, because no run can write beside the sources; by content, so that file times do not matter.
RUN chmod -R a+rX /opt/acouslic && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/acouslic

ENV PYTHONPATH=/opt/acouslic \
    PYTHONSAFEPATH=1 \
    PYTHONNOUSERSITE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/tmp/cache \
    XDG_CONFIG_HOME=/tmp/config \
    TORCH_HOME=/tmp/cache/torch \
    TORCHINDUCTOR_CACHE_DIR=/tmp/cache/inductor \
    TRITON_CACHE_DIR=/tmp/cache/triton \
    CUDA_CACHE_PATH=/tmp/cache/cuda \
    MPLCONFIGDIR=/tmp/cache/matplotlib

USER 10001:10001
WORKDIR /opt/acouslic
EXPOSE 4743
ENTRYPOINT ["python3", "-m", "algorithm"]
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="acouslic-algorithm" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"

FROM runtime AS exec
LABEL org.grand-challenge.api-method="exec"
CMD ["exec"]

FROM runtime AS invoke
LABEL org.grand-challenge.api-method="invoke"
# For engines that look after it (Docker, Compose); the platform asks by itself. A container that runs `predict` has no
# server to ask, and is well.
HEALTHCHECK --interval=30s --timeout=10s --start-period=300s CMD ["python3", "-m", "algorithm", "health", "--if-serving"]
CMD ["serve"]
