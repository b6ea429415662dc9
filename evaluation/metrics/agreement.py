"""How well the measured circumferences agree with the reference, how far the chosen frames are off, sweep by sweep.

Errors are prediction - reference, so a positive one is a measurement too large. Means are plain; limits of agreement
are bias +- 1.96 sample standard deviations (Bland and Altman 1986).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from acouslic.frame_labels import OPTIMAL
from acouslic.geometry import SPACING_MM, sweep_index, sweep_ranges
from acouslic.sockets import NO_FRAME
from evaluation.metrics.case_result import CaseResult
from evaluation.metrics.frame_f1 import ConfusionCounts, called_positive, confusion_counts, truth_of

WITHIN_PERCENT = (5, 10, 15)
"""Human observers differ by about 9 % between and 5 % within themselves."""
LIMITS_SD = 1.96
_ROUNDING_PERCENT = 1e-9
"""An error of exactly 5 % counts as within 5 %, whatever the last digit of its float."""


def ac_error_mm(result: CaseResult) -> float | None:
    """Predicted - reference circumference; None where either is missing."""
    if result.predicted_ac_mm is None or result.reference_ac_mm is None:
        return None
    return result.predicted_ac_mm - result.reference_ac_mm


def ac_error_percent(result: CaseResult) -> float | None:
    """The error in per cent of the reference; None where either circumference is missing."""
    error_mm = ac_error_mm(result)
    return None if error_mm is None or result.reference_ac_mm is None else 100 * error_mm / result.reference_ac_mm


def other_pixel_sizes(results: Sequence[CaseResult]) -> str | None:
    """What to know where references state another pixel size than every circumference is measured with; None where
    none does."""
    others = sum(result.other_pixel_size for result in results)
    if not others:
        return None
    return (
        f"the pixel size is another than {SPACING_MM} mm in {others} of {len(results)} cases; circumferences are "
        f"measured with {SPACING_MM} mm, as the official evaluator does, so errors in mm and scores mean nothing there"
    )


def circumference_agreement(results: Sequence[CaseResult]) -> dict[str, Any]:
    """Counts of measured and missing cases; of the measured ones, errors in mm and per cent and shares within limits.

    `cases_without_reference`: no circumference in the sweep of the chosen frame, or no frame chosen;
    `cases_without_ellipse`: a reference, but nothing measurable in the mask. Without a measured case, only counts;
    spread and limits need two.
    """
    measured = [result for result in results if ac_error_mm(result) is not None]
    without_reference = sum(result.reference_ac_mm is None for result in results)
    metrics: dict[str, Any] = {
        "cases_measured": len(measured),
        "cases_without_reference": without_reference,
        "cases_without_ellipse": len(results) - len(measured) - without_reference,
    }
    if not measured:
        return metrics
    errors_percent = np.array([ac_error_percent(result) for result in measured], dtype=float)
    metrics["error_mm"] = _bland_altman(np.array([ac_error_mm(result) for result in measured], dtype=float))
    metrics["error_percent"] = _bland_altman(errors_percent)
    within = {
        f"within_{limit}_percent": int(np.sum(np.abs(errors_percent) <= limit + _ROUNDING_PERCENT))
        for limit in WITHIN_PERCENT
    }
    metrics["share_of_measured_cases"] = {name: count / len(measured) for name, count in within.items()}
    metrics["share_of_all_cases"] = {name: count / len(results) for name, count in within.items()}
    return metrics


def _bland_altman(errors: np.ndarray) -> dict[str, float]:
    metrics = {
        "bias": float(errors.mean()),
        "mean_absolute": float(np.abs(errors).mean()),
        "median_absolute": float(np.median(np.abs(errors))),
    }
    if len(errors) > 1:
        sd = float(errors.std(ddof=1))
        metrics |= {
            "sd": sd,
            "lower_limit": metrics["bias"] - LIMITS_SD * sd,
            "upper_limit": metrics["bias"] + LIMITS_SD * sd,
        }
    return metrics


def choice_of(result: CaseResult) -> str:
    """What the submission chose: `optimal`, `suboptimal`, `unannotated_frame` (of a sweep that has annotated frames),
    `unannotated_sweep` or `no_frame`."""
    if result.frame_number == NO_FRAME:
        return "no_frame"
    label = int(result.frame_labels[result.frame_number])
    if label:
        return "optimal" if label == OPTIMAL else "suboptimal"
    sweep = sweep_ranges(len(result.frame_labels))[sweep_index(result.frame_number, len(result.frame_labels))]
    return "unannotated_frame" if result.frame_labels[sweep.start : sweep.stop].any() else "unannotated_sweep"


def frame_choices(results: Sequence[CaseResult]) -> dict[str, Any]:
    """How many cases chose what, and how far from the nearest annotated and optimal frame of the same sweep.

    `cases_with_optimal_frame`: the cases in which an optimal choice was possible. Distances count the cases in which
    the sweep of the chosen frame has such a frame; without one, only the count.
    """
    choices = [choice_of(result) for result in results]
    names = ("optimal", "suboptimal", "unannotated_frame", "unannotated_sweep", "no_frame")
    return {
        "cases": {name: choices.count(name) for name in names},
        "cases_with_optimal_frame": sum(bool((result.frame_labels == OPTIMAL).any()) for result in results),
        "to_annotated_frames": _distances([result.annotated_distance_frames for result in results]),
        "to_optimal_frames": _distances([result.optimal_distance_frames for result in results]),
    }


def _distances(distances: Sequence[int | None]) -> dict[str, float]:
    known = [abs(distance) for distance in distances if distance is not None]
    if not known:
        return {"cases": 0}
    return {"cases": len(known), "mean": float(np.mean(known)), "median": float(np.median(known)), "max": max(known)}


def sweep_table(results: Sequence[CaseResult]) -> dict[str, dict[str, Any]]:
    """One entry a sweep (`sweep_1`, ...): where annotations are, where the choices fell, and how they did there.

    `cases_annotated` have a reference circumference there; of `cases_chosen` the frame lies there, of those
    `cases_chosen_annotated` in a labelled frame. `presence` is the frame classification of all its frames at the
    submission's own threshold, over the cases with scores. Errors as in `circumference_agreement`.
    """
    sweeps = max((len(result.annotated_sweeps) for result in results), default=0)
    return {f"sweep_{index + 1}": _sweep_row(results, index) for index in range(sweeps)}


def _sweep_row(results: Sequence[CaseResult], index: int) -> dict[str, Any]:
    chosen, counts = [], ConfusionCounts()
    for result in results:
        frames = len(result.frame_labels)
        ranges = sweep_ranges(frames)
        if index >= len(ranges):
            continue
        if result.frame_number in ranges[index]:
            chosen.append(result)
        called = called_positive(result, "presence", "own_threshold")
        if called is not None:
            here = slice(ranges[index].start, ranges[index].stop)
            counts += confusion_counts(truth_of(result, "presence")[here], called[here])
    row: dict[str, Any] = {
        "cases_annotated": sum(index < len(r.annotated_sweeps) and r.annotated_sweeps[index] for r in results),
        "cases_chosen": len(chosen),
        "cases_chosen_annotated": sum(bool(result.frame_labels[result.frame_number]) for result in chosen),
    }
    if chosen:
        row["mean_score"] = float(np.mean([result.score for result in chosen]))
        row["circumference"] = circumference_agreement(chosen)
    if counts != ConfusionCounts():
        row["presence"] = counts.metrics()
    return row
