"""Every reading of one system on one set of cases, beside the plain one, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from acouslic.frame_labels import frame_worth
from bench.figures.readings import READINGS, Called, Fitted, Reading, SaidOfCase
from bench.figures.table import table
from evaluation.metrics import intervals
from evaluation.metrics.frame_f1 import ConfusionCounts, confusion_counts
from evaluation.metrics.intervals import Interval

DRAWN_CASES = 10
_SEED = 20251129


@dataclass(frozen=True)
class Figures:
    """One reading of one set."""

    f1: Interval | None
    f1_difference: Interval | None
    """To the plain reading, paired."""
    wfss: Interval | None
    wfss_difference: Interval | None
    precision: float
    recall: float
    without_extremes: tuple[float, float] | None
    """F1 without the case that lowers it most, and without the one that raises it most."""

    def metrics(self) -> dict[str, object]:
        """As plain numbers."""
        return {name: value.metrics() if isinstance(value, Interval) else value for name, value in vars(self).items()}


def measure(cases: Sequence[SaidOfCase], called: Sequence[Called], plainly: Sequence[Called]) -> Figures:
    """The figures of a reading of some cases beside the plain one."""
    counts, plain_counts = (
        [confusion_counts(case.label > 0, one.positive) for case, one in zip(cases, calls, strict=True)]
        for calls in (called, plainly)
    )
    worth, plain_worth = (
        np.array([frame_worth(case.label, one.chosen) for case, one in zip(cases, calls, strict=True)])
        for calls in (called, plainly)
    )
    units = intervals.units_of([case.subject for case in cases])
    total = sum(counts, ConfusionCounts())
    return Figures(
        f1=intervals.f1_interval(counts, units),
        f1_difference=intervals.paired_f1_interval(plain_counts, counts, units),
        wfss=intervals.mean_interval(worth, units),
        wfss_difference=intervals.paired_mean_interval(plain_worth, worth, units),
        precision=total.tp / max(1, total.tp + total.fp),
        recall=total.tp / max(1, total.tp + total.fn),
        without_extremes=intervals.f1_without_extremes(counts),
    )


def draw_differences(
    fit_cases: Sequence[SaidOfCase], test_cases: Sequence[SaidOfCase], reading: Reading, draws: int
) -> list[float]:
    """F1 minus plain on the test cases, of the reading fitted on `DRAWN_CASES` of the others, for each draw."""
    rng = np.random.default_rng(_SEED)
    plain_f1 = _pooled_f1(test_cases, READINGS["plain, 0.5"]([]))
    found = []
    for _ in range(draws):
        chosen = rng.permutation(len(fit_cases))[:DRAWN_CASES]
        found.append(_pooled_f1(test_cases, reading([fit_cases[k] for k in chosen])) - plain_f1)
    return found


def _pooled_f1(cases: Sequence[SaidOfCase], fitted: Fitted) -> float:
    counts = [confusion_counts(case.label > 0, fitted(case).positive) for case in cases]
    return sum(counts, ConfusionCounts()).f1 or 0.0


@dataclass(frozen=True)
class Comparison:
    """Every reading of one system on one set."""

    system: str
    name: str
    cases: int
    annotated_frames: int
    figures: dict[str, Figures]
    draws: dict[str, list[float]]

    def text(self) -> str:
        """The table."""
        header = [
            "reading",
            "F1, all frames",
            "minus plain",
            "precision",
            "recall",
            "WFSS",
            "minus plain",
            "without worst, best case",
        ]
        rows = [
            [
                name,
                _text(one.f1),
                _text(one.f1_difference, signed=True),
                f"{one.precision:.3f}",
                f"{one.recall:.3f}",
                _text(one.wfss),
                _text(one.wfss_difference, signed=True),
                "-" if one.without_extremes is None else "{:.3f}, {:.3f}".format(*one.without_extremes),
            ]
            for name, one in self.figures.items()
        ]
        lines = [f"{self.system}, {self.name}: {self.cases} cases, {self.annotated_frames} annotated frames"]
        lines.append(table(header, rows))
        for name, values in self.draws.items():
            low, middle, high = np.percentile(values, [5, 50, 95])
            lines.append(
                f"{name}, fitted on {DRAWN_CASES} cases, {len(values)} draws: {low:+.3f} {middle:+.3f} {high:+.3f}"
            )
        return "\n".join([*lines, ""])

    def metrics(self) -> dict[str, object]:
        """As plain numbers."""
        return {
            "system": self.system,
            "set": self.name,
            "cases": self.cases,
            "annotated_frames": self.annotated_frames,
            "readings": {name: one.metrics() for name, one in self.figures.items()},
            "draws": self.draws,
        }


def compare(
    system: str,
    name: str,
    cases: Sequence[SaidOfCase],
    called: dict[str, list[Called]],
    draws: dict[str, list[float]],
) -> Comparison:
    plainly = called["plain, 0.5"]
    return Comparison(
        system,
        name,
        len(cases),
        sum(int((case.label > 0).sum()) for case in cases),
        {reading: measure(cases, calls, plainly) for reading, calls in called.items()},
        draws,
    )


def _text(interval: Interval | None, *, signed: bool = False) -> str:
    if interval is None:
        return "-"
    form = "+.3f" if signed else ".3f"
    return f"{interval.estimate:{form}} ({interval.lower:{form}} to {interval.upper:{form}})"
