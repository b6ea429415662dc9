"""95 % intervals: what would another test set of so many patients have said?

Cases of one subject are alike, so whole subjects count as one; a case without a known subject stands for itself.

Means get scipy's bootstrap (BCa, fixed seed: the same cases give the same interval). The F1 of pooled frames is a ratio
of sums that one or two cases dominate. There the percentiles of a bootstrap cover the truth in only 74 % of test sets
of 12 cases and 88 % of 40, and miss upwards. So F1 gets a jackknife over subjects on the logit scale, with Student's t
at the effective number of subjects, which falls where few of them carry the spread: 86 % and 95 %
(`bench/interval_coverage.py`). With 12 cases no method can know of the rare bad case that none of the 12 shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import expit

from evaluation.metrics.frame_f1 import ConfusionCounts

RESAMPLES = 1000
SEED = 20250730
_LEVEL = 0.95
_HALF_A_FRAME = 0.5
"""Added to hits and errors, so that a perfect F1 has a logit too."""
_FEWEST_DEGREES = 3
"""Below, Student's t grows so fast that the interval says nothing."""
_RESAMPLES_AT_ONCE = 1000
_ALIKE = 1e-12
"""Means that differ by less differ by rounding: scipy has no interval for them, and warns of them on stderr."""


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its 95 % interval."""

    estimate: float
    lower: float
    upper: float

    def metrics(self) -> dict[str, float]:
        """As plain numbers."""
        return {"estimate": self.estimate, "lower": self.lower, "upper": self.upper}


def units_of(subject_ids: Sequence[str | None]) -> np.ndarray:
    """The unit of each case, int (n,): one a subject; a case whose subject is None is a unit of its own."""
    units: dict[tuple[str, str | int], int] = {}
    keys = [("case", i) if subject is None else ("subject", subject) for i, subject in enumerate(subject_ids)]
    return np.array([units.setdefault(key, len(units)) for key in keys], dtype=int)


def mean_interval(values: np.ndarray, units: np.ndarray, resamples: int = RESAMPLES) -> Interval | None:
    """Of the mean over cases. `values` float (n,), NaN where a case has none and does not count; `units` int (n,).

    None where fewer than two units have a value. Units whose means are all alike give an interval of no width.
    """
    known = ~np.isnan(values)
    sums, counts = _by_unit(units[known], values[known], np.ones(known.sum()))
    if len(sums) < 2:
        return None
    estimate = float(values[known].mean())
    if np.allclose(sums / counts, estimate, rtol=0, atol=_ALIKE):
        return Interval(estimate, estimate, estimate)
    lower, upper = bootstrap_of_ratio(sums, counts, "BCa", resamples)
    return Interval(estimate, lower, upper) if np.isfinite([lower, upper]).all() else None


def bootstrap_of_ratio(
    sums: np.ndarray, counts: np.ndarray, method: str, resamples: int, seed: int = SEED
) -> tuple[float, float]:
    """scipy's interval of sum(sums) / sum(counts), one of each a unit, float (n,); NaN where `method` finds no ends."""
    # Numbered units instead of two samples: a bootstrap of pairs would draw the same units for both anyway.
    found = stats.bootstrap(
        (np.arange(len(sums)),),
        lambda drawn, axis: sums[drawn].sum(axis=axis) / counts[drawn].sum(axis=axis),
        n_resamples=resamples,
        batch=_RESAMPLES_AT_ONCE,
        vectorized=True,
        confidence_level=_LEVEL,
        method=method,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def f1_interval(counts: Sequence[ConfusionCounts], units: np.ndarray) -> Interval | None:
    """Of the F1 of the pooled frames of n cases; `units` int (n,). None where F1 is undefined or of a single unit."""
    estimate = sum(counts, ConfusionCounts()).f1
    hits, errors = _hits_and_errors(counts, units)
    if estimate is None or len(hits) < 2:
        return None

    def logit(hits: np.ndarray, errors: np.ndarray) -> np.ndarray:
        return np.log(hits + _HALF_A_FRAME) - np.log(errors + _HALF_A_FRAME)

    margin = _jackknife_margin(logit(hits.sum() - hits, errors.sum() - errors))
    middle = logit(hits.sum(), errors.sum())
    lower, upper = expit(middle - margin), expit(middle + margin)
    return Interval(estimate, min(estimate, float(lower)), max(estimate, float(upper)))


def paired_mean_interval(
    values_a: np.ndarray, values_b: np.ndarray, units: np.ndarray, resamples: int = RESAMPLES
) -> Interval | None:
    """Of the mean of B - A over the same cases, float (n,) each; as `mean_interval`."""
    return mean_interval(values_b - values_a, units, resamples)


def paired_f1_interval(
    counts_a: Sequence[ConfusionCounts], counts_b: Sequence[ConfusionCounts], units: np.ndarray
) -> Interval | None:
    """Of F1 of B - F1 of A over the same cases, by the same jackknife, not on the logit scale.

    None where either is undefined, with all units or without one of them.
    """
    f1_a, f1_b = sum(counts_a, ConfusionCounts()).f1, sum(counts_b, ConfusionCounts()).f1
    without = _f1_without_each(counts_b, units) - _f1_without_each(counts_a, units)
    if f1_a is None or f1_b is None or len(without) < 2 or np.isnan(without).any():
        return None
    margin = _jackknife_margin(without)
    difference = f1_b - f1_a
    return Interval(difference, max(-1.0, difference - margin), min(1.0, difference + margin))


def f1_without_extremes(counts: Sequence[ConfusionCounts]) -> tuple[float, float] | None:
    """F1 without the case that lowers it most, and without the one that raises it most.

    None where F1 is undefined without some case.
    """
    without = _f1_without_each(counts, np.arange(len(counts)))
    if len(without) < 2 or np.isnan(without).any():
        return None
    return float(without.max()), float(without.min())


def _jackknife_margin(without: np.ndarray) -> float:
    """Half the width of the interval around a figure that is `without`, float (units,), without each unit.

    The degrees of freedom are (sum d^2)^2 / sum d^4 of the deviations d, between 3 and units - 1: n where all n units
    deviate alike, 1 where a single one makes the whole spread (Satterthwaite's rule).
    """
    units = len(without)
    squares = (without - without.mean()) ** 2
    if not squares.any():
        return 0.0
    error = np.sqrt((units - 1) / units * squares.sum())
    effective = squares.sum() ** 2 / (squares**2).sum()
    degrees = max(_FEWEST_DEGREES, min(effective, units - 1))
    return float(stats.t.ppf((1 + _LEVEL) / 2, degrees) * error)


def _f1_without_each(counts: Sequence[ConfusionCounts], units: np.ndarray) -> np.ndarray:
    """F1 without each unit, float (units,), NaN where it is undefined."""
    hits, errors = _hits_and_errors(counts, units)
    total = hits.sum() - hits + errors.sum() - errors
    return np.divide(hits.sum() - hits, total, out=np.full(len(total), np.nan), where=total > 0)


def _hits_and_errors(counts: Sequence[ConfusionCounts], units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """2 TP and FP + FN of each unit, float (units,): F1 is the sum of the first over the sum of both."""
    return _by_unit(units, [2 * case.tp for case in counts], [case.fp + case.fn for case in counts])


def _by_unit(
    units: np.ndarray, first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The sums of two values a case over each unit that occurs, float (units,) each."""
    _, position = np.unique(units, return_inverse=True)
    sums = [np.bincount(position, weights=np.asarray(values, dtype=float)) for values in (first, second)]
    return sums[0], sums[1]
