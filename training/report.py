"""Judges finished runs on the cases they did not learn from, before anything is exported.

    acouslic train report RUN... --out FOLDER

The folder gets `report.html`, `metrics.json` and `per_case.csv` by the evaluation's own code (`acouslic evaluate
frames`), with each fold as a set of its own, the table `scores.npz` that they are made from, and `worst_frames.png`.
Frames are read and chosen as an exported artifact would, with a reading fitted without the case's patient: the half-way
depth, whether a sweep has one run, and how many frames are likely. The kept epoch and the temperatures are each fold's
own, chosen on the very cases that it is judged by here.
"""

import argparse
import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from acouslic.errors import AcouslicError
from acouslic.write import write_bytes
from algorithm.judgement.select_frame import choose_candidates
from algorithm.model.manifest import SelectionConfig
from training.export.trained_member import TrainedMember, read_member
from training.judge.calibrate import CaseJudgement, judge_cases
from training.judge.nested_reading import read_nested
from training.judge.worst_frames import draw_worst_frames, find_worst_frames
from training.learn.run_folder import find_all_runs
from training.release.cache import Cache

SCORES_FILE = "scores.npz"
PICTURE_FILE = "worst_frames.png"
_SEVERAL = "several folds"


def write_scores(path: Path, members: Sequence[TrainedMember], cases: Sequence[CaseJudgement], cache: Cache) -> None:
    """Write the table that `acouslic evaluate frames` reads: one row a frame, the runs' names as sets; optimality where
    every case has a member that judges it."""
    runs: dict[str, list[str]] = {}
    names = set_names([member.folder.root for member in members])
    for member, name in zip(members, names, strict=True):
        for uuid in member.scored.uuid.tolist():
            runs.setdefault(uuid, []).append(name)
    columns: dict[str, list[Any]] = {}
    for case in cases:
        cached, count = cache.case(case.uuid), len(case.label)
        chosen, annotated = np.zeros(count, np.uint8), np.zeros(count, np.uint8)
        chosen[choose_candidates(case.frames.quality, cached.sweeps, 1)] = 1
        for sweep, circumference in zip(cached.sweeps, cached.sweep_ac_mm, strict=True):
            annotated[sweep.start : sweep.stop] = circumference is not None
        row = {
            "case": np.full(count, case.uuid),
            "frame": np.arange(count),
            "label": case.label,
            "presence": case.frames.presence,
            "set": np.full(count, runs[case.uuid][0] if len(runs[case.uuid]) == 1 else _SEVERAL),
            "subject": np.full(count, cached.subject_id),
            "annotated_sweep": annotated,
            "chosen": chosen,
        }
        if case.frames.optimality is not None:
            row["optimality"] = case.frames.optimality
        for name, values in row.items():
            columns.setdefault(name, []).append(values)
    if len(columns.get("optimality", [])) < len(cases):
        columns.pop("optimality", None)
    table: dict[str, Any] = {name: np.concatenate(parts) for name, parts in columns.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **table)
    write_bytes(path, buffer.getvalue())


def set_names(folders: Sequence[Path]) -> list[str]:
    """A name for each run: its folder's, or as much of the path before it too as tells all apart."""
    paths = [folder.resolve() for folder in folders]
    longest = max((len(path.parts) for path in paths), default=1)
    for parts in range(1, longest + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def main(arguments: list[str]) -> int:
    """The command `python -m training report`."""
    parser = argparse.ArgumentParser(prog="acouslic train report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="folders of finished runs, or folders that hold fold_1, fold_2, ...",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    parser.add_argument("--cache", type=Path, help="where the frames lie now, if not where they lay in training")
    parser.add_argument("--worst", type=int, default=36, help="how many frames are drawn (%(default)s)")
    options = parser.parse_args(arguments)
    if options.worst < 0:
        raise AcouslicError(f"--worst must not be negative: {options.worst}")
    members = [read_member(run) for run in find_all_runs(options.runs)]
    cache = Cache(options.cache or Path(members[0].record["cache"]))
    scored = [member.scored for member in members]
    judged = judge_cases(scored, [member.calibration for member in members], SelectionConfig())
    subjects = {case.uuid: cache.case(case.uuid).subject_id for case in judged}
    cases = read_nested(judged, subjects, SelectionConfig(), one_run=True, most=True)
    write_scores(options.out / SCORES_FILE, members, cases, cache)
    encoded, picture = cv2.imencode(
        ".png", draw_worst_frames(find_worst_frames(cases, cache, options.worst), cache, scored)
    )
    assert encoded
    write_bytes(options.out / PICTURE_FILE, picture.tobytes())
    # The evaluation is a program of its own: training imports nothing of it.
    command = [sys.executable, "-m", "evaluation", "frames", str(options.out / SCORES_FILE), "--output"]
    ended = subprocess.run([*command, str(options.out)], check=False)
    if ended.returncode:
        raise AcouslicError(
            f"{options.out / SCORES_FILE} is written, but no report was made of it: mend what is said above, then run "
            f"acouslic evaluate frames on that file"
        )
    return 0
