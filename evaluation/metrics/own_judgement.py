"""Whether a submission knows what it is worth: `suitable`, its interval, and risk against coverage; figures by set.

The risk of a case is what its score lacks to 1. Cases are taken in, the surest first: coverage is the share taken, risk
their mean. A useful confidence gives a curve that rises to the right (El-Yaniv and Wiener 2010).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.metrics.calibration import calibration
from evaluation.metrics.case_result import CaseResult
from evaluation.metrics.frame_f1 import has_scores, pooled, pooled_counts, score_metrics


def suitability(results: Sequence[CaseResult]) -> dict[str, Any]:
    """Of the cases that say whether they are suitable: how many are, and the mean score of those and of all.

    `interval_cases` state an interval and have a reference; `interval_coverage` is the share of these whose reference
    lies in it. Without such cases, only counts.
    """
    judged = [result for result in results if result.suitable is not None]
    suitable = [result for result in judged if result.suitable]
    stated = [
        (result.interval_mm, result.reference_ac_mm)
        for result in results
        if result.interval_mm is not None and result.reference_ac_mm is not None
    ]
    figures: dict[str, Any] = {
        "cases_judged": len(judged),
        "cases_suitable": len(suitable),
        "interval_cases": len(stated),
    }
    if judged:
        figures["coverage"] = len(suitable) / len(judged)
        figures["mean_score"] = float(np.mean([result.score for result in judged]))
    if suitable:
        figures["mean_score_of_suitable"] = float(np.mean([result.score for result in suitable]))
    if stated:
        inside = [interval[0] <= reference <= interval[1] for interval, reference in stated]
        figures["interval_coverage"] = float(np.mean(inside))
    return figures


def risk_against_coverage(results: Sequence[CaseResult]) -> tuple[np.ndarray, np.ndarray]:
    """Coverage, ascending to 1, and risk, both float (n,), of the n cases that state a confidence, the surest first.

    Cases of equal confidence come together: one point for all of them.
    """
    confident = [(result.confidence, 1 - result.score) for result in results if result.confidence is not None]
    if not confident:
        return np.zeros(0), np.zeros(0)
    confidence, risk = np.array(sorted(confident, key=lambda pair: -pair[0])).T
    taken = np.flatnonzero(np.diff(confidence, append=-1.0)) + 1
    return taken / len(risk), np.cumsum(risk)[taken - 1] / taken


def set_figures(results: Sequence[CaseResult]) -> list[dict[str, Any]]:
    """One entry a named set, sorted by name: its cases, its mean score, and how its frames are judged in all sweeps.

    `f1`, `average_precision`, `brier_score` and `expected_calibration_error` are of presence, over the cases with
    scores, which `cases_with_scores` counts. Empty where no case belongs to a set.
    """
    names = sorted({result.set_name for result in results if result.set_name is not None})
    return [_set_figures(name, [result for result in results if result.set_name == name]) for name in names]


def _set_figures(name: str, results: Sequence[CaseResult]) -> dict[str, Any]:
    figures: dict[str, Any] = {"set": name, "cases": len(results)}
    if all(result.has_score for result in results):
        figures["mean_score"] = float(np.mean([result.score for result in results]))
    figures["mean_wfss"] = float(np.mean([result.official["wfss"] for result in results]))
    judged = [result.suitable for result in results if result.suitable is not None]
    if judged:
        figures["share_suitable"] = float(np.mean(judged))
    scored = [result for result in results if has_scores(result, "presence")]
    if scored:
        figures["cases_with_scores"] = len(scored)
        f1 = pooled_counts(scored, "presence", "own_threshold", "all_frames").f1
        ranking = score_metrics(scored, "presence", "all_frames")
        probabilities = calibration(*pooled(scored, "presence", "all_frames"))
        found = {"f1": f1, "average_precision": ranking.get("average_precision")}
        found |= {key: probabilities[key] for key in ("brier_score", "expected_calibration_error")}
        figures |= {key: value for key, value in found.items() if value is not None}
    return figures
