#!/usr/bin/env bash
# Makes the virtual environment .venv in the repository, or brings it up to date, and prints nothing where it is.
#
#   requirements/set_up.sh runtime      torch and the algorithm: what run.sh needs
#   requirements/set_up.sh evaluation   the evaluation, without torch
#   requirements/set_up.sh training     training, and with it the runtime and the evaluation
#   requirements/set_up.sh cohort       the runtime, and Ray for many devices or machines
#   requirements/set_up.sh docs         what builds the documentation, with all modules that it describes
#   requirements/set_up.sh test         all of it and the tests: what test.sh needs
#
# A set is installed beside those that are there already.
#
# PYTHON   the Python to make it with (3.11 or newer). Without it: the first of python3, python3.13, python3.12,
#          python3.11 that is new enough.
# pip's own settings apply (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, pip.conf ...): on a machine without a
# GPU, PyTorch's own package index offers CPU builds of torch that save several GB.
set -euo pipefail

fail() {
    echo "$*" >&2
    exit 1
}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

choose_python() {
    local candidate
    local -a candidates=(python3 python3.13 python3.12 python3.11)
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    if [ -n "${PYTHON:-}" ]; then
        fail "PYTHON=$PYTHON is not a Python of version 3.11 or newer: name one that is, or unset PYTHON."
    fi
    fail "No Python of version 3.11 or newer was found: install one (Debian, Ubuntu: apt-get install python3 python3-venv), or name it in PYTHON."
}

make_environment() {
    local python=$1
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python has no venv module: install it (Debian, Ubuntu: apt-get install python3-venv)."
    echo "Making the virtual environment .venv with $("$python" --version)"
    "$python" -m venv --clear "$environment" || fail "The virtual environment $environment could not be made."
}

# What is installed is known by a checksum of every file here (pins, constraints and this script) and of the place: an
# environment that was moved or copied with its repository would run the code of the old one.
requirements_checksum() {
    { cat "$here"/*.txt "$here/set_up.sh" && echo "$environment"; } | cksum
}

main() {
    here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
    environment=$(dirname "$here")/.venv
    local wanted=${1:-}
    local -a files
    case $wanted in
        runtime) files=(-r "$here/torch.txt" -r "$here/algorithm.txt") ;;
        cohort) files=(-r "$here/torch.txt" -r "$here/cohort.txt") ;;
        evaluation | training | docs | test) files=(-r "$here/$wanted.txt") ;;
        *) fail "Usage: requirements/set_up.sh runtime|evaluation|training|cohort|docs|test" ;;
    esac

    local checksum
    checksum=$(requirements_checksum)
    # The test set holds all others.
    local stamp
    for stamp in "$environment/installed-test" "$environment/installed-$wanted"; do
        if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$checksum" ] && new_enough "$environment/bin/python"; then
            return
        fi
    done
    # What was installed for other pins counts no more, not even when those pins come back.
    for stamp in "$environment"/installed-*; do
        if [ -f "$stamp" ] && [ "$(cat "$stamp")" != "$checksum" ]; then
            rm "$stamp"
        fi
    done

    if ! new_enough "$environment/bin/python" || ! "$environment/bin/python" -m pip --version >/dev/null 2>&1; then
        local python
        python=$(choose_python)
        make_environment "$python"
    fi
    echo "Installing the $wanted requirements into .venv (with a CUDA build of torch several GB; once)"
    # --no-compile: Python compiles what is imported, which is a small part.
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
        --constraint "$here/constraints.txt" "${files[@]}" ||
        fail "The $wanted requirements could not be installed: see pip's message above; pip's settings (PIP_INDEX_URL ...) apply."
    # The repository itself, so that `.venv/bin/acouslic` and the scripts in bench/ run from any folder.
    dirname "$here" >"$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/repository.pth"
    # -P: a folder called `algorithm` where the user stands is not ours.
    printf '#!/bin/sh\nexec "%s/bin/python" -P -m acouslic_cli "$@"\n' "$environment" >"$environment/bin/acouslic"
    chmod +x "$environment/bin/acouslic"
    echo "$checksum" >"$environment/installed-$wanted"
}

main "$@"
