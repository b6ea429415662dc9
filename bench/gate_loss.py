"""What the gate costs in quality and saves in time, over many settings at once.

    python bench/gate_loss.py --model ARTIFACT --release DIR ... [--cases 24] [--cache DIR] [--own-settings]

Every case of the releases (raw layout, masks included) is scored once, by every member, by the averaged gate and by the
student, where there is one, on every frame; each combination of settings is then replayed from that record
(`recorded_scores.py`). Two things are compared with the exhaustive run: the challenge's score of the chosen frame
(bound: the same in at least 98 % of cases) and frame F1 over all frames at the manifest's presence threshold (bound:
within 0.005; its 95 % interval is by case, paired). A third says whether the same frames are called: F1 against the
frames that the exhaustive run calls positive. Time is that of the recorded passes, as a share of the exhaustive one's.
The table lists the artifact's own settings and, without `--own-settings`, the defaults and those that nothing beats in
both time and loss. The last line is a JSON object, its `chosen` the fastest settings within the bounds.
"""

import argparse
import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from acouslic.errors import AcouslicError
from acouslic.frame_labels import frame_worth
from acouslic.geometry import sweep_ranges
from acouslic.release import Release
from algorithm.engine.batches import choose_batch_frames
from algorithm.engine.device import choose_device, choose_precision, set_cpu_threads
from algorithm.engine.ensemble import Ensemble
from algorithm.judgement.score import gate_frames
from algorithm.model.artifact import Artifact, load_artifact
from algorithm.model.manifest import Manifest, ScoringConfig
from algorithm.model.student import Student, student_from_state
from bench.figures.frame_choice import choose_frame
from bench.figures.recorded_scores import Record, record_release, replay
from bench.figures.table import table
from bench.setting.command import add_device, at_least, exit_with
from bench.setting.machine import describe_machine, today, versions
from evaluation.metrics.frame_f1 import ConfusionCounts, confusion_counts
from evaluation.metrics.intervals import paired_f1_interval
from training.judge.gate_settings import MOST_ROUNDS

LEAST_SAME_SHARE = 0.98
MOST_F1_DIFFERENCE = 0.005

GRID: dict[str, tuple] = {
    "gate": ("average", "member"),
    "stride": (1, 2, 3, 4, 5, 6),
    "margin_frames": (2, 4),
    "refine_ratio": (0.5, 0.7, 0.9),
    "refine_presence": ((0.05, 0.95), (0.1, 0.9), (0.3, 0.7)),
    "max_refined_fraction": (0.1, 0.2, 0.5),
}
STUDENT_GRID = GRID | {
    "gate": ("student",),
    "stride": (1,),
    "rounds": (1, MOST_ROUNDS),
    "scale_frames": (0, 12, 48),
}


@dataclass(frozen=True)
class Loss:
    """One combination of settings against the exhaustive run, over all cases."""

    scoring: ScoringConfig
    same_share: float
    """Cases whose chosen frame is worth the same."""
    worth: float
    """Mean worth of the chosen frame (WFSS)."""
    same_frame_share: float
    f1: float
    f1_difference: float
    """Minus the exhaustive run's."""
    f1_interval: tuple[float, float] | None
    """95 % of that difference, by case; None where it is undefined."""
    f1_to_exhaustive: float
    """Against the frames that the exhaustive run calls positive."""
    refined_share: float
    """Of all frames."""
    time_share: float
    """Of the exhaustive run's scoring time."""

    @property
    def within_bounds(self) -> bool:
        """Whether such a gate may be the default."""
        return self.same_share >= LEAST_SAME_SHARE and abs(self.f1_difference) <= MOST_F1_DIFFERENCE


@dataclass(frozen=True)
class Outcome:
    """One way of scoring, over all cases."""

    chosen: list[int]
    worth: list[float]
    positive: list[NDArray[np.bool_]]
    """(F,) of each case: frames that are called positive."""
    counts: list[ConfusionCounts]
    """Of each case, against its annotation."""
    refined: list[int]

    @property
    def f1(self) -> float:
        """Of the pooled frames."""
        return pooled_f1(self.counts)


def outcome(records: Sequence[Record], manifest: Manifest, scoring: ScoringConfig) -> Outcome:
    """Replay every case and look at what comes out."""
    found = Outcome([], [], [], [], [])
    for record in records:
        scores = replay(record, manifest, scoring)
        choice = choose_frame(
            scores.presence_probability, scores.optimality_probability, record.blank, manifest.selection
        )
        positive = choice.presence_probability >= manifest.thresholds.presence
        found.chosen.append(choice.frame_index)
        found.worth.append(frame_worth(record.labels, choice.frame_index))
        found.positive.append(positive)
        found.counts.append(confusion_counts(record.labels > 0, positive))
        found.refined.append(int(scores.refined.sum()))
    return found


def pooled_f1(counts: Sequence[ConfusionCounts]) -> float:
    """Of all frames; 1 where there is nothing to find and nothing found."""
    found = sum(counts, ConfusionCounts()).f1
    return 1.0 if found is None else found


def loss(records: Sequence[Record], manifest: Manifest, scoring: ScoringConfig, exhaustive: Outcome) -> Loss:
    """One combination of settings."""
    gated = outcome(records, manifest, scoring)
    frames = sum(len(record.labels) for record in records)
    time_s = 0.0
    for record, refined in zip(records, gated.refined, strict=True):
        count = len(record.labels)
        gate_s = record.student_s if scoring.gate == "student" else record.gate_s
        gate_s = gate_s or record.members_s / len(record.presence)
        time_s += gate_s * len(gate_frames(sweep_ranges(count), scoring.stride)) / count
        time_s += record.members_s * refined / count
    cases = len(records)
    interval = paired_f1_interval(exhaustive.counts, gated.counts, np.arange(cases))
    same = [confusion_counts(a, b) for a, b in zip(exhaustive.positive, gated.positive, strict=True)]
    return Loss(
        scoring=scoring,
        same_share=sum(np.isclose(gated.worth, exhaustive.worth)) / cases,
        worth=sum(gated.worth) / cases,
        same_frame_share=sum(a == b for a, b in zip(gated.chosen, exhaustive.chosen, strict=True)) / cases,
        f1=gated.f1,
        f1_difference=gated.f1 - exhaustive.f1,
        f1_interval=None if interval is None else (interval.lower, interval.upper),
        f1_to_exhaustive=pooled_f1(same),
        refined_share=sum(gated.refined) / frames,
        time_share=time_s / sum(record.members_s for record in records),
    )


def settings(grid: dict[str, tuple], base: ScoringConfig) -> list[ScoringConfig]:
    """Every combination of the grid's values, the other fields as in `base`."""
    combinations = itertools.product(*grid.values())
    gated = dataclasses.replace(base, mode="gated")
    return [dataclasses.replace(gated, **dict(zip(grid, values, strict=True))) for values in combinations]


def best(losses: Sequence[Loss]) -> list[Loss]:
    """Those that no other beats in time without losing more, the fastest first."""

    def key(item: Loss) -> tuple[float, float, float]:
        return item.time_share, -item.same_share, abs(item.f1_difference)

    kept: list[Loss] = []
    for item in sorted(losses, key=key):
        if not any(
            other.same_share >= item.same_share and abs(other.f1_difference) <= abs(item.f1_difference)
            for other in kept
        ):
            kept.append(item)
    return kept


@dataclass(frozen=True)
class Asked:
    """All that is asked about every frame."""

    ensemble: Ensemble
    with_gate: bool
    """Whether the ensemble has an averaged gate, which is asked too."""
    student: Student | None
    batch_frames: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Record, replay, print."""
    args = _parser().parse_args(arguments)
    cases = cases_of(args.release, args.cases)
    set_cpu_threads()
    artifact = load_artifact(args.model)
    asked = all_that_judges(artifact, args)
    records = record_release(
        asked.ensemble,
        cases,
        args.cache,
        with_gate=asked.with_gate,
        batch_frames=asked.batch_frames,
        student=asked.student,
    )
    manifest = artifact.manifest
    base = manifest.scoring
    named = {"as in the manifest": dataclasses.replace(base, mode="gated")}
    tried = []
    if not args.own_settings:
        named["defaults"] = ScoringConfig(mode="gated")
        averaged = any(member.presence for member in manifest.members)
        tried = settings(GRID if averaged else GRID | {"gate": ("member",)}, base)
        tried += settings(STUDENT_GRID, base) if asked.student is not None else []
    exhaustive = outcome(records, manifest, ScoringConfig())
    losses = [loss(records, manifest, scoring, exhaustive) for scoring in tried]
    shown = {name: loss(records, manifest, scoring, exhaustive) for name, scoring in named.items()}
    within = [item for item in losses if item.within_bounds]
    chosen = min(within, key=lambda item: (item.time_share, -item.same_share), default=None)
    print(text(manifest, records, exhaustive, shown, best(losses), chosen))
    print(
        json.dumps(
            {
                "date": today(),
                "machine": describe_machine(),
                "versions": versions(),
                "model": manifest.name,
                "cases": len(records),
                "frames": sum(len(record.labels) for record in records),
                "precision": str(asked.ensemble.dtype).removeprefix("torch."),
                "exhaustive": {"worth": float(np.mean(exhaustive.worth)), "f1": exhaustive.f1},
                **{name.replace(" ", "_"): dataclasses.asdict(item) for name, item in shown.items()},
                "settings_tried": len(losses),
                "settings_within_bounds": len(within),
                "best": [dataclasses.asdict(item) for item in best(losses)],
                "chosen": None if chosen is None else dataclasses.asdict(chosen),
            }
        )
    )
    return 0


def all_that_judges(artifact: Artifact, args: argparse.Namespace) -> Asked:
    """The artifact's members, its averaged gate and its student, so far as it has them and they are to be tried, where
    and in the type that the command line says."""
    manifest = artifact.manifest
    device, _ = choose_device(args.device)
    dtype = choose_precision(device, manifest.half_precision).dtype
    if args.precision is not None:
        dtype = getattr(torch, args.precision)
    with_gate = any(member.presence for member in manifest.members)
    with_gate = with_gate and not (args.own_settings and manifest.scoring.gate == "student")
    # The averaged gate is merged only for a gated manifest.
    mode = ScoringConfig(mode="gated", gate="average") if with_gate else ScoringConfig()
    asking = dataclasses.replace(artifact, manifest=dataclasses.replace(manifest, scoring=mode))
    ensemble = Ensemble.from_artifact(asking, device, dtype)
    student = None
    if manifest.student is not None and artifact.student is not None:
        student = student_from_state(manifest.student, artifact.student, device, dtype)
    return Asked(ensemble, with_gate, student, choose_batch_frames(manifest.tower, ensemble.members, device, dtype))


def cases_of(releases: Sequence[Path], count: int | None) -> list[tuple[str, Path, Path]]:
    """Name, image and mask of the first `count` cases, None is all, of each release. Raises AcouslicError where two
    have the same name."""
    cases = [
        (uuid, release.image_path(uuid), release.mask_path(uuid))
        for release in map(Release, releases)
        for uuid in release.cases()[:count]
    ]
    if len({uuid for uuid, *_ in cases}) < len(cases):
        raise AcouslicError("two of the releases hold a case of the same name: measure them one by one")
    return cases


def text(
    manifest: Manifest,
    records: Sequence[Record],
    exhaustive: Outcome,
    shown: dict[str, Loss],
    front: Sequence[Loss],
    chosen: Loss | None,
) -> str:
    """The table."""
    header = [
        "",
        "gate",
        "stride",
        "margin",
        "ratio",
        "presence",
        "cap",
        "rounds",
        "scale",
        "same score",
        "WFSS",
        "same frame",
    ]
    header += ["F1", "F1 difference", "F1 to exhaustive", "refined", "time"]
    mean_worth = f"{np.mean(exhaustive.worth):.3f}"
    rows = [["exhaustive", *["-"] * 8, "100.0 %", mean_worth, "100.0 %", f"{exhaustive.f1:.4f}"]]
    rows[0] += ["0", "1", "100.0 %", "1"]
    rows += [_row(name, item) for name, item in shown.items()]
    rows += [_row("chosen" if item is chosen else "", item) for item in front]
    if chosen is not None and chosen not in front:
        rows.append(_row("chosen", chosen))
    lines = [
        f"{manifest.name}: {len(records)} cases, {sum(len(record.labels) for record in records)} frames",
        table(header, rows),
        f"Bounds: same score in {LEAST_SAME_SHARE:.0%} of cases, F1 within {MOST_F1_DIFFERENCE}. One case is "
        f"{1 / len(records):.1%} of these. WFSS counts the first candidate, whether or not its mask has an ellipse.",
    ]
    if chosen is None and front:
        lines.append("No settings of the grid are within the bounds.")
    return "\n".join(lines)


def _row(name: str, item: Loss) -> list[str]:
    scoring = item.scoring
    interval = "" if item.f1_interval is None else f" ({item.f1_interval[0]:+.4f} to {item.f1_interval[1]:+.4f})"
    gate = f"member {scoring.gate_member}" if scoring.gate == "member" else scoring.gate
    settings_cells = [gate, str(scoring.stride), str(scoring.margin_frames), f"{scoring.refine_ratio:g}"]
    settings_cells += [
        "..".join(f"{value:g}" for value in scoring.refine_presence),
        f"{scoring.max_refined_fraction:g}",
        str(scoring.rounds),
        str(scoring.scale_frames),
    ]
    return [
        name + ("" if item.within_bounds else " (!)"),
        *settings_cells,
        f"{item.same_share:.1%}",
        f"{item.worth:.3f}",
        f"{item.same_frame_share:.1%}",
        f"{item.f1:.4f}",
        f"{item.f1_difference:+.4f}{interval}",
        f"{item.f1_to_exhaustive:.4f}",
        f"{item.refined_share:.1%}",
        f"{item.time_share:.3f}",
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the artifact")
    parser.add_argument(
        "--release", type=Path, nargs="+", required=True, help="folders of cases in the raw release's layout"
    )
    parser.add_argument("--cases", type=at_least(1), metavar="N", help="only the first N of each (default: all)")
    parser.add_argument("--own-settings", action="store_true", help="try the manifest's settings only")
    parser.add_argument(
        "--cache",
        type=Path,
        help="a folder for what was scored, used again for the same model, precision and files (default: none)",
    )
    add_device(parser)
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16"),
        help="of all that is scored (default: as the model is used)",
    )
    return parser


if __name__ == "__main__":
    exit_with(main)
