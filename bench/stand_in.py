"""Frame figures of trained runs on test cases, every run judged alike: the stand-in experiment's table.

    python -m bench.stand_in --cache TEST_CACHE --system NAME=RUN[,RUN...] [--system ...] [--scores FOLDER]

A system is one run or the mean of several. Two ways to read its probabilities are compared, on the same frames:
`plain` is the paper's (sigmoid of the logit, called positive from 0.5 on, the highest frame chosen), `ours` calibrates
each run on its own validation cases, smooths within sweeps, calls positive from the threshold that was best there, and
chooses by presence and optimality. Needs no decoder, so the published classifier stands beside a whole artifact. Masks
and the official score come from the algorithm itself (`algorithm predict`, then `evaluation local`).

Intervals resample subjects (`evaluation/bootstrap.py`). A run is scored once where --scores keeps what it said. The
last line is a JSON object.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from acouslic.errors import AcouslicError
from acouslic.geometry import sweep_ranges
from algorithm.device import choose_device, set_cpu_threads
from algorithm.manifest import SelectionConfig
from algorithm.select_frame import smooth_in_sweeps
from bench.frame_choice import choose_frame, frame_worth
from bench.table import table
from evaluation.bootstrap import Interval, f1_interval, mean_interval, resample_weights, units_of
from evaluation.frame_f1 import ConfusionCounts, confusion_counts
from training.cache import Cache
from training.dataset import FrameTable, table_of
from training.frame_metrics import best_f1
from training.out_of_fold import OutOfFold, read_out_of_fold, score_out_of_fold, write_out_of_fold
from training.run_folder import RunFolder
from training.trained_member import TrainedMember, read_member, rebuild_network, shared_tower

SELECTION = SelectionConfig()
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Judgement:
    """What a system says about the test frames, one row a frame, cases one after another."""

    presence: Values
    optimality: Values | None
    threshold: float


def plain(_members: Sequence[TrainedMember], scored: Sequence[OutOfFold]) -> Judgement:
    """As in the paper; several runs are averaged."""
    return Judgement(np.mean([_sigmoid(one.presence_logit) for one in scored], axis=0), None, 0.5)


def ours(members: Sequence[TrainedMember], scored: Sequence[OutOfFold]) -> Judgement:
    """Calibrated and smoothed; the threshold is the mean of those that were best on each run's validation cases."""
    thresholds = []
    for member in members:
        presence, _ = _calibrated(member, member.scored)
        thresholds.append(best_f1(_smoothed(presence, member.scored).astype(np.float32), member.scored.label > 0)[1])
    judged = [_calibrated(member, one) for member, one in zip(members, scored, strict=True)]
    optimality = [values for _, values in judged if values is not None]
    return Judgement(
        np.mean([presence for presence, _ in judged], axis=0),
        np.mean(optimality, axis=0) if optimality else None,
        float(np.mean(thresholds)),
    )


def _calibrated(member: TrainedMember, scored: OutOfFold) -> tuple[Values, Values | None]:
    fitted = member.calibration
    presence = _sigmoid((scored.presence_logit + fitted.presence_shift) / fitted.presence_temperature)
    if not len(scored.optimality_logit):
        return presence, None
    return presence, _sigmoid((scored.optimality_logit + fitted.optimality_shift) / fitted.optimality_temperature)


def _sigmoid(logit: NDArray[np.floating]) -> Values:
    return 1 / (1 + np.exp(-np.clip(logit.astype(np.float64), -60, 60)))


def _smoothed(values: Values, scored: OutOfFold) -> Values:
    return np.concatenate(
        [
            smooth_in_sweeps(part, sweep_ranges(len(part)), SELECTION.smoothing_sigma_frames)
            for part in np.split(values, np.cumsum(scored.frame_counts)[:-1])
        ]
    )


@dataclass(frozen=True)
class Figures:
    """One system, read in one way."""

    f1_annotated_sweeps: Interval | None
    f1_all_frames: Interval | None
    precision: float
    recall: float
    wfss: Interval | None


def measure(judgement: Judgement, test: FrameTable, scored: OutOfFold, *, smooth: bool) -> Figures:
    """The figures of a judgement of all test cases; precision and recall over all frames."""
    selection = SELECTION if smooth else replace(SELECTION, smoothing_sigma_frames=0.0)
    counts: dict[str, list[ConfusionCounts]] = {"annotated_sweeps": [], "all_frames": []}
    worth = []
    ends = np.cumsum(scored.frame_counts)
    for start, end in zip(ends - scored.frame_counts, ends, strict=True):
        part = slice(start, end)
        label = test.label[part]
        optimality = judgement.optimality[part] if judgement.optimality is not None else None
        choice = choose_frame(judgement.presence[part], optimality, np.zeros(len(label), bool), selection)
        called = choice.presence_probability >= judgement.threshold
        annotated = test.in_annotated_sweep[part]
        counts["all_frames"].append(confusion_counts(label > 0, called))
        counts["annotated_sweeps"].append(confusion_counts(label[annotated] > 0, called[annotated]))
        worth.append(frame_worth(label, choice.frame_index))
    weights = resample_weights(units_of([case.subject_id for case in test.cases]))
    total = sum(counts["all_frames"], ConfusionCounts())
    return Figures(
        f1_interval(counts["annotated_sweeps"], weights),
        f1_interval(counts["all_frames"], weights),
        total.tp / max(1, total.tp + total.fp),
        total.tp / max(1, total.tp + total.fn),
        mean_interval(np.array(worth), weights),
    )


def score_run(member: TrainedMember, test: FrameTable, kept: Path | None) -> OutOfFold:
    """What a run says about the test cases; from `kept` where it was asked before."""
    if kept is not None and kept.is_file():
        return read_out_of_fold(kept)
    loaded = shared_tower([member])
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
        scored = []
        for member in members:
            at = "-".join(member.folder.root.absolute().parts[-2:]) + ".npz"
            scored.append(score_run(member, test, options.scores / at if options.scores else None))
        for way, judge in (("plain", plain), ("ours", ours)):
            judgement = judge(members, scored)
            figures = measure(judgement, test, scored[0], smooth=way == "ours")
            result[f"{name}, {way}"] = {
                "threshold": judgement.threshold,
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
