"""Frame classification: confusion counts and what follows from them, in two protocols that are never mixed.

`annotated_sweeps` is the paper's protocol (arXiv 2507.22802): only frames of sweeps with a reference circumference,
which a user of a blind sweep cannot know. `all_frames` counts every frame of the stack. Two targets: `presence`, the
frame shows the abdomen (label 1 or 2), and `optimal`, it shows the optimal plane (label 1) against all the rest.

Frames of all cases are pooled, as in the paper. What is undefined (precision without positive calls, AUROC without
positives) is left out, never NaN; the counts beside it say why.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from grand_challenge_metrics.stats import calculate_confusion_matrix
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from acouslic.frame_labels import OPTIMAL
from acouslic.geometry import sweep_ranges
from evaluation.metrics.case_result import CaseResult

Protocol = Literal["annotated_sweeps", "all_frames"]
Target = Literal["presence", "optimal"]
Rule = Literal["own_threshold", "half", "selection"]
"""How frames are called positive: from the submission's own threshold on, from 0.5 on, or the chosen frame alone."""

PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
TARGETS: tuple[Target, ...] = get_args(Target)
RULES: tuple[Rule, ...] = get_args(Rule)


@dataclass(frozen=True)
class ConfusionCounts:
    """Frames by truth and call."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0

    def __add__(self, other: "ConfusionCounts") -> "ConfusionCounts":
        return ConfusionCounts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def f1(self) -> float | None:
        """2 TP / (2 TP + FP + FN); None where there is no positive and none was called."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    def metrics(self) -> dict[str, float]:
        """The counts and the defined ones of f1, accuracy, precision, recall, specificity."""
        tp, fp, fn, tn = self.tp, self.fp, self.fn, self.tn
        ratios = {
            "f1": self.f1,
            "accuracy": _ratio(tp + tn, tp + fp + fn + tn),
            "precision": _ratio(tp, tp + fp),
            "recall": _ratio(tp, tp + fn),
            "specificity": _ratio(tn, tn + fp),
        }
        counts: dict[str, float] = {"tp": tp, "fp": fp, "fn": fn, "tn": tn}
        return {name: value for name, value in ratios.items() if value is not None} | counts


def confusion_counts(truth: np.ndarray, called: np.ndarray) -> ConfusionCounts:
    """The counts of two bool arrays of one shape. Empty arrays: all zero."""
    (tn, fp), (fn, tp) = calculate_confusion_matrix(truth, called, labels=[0, 1]).tolist()
    return ConfusionCounts(tp=tp, fp=fp, fn=fn, tn=tn)


def protocol_frames(result: CaseResult, protocol: Protocol) -> np.ndarray:
    """Which frames of the case a protocol counts: bool (F,)."""
    frames = len(result.frame_labels)
    if protocol == "all_frames":
        return np.ones(frames, dtype=bool)
    counted = np.zeros(frames, dtype=bool)
    for sweep, annotated in zip(sweep_ranges(frames), result.annotated_sweeps, strict=True):
        counted[sweep.start : sweep.stop] = annotated
    return counted


def truth_of(result: CaseResult, target: Target) -> np.ndarray:
    """Which frames are positive in the reference: bool (F,)."""
    return result.frame_labels == OPTIMAL if target == "optimal" else result.frame_labels > 0


def score_of(result: CaseResult, target: Target) -> np.ndarray | None:
    """What ranks the frames: float64 (F,) in 0..1, presence, or presence x optimality. None where not submitted."""
    if target == "presence" or result.presence_probability is None:
        return result.presence_probability
    if result.optimality_probability is None:
        return None
    return result.presence_probability * result.optimality_probability


def called_positive(result: CaseResult, target: Target, rule: Rule) -> np.ndarray | None:
    """Which frames the submission calls positive: bool (F,); None where it gave no scores to decide by.

    Under `own_threshold`, `optimal` needs both probabilities at or above their own thresholds; under `half` the
    product at or above 0.5. `selection` needs no scores: the chosen frame, whatever the target; none for -1.
    """
    if rule == "selection":
        called = np.zeros(len(result.frame_labels), dtype=bool)
        if result.frame_number >= 0:
            called[result.frame_number] = True
        return called
    score = score_of(result, target)
    if score is None:
        return None
    if rule == "half":
        return score >= 0.5
    present = _at_or_above(result.presence_probability, result.presence_threshold)
    if target == "presence":
        return present
    return present & _at_or_above(result.optimality_probability, result.optimality_threshold)


def case_counts(result: CaseResult, target: Target, rule: Rule, protocol: Protocol) -> ConfusionCounts | None:
    """Confusion counts of one case; None where the rule needs scores that were not submitted."""
    called = called_positive(result, target, rule)
    if called is None:
        return None
    counted = protocol_frames(result, protocol)
    return confusion_counts(truth_of(result, target)[counted], called[counted])


def has_scores(result: CaseResult, target: Target) -> bool:
    """Whether the case takes part in the figures from scores."""
    return score_of(result, target) is not None


def score_metrics(results: Sequence[CaseResult], target: Target, protocol: Protocol) -> dict[str, Any]:
    """Pooled over cases that all have scores: AUROC, average precision, and the counts at each threshold.

    `at_best_threshold_optimistic` is the threshold with the largest F1 on these very frames, so it flatters.
    """
    truth, score = pooled(results, target, protocol)
    positives = int(truth.sum())
    metrics: dict[str, Any] = {"frames": len(truth), "positives": positives}
    if positives:
        metrics["average_precision"] = float(average_precision_score(truth, score))
    if 0 < positives < len(truth):
        metrics["auroc"] = float(roc_auc_score(truth, score))
    metrics["at_own_threshold"] = pooled_counts(results, target, "own_threshold", protocol).metrics()
    metrics["at_half"] = pooled_counts(results, target, "half", protocol).metrics()
    if positives:
        threshold = best_threshold(truth, score)
        counts = confusion_counts(truth, score >= threshold)
        metrics["at_best_threshold_optimistic"] = {"threshold": threshold} | counts.metrics()
    return metrics


def selection_metrics(results: Sequence[CaseResult], target: Target, protocol: Protocol) -> dict[str, float]:
    """The chosen frame as the only one a case calls positive; all cases take part. Recall is small by nature."""
    return pooled_counts(results, target, "selection", protocol).metrics()


def pooled(results: Sequence[CaseResult], target: Target, protocol: Protocol) -> tuple[np.ndarray, np.ndarray]:
    """Truth (bool) and score (float64), both (n,), of the counted frames of all cases, which must have scores."""
    truths, scores = [np.zeros(0, dtype=bool)], [np.zeros(0)]
    for result in results:
        score, counted = score_of(result, target), protocol_frames(result, protocol)
        if score is None:
            raise ValueError(f"case {result.case} has no scores for {target}")
        truths.append(truth_of(result, target)[counted])
        scores.append(score[counted])
    return np.concatenate(truths), np.concatenate(scores)


def pooled_counts(results: Sequence[CaseResult], target: Target, rule: Rule, protocol: Protocol) -> ConfusionCounts:
    """The sum of `case_counts` over the cases, leaving out those without scores where the rule needs them."""
    total = ConfusionCounts()
    for result in results:
        counts = case_counts(result, target, rule, protocol)
        if counts is not None:
            total += counts
    return total


def best_threshold(truth: np.ndarray, score: np.ndarray) -> float:
    """The threshold, one of `score`, that gives the largest F1 where frames of at least that score are called positive.

    `truth` is bool (n,), `score` float (n,); at least one of `truth` must be True.
    """
    precision, recall, thresholds = precision_recall_curve(truth, score)
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    return float(thresholds[np.argmax(f1[:-1])])


def _at_or_above(probability: np.ndarray | None, threshold: float | None) -> np.ndarray:
    if probability is None or threshold is None:
        raise ValueError("probabilities without their threshold")
    return probability >= threshold


def _ratio(numerator: int, denominator: int) -> float | None:
    return numerator / denominator if denominator else None
