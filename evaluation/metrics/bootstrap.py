"""95 % intervals by resampling the patients: what would another such test set have said?

Cases of one subject are alike, so whole subjects are drawn, with replacement; a case without a known subject is drawn
by itself. Only sums over cases are ever needed, so a resample is a vector of case weights and 1,000 of them are one
matrix product. Percentile intervals, fixed seed: the same cases give the same interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.metrics.frame_f1 import ConfusionCounts

RESAMPLES = 1000
SEED = 20250730
_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Interval:
    """An estimate with the 2.5 % and 97.5 % percentiles of its resamples."""

    estimate: float
    lower: float
    upper: float

    def metrics(self) -> dict[str, float]:
        """As plain numbers."""
        return {"estimate": self.estimate, "lower": self.lower, "upper": self.upper}


def units_of(subject_ids: Sequence[str | None]) -> np.ndarray:
    """What is drawn: int (n,), the unit of each case, 0, 1, ...; a case whose subject is None is a unit of its own."""
    units: dict[tuple[str, str | int], int] = {}
    keys = [("case", i) if subject is None else ("subject", subject) for i, subject in enumerate(subject_ids)]
    return np.array([units.setdefault(key, len(units)) for key in keys], dtype=int)


def resample_weights(units: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """How often each case is drawn in each resample: int (resamples, n). No cases: (resamples, 0)."""
    if not len(units):
        return np.zeros((resamples, 0), dtype=int)
    count = int(units.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return drawn[:, units]


def mean_interval(values: np.ndarray, weights: np.ndarray) -> Interval | None:
    """Of the mean over cases. `values` float (n,), NaN where a case has none and does not count; None if all are NaN.

    Resamples that hit no case with a value are left out.
    """
    known = ~np.isnan(values)
    if not known.any():
        return None
    totals = weights[:, known].sum(axis=1)
    means = (weights[:, known] @ values[known])[totals > 0] / totals[totals > 0]
    return _interval(float(values[known].mean()), means)


def f1_interval(counts: Sequence[ConfusionCounts], weights: np.ndarray) -> Interval | None:
    """Of the F1 of pooled frames. None where it is undefined, and resamples in which it is are left out."""
    estimate = sum(counts, ConfusionCounts()).f1
    if estimate is None:
        return None
    return _interval(estimate, _resampled_f1(counts, weights))


def paired_mean_interval(values_a: np.ndarray, values_b: np.ndarray, weights: np.ndarray) -> Interval:
    """Of the mean of B - A over the same cases, float (n,) each, n at least 1, without NaN."""
    interval = mean_interval(values_b - values_a, weights)
    if interval is None:
        raise ValueError("no cases, or NaN")
    return interval


def paired_f1_interval(
    counts_a: Sequence[ConfusionCounts], counts_b: Sequence[ConfusionCounts], weights: np.ndarray
) -> Interval | None:
    """Of F1 of B - F1 of A over the same cases; undefined as in `f1_interval`."""
    f1_a, f1_b = sum(counts_a, ConfusionCounts()).f1, sum(counts_b, ConfusionCounts()).f1
    if f1_a is None or f1_b is None:
        return None
    return _interval(f1_b - f1_a, _resampled_f1(counts_b, weights) - _resampled_f1(counts_a, weights))


def _resampled_f1(counts: Sequence[ConfusionCounts], weights: np.ndarray) -> np.ndarray:
    """F1 of each resample, float (resamples,), NaN where it is undefined."""
    doubled_tp = weights @ np.array([2 * case.tp for case in counts], dtype=int)
    total = doubled_tp + weights @ np.array([case.fp + case.fn for case in counts], dtype=int)
    return np.divide(doubled_tp, total, out=np.full(len(total), np.nan), where=total > 0)


def _interval(estimate: float, resampled: np.ndarray) -> Interval | None:
    resampled = resampled[~np.isnan(resampled)]
    if not len(resampled):
        return None
    lower, upper = np.percentile(resampled, _PERCENTILES)
    return Interval(estimate, float(lower), float(upper))
