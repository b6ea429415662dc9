"""Frame-level figures during training and in the table: F1 and its relatives, with weights for sampled frames."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acouslic.frame_labels import frame_worth


@dataclass(frozen=True)
class FrameCounts:
    """A confusion matrix (weighted counts) and what follows from it; 0 where a ratio is undefined."""

    true_positive: float
    false_positive: float
    false_negative: float
    true_negative: float

    @property
    def precision(self) -> float:
        """TP / (TP + FP)."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float:
        """TP / (TP + FN)."""
        return _ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN)."""
        return _ratio(2 * self.true_positive, 2 * self.true_positive + self.false_positive + self.false_negative)

    @property
    def accuracy(self) -> float:
        """(TP + TN) / all."""
        right = self.true_positive + self.true_negative
        return _ratio(right, right + self.false_positive + self.false_negative)


def count_frames(
    probability: NDArray[np.float32], positive: NDArray[np.bool_], threshold: float, weight: NDArray[np.float32] | None
) -> FrameCounts:
    """Counts of frames (N,) that are called positive where their probability reaches `threshold`."""
    weights = np.ones(len(probability)) if weight is None else weight.astype(np.float64)
    called = probability >= threshold

    def total(chosen: NDArray[np.bool_]) -> float:
        return float(weights[chosen].sum())

    return FrameCounts(
        total(called & positive), total(called & ~positive), total(~called & positive), total(~called & ~positive)
    )


def best_f1(
    probability: NDArray[np.float32], positive: NDArray[np.bool_], weight: NDArray[np.float32] | None = None
) -> tuple[float, float]:
    """The highest F1 and the threshold that reaches it, half-way between two frames' probabilities.

    No positive frame: (0, 0.5). Optimistic on the frames it is chosen on.
    """
    if not positive.any():
        return 0.0, 0.5
    weights = np.ones(len(probability)) if weight is None else weight.astype(np.float64)
    order = np.argsort(-probability, kind="stable")
    sorted_probability = probability[order].astype(np.float64)
    hits = np.cumsum(weights[order] * positive[order])
    called = np.cumsum(weights[order])
    f1 = 2 * hits / (called + weights[positive].sum())
    # Frames of one probability are called together: only the last of them can be the cut.
    is_cut = np.append(sorted_probability[1:] < sorted_probability[:-1], True)
    best = int(np.argmax(np.where(is_cut, f1, -1)))
    below = sorted_probability[best + 1] if best + 1 < len(order) else 0.0
    return float(f1[best]), float((sorted_probability[best] + below) / 2)


def frame_selection_score(probability: NDArray[np.float32], case: NDArray[np.int64], label: NDArray[np.uint8]) -> float:
    """The challenge's WFSS (`frame_worth`) if each case's most probable frame were chosen; the mean over cases.

    All are (frames,); `label` is 0, 1 optimal, 2 suboptimal. Every annotated frame of a case must be among them. Cases
    without one are left out; without any case 0.
    """
    scores = []
    for number in np.unique(case[label > 0]):
        rows = np.flatnonzero(case == number)
        scores.append(frame_worth(label[rows], int(np.argmax(probability[rows]))))
    return float(np.mean(scores)) if scores else 0.0


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0
