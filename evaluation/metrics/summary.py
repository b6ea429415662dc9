"""All that our evaluation adds to the official metrics: nested for `metrics.json`, flat for `per_case.csv`."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from acouslic.geometry import sweep_index
from acouslic.sockets import NO_FRAME
from evaluation.metrics.agreement import (
    ac_error_mm,
    ac_error_percent,
    choice_of,
    circumference_agreement,
    frame_choices,
    sweep_table,
)
from evaluation.metrics.calibration import calibration
from evaluation.metrics.case_result import CaseResult
from evaluation.metrics.frame_f1 import (
    PROTOCOLS,
    RULES,
    TARGETS,
    ConfusionCounts,
    Rule,
    Target,
    case_counts,
    has_scores,
    pooled,
    score_metrics,
    selection_metrics,
)
from evaluation.metrics.intervals import RESAMPLES, f1_interval, f1_without_extremes, mean_interval, units_of
from evaluation.metrics.own_judgement import set_figures, suitability

CASE_MEANS = {
    "score": lambda result: result.score,
    "wfss": lambda result: result.official["wfss"],
    "DiceCoefficientSoft": lambda result: result.official["DiceCoefficientSoft"],
    "nae_circumference": lambda result: result.official["nae_circumference"],
    "ac_absolute_error_mm": lambda result: _absolute(ac_error_mm(result)),
    "ac_absolute_error_percent": lambda result: _absolute(ac_error_percent(result)),
}
"""What gets an interval of its mean; None where a case has no such value."""
F1_PREFIX: dict[Target, str] = {"presence": "frame_f1", "optimal": "optimal_f1"}
SELECTION_NAME: dict[Target, str] = {"presence": "selection_f1", "optimal": "selection_optimal_f1"}


def summarise(results: Sequence[CaseResult]) -> dict[str, Any]:
    """Everything but the official aggregates: nested dicts of finite numbers, no dots in keys, undefined keys left out.

    `frame_f1`, `optimal_f1` and `calibration` are over all cases and only there if every case has scores. Where only
    some have, the same figures over those cases are named `frame_f1_of_scored_cases` and so on: a submission that
    leaves out the scores of its hard cases has no figure under the comparable name. `selection_f1` needs no scores.
    """
    metrics = _classification(results)
    metrics["circumference"] = circumference_agreement(results)
    metrics["frame_choice"] = frame_choices(results)
    metrics["sweeps"] = sweep_table(results)
    metrics["suitability"] = suitability(results)
    metrics["intervals"] = intervals(results)
    return metrics


def summarise_frames(results: Sequence[CaseResult]) -> dict[str, Any]:
    """The same for cases of which only frames were judged: without score, circumferences and the table of sweeps."""
    return _classification(results) | {
        "wfss": {"mean": float(np.mean([result.official["wfss"] for result in results]))},
        "frame_choice": frame_choices(results),
        "intervals": intervals(results, means=("wfss",)),
    }


def _classification(results: Sequence[CaseResult]) -> dict[str, Any]:
    """Counts of cases, and how their frames are classified; `sets` where the cases belong to any."""
    sets = set_figures(results)
    metrics: dict[str, Any] = ({"sets": sets} if sets else {}) | {
        "case_count": len(results),
        "cases_failed": sum(result.failure is not None for result in results),
        "subjects": len({result.subject_id for result in results if result.subject_id is not None}),
    }
    for target in TARGETS:
        scored = [result for result in results if has_scores(result, target)]
        metrics[f"cases_with_{target}_scores"] = len(scored)
        if scored:
            suffix = scored_suffix(results, target)
            metrics[f"{F1_PREFIX[target]}{suffix}"] = {
                protocol: score_metrics(scored, target, protocol) for protocol in PROTOCOLS
            }
            if target == "presence":
                metrics[f"calibration{suffix}"] = {
                    protocol: calibration(*pooled(scored, target, protocol)) for protocol in PROTOCOLS
                }
        metrics[SELECTION_NAME[target]] = {
            protocol: selection_metrics(results, target, protocol) for protocol in PROTOCOLS
        }
    return metrics


def scored_suffix(results: Sequence[CaseResult], target: Target) -> str:
    """What a figure's name ends in: nothing where every case has scores, else `_of_scored_cases`."""
    return "" if all(has_scores(result, target) for result in results) else "_of_scored_cases"


def intervals(
    results: Sequence[CaseResult], resamples: int = RESAMPLES, means: Sequence[str] = tuple(CASE_MEANS)
) -> dict[str, Any]:
    """95 % intervals: of `means`, keys of `CASE_MEANS`, and of F1 at the own threshold by target and protocol.

    `units` are the subjects, each with all its cases, and the cases whose subject is unknown; `resamples` belong to the
    means. Keys of F1: `frame_f1_annotated_sweeps`, `selection_f1_all_frames` and so on, with `summarise`'s suffix; each
    also has the F1 `without_worst_case` and `without_best_case`.
    """
    units = units_of([result.subject_id for result in results])
    found: dict[str, Any] = {"units": len(set(units.tolist())), "resamples": resamples}
    for name in means:
        values = np.array([CASE_MEANS[name](result) for result in results], dtype=float)
        interval = mean_interval(values, units, resamples)
        if interval is not None:
            found[name] = interval.metrics()
    rules: tuple[Rule, ...] = ("own_threshold", "selection")
    for target in TARGETS:
        for protocol in PROTOCOLS:
            for rule in rules:
                name = SELECTION_NAME[target] if rule == "selection" else F1_PREFIX[target]
                suffix = "" if rule == "selection" else scored_suffix(results, target)
                f1 = _f1_with_interval([case_counts(result, target, rule, protocol) for result in results], units)
                if f1:
                    found[f"{name}_{protocol}{suffix}"] = f1
    return found


def _f1_with_interval(counts: Sequence[ConfusionCounts | None], units: np.ndarray) -> dict[str, float]:
    scored = [index for index, case in enumerate(counts) if case is not None]
    known = [case for case in counts if case is not None]
    interval, extremes = f1_interval(known, units[scored]), f1_without_extremes(known)
    without = {} if extremes is None else {"without_worst_case": extremes[0], "without_best_case": extremes[1]}
    return {} if interval is None else interval.metrics() | without


def per_case_columns(result: CaseResult) -> dict[str, str | int | float | None]:
    """Our columns of a case's row in `per_case.csv`, after the official ones; None is an empty cell.

    `annotated_sweeps_own_threshold_tp` and so on are frame counts by protocol and rule for the target presence;
    those for the target optimal begin with `optimal_`.
    """
    chosen = result.frame_number != NO_FRAME
    columns: dict[str, str | int | float | None] = {
        "score": result.score,
        "subject_id": result.subject_id,
        "sweep": sweep_index(result.frame_number, len(result.frame_labels)) + 1 if chosen else None,
        "choice": choice_of(result),
        "annotated_distance_frames": result.annotated_distance_frames,
        "optimal_distance_frames": result.optimal_distance_frames,
        "reference_ac_mm": result.reference_ac_mm,
        "predicted_ac_mm": result.predicted_ac_mm,
        "ac_error_mm": ac_error_mm(result),
        "ac_error_percent": ac_error_percent(result),
        "undefined_overlap": int(result.undefined_overlap),
        "exec_duration_s": result.exec_duration_s,
        "failure": result.failure,
        "labels_sha256": labels_sha256(result),
    }
    for target in TARGETS:
        for protocol in PROTOCOLS:
            for rule in RULES:
                counts = case_counts(result, target, rule, protocol)
                prefix = counts_prefix(target, rule, protocol)
                for cell in ("tp", "fp", "fn", "tn"):
                    columns[f"{prefix}_{cell}"] = None if counts is None else getattr(counts, cell)
    return columns


def labels_sha256(result: CaseResult) -> str:
    """What tells the annotated frames and sweeps of a case's reference from those of another."""
    labels = np.asarray(result.frame_labels, dtype=np.uint8).tobytes()
    return hashlib.sha256(labels + bytes(result.annotated_sweeps)).hexdigest()


def counts_prefix(target: Target, rule: Rule, protocol: str) -> str:
    """How the four columns of a confusion matrix begin in `per_case.csv`."""
    return f"{'optimal_' if target == 'optimal' else ''}{protocol}_{rule}"


def _absolute(value: float | None) -> float | None:
    return None if value is None else abs(value)
