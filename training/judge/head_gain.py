"""What a case head is worth: F1 over all frames with it and without, on cases that it has not learned from."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from algorithm.model.networks import HeadGain
from training.judge.calibrate import CaseJudgement

LEAST_LOWER = -0.01
"""A head is kept where F1 rises and the lower end of the rise's interval does not lie below this."""
_LEVEL = 0.95


def measure_gain(
    without: Sequence[CaseJudgement], with_head: Sequence[CaseJudgement], subjects: Mapping[str, str]
) -> HeadGain:
    """Both readings on the same cases, in the same order; `subjects` is by uuid, two subjects at least.

    The interval is a jackknife's over subjects, with Student's t.
    """
    units = sorted({subjects[case.uuid] for case in without})
    counts = np.zeros((2, len(units), 3))
    for kind, cases in enumerate((without, with_head)):
        for case in cases:
            counts[kind, units.index(subjects[case.uuid])] += _counts(case)
    difference = _f1(counts[1].sum(0)) - _f1(counts[0].sum(0))
    left_out = np.array(
        [_f1(counts[1].sum(0) - counts[1, k]) - _f1(counts[0].sum(0) - counts[0, k]) for k in range(len(units))]
    )
    deviation = np.sqrt((len(units) - 1) * np.mean((left_out - left_out.mean()) ** 2))
    reach = float(stats.t.ppf(0.5 + _LEVEL / 2, len(units) - 1) * deviation)
    return HeadGain(
        cases=len(without),
        f1_without=round(_f1(counts[0].sum(0)), 4),
        f1_with=round(_f1(counts[1].sum(0)), 4),
        lower=round(max(-1.0, difference - reach), 4),
        upper=round(min(1.0, difference + reach), 4),
    )


def is_won(gain: HeadGain) -> bool:
    """Whether the head may be kept."""
    return gain.f1_with > gain.f1_without and gain.lower >= LEAST_LOWER


def describe_gain(gain: HeadGain) -> str:
    """One line for people."""
    return (
        f"F1 over all frames of {gain.cases} cases, each by a head and a reading made without its patient: "
        f"{gain.f1_without:.3f} without the head, {gain.f1_with:.3f} with it, {gain.f1_with - gain.f1_without:+.3f} "
        f"({gain.lower:+.3f} to {gain.upper:+.3f})"
    )


def _counts(case: CaseJudgement) -> NDArray[np.float64]:
    """Hits, false alarms and misses."""
    called, positive = case.frames.presence >= 0.5, case.label > 0
    return np.array([(called & positive).sum(), (called & ~positive).sum(), (~called & positive).sum()], float)


def _f1(counts: NDArray[np.float64]) -> float:
    """0 where nothing is called and nothing is positive."""
    hits, false_alarms, misses = counts
    total = 2 * hits + false_alarms + misses
    return float(2 * hits / total) if total else 0.0
