#!/usr/bin/env bash
# Trains an ensemble as an array of Slurm jobs, a fold a job.
#
#   training/slurm_ensemble.sh RELEASE WORK [SBATCH OPTION ...] -- SETTING ...
#   training/slurm_ensemble.sh /data/release /scratch/ours --partition=gpu --gres=gpu:1 --cpus-per-task=8 --time=4:00:00 \
#       -- --folds=5 --tower.weights=/data/FetalCLIP_weights.pt
#
# Prepares cache and split here first, which needs no GPU. A job that is preempted, or reaches two minutes before its time
# limit, writes a checkpoint, ends with 143, asks Slurm to start it again and goes on from there. Given once more, the same
# command leaves finished folds alone and goes on with the others. When all are done:
#   acouslic train export WORK --out MODEL ...
# PYTHON names the interpreter (default: .venv/bin/python beside this repository's files).
set -euo pipefail

if [ $# -lt 3 ]; then
    sed -n '2,13s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}
release=$(realpath "$1")
mkdir -p "$2"
work=$(realpath "$2")
shift 2
options=()
while [ $# -gt 0 ] && [ "$1" != "--" ]; do
    options+=("$1")
    shift
done
if [ $# -eq 0 ]; then
    echo "the settings come after --: see the head of $0" >&2
    exit 2
fi
shift

# Here and in the jobs paths among the settings are those of the folder that this was called from.
export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH}
# Last: what is said here counts, whatever stands among the settings.
"$python" -P -m training ensemble "$@" --raw="$release" --out="$work" --parallel=0
folds=$("$python" -c 'import json, sys; print(sum(name.startswith("fold_") for name in json.load(open(sys.argv[1]))["parts"]))' \
    "$work/split.json")
# Without B: before the signal it goes to the step that srun starts, so that this shell lives to ask for a requeue.
job=$(
    cat <<'EOF'
srun --ntasks=1 "$PYTHON" -P -m training fit --cache="$WORK/cache" --split="$WORK/split.json" \
    --config="$WORK/settings.yaml" --fold="$SLURM_ARRAY_TASK_ID" --out="$WORK/fold_$SLURM_ARRAY_TASK_ID" || code=$?
if [ "${code:-0}" = 143 ]; then scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"; fi
exit "${code:-0}"
EOF
)
PYTHON=$python WORK=$work sbatch --job-name=fetal-abdomen --array="1-$folds" --requeue --signal=TERM@120 \
    --output="$work/slurm-%a.txt" --open-mode=append --chdir="$PWD" --export=ALL "${options[@]}" --wrap="$job"
