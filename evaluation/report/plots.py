"""The report's plots of all cases: scores, agreement of circumferences, F1 by protocol, curves, calibration."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.collections import PolyCollection
from sklearn.metrics import precision_recall_curve

from acouslic.challenge_score import CIRCUMFERENCE_WEIGHT, OVERLAP_WEIGHT, SELECTION_WEIGHT
from evaluation.metrics.agreement import LIMITS_SD, ac_error_mm
from evaluation.metrics.case_result import CaseResult
from evaluation.metrics.frame_f1 import Protocol, has_scores, pooled
from evaluation.metrics.own_judgement import risk_against_coverage
from evaluation.metrics.summary import scored_suffix
from evaluation.report.svg import AMBER, BLUE, CARD, INK, ORANGE, SOFT, TEAL, inline_svg, new_plot
from evaluation.report.tables import PROTOCOL_WORDS
from evaluation.report.text import interval, number, percent, plural

OBSERVER_VARIABILITY = 0.09
"""Of the circumference between human observers."""
SHARES = {
    "half of 1 − NAE": (BLUE, lambda official: CIRCUMFERENCE_WEIGHT * (1 - official["nae_circumference"])),
    "a quarter of soft Dice": (TEAL, lambda official: OVERLAP_WEIGHT * official["DiceCoefficientSoft"]),
    "a quarter of WFSS": (AMBER, lambda official: SELECTION_WEIGHT * official["wfss"]),
}
"""What the score is the sum of: colour, share of a case (or of the means)."""
_PROTOCOL_COLOURS: dict[Protocol, str] = {"annotated_sweeps": TEAL, "all_frames": BLUE}
_UNIT_RANGES: dict[str, Any] = {"xlim": (-0.03, 1.03), "ylim": (-0.03, 1.03)}
_MOST_BARS_APART = 60
_CURVE_POINTS = 200
_FAINT_LINE: dict[str, Any] = {"color": SOFT, "linewidth": 1.5, "linestyle": (0, (5, 4)), "alpha": 0.7}
_DOTS: dict[str, Any] = {"color": BLUE, "alpha": 0.5, "markersize": 8, "markeredgewidth": 0.6, "markeredgecolor": CARD}
_LARGE_TEXT: dict[str, Any] = {"fontsize": 13, "color": INK}


def score_bar(metrics: Mapping[str, Any]) -> str:
    """The score as the sum of its shares."""
    means = {name: metrics[name]["mean"] for name in ("nae_circumference", "DiceCoefficientSoft", "wfss")}
    figure, axes = new_plot(1000, 80, left=14, bottom=24)
    left, described = 0.0, []
    for name, (colour, share_of) in SHARES.items():
        share = share_of(means)
        axes.barh(0, share, left=left, color=colour)
        if share > 0.08:
            axes.text(left + 0.012, 0, number(share), va="center", fontsize=18, fontweight="bold", color=CARD)
        described.append(f"{name} {number(share)}")
        left += share
    axes.set(xlim=(0, 1), ylim=(-0.4, 0.4), yticks=())
    return inline_svg(figure, "score-bar", f"The score is the sum of {', '.join(described)}")


def case_bars(results: Sequence[CaseResult]) -> str:
    """Every case as a bar, worst first, made of the three shares of its score."""
    ordered = sorted(results, key=lambda result: (result.score, result.case))
    figure, axes = new_plot(1000, 220, left=50, bottom=10)
    base, left = np.zeros(len(ordered)), np.arange(len(ordered)) - 0.5
    right = left + (0.8 if len(ordered) <= _MOST_BARS_APART else 1)
    for index, (colour, share_of) in enumerate(SHARES.values()):
        top = base + [max(0.0, share_of(result.official)) for result in ordered]
        corners = np.stack([[left, base], [left, top], [right, top], [right, base]]).transpose(2, 0, 1)
        # One collection instead of 300 bars, which take matplotlib seconds.
        axes.add_collection(PolyCollection(list(corners), color=colour, linewidth=0, gid=f"share-{index}"))
        base = top
    axes.grid(visible=False, axis="x")
    axes.set(xlim=(-0.7, len(ordered) - 0.5), ylim=(0, 1), xticks=())
    described = f"Scores of {plural(len(ordered), 'case')}, sorted"
    described += f", from {number(ordered[0].score)} to {number(ordered[-1].score)}"
    texts = [f"{result.case}: {number(result.score)}" for result in ordered]
    return inline_svg(figure, "case-bars", described, {f"share-{index}": texts for index in range(len(SHARES))})


def bland_altman(results: Sequence[CaseResult], agreement: Mapping[str, Any]) -> str:
    """Differences of the measured circumferences over their means, with bias and limits of agreement."""
    reference, predicted, texts = _measured(results)
    figure, axes = new_plot()
    axes.axhline(0, **_FAINT_LINE)
    axes.plot((reference + predicted) / 2, predicted - reference, "o", gid="dots", **_DOTS)
    names = {"upper_limit": f"+{LIMITS_SD} SD", "bias": "bias", "lower_limit": f"−{LIMITS_SD} SD"}
    labels = []
    for name, value in ((name, agreement["error_mm"][name]) for name in names if name in agreement["error_mm"]):
        labels.append(f"{names[name]} {number(value, 1, sign=True)} mm")
        axes.axhline(value, color=ORANGE, linewidth=1.8, linestyle="-" if name == "bias" else (0, (7, 4)))
        va, offset = ("top", -4) if name == "lower_limit" else ("bottom", 4)
        place: dict[str, Any] = {
            "xycoords": ("axes fraction", "data"),
            "textcoords": "offset points",
            "ha": "right",
            "va": va,
        }
        axes.annotate(labels[-1], (1, value), xytext=(-4, offset), fontweight="bold", **place, **_LARGE_TEXT)
    axes.margins(y=0.12)
    axes.set(xlabel="mean of reference and prediction (mm)", ylabel="prediction − reference (mm)")
    described = f"Bland-Altman plot of {plural(len(texts), 'case')}: {', '.join(labels)}"
    return inline_svg(figure, "bland-altman", described, {"dots": texts})


def circumference_scatter(results: Sequence[CaseResult]) -> str:
    """Predicted over reference circumferences, with the line of identity and the band of human variability."""
    reference, predicted, texts = _measured(results)
    # Room around the values, so that the band fits even where all are alike.
    low, high = 0.94 * min(reference.min(), predicted.min()), 1.06 * max(reference.max(), predicted.max())
    figure, axes = new_plot()
    axes.set(xlim=(low, high), ylim=(low, high))
    line = np.linspace(low, high, 100)
    lower, upper = (np.clip(line * (1 + sign * OBSERVER_VARIABILITY), low, high) for sign in (-1, 1))
    axes.fill_between(line, lower, upper, color=TEAL, alpha=0.12, linewidth=0)
    axes.plot((low, high), (low, high), **_FAINT_LINE)
    axes.plot(reference, predicted, "o", gid="dots", **_DOTS)
    axes.set(xlabel="reference circumference (mm)", ylabel="prediction (mm)")
    described = f"Predicted over reference circumference of {plural(len(texts), 'case')}"
    return inline_svg(figure, "scatter", described, {"dots": texts})


def _measured(results: Sequence[CaseResult]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Reference and predicted circumferences of the cases that have both, and what a tooltip says of each."""
    measured = [result for result in results if ac_error_mm(result) is not None]
    reference, predicted = np.array([(result.reference_ac_mm, result.predicted_ac_mm) for result in measured]).T
    texts = [
        f"{result.case}: reference {number(result.reference_ac_mm, 1)} mm, prediction "
        f"{number(result.predicted_ac_mm, 1)} mm, difference {number(ac_error_mm(result), 1, sign=True)} mm"
        for result in measured
    ]
    return reference, predicted, texts


def precision_recall_plot(results: Sequence[CaseResult], metrics: Mapping[str, Any]) -> str:
    """Precision over recall of presence in both protocols; a dot is the submission's own threshold."""
    suffix = scored_suffix(results, "presence")
    figure, axes = new_plot()
    scored = [result for result in results if has_scores(result, "presence")]
    for name in sorted({result.set_name for result in scored if result.set_name is not None}):
        curve = _precision_recall([result for result in scored if result.set_name == name], "all_frames")
        axes.plot(*curve, color=BLUE, alpha=0.4, linewidth=1)
    labels = []
    for protocol, colour in _PROTOCOL_COLOURS.items():
        own = metrics[f"frame_f1{suffix}"][protocol]["at_own_threshold"]
        around = metrics["intervals"].get(f"frame_f1_{protocol}{suffix}")
        labels.append(f"{PROTOCOL_WORDS[protocol]}: F1 {number(own.get('f1'))}")
        labels[-1] += f" ({interval(around)})" if around else ""
        axes.plot(*_precision_recall(scored, protocol), color=colour, linewidth=2, label=labels[-1])
        if {"precision", "recall"} <= own.keys():
            axes.plot(own["recall"], own["precision"], "o", color=colour, markersize=9)
    axes.set(**_UNIT_RANGES, xlabel="recall", ylabel="precision")
    axes.legend(loc="lower left", frameon=False, fontsize=13, labelcolor=INK)
    return inline_svg(figure, "precision-recall", f"Precision over recall. {', '.join(labels)}")


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
        share, lacking = suitability["coverage"], 1 - suitability["mean_score_of_suitable"]
        axes.plot(share, lacking, "o", color=ORANGE, markersize=10)
        described += f", {number(lacking)} for the {percent(share)} that are called suitable"
    axes.set(xlim=(-0.03, 1.03), ylim=(0, max(0.05, 1.1 * float(risk.max()))))
    axes.set(xlabel="coverage: share of cases taken", ylabel="risk: 1 − mean score")
    return inline_svg(figure, "risk", described)


def reliability_plot(calibration: Mapping[str, Any], name: str) -> str:
    """Observed fraction over submitted probability; the larger the dot, the more frames."""
    bins = [values for values in calibration["reliability"].values() if values["frames"]]
    keys = ("mean_probability", "observed_fraction", "frames")
    probability, observed, frames = np.array([[values[key] for key in keys] for values in bins]).T
    figure, axes = new_plot()
    axes.plot((0, 1), (0, 1), **_FAINT_LINE)
    axes.plot(probability, observed, color=BLUE, linewidth=2)
    sizes = (8 + 14 * (frames / frames.max()) ** 0.5) ** 2
    axes.scatter(probability, observed, s=sizes, color=BLUE, linewidth=0, gid="dots", clip_on=False)
    axes.set(**_UNIT_RANGES, xlabel="submitted probability", ylabel="observed share of frames")
    texts = [
        f"{plural(int(count), 'frame')}: submitted {number(x)}, observed {number(y)}"
        for x, y, count in zip(probability, observed, frames, strict=True)
    ]
    return inline_svg(figure, f"reliability-{name}", f"Reliability of {plural(len(bins), 'bin')}", {"dots": texts})
