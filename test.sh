#!/usr/bin/env bash
# Runs the tests, from any folder: the unit tests, and the container tests where a Docker engine answers and ./build.sh
# has built the images. Says at the end what it did not run.
#
#   ./test.sh                      everything
#   ./test.sh -k ellipse           further arguments go to pytest
#
# CI_REQUIRE_ALL=1    what cannot run is a failure (a GPU is never asked for)
# ACOUSLIC_SHARED     the folder with golden cases and real images that some tests read (default: ../shared)
# PYTHON, PIP_...     for the virtual environment, see requirements/set_up.sh
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$root"
requirements/set_up.sh test
export PYTHONUNBUFFERED=1
# Compiled modules are kept in .venv: else every process would compile torch again.
unset PYTHONDONTWRITEBYTECODE
python=$root/.venv/bin/python

status=0
"$python" -m pytest "$@" || status=$?

not_run=()
images=0
if ! command -v docker >/dev/null; then
    not_run+=("the container tests: docker was not found")
elif ! docker version >/dev/null 2>&1; then
    not_run+=("the container tests: no Docker engine answers")
else
    version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' acouslic/__init__.py)
    for image in "acouslic-algorithm:$version" "acouslic-algorithm:$version-exec" "acouslic-evaluation:$version"; do
        docker image inspect "$image" >/dev/null 2>&1 && images=$((images + 1))
    done
    [ "$images" -eq 3 ] || not_run+=("container tests: ./build.sh has not built all three images of version $version")
fi
command -v shellcheck >/dev/null || not_run+=("the check of the shell scripts: shellcheck is not installed")
[ -d "${ACOUSLIC_SHARED:-../shared}" ] ||
    not_run+=("the tests on golden cases and real images: ${ACOUSLIC_SHARED:-../shared} is not there (ACOUSLIC_SHARED)")
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null ||
    not_run+=("the GPU tests: no CUDA device")

if [ ${#not_run[@]} -gt 0 ]; then
    echo
    printf 'Not run: %s.\n' "${not_run[@]}"
fi
exit "$status"
