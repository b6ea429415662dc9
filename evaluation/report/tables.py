"""Rows of the report's larger tables, as plain text. `page.html` makes them markup, and holds the smaller tables."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from acouslic.geometry import sweep_index
from acouslic.sockets import NO_FRAME
from evaluation.metrics.agreement import ac_error_percent, choice_of
from evaluation.metrics.case_result import CaseResult
from evaluation.metrics.frame_f1 import PROTOCOLS, TARGETS, Target, case_counts
from evaluation.metrics.summary import F1_PREFIX, SELECTION_NAME, scored_suffix
from evaluation.report.text import interval, number

CHOICE_WORDS = {
    "optimal": "optimal",
    "suboptimal": "suboptimal",
    "unannotated_frame": "not annotated",
    "unannotated_sweep": "empty sweep",
    "no_frame": "none",
}
TARGET_WORDS: dict[Target, str] = {"presence": "Presence", "optimal": "Optimal plane"}
PROTOCOL_WORDS = {"annotated_sweeps": "annotated sweeps", "all_frames": "all frames"}
CASE_COLUMNS = {
    "score": ("Score", 3),
    "wfss": ("WFSS", 1),
    "dice": ("Soft Dice", 3),
    "nae": ("NAE", 3),
    "reference": ("Ref. (mm)", 1),
    "prediction": ("Pred. (mm)", 1),
    "error": ("Error (%)", 1),
    "frame": ("Frame", 0),
    "sweep": ("Sweep", 0),
    "choice": ("Chosen", None),
    "distance": ("Frames off", 0),
    "f1": ("F1 (all)", 3),
}
"""Of the table of cases: heading and decimals (None: text) by the key that it is sorted by."""
_COLUMNS_OF_FRAMES = ("wfss", "frame", "sweep", "choice", "distance", "f1")


def f1_rows(results: Sequence[CaseResult], metrics: Mapping[str, Any]) -> list[Sequence[str]]:
    """Every target, protocol and threshold: F1 with its interval, what goes with it, and the counts.

    A row of one cell is a heading."""
    rows: list[Sequence[str]] = []
    for target in TARGETS:
        suffix = scored_suffix(results, target)
        for protocol in PROTOCOLS:
            rows.append((f"{TARGET_WORDS[target]}, {PROTOCOL_WORDS[protocol]}",))
            scored = metrics.get(f"{F1_PREFIX[target]}{suffix}", {}).get(protocol, {})
            around = metrics["intervals"].get(f"{F1_PREFIX[target]}_{protocol}{suffix}")
            if scored:
                rows.append(_f1_row(f"own threshold{_own(results, target)}", scored["at_own_threshold"], around))
                rows.append(_f1_row("0.5", scored["at_half"], None))
            if "at_best_threshold_optimistic" in scored:
                best = scored["at_best_threshold_optimistic"]
                rows.append(_f1_row(f"best, optimistic ({number(best['threshold'])})", best, None))
            around = metrics["intervals"].get(f"{SELECTION_NAME[target]}_{protocol}")
            rows.append(_f1_row("chosen frame only", metrics[SELECTION_NAME[target]][protocol], around))
    return rows


def _own(results: Sequence[CaseResult], target: Target) -> str:
    """The submission's own threshold of presence, ` (0.5)`, where it is one for all cases and the only one used."""
    thresholds = {result.presence_threshold for result in results if result.presence_threshold is not None}
    return f" ({number(thresholds.pop())})" if target == "presence" and len(thresholds) == 1 else ""


def _f1_row(label: str, values: Mapping[str, float], around: Mapping[str, float] | None) -> Sequence[str]:
    extremes = [number((around or {}).get(key)) for key in ("without_worst_case", "without_best_case")]
    ratios = (number(values.get(key)) for key in ("precision", "recall", "specificity"))
    counts = (f"{int(values[key]):,}" for key in ("tp", "fp", "fn", "tn"))
    accuracy = number(values.get("accuracy"), 4)
    return (label, number(values.get("f1")), interval(around), " / ".join(extremes), *ratios, accuracy, *counts)


def ranking_rows(results: Sequence[CaseResult], metrics: Mapping[str, Any]) -> list[Sequence[str]]:
    """What needs no threshold: AUROC and average precision; empty without scores."""
    rows: list[Sequence[str]] = []
    for target in TARGETS:
        scored = metrics.get(f"{F1_PREFIX[target]}{scored_suffix(results, target)}", {})
        for protocol in PROTOCOLS:
            if protocol in scored:
                values = scored[protocol]
                counts = (f"{values['frames']:,}", f"{values['positives']:,}")
                ranks = (number(values.get("auroc")), number(values.get("average_precision")))
                rows.append((TARGET_WORDS[target], PROTOCOL_WORDS[protocol], *counts, *ranks))
    return rows


def case_columns(results: Sequence[CaseResult]) -> list[str]:
    """The keys of the columns: all of them, or those of cases of which only frames were judged."""
    whole = all(result.has_score for result in results)
    return [key for key in CASE_COLUMNS if whole or key in _COLUMNS_OF_FRAMES]


def case_cells(result: CaseResult) -> Iterator[tuple[str, str | None]]:
    """What the cells of a case show, after its name, and what they are sorted by (empty: no value; None: as text)."""
    counts = case_counts(result, "presence", "own_threshold", "all_frames")
    chosen = None if result.frame_number == NO_FRAME else result.frame_number
    values = {
        "score": result.score if result.has_score else None,
        "wfss": result.official["wfss"],
        "dice": result.official.get("DiceCoefficientSoft"),
        "nae": result.official.get("nae_circumference"),
        "reference": result.reference_ac_mm,
        "prediction": result.predicted_ac_mm,
        "error": ac_error_percent(result),
        "frame": chosen,
        "sweep": None if chosen is None else sweep_index(chosen, len(result.frame_labels)) + 1,
        "distance": result.annotated_distance_frames,
        "f1": None if counts is None else counts.f1,
    }
    for key in case_columns([result]):
        digits = CASE_COLUMNS[key][1]
        if digits is None:
            yield CHOICE_WORDS[choice_of(result)], None
        else:
            value = values[key]
            yield number(value, digits, sign=key == "error"), "" if value is None else f"{value:.6g}"
