#!/usr/bin/env bash
# Measures the algorithm on this machine's GPU, from any folder: parity, share of the matrix peak, warm and cold cases.
# Tables, and JSON on the last line. Within 8 minutes on an H100-class card.
#
#   bench/gpu.sh                        five-member ViT-L/14 with random weights, generated case
#   bench/gpu.sh --adapted-blocks all   further arguments go to bench/gpu.py
#
# PYTHON   the Python to use (default: python3). It is used as it is where it has torch and all else that is needed;
#          where only small packages are missing, a virtual environment is made on top of it, which keeps its torch;
#          without any torch, requirements/set_up.sh makes the usual environment. Where nothing can be downloaded,
#          unpack the missing packages' wheels into a folder (pip install --target) and name that in PYTHONPATH.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
needed="numpy, cv2, msgspec, tqdm, zlib_ng, rapidgzip, safetensors"

has() {
    "$1" -c "import $2" >/dev/null 2>&1
}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "$python is not a Python of version 3.11 or newer: name one that is in PYTHON." >&2; exit 1; }
if has "$python" "torch, $needed"; then
    :
elif has "$python" torch; then
    environment=$root/.venv-bench
    if ! has "$environment/bin/python" "torch, $needed"; then
        echo "Installing the small packages that $python lacks into .venv-bench; its torch stays"
        "$python" -m venv --system-site-packages "$environment" ||
            { echo "$python has no venv module: install it, or name another Python in PYTHON." >&2; exit 1; }
        # Where $python is itself a virtual environment, --system-site-packages reaches past it: name its packages.
        "$python" -c 'import sysconfig; print(*{sysconfig.get_path(name) for name in ("purelib", "platlib")}, sep="\n")' \
            >"$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer.pth"
        "$environment/bin/python" -m pip install --quiet --disable-pip-version-check \
            --constraint "$root/requirements/constraints.txt" -r "$root/requirements/algorithm.txt" ||
            { echo "requirements/algorithm.txt could not be installed: see pip's message above." >&2; exit 1; }
    fi
    python=$environment/bin/python
else
    "$root/requirements/set_up.sh" runtime
    python=$root/.venv/bin/python
fi

export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
exec "$python" "$root/bench/gpu.py" "$@"
