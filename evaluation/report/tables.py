"""Rows of the report's larger tables, as plain text. `page.html` makes them markup, and holds the smaller tables."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from acouslic.geometry import sweep_index
from acouslic.sockets import NO_FRAME
from evaluation.metrics.agreement import ac_error_percent, choice_of
from evaluation.metrics.case_result import CaseResult
from evaluation.metrics.frame_f1 import PROTOCOLS, TARGETS, Target, case_counts
from evaluation.metrics.summary import F1_PREFIX, SELECTION_NAME, scored_suffix
from evaluation.report.text import interval, number, plural

TARGET_WORDS: dict[Target, str] = {"presence": "Presence", "optimal": "Optimal plane"}
PROTOCOL_WORDS = {"annotated_sweeps": "annotated sweeps", "all_frames": "all frames"}


def sweep_number(result: CaseResult) -> int | None:
    """The sweep of the chosen frame, counted from 1; None without one."""
    if result.frame_number == NO_FRAME:
        return None
    return sweep_index(result.frame_number, len(result.frame_labels)) + 1


def f1_of(result: CaseResult) -> float | None:
    """F1 of presence over all frames of the case, at its own threshold; None without scores, or without a positive."""
    counts = case_counts(result, "presence", "own_threshold", "all_frames")
    return None if counts is None else counts.f1


CASE_COLUMNS: dict[str, tuple[str, int | None, Callable[[CaseResult], float | str | None]]] = {
    "score": ("Score", 3, lambda result: result.score if result.has_score else None),
    "wfss": ("WFSS", 1, lambda result: result.official["wfss"]),
    "dice": ("Soft Dice", 3, lambda result: result.official.get("DiceCoefficientSoft")),
    "nae": ("NAE", 3, lambda result: result.official.get("nae_circumference")),
    "reference": ("Ref. (mm)", 1, lambda result: result.reference_ac_mm),
    "prediction": ("Pred. (mm)", 1, lambda result: result.predicted_ac_mm),
    "error": ("Error (%)", 1, ac_error_percent),
    "frame": ("Frame", 0, lambda result: None if result.frame_number == NO_FRAME else result.frame_number),
    "sweep": ("Sweep", 0, sweep_number),
    "choice": ("Chosen", None, lambda result: choice_of(result).replace("_", " ")),
    "distance": ("Frames off", 0, lambda result: result.annotated_distance_frames),
    "f1": ("F1 (all)", 3, f1_of),
}
"""Of the table of cases: heading, decimals (None: text) and value by the key that it is sorted by."""
_COLUMNS_OF_FRAMES = ("wfss", "frame", "sweep", "choice", "distance", "f1")


def f1_rows(results: Sequence[CaseResult], metrics: Mapping[str, Any]) -> list[Sequence[str]]:
    """Every target, protocol and threshold: F1 with its interval, what goes with it, and the counts.

    A row of one cell is a heading, with what needs no threshold: AUROC and average precision."""
    rows: list[Sequence[str]] = []
    thresholds = {result.presence_threshold for result in results if result.presence_threshold is not None}
    for target in TARGETS:
        suffix = scored_suffix(results, target)
        # The submission's own threshold, where it is one for all cases and the only one used.
        own = f" ({number(max(thresholds))})" if target == "presence" and len(thresholds) == 1 else ""
        for protocol in PROTOCOLS:
            scored = metrics.get(f"{F1_PREFIX[target]}{suffix}", {}).get(protocol, {})
            heading = f"{TARGET_WORDS[target]}, {PROTOCOL_WORDS[protocol]}"
            if scored:
                heading += f" · {scored['positives']:,} of {plural(scored['frames'], 'frame')} positive"
                heading += f" · AUROC {number(scored.get('auroc'))}"
                heading += f" · average precision {number(scored.get('average_precision'))}"
            rows.append((heading,))
            if scored:
                around = metrics["intervals"].get(f"{F1_PREFIX[target]}_{protocol}{suffix}")
                rows.append(_f1_row(f"own threshold{own}", scored["at_own_threshold"], around))
                rows.append(_f1_row("0.5", scored["at_half"]))
            if best := scored.get("at_best_threshold_optimistic"):
                rows.append(_f1_row(f"best, optimistic ({number(best['threshold'])})", best))
            around = metrics["intervals"].get(f"{SELECTION_NAME[target]}_{protocol}")
            rows.append(_f1_row("chosen frame only", metrics[SELECTION_NAME[target]][protocol], around))
    return rows


def _f1_row(label: str, values: Mapping[str, float], around: Mapping[str, float] | None = None) -> Sequence[str]:
    extremes = [number((around or {}).get(key)) for key in ("without_worst_case", "without_best_case")]
    ratios = (number(values.get(key)) for key in ("precision", "recall", "specificity"))
    counts = (f"{int(values[key]):,}" for key in ("tp", "fp", "fn", "tn"))
    accuracy = number(values.get("accuracy"), 4)
    return (label, number(values.get("f1")), interval(around), " / ".join(extremes), *ratios, accuracy, *counts)


def case_columns(results: Sequence[CaseResult]) -> list[str]:
    """The keys of the columns: all of them, or those of cases of which only frames were judged."""
    whole = all(result.has_score for result in results)
    return [key for key in CASE_COLUMNS if whole or key in _COLUMNS_OF_FRAMES]
