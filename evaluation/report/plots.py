"""The report's plots of all cases: scores, agreement of circumferences, F1 by protocol, curves, calibration."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.collections import PolyCollection
from sklearn.metrics import precision_recall_curve

from evaluation.metrics.agreement import LIMITS_SD, ac_error_mm
from evaluation.metrics.case_result import CaseResult
from evaluation.metrics.frame_f1 import PROTOCOLS, Protocol, has_scores, pooled
from evaluation.metrics.own_judgement import risk_against_coverage
from evaluation.report.svg import AMBER, BLUE, INK, ORANGE, TEAL, inline_svg, new_plot
from evaluation.report.tables import PROTOCOL_WORDS
from evaluation.report.text import interval, number, plural

OBSERVER_VARIABILITY = 0.09
"""Of the circumference between human observers."""
SHARES = (
    ("circumference", BLUE, "half of 1 − NAE", lambda official: 0.5 * (1 - official["nae_circumference"])),
    ("dice", TEAL, "a quarter of soft Dice", lambda official: 0.25 * official["DiceCoefficientSoft"]),
    ("wfss", AMBER, "a quarter of WFSS", lambda official: 0.25 * official["wfss"]),
)
"""What the score is the sum of: class, colour, name, share of a case (or of the means)."""
_UNIT_TICKS = (0, 0.2, 0.4, 0.6, 0.8, 1.0)
_MOST_BARS_APART = 60
_CURVE_POINTS = 200
_FAINT_LINE: dict[str, Any] = {"color": "#8795a3", "linewidth": 1.5, "linestyle": (0, (5, 4))}
_DOTS: dict[str, Any] = {"color": BLUE, "alpha": 0.5, "markersize": 8, "markeredgewidth": 0.6}


def case_bars(results: Sequence[CaseResult]) -> str:
    """Every case as a bar, worst first, made of the three shares of its score."""
    ordered = sorted(results, key=lambda result: (result.score, result.case))
    figure, axes = new_plot(1000, 260, bottom=34)
    base, left = np.zeros(len(ordered)), np.arange(len(ordered)) - 0.5
    width = 0.8 if len(ordered) <= _MOST_BARS_APART else 1
    for kind, colour, _, share_of in SHARES:
        top = base + [max(0.0, share_of(result.official)) for result in ordered]
        corners = np.stack([[left, base], [left, top], [left + width, top], [left + width, base]]).transpose(2, 0, 1)
        # One collection instead of 300 bars, which take matplotlib seconds.
        axes.add_collection(PolyCollection(list(corners), color=colour, linewidth=0, gid=kind))
        base = top
    axes.grid(visible=False, axis="x")
    axes.set(xlim=(-0.7, len(ordered) - 0.5), ylim=(0, 1), xticks=(), yticks=_UNIT_TICKS)
    axes.set(xlabel="cases, worst first", ylabel="score")
    description = f"Scores of {plural(len(ordered), 'case')}, sorted"
    description += f", from {number(ordered[0].score)} to {number(ordered[-1].score)}"
    texts = [f"{result.case}: {number(result.score)}" for result in ordered]
    return inline_svg(figure, "case-bars", description, {kind: texts for kind, *_ in SHARES})


def bland_altman(results: Sequence[CaseResult], agreement: Mapping[str, Any]) -> str:
    """Differences of the measured circumferences over their means, with bias and limits of agreement."""
    pairs = _measured(results)
    errors = agreement["error_mm"]
    means = np.array([(predicted + reference) / 2 for _, reference, predicted in pairs])
    differences = np.array([predicted - reference for _, reference, predicted in pairs])
    names = {"upper_limit": f"+{LIMITS_SD} SD", "bias": "bias", "lower_limit": f"−{LIMITS_SD} SD"}
    limits = [errors[name] for name in names if name in errors]
    figure, axes = new_plot()
    low, high = _padded(means)
    axes.set(xlim=(low, high), ylim=_padded(np.array([0, *differences, *limits])))
    axes.plot((low, high), (0, 0), **_FAINT_LINE)
    axes.plot(means, differences, "o", clip_on=False, gid="dots", markeredgecolor="white", **_DOTS)
    for name, label in names.items():
        if name not in errors:
            continue
        style = "-" if name == "bias" else (0, (7, 4))
        axes.plot((low, high), [errors[name]] * 2, color=ORANGE, linewidth=1.8, linestyle=style)
        text = f"{label} {number(errors[name], 1, sign=True)} mm"
        offset, va = (-4, "top") if name == "lower_limit" else (4, "bottom")
        place: dict[str, Any] = {"xytext": (-4, offset), "textcoords": "offset points", "ha": "right", "va": va}
        axes.annotate(text, (high, errors[name]), fontsize=13, fontweight="bold", color=INK, **place)
    axes.set(xlabel="mean of reference and prediction (mm)", ylabel="prediction − reference (mm)")
    texts = [
        f"{result.case}: {number(predicted - reference, 1, sign=True)} mm ({_both(reference, predicted)})"
        for result, reference, predicted in pairs
    ]
    described = ", ".join(f"{label} {number(errors[name], 1)} mm" for name, label in names.items() if name in errors)
    described = f"Bland-Altman plot of {plural(len(pairs), 'case')}: {described}"
    return inline_svg(figure, "bland-altman", described, {"dots": texts})


def circumference_scatter(results: Sequence[CaseResult]) -> str:
    """Predicted over reference circumferences, with the line of identity and the band of human variability."""
    pairs = _measured(results)
    references, predictions = np.array([pair[1:] for pair in pairs]).T
    # Room around the values, so that the band fits even where all are alike.
    low, high = 0.94 * min(references.min(), predictions.min()), 1.06 * max(references.max(), predictions.max())
    figure, axes = new_plot()
    axes.set(xlim=(low, high), ylim=(low, high))
    line = np.linspace(low, high, 100)
    lower, upper = (np.clip(line * (1 + sign * OBSERVER_VARIABILITY), low, high) for sign in (-1, 1))
    axes.fill_between(line, lower, upper, color="#e3efe9", linewidth=0)
    axes.plot((low, high), (low, high), **_FAINT_LINE)
    axes.plot(references, predictions, "o", clip_on=False, gid="dots", markeredgecolor="white", **_DOTS)
    axes.set(xlabel="reference circumference (mm)", ylabel="prediction (mm)")
    texts = [f"{result.case}: {_both(reference, predicted)}" for result, reference, predicted in pairs]
    described = f"Predicted over reference circumference of {plural(len(pairs), 'case')}"
    return inline_svg(figure, "scatter", described, {"dots": texts})


def f1_plot(frame_f1: Mapping[str, Any], intervals: Mapping[str, Any], suffix: str) -> str:
    """F1 of presence in both protocols at three thresholds, the own one with its interval."""
    figure, axes = new_plot(left=152, bottom=34, right=60)
    labels: list[str] = []
    described: list[str] = []
    styles: dict[str, tuple[str, dict[str, Any]]] = {
        "own threshold": ("at_own_threshold", {"color": BLUE}),
        "threshold 0.5": ("at_half", {"markerfacecolor": "#9cbfe3", "markeredgecolor": BLUE}),
        "best (optimistic)": ("at_best_threshold_optimistic", {"markerfacecolor": "white", "markeredgecolor": AMBER}),
    }
    for protocol, words in PROTOCOL_WORDS.items():
        labels.append(words)
        described.append(words)
        for label, (key, style) in styles.items():
            value = frame_f1[protocol].get(key, {}).get("f1")
            around = intervals.get(f"frame_f1_{protocol}{suffix}") if key == "at_own_threshold" else None
            row = len(labels)
            if around:
                ends = (around["lower"], around["upper"])
                axes.plot(ends, (row, row), color=BLUE, alpha=0.45, linewidth=3, solid_capstyle="round")
            if value is not None:
                axes.plot(value, row, "o", markersize=12, markeredgewidth=1.8, clip_on=False, **style)
            axes.text(1.07, row, number(value), va="center", fontsize=13, color=INK)
            labels.append(label)
            described.append(f"{label} {number(value)}" + (f" ({interval(around)})" if around else ""))
    axes.set(xlim=(0, 1), ylim=(len(labels) - 0.5, -0.5), xticks=_UNIT_TICKS)
    axes.grid(visible=False, axis="y")
    axes.set_yticks(range(len(labels)), labels, color=INK, fontsize=13)
    for text in axes.get_yticklabels():
        text.set_fontweight("bold" if text.get_text() in PROTOCOL_WORDS.values() else "normal")
    return inline_svg(figure, "f1", f"F1 of presence: {', '.join(described)}")


def precision_recall_plot(results: Sequence[CaseResult], frame_f1: Mapping[str, Any]) -> str:
    """Precision over recall of presence in both protocols; a dot is the submission's own threshold."""
    figure, axes = new_plot()
    scored = [result for result in results if has_scores(result, "presence")]
    described = []
    for name in sorted({result.set_name for result in scored if result.set_name is not None}):
        curve = _precision_recall([result for result in scored if result.set_name == name], "all_frames")
        axes.plot(*curve, color=BLUE, alpha=0.4, linewidth=1)
    for protocol, colour in zip(PROTOCOLS, (TEAL, BLUE), strict=True):
        curve = _precision_recall(scored, protocol)
        if not len(curve[0]):
            continue
        axes.plot(*curve, color=colour, linewidth=2, label=PROTOCOL_WORDS[protocol])
        own = frame_f1[protocol]["at_own_threshold"]
        if "precision" in own:
            axes.plot(own["recall"], own["precision"], "o", color=colour, markersize=9, clip_on=False)
        found = number(frame_f1[protocol]["average_precision"])
        described.append(f"{PROTOCOL_WORDS[protocol]} average precision {found}")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xticks=_UNIT_TICKS, yticks=_UNIT_TICKS)
    axes.set(xlabel="recall", ylabel="precision")
    if described:
        axes.legend(loc="lower left", frameon=False, fontsize=13, labelcolor=INK)
    return inline_svg(figure, "precision-recall", f"Precision over recall: {', '.join(described)}")


def _precision_recall(results: Sequence[CaseResult], protocol: Protocol) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision, at most 200 points; none without a positive frame."""
    truth, score = pooled(results, "presence", protocol)
    if not truth.any():
        return np.zeros(0), np.zeros(0)
    precision, recall, _ = precision_recall_curve(truth, score)
    kept = np.flatnonzero(np.diff(recall, append=-1))  # the highest threshold for each recall
    kept = kept[np.unique(np.linspace(0, len(kept) - 1, _CURVE_POINTS).astype(int))]
    return recall[kept], precision[kept]


def risk_plot(results: Sequence[CaseResult], suitability: Mapping[str, Any]) -> str | None:
    """Risk over coverage; a dot is what the submission calls suitable. None where no case states a confidence."""
    coverage, risk = risk_against_coverage(results)
    if not len(coverage):
        return None
    figure, axes = new_plot()
    axes.plot(coverage, risk, color=BLUE, linewidth=2, marker="o", markersize=4)
    described = f"Risk over coverage: {number(risk[-1])} for all cases"
    if "mean_score_of_suitable" in suitability:
        point = (suitability["coverage"], 1 - suitability["mean_score_of_suitable"])
        axes.plot(*point, "o", color=ORANGE, markersize=10, clip_on=False)
        described += f", {number(point[1])} for the {number(100 * point[0], 0)} % that are called suitable"
    axes.set(xlim=(-0.03, 1.03), ylim=(0, max(0.05, 1.1 * float(risk.max()))), xticks=_UNIT_TICKS)
    axes.set(xlabel="coverage: share of cases taken", ylabel="risk: 1 − mean score")
    return inline_svg(figure, "risk", described)


def reliability_plot(calibration: Mapping[str, Any], name: str) -> str:
    """Observed share of positive frames over the submitted probability, by bin; dots grow with their frames."""
    bins = [values for values in calibration["reliability"].values() if values["frames"]]
    largest = max(values["frames"] for values in bins)
    figure, axes = new_plot()
    axes.plot((0, 1), (0, 1), **_FAINT_LINE)
    points = [(values["mean_probability"], values["observed_fraction"]) for values in bins]
    axes.plot(*np.array(points).T, color=BLUE, linewidth=2)
    texts = []
    for values, (probability, observed) in zip(bins, points, strict=True):
        size = 2 * (4 + 7 * (values["frames"] / largest) ** 0.5)
        axes.plot(probability, observed, "o", color=BLUE, markersize=size, clip_on=False, gid="dots")
        texts.append(
            f"{plural(values['frames'], 'frame')}: submitted {number(probability)}, observed {number(observed)}"
        )
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xticks=_UNIT_TICKS, yticks=_UNIT_TICKS)
    axes.set(xlabel="submitted probability", ylabel="observed share of frames")
    described = ", ".join(f"{number(probability, 2)}: {number(observed, 2)}" for probability, observed in points)
    described = f"Reliability, submitted probability: observed share, {described}"
    return inline_svg(figure, f"reliability-{name}", described, {"dots": texts})


def _padded(values: np.ndarray) -> tuple[float, float]:
    """The range of values, at least one, with a margin so that no dot sits on the edge."""
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def _measured(results: Sequence[CaseResult]) -> list[tuple[CaseResult, float, float]]:
    return [
        (result, result.reference_ac_mm, result.predicted_ac_mm)
        for result in results
        if ac_error_mm(result) is not None and result.reference_ac_mm is not None and result.predicted_ac_mm is not None
    ]


def _both(reference_mm: float, predicted_mm: float) -> str:
    return f"reference {number(reference_mm, 1)} mm, prediction {number(predicted_mm, 1)} mm"
