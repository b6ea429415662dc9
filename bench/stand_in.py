"""Frame figures of trained runs on test cases, every run judged alike: the stand-in experiment's table.

    python bench/stand_in.py --cache TEST_CACHE --system NAME=RUN[,RUN...] [--system ...] [--scores FOLDER]

A system is one run or the mean of several. Two ways to read its probabilities are compared, on the same frames: `plain`
is the paper's (sigmoid of the logit, called positive from 0.5 on, the highest frame chosen); `half-way` is as `training
export` has it (temperatures, smoothing, the case's own threshold, chosen by presence and optimality), fitted on the
validation cases of all runs. Needs no decoder, so the published classifier stands beside a whole artifact. Masks and
the official score come from the algorithm itself (`algorithm predict`, then `evaluation local`).

Intervals are over subjects (`evaluation/metrics/intervals.py`). A run is scored once where --scores keeps what it
said. The
last line is a JSON object.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from acouslic.errors import AcouslicError
from acouslic.geometry import sweep_ranges
from algorithm.engine.device import choose_device, set_cpu_threads
from algorithm.judgement.select_frame import choose_candidates
from algorithm.model.manifest import SelectionConfig
from bench.figures.frame_choice import frame_worth
from bench.figures.table import table
from evaluation.metrics.frame_f1 import ConfusionCounts, confusion_counts
from evaluation.metrics.intervals import Interval, f1_interval, mean_interval, units_of
from training.export.trained_member import MovedTower, TrainedMember, read_member, rebuild_network, shared_tower
from training.frames.dataset import FrameTable, table_of
from training.judge.calibrate import Calibration, CaseJudgement, judge_cases
from training.judge.reading import read_cases
from training.learn.out_of_fold import OutOfFold, read_out_of_fold, score_out_of_fold, write_out_of_fold
from training.learn.run_folder import RunFolder
from training.release.cache import Cache

SELECTION = SelectionConfig()
UNSMOOTHED = SelectionConfig(smoothing_sigma_frames=0.0, choice_sigma_frames=0.0)


@dataclass(frozen=True)
class Reading:
    """How a system's logits are read: its judgement of each test case, and from where on a frame is positive."""

    cases: list[CaseJudgement]
    threshold: float


def read_plainly(scored: Sequence[OutOfFold]) -> Reading:
    """As in the paper, without calibration, smoothing or optimality; several runs are averaged."""
    scored = [replace(member, optimality_logit=member.optimality_logit[:0]) for member in scored]
    cases = judge_cases(scored, [Calibration()] * len(scored), UNSMOOTHED)
    return Reading(cases, 0.5)


def read_as_exported(members: Sequence[TrainedMember], scored: Sequence[OutOfFold]) -> Reading:
    """As an artifact of these members would be read, its reading fitted on their validation cases."""
    calibrations = [member.calibration for member in members]
    selection, _ = read_cases(judge_cases([member.scored for member in members], calibrations, SELECTION), SELECTION)
    return Reading(judge_cases(scored, calibrations, selection), 0.5)


@dataclass(frozen=True)
class Figures:
    """One system, read in one way."""

    f1_annotated_sweeps: Interval | None
    f1_all_frames: Interval | None
    precision: float
    recall: float
    wfss: Interval | None


def measure(reading: Reading, test: FrameTable) -> Figures:
    """The figures of a reading of all test cases; precision and recall over all frames."""
    counts: dict[str, list[ConfusionCounts]] = {"annotated_sweeps": [], "all_frames": []}
    worth = []
    start = 0
    for case in reading.cases:
        annotated = test.in_annotated_sweep[start : start + len(case.label)]
        start += len(case.label)
        called = case.frames.presence >= reading.threshold
        counts["all_frames"].append(confusion_counts(case.label > 0, called))
        counts["annotated_sweeps"].append(confusion_counts(case.label[annotated] > 0, called[annotated]))
        chosen = choose_candidates(case.frames.quality, sweep_ranges(len(case.label)), 1)[0]
        worth.append(frame_worth(case.label, chosen))
    units = units_of([case.subject_id for case in test.cases])
    total = sum(counts["all_frames"], ConfusionCounts())
    return Figures(
        f1_interval(counts["annotated_sweeps"], units),
        f1_interval(counts["all_frames"], units),
        total.tp / max(1, total.tp + total.fp),
        total.tp / max(1, total.tp + total.fn),
        mean_interval(np.array(worth), units),
    )


def score_run(member: TrainedMember, test: FrameTable, folder: Path | None) -> OutOfFold:
    """What a run says about the test cases; from `folder` where it was asked before about the same."""
    kept = None
    if folder is not None:
        asked = json.dumps([member.record, [case.uuid for case in test.cases]], sort_keys=True)
        kept = folder / f"{hashlib.sha256(asked.encode()).hexdigest()[:16]}.npz"
        if kept.is_file():
            return read_out_of_fold(kept)
    loaded = shared_tower([member], Cache(Path(member.record["cache"])), MovedTower())
    scored = score_out_of_fold(rebuild_network(member, loaded), test, loaded.preprocessing, choose_device(None)[0])
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_out_of_fold(kept, scored)
    return scored


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="test cases that `training prepare` made")
    parser.add_argument("--system", action="append", required=True, metavar="NAME=RUN[,RUN...]")
    parser.add_argument("--scores", type=Path, help="folder that keeps what each run said")
    options = parser.parse_args(arguments)
    set_cpu_threads()
    cache = Cache(options.cache)
    test = table_of(cache, [case.uuid for case in cache.cases])
    result: dict[str, dict[str, object]] = {}
    lines = []
    for system in options.system:
        name, _, runs = system.partition("=")
        members = [read_member(RunFolder(Path(run))) for run in runs.split(",")]
        seen = {uuid for member in members for uuid in member.record["train_cases"] + member.record["validation_cases"]}
        if seen & {case.uuid for case in cache.cases}:
            raise AcouslicError(f"{name} has learned from or was chosen on a case of {options.cache}")
        scored = [score_run(member, test, options.scores) for member in members]
        readings = {
            "plain": read_plainly(scored),
            "half-way": read_as_exported(members, scored),
        }
        for way, reading in readings.items():
            figures = measure(reading, test)
            result[f"{name}, {way}"] = {
                "threshold": reading.threshold,
                "precision": figures.precision,
                "recall": figures.recall,
                **{
                    field: interval.metrics() if interval else None
                    for field, interval in vars(figures).items()
                    if not isinstance(interval, float)
                },
            }
            lines.append(
                [
                    f"{name}, {way}",
                    str(len(members)),
                    _text(figures.f1_annotated_sweeps),
                    _text(figures.f1_all_frames),
                    f"{figures.precision:.3f}",
                    f"{figures.recall:.3f}",
                    _text(figures.wfss),
                ]
            )
    header = ["system, reading", "members", "F1 annotated sweeps", "F1 all frames", "precision", "recall", "WFSS"]
    print(table(header, lines))
    print(json.dumps(result))
    return 0


def _text(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.estimate:.3f} ({interval.lower:.3f} to {interval.upper:.3f})"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AcouslicError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
