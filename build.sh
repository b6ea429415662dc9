#!/usr/bin/env bash
# Builds the images, from any folder:
#
#   acouslic-algorithm:VERSION        also :latest        invoke mode (HTTP server), what Grand Challenge's templates use
#   acouslic-algorithm:VERSION-exec   also :latest-exec   exec mode (one case and out), from the same build
#   acouslic-evaluation:VERSION       also :latest
#
# From the environment, all optional:
#   BASE_IMAGE              base of the algorithm, must bring Python >= 3.11 and torch (default: see Dockerfile)
#   EVALUATION_BASE_IMAGE   base of the evaluation, must bring Python >= 3.11 (default: see evaluation/Dockerfile)
#   BUILD_NETWORK           network of the build's steps, such as `host` (default: the engine's)
#   PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_TRUSTED_HOST, PIP_DEFAULT_TIMEOUT   pip's settings inside the build; they
#                           can be read in the image's history, so put no password there
#   HTTP_PROXY, HTTPS_PROXY, NO_PROXY   used by the build, not kept in the image
#   DOCKER_HOST ...         docker's own variables apply
# Further arguments go to `docker build`, for example --pull or --no-cache.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$root/acouslic/__init__.py")
revision=$(git -C "$root" describe --always --dirty --abbrev=12 --exclude '*' 2>/dev/null || echo unknown)

fail() {
    echo "$*" >&2
    exit 1
}

case ${1:-} in
    -h | --help)
        sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
        exit 0
        ;;
esac

[ -n "$version" ] || fail "acouslic/__init__.py states no __version__, which the images are named by."
command -v docker >/dev/null || fail "docker was not found: install Docker's command line and an engine to build images."
docker version >/dev/null 2>&1 ||
    fail "No Docker engine answers: start it, or name it in DOCKER_HOST ('docker version' says more)."

# One image an archive, for the platform's processor, whatever builds it.
export BUILDX_NO_DEFAULT_ATTESTATIONS=1
case $(uname -m) in
    x86_64 | amd64) ;;
    *) export DOCKER_DEFAULT_PLATFORM=linux/amd64 ;;
esac

arguments=(--build-arg "VERSION=$version" --build-arg "REVISION=$revision")
if [ -n "${BUILD_NETWORK:-}" ]; then
    arguments+=(--network "$BUILD_NETWORK")
fi
for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST PIP_DEFAULT_TIMEOUT HTTP_PROXY HTTPS_PROXY NO_PROXY; do
    if [ -n "${!name:-}" ]; then
        arguments+=(--build-arg "$name") # without a value: docker takes it from the environment
    fi
done

# build DOCKERFILE BASE_IMAGE-or-nothing TAG ALIAS [docker's arguments ...]
build() {
    local dockerfile=$1 base=$2 tag=$3 alias=$4
    shift 4
    if [ -n "$base" ]; then
        set -- --build-arg "BASE_IMAGE=$base" "$@"
    fi
    echo "Building $tag"
    docker build --file "$root/$dockerfile" --tag "$tag" --tag "$alias" "${arguments[@]}" "$@" "$root"
}

algorithm=acouslic-algorithm
evaluation=acouslic-evaluation
build Dockerfile "${BASE_IMAGE:-}" "$algorithm:$version-exec" "$algorithm:latest-exec" --target exec "$@"
build Dockerfile "${BASE_IMAGE:-}" "$algorithm:$version" "$algorithm:latest" --target invoke "$@"
build evaluation/Dockerfile "${EVALUATION_BASE_IMAGE:-}" "$evaluation:$version" "$evaluation:latest" "$@"

echo
echo "Built at $revision:"
docker image inspect --format '{{join .RepoTags " "}}  {{.Size}} bytes' \
    "$algorithm:$version" "$algorithm:$version-exec" "$evaluation:$version"
