#!/usr/bin/env bash
# Finds, outlines and measures the fetal abdomen in a blind sweep, on this machine, from any folder:
#
#   ./run.sh                        a case that is generated first, into results/
#   ./run.sh SWEEP [OUTPUT_DIR]     a stack of your own, or a folder of stacks
#
# A stack is a MetaImage (.mha, .mhd), a TIFF (.tif, .tiff), a NIfTI (.nii, .nii.gz), an NRRD (.nrrd, .nhdr), a DICOM
# file or a folder of them, a video (.mp4, .avi), a folder of PNG pictures, or one still (.png, .jpg, .jpeg).
#
# MODEL_DIR           the model (default: model/demo, which was trained on generated sweeps and is for show only)
# PYTHON, PIP_...     for the virtual environment, see requirements/set_up.sh
#
# What is missing (a virtual environment with pinned packages) is set up the first time.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Compiled modules are kept in .venv: else every process would compile torch again.
unset PYTHONDONTWRITEBYTECODE
demo_seed=20002 # the first of the cases on which the demo was measured (training/demo.py); it fails on others

fail() {
    echo "$*" >&2
    exit 1
}

usage() {
    echo "Usage: ./run.sh [SWEEP [OUTPUT_DIR]]   (./run.sh --help says more)" >&2
    exit 2
}

case ${1:-} in
    -h | --help)
        sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
        exit 0
        ;;
    -*) usage ;;
esac
[ $# -le 2 ] || usage
if [ $# -gt 0 ]; then
    [ -e "$1" ] || fail "$1 is not there: give a sweep stack (./run.sh --help lists the kinds), or a folder of them."
    sweep=$1
fi
model=${MODEL_DIR:-$root/model/demo}

"$root/requirements/set_up.sh" runtime
python=$root/.venv/bin/python
export PYTHONSAFEPATH=1 # a folder called `algorithm` where the user stands is not ours

if [ $# -eq 0 ]; then
    case_dir=$root/results/generated-case-$demo_seed
    if [ ! -d "$case_dir" ]; then
        echo "Generating a case of six sweeps (once; about a minute)"
        # Into a folder that only becomes the case's own when it is complete.
        unfinished=$case_dir.unfinished.$$
        trap 'rm -rf "$unfinished"' EXIT
        # What it says names the folder that is renamed below.
        "$python" -m training generate --out "$unfinished" --cases 1 --seed "$demo_seed" >/dev/null
        # Not into the case that another ./run.sh may have made meanwhile: it is the same.
        mv -T "$unfinished" "$case_dir" 2>/dev/null || [ -d "$case_dir" ] || fail "$case_dir could not be made."
        rm -rf "$unfinished"
    fi
    sweep=$case_dir/images/stacked_fetal_ultrasound
fi

output=${2:-}
if [ -z "$output" ]; then
    # Its own, also where another ./run.sh begins in the same second; gone again where no result comes.
    moment=$root/results/$(date +%Y%m%d-%H%M%S)
    output=$moment
    number=1
    mkdir -p "$root/results"
    until mkdir "$output" 2>/dev/null; do
        [ -d "$output" ] || fail "$output could not be made: name another folder (./run.sh SWEEP OUTPUT_DIR)."
        number=$((number + 1))
        output=$moment-$number
    done
    trap 'rmdir "$output" 2>/dev/null || true' EXIT
fi

"$python" -m algorithm predict "$sweep" --model "$model" --output "$output"

echo
echo "Results are in $output:"
echo "  results.csv                               one line a case"
echo "  index.html                                all cases to sort and filter; leads to the page of each"
echo "  <case>/report.html                        the sweeps to look through, the measurement, and why"
echo "  <case>/preview.png                        the chosen frame with mask and ellipse"
echo "  <case>/fetal-abdomen-frame-number.json    the frame, counted from 0"
echo "  <case>/fetal-abdominal-circumference.json the measurement in mm, and how sure it is"
echo "  <case>/frame-quality-scores.json          every frame's probabilities, every sweep's best frame"
echo "  <case>/images/.../output.mha              the mask, as a stack of the input's shape"
pages=("$output"/*/report.html)
page=$output/index.html
[ ${#pages[@]} -ne 1 ] || page=${pages[0]}
if [ -f "$page" ]; then
    echo "Look at: $page"
    if [ -t 1 ] && [ -n "${DISPLAY:-}${WAYLAND_DISPLAY:-}" ] && command -v xdg-open >/dev/null; then
        xdg-open "$page" >/dev/null 2>&1 &
    fi
fi
