"""Whether the submitted probabilities mean what they say: Brier score, reliability table, calibration error."""

from typing import Any

import numpy as np

BINS = 10
"""Equal widths; a probability on an edge belongs to the bin above it, 1.0 to the last."""


def reliability_table(truth: np.ndarray, probability: np.ndarray) -> dict[str, np.ndarray]:
    """Frames by probability: `frames` int (10,), `mean_probability` and `observed_fraction` float (10,), NaN if empty.

    `truth` is bool (n,), `probability` float (n,) in 0..1.
    """
    # floor, not digitize: the edge 0.3 of linspace is 0.30000000000000004.
    bin_index = np.minimum(np.floor(probability * BINS).astype(int), BINS - 1)
    frames = np.bincount(bin_index, minlength=BINS)
    filled = np.where(frames > 0, frames, np.nan)
    return {
        "frames": frames,
        "mean_probability": np.bincount(bin_index, weights=probability, minlength=BINS) / filled,
        "observed_fraction": np.bincount(bin_index, weights=truth, minlength=BINS) / filled,
    }


def calibration(truth: np.ndarray, probability: np.ndarray) -> dict[str, Any]:
    """Brier score (mean squared distance from 0 or 1), expected calibration error and the table as plain numbers.

    The expected calibration error is the mean over frames of `|observed fraction - mean probability|` of their bin.
    No frames: only `frames`: 0.
    """
    if not len(truth):
        return {"frames": 0}
    table = reliability_table(truth, probability)
    gap = np.abs(table["observed_fraction"] - table["mean_probability"])
    return {
        "frames": len(truth),
        "brier_score": float(np.mean((probability - truth) ** 2)),
        "expected_calibration_error": float(np.nansum(gap * table["frames"]) / len(truth)),
        "reliability": {f"bin_{index + 1}": _bin(table, index) for index in range(BINS)},
    }


def _bin(table: dict[str, np.ndarray], index: int) -> dict[str, float]:
    frames = int(table["frames"][index])
    if not frames:
        return {"frames": 0}
    return {"frames": frames} | {name: float(table[name][index]) for name in ("mean_probability", "observed_fraction")}
