#!/usr/bin/env bash
# Makes stand-ins for the two base images where no registry can supply them, from Debian's packages and PyPI:
#
#   acouslic-stand-in-python:bookworm   Debian 12 with Python 3.11 and pip, for EVALUATION_BASE_IMAGE
#   acouslic-stand-in-torch:2.13.0      the same with torch's CPU wheel, for BASE_IMAGE
#
# Usage, as root, with debootstrap installed and DOCKER_HOST (or the default socket) answering:
#   test/container/stand_in_bases.sh
# This machine's certificate bundle goes into both, so that pip inside reaches what pip here reaches; torch is fetched
# by the pip of the Python named in PYTHON (default python3), under its own settings. Images that exist are kept.
set -euo pipefail

python_image=acouslic-stand-in-python:bookworm
torch_image=acouslic-stand-in-torch:2.13.0
torch_version=2.13.0
debian_release=bookworm
bundle=/etc/ssl/certs/ca-certificates.crt

exists() {
    docker image inspect "$1" >/dev/null 2>&1
}

make_python_image() {
    local root=$work/root
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-pip "$debian_release" "$root" \
        >"$work/debootstrap.log" 2>&1 || {
        tail -n 20 "$work/debootstrap.log" >&2
        echo "debootstrap could not make a Debian $debian_release file system: see its last lines above." >&2
        return 1
    }
    cp --dereference "$bundle" "$root$bundle"
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}/*
    tar -C "$root" -c . | docker import --change "ENV PIP_CERT=$bundle" --change 'CMD ["python3"]' - "$python_image" >/dev/null
}

make_torch_image() {
    local wheels=$work/wheels container files
    # For the image's Python, whatever this machine's is; a local build (+cpu) that pip finds here goes first.
    "${PYTHON:-python3}" -m pip download --quiet --disable-pip-version-check --dest "$wheels" --only-binary :all: \
        --python-version 3.11 --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 \
        "torch==$torch_version"
    files=("$wheels"/*.whl)
    # Every wheel by its name, so that pip looks nowhere else: the container has no network.
    container=$(docker create --network none --volume "$wheels:/wheels:ro" "$python_image" \
        python3 -m pip install --quiet --break-system-packages --root-user-action ignore --no-cache-dir --no-deps \
        "${files[@]/#"$wheels"//wheels}")
    docker start --attach "$container" || {
        docker rm --force "$container" >/dev/null
        echo "torch could not be installed in the stand-in base image: see pip's message above." >&2
        return 1
    }
    docker commit --change 'CMD ["python3"]' "$container" "$torch_image" >/dev/null
    docker rm "$container" >/dev/null
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
exists "$python_image" || make_python_image
exists "$torch_image" || make_torch_image
docker image ls --format '{{.Repository}}:{{.Tag}} {{.Size}}' 'acouslic-stand-in-*'
