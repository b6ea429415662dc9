#!/usr/bin/env bash
# Writes into dist/ what is uploaded to Grand Challenge, from any folder, after ./build.sh:
#
#   acouslic-algorithm-VERSION-COMMIT.tar.gz         the algorithm's image, invoke mode
#   acouslic-algorithm-VERSION-COMMIT-exec.tar.gz    the same in exec mode
#   acouslic-evaluation-VERSION-COMMIT.tar.gz        the evaluation's image
#   acouslic-model-VERSION-COMMIT-MODEL.tar.gz       the model, for the page's "model" upload
#
#   ./export.sh [MODEL_DIR]    MODEL_DIR: the artifact to pack (default: model/demo)
#
# MODEL in the last name is the beginning of its manifest's SHA-256, so that no model's archive replaces another's.
# DIST_DIR   where to (default: dist/ in the repository)
# A file appears under its name only when it is complete.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

fail() {
    echo "$*" >&2
    exit 1
}

case ${1:-} in
    -h | --help)
        sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
        exit 0
        ;;
    -*) fail "Usage: ./export.sh [MODEL_DIR]   (./export.sh --help says more)" ;;
esac
[ $# -le 1 ] || fail "Usage: ./export.sh [MODEL_DIR]   (./export.sh --help says more)"
model=${1:-$root/model/demo}
dist=${DIST_DIR:-$root/dist}
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$root/acouslic/__init__.py")
revision=$(git -C "$root" describe --always --dirty --abbrev=12 --exclude '*' 2>/dev/null || echo unknown)

[ -f "$model/manifest.json" ] || fail "$model holds no model: its manifest.json is missing."
command -v docker >/dev/null || fail "docker was not found: install Docker's command line and an engine, then run ./build.sh."
docker version >/dev/null 2>&1 || fail "No Docker engine answers: start it, or name it in DOCKER_HOST."

images=("acouslic-algorithm:$version" "acouslic-algorithm:$version-exec" "acouslic-evaluation:$version")
for image in "${images[@]}"; do
    built=$(docker image inspect --format '{{index .Config.Labels "org.opencontainers.image.revision"}}' "$image" 2>/dev/null) ||
        fail "The image $image is not there: run ./build.sh first."
    [ "$built" = "$revision" ] ||
        fail "The image $image was built at $built, the repository is at $revision: run ./build.sh again."
done

"$root/requirements/set_up.sh" runtime
mkdir -p "$dist"
unfinished=$(mktemp -d "$dist/.unfinished.XXXXXX")
trap 'rm -rf "$unfinished"' EXIT

# finish NAME: the complete file takes its place.
finish() {
    mv "$unfinished/$1" "$dist/$1"
    echo "$dist/$1  $(wc -c <"$dist/$1") bytes"
}

for image in "${images[@]}"; do
    case $image in
        *-exec) name=${image%%:*}-$version-$revision-exec.tar.gz ;;
        *) name=${image%%:*}-$version-$revision.tar.gz ;;
    esac
    docker save "$image" | gzip -n >"$unfinished/$name"
    finish "$name"
done
name=acouslic-model-$version-$revision-$(sha256sum <"$model/manifest.json" | cut -c1-8).tar.gz
PYTHONSAFEPATH=1 "$root/.venv/bin/python" -m training pack --model "$model" --out "$unfinished/$name"
finish "$name"
