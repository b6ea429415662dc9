"""The report's tables: official metrics, F1, sweeps, and every case."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from acouslic.geometry import sweep_index
from acouslic.sockets import NO_FRAME
from evaluation.metrics.agreement import WITHIN_PERCENT, ac_error_percent, choice_of
from evaluation.metrics.case_result import CaseResult
from evaluation.metrics.frame_f1 import PROTOCOLS, TARGETS, Target, case_counts
from evaluation.metrics.official import AGGREGATED_METRICS
from evaluation.metrics.summary import F1_PREFIX, SELECTION_NAME, scored_suffix
from evaluation.report.markup import MISSING, escape, interval, number, percent, table

OFFICIAL_MEANINGS = {
    "FalseNegativeError": "share of the prediction's pixels outside the reference, in the chosen frame: the official "
    "evaluator has the two roles the other way round",
    "FalsePositiveError": "the reference's pixels that the prediction misses, as a share of all pixels outside the "
    "prediction",
    "MeanOverlap": "the same as Dice",
    "UnionOverlap": "the same as Jaccard",
    "VolumeSimilarity": "difference of the two areas over their mean; 0 where they are equal, negative where the "
    "prediction is larger",
    "JaccardCoefficient": "pixels in both over pixels in either",
    "DiceCoefficient": "twice the pixels in both over the sum of the two areas, in the chosen frame",
    "DiceCoefficientNearestFrame": "Dice with the stand-in frame where the chosen one has no annotation",
    "DiceCoefficientSoft": "the same, less one fifteenth for each frame of distance; part of the score",
    "HausdorffDistance": "largest distance of the two areas, pixels; signed by frame distance for stand-in frames, "
    "15 frame widths where there is nothing to compare",
    "wfss": "weighted frame selection score: 1 for the best kind of frame the case has, 0.6 for a suboptimal one where "
    "an optimal one exists, else 0; part of the score",
    "nae_circumference": "normalised absolute error of the circumference: difference over the larger of the two, 1 "
    "where either is missing; part of the score, smaller is better",
}
CHOICE_WORDS = {
    "optimal": "optimal",
    "suboptimal": "suboptimal",
    "unannotated_frame": "not annotated",
    "unannotated_sweep": "empty sweep",
    "no_frame": "none",
}
TARGET_WORDS: dict[Target, str] = {"presence": "Presence", "optimal": "Optimal plane"}
PROTOCOL_WORDS = {"annotated_sweeps": "annotated sweeps", "all_frames": "all frames"}


def official_table(metrics: Mapping[str, Any]) -> str:
    """Mean and deviation of each official metric with a line on what it is."""
    rows = [
        (
            f"<code>{name}</code>",
            f'<span class="meaning">{OFFICIAL_MEANINGS[name]}</span>',
            number(metrics[name]["mean"], 4),
            number(metrics[name]["std"], 4),
        )
        for name in AGGREGATED_METRICS
    ]
    return table("Over all cases", ("Metric", "Meaning", "Mean", "SD over cases"), rows, text_columns=2)


def f1_table(results: Sequence[CaseResult], metrics: Mapping[str, Any]) -> str:
    """Every target, protocol and threshold: F1 with its interval, what goes with it, and the counts."""
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
    headers = ("Called positive from", "F1", "95 % interval", "Precision", "Recall", "Specificity", "Accuracy")
    return table("Frame classification in full", (*headers, "TP", "FP", "FN", "TN"), rows)


def _own(results: Sequence[CaseResult], target: Target) -> str:
    """The submission's own threshold of presence, ` (0.5)`, where it is one for all cases and the only one used."""
    thresholds = {result.presence_threshold for result in results if result.presence_threshold is not None}
    return f" ({number(thresholds.pop())})" if target == "presence" and len(thresholds) == 1 else ""


def _f1_row(label: str, values: Mapping[str, float], around: Mapping[str, float] | None) -> Sequence[str]:
    ratios = (number(values.get(key)) for key in ("precision", "recall", "specificity"))
    counts = (f"{int(values[key]):,}" for key in ("tp", "fp", "fn", "tn"))
    accuracy = number(values.get("accuracy"), 4)
    return (label, number(values.get("f1")), interval(around), *ratios, accuracy, *counts)


def ranking_table(results: Sequence[CaseResult], metrics: Mapping[str, Any]) -> str:
    """What needs no threshold: AUROC and average precision."""
    rows = []
    for target in TARGETS:
        scored = metrics.get(f"{F1_PREFIX[target]}{scored_suffix(results, target)}", {})
        for protocol in PROTOCOLS:
            if protocol in scored:
                values = scored[protocol]
                counts = (f"{values['frames']:,}", f"{values['positives']:,}")
                ranks = (number(values.get("auroc")), number(values.get("average_precision")))
                rows.append((TARGET_WORDS[target], PROTOCOL_WORDS[protocol], *counts, *ranks))
    headers = ("Target", "Frames", "Counted", "Positive", "AUROC", "Average precision")
    return table("Ranking of frames, whatever the threshold", headers, rows, text_columns=2) if rows else ""


def agreement_table(agreement: Mapping[str, Any], intervals: Mapping[str, Any]) -> str:
    """Errors of the circumference in mm and per cent, and the shares within 5, 10 and 15 %."""
    millimetres, per_cent = agreement["error_mm"], agreement["error_percent"]
    names = {
        "mean_absolute": "mean absolute error",
        "median_absolute": "median absolute error",
        "bias": "bias (prediction − reference)",
        "lower_limit": "lower limit of agreement",
        "upper_limit": "upper limit of agreement",
    }
    rows = []
    for key, name in names.items():
        signed = key not in ("mean_absolute", "median_absolute")
        cells = [number(values.get(key), 1, sign=signed) for values in (millimetres, per_cent)]
        around = intervals.get("ac_absolute_error_mm") if key == "mean_absolute" else None
        rows.append((name, *cells, f"{interval(around, 1)} mm" if around else ""))
    errors = table("Error of the circumference", ("", "mm", "%", "95 % interval"), rows)
    shares = table(
        "Cases within",
        ("", "of measured cases", "of all cases"),
        [
            (
                f"within {limit}\u00a0%",
                percent(agreement["share_of_measured_cases"][f"within_{limit}_percent"], 1),
                percent(agreement["share_of_all_cases"][f"within_{limit}_percent"], 1),
            )
            for limit in WITHIN_PERCENT
        ],
    )
    return f'<div class="pair">{errors}{shares}</div>'


def choice_tables(choice: Mapping[str, Any]) -> str:
    """What kinds of frame were chosen, and how far they are from the ones that were wanted."""
    counts = choice["cases"]
    total = sum(counts.values())
    possible = choice["cases_with_optimal_frame"]
    kinds = {
        "optimal": f"an optimal frame (possible in {possible:,})",
        "suboptimal": "a suboptimal frame",
        "unannotated_frame": "another frame of an annotated sweep",
        "unannotated_sweep": "in a sweep without annotation",
        "no_frame": "none",
    }
    rows = [(name, f"{counts[key]:,}", percent(counts[key] / total)) for key, name in kinds.items()]
    distances = []
    for key, name in (("to_annotated_frames", "annotated"), ("to_optimal_frames", "optimal")):
        values = choice[key]
        numbers = (number(values.get("mean"), 1), number(values.get("median"), 1), number(values.get("max"), 0))
        distances.append((f"nearest {name} frame", f"{values['cases']:,}", *numbers))
    return (
        f"{table('The chosen frame is', ('', 'Cases', 'Share'), rows)}"
        f"{table('Frames away, in the same sweep', ('', 'Cases', 'Mean', 'Median', 'Max'), distances)}"
    )


def sweep_rows(sweeps: Mapping[str, Any]) -> str:
    """One line a sweep: annotations, choices, errors, F1."""
    rows = []
    for key, values in sweeps.items():
        errors = values.get("circumference", {}).get("error_mm", {})
        presence = values.get("presence", {})
        rows.append(
            (
                key.removeprefix("sweep_"),
                str(values["cases_annotated"]),
                str(values["cases_chosen"]),
                str(values["cases_chosen_annotated"]),
                number(values.get("mean_score")),
                number(errors.get("mean_absolute"), 1),
                number(errors.get("bias"), 1, sign=True),
                number(presence.get("f1")),
                number(presence.get("precision")),
                number(presence.get("recall")),
            )
        )
    headers = ("Sweep", "Cases annotated", "Cases chosen", "of these in an annotated frame", "Mean score of these")
    errors_and_frames = ("Mean abs. error (mm)", "Bias (mm)", "Presence F1", "Precision", "Recall")
    return table("Where the choices fell and how they did", (*headers, *errors_and_frames), rows)


Column = tuple[str, str, Callable[[CaseResult], float | str | None], int]
"""Key, heading, value of a case, decimals (-1: text)."""


def case_columns() -> list[Column]:
    """What the table of cases shows."""
    return [
        ("score", "Score", lambda result: result.score, 3),
        ("wfss", "WFSS", lambda result: result.official["wfss"], 1),
        ("dice", "Soft Dice", lambda result: result.official["DiceCoefficientSoft"], 3),
        ("nae", "NAE", lambda result: result.official["nae_circumference"], 3),
        ("reference", "Ref. (mm)", lambda result: result.reference_ac_mm, 1),
        ("prediction", "Pred. (mm)", lambda result: result.predicted_ac_mm, 1),
        ("error", "Error (%)", ac_error_percent, 1),
        ("frame", "Frame", lambda result: None if result.frame_number == NO_FRAME else result.frame_number, 0),
        ("sweep", "Sweep", _sweep, 0),
        ("choice", "Chosen", lambda result: CHOICE_WORDS[choice_of(result)], -1),
        ("distance", "Frames off", lambda result: result.annotated_distance_frames, 0),
        ("f1", "F1 (all)", _f1, 3),
    ]


def _sweep(result: CaseResult) -> int | None:
    if result.frame_number == NO_FRAME:
        return None
    return sweep_index(result.frame_number, len(result.frame_labels)) + 1


def _f1(result: CaseResult) -> float | None:
    counts = case_counts(result, "presence", "own_threshold", "all_frames")
    return None if counts is None else counts.f1


def case_table(results: Sequence[CaseResult], anchors: Mapping[str, str]) -> str:
    """Every case, a row each. Headings are buttons that the page's script sorts by; `anchors` name the pictures."""
    columns = case_columns()
    headings = [("case", "Case", "text")]
    headings += [(key, heading, "text" if digits < 0 else "number") for key, heading, _, digits in columns]
    head = "".join(
        f'<th scope="col" data-key="{key}" data-kind="{kind}" class="{kind}">'
        f'<button type="button">{heading}</button></th>'
        for key, heading, kind in headings
    )
    body = "\n".join(_case_row(result, columns, anchors.get(result.case)) for result in results)
    return (
        '<div class="scroll tall" role="region" aria-label="All cases" tabindex="0">'
        f'<table id="cases" aria-label="All cases"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _case_row(result: CaseResult, columns: Sequence[Column], anchor: str | None) -> str:
    name = escape(result.case, 80)
    label = f'<a href="#{anchor}">{name}</a>' if anchor else name
    kind = ' class="failed"' if result.failure is not None else ""
    cells = "".join(_cell(value_of(result), key, digits) for key, _, value_of, digits in columns)
    return f'<tr{kind}><th scope="row">{label}</th>{cells}</tr>'


def _cell(value: float | str | None, key: str, digits: int) -> str:
    if isinstance(value, str):
        return f"<td>{escape(value)}</td>"
    if value is None:
        return f'<td class="number" data-value="">{MISSING}</td>'
    return f'<td class="number" data-value="{value:.6g}">{number(value, digits, sign=key == "error")}</td>'
