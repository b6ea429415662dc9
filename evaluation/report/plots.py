"""The report's plots of all cases: score parts, agreement of circumferences, F1 by protocol, calibration."""

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.metrics.agreement import LIMITS_SD, ac_error_mm
from evaluation.metrics.case_result import CaseResult
from evaluation.report.axes import Axes, drawing, nice_ticks, padded_range
from evaluation.report.markup import escape, interval, number, plural

OBSERVER_VARIABILITY = 0.09
"""Of the circumference between human observers."""
SHARES = (
    ("circumference", "half of 1 − NAE", lambda official: 0.5 * (1 - official["nae_circumference"])),
    ("dice", "a quarter of soft Dice", lambda official: 0.25 * official["DiceCoefficientSoft"]),
    ("wfss", "a quarter of WFSS", lambda official: 0.25 * official["wfss"]),
)
"""What the score is the sum of: class, name, share of a case (or of the means)."""
_UNIT_TICKS = (0, 0.2, 0.4, 0.6, 0.8, 1.0)
_MOST_BARS_APART = 60


def score_bar(means: Mapping[str, float]) -> str:
    """The score as one bar from 0 to 1, made of its three shares."""
    width, height, left = 1000.0, 74.0, 0.0
    parts = [f'<rect class="rest" x="0" y="0" width="{width}" height="44" rx="6"/>']
    for kind, _, share_of in SHARES:
        share = share_of(means)
        size = max(0.0, share) * width
        parts.append(f'<rect class="share-{kind}" x="{left:.1f}" y="0" width="{size:.1f}" height="44"/>')
        if size > 70:
            parts.append(f'<text class="on-bar" x="{left + 12:.1f}" y="29">{number(share)}</text>')
        left += size
    for tick in (0, 0.25, 0.5, 0.75, 1):
        place = "start" if tick == 0 else "end" if tick == 1 else "mid"
        parts.append(f'<text class="tick {place}" x="{tick * width:.0f}" y="66">{tick:g}</text>')
    described = ", ".join(f"{name} {number(share_of(means))}" for _, name, share_of in SHARES)
    return drawing("".join(parts), f"The score is the sum of {described}", width, height, "bar")


def case_bars(results: Sequence[CaseResult]) -> str:
    """Every case as a bar, worst first, made of the three shares of its score."""
    ordered = sorted(results, key=lambda result: (result.score, result.case))
    axes = Axes(
        (0, len(ordered)), (0, 1), "cases, worst first", "score", (), _UNIT_TICKS, width=1000, height=260, bottom=34
    )
    gap = 0.2 if len(ordered) <= _MOST_BARS_APART else 0.0
    parts = [axes.frame()]
    for index, result in enumerate(ordered):
        left = axes.x(index + gap / 2)
        width = max(0.5, axes.x(index + 1 - gap / 2) - left)
        bars, base = [], 0.0
        for kind, _, share_of in SHARES:
            share = max(0.0, share_of(result.official))
            top = axes.y(base + share)
            size = f'width="{width:.1f}" height="{axes.y(base) - top:.1f}"'
            bars.append(f'<rect class="share-{kind}" x="{left}" y="{top}" {size}/>')
            base += share
        parts.append(f"<g><title>{escape(result.case)}: {number(result.score)}</title>{''.join(bars)}</g>")
    description = f"Scores of {plural(len(ordered), 'case')}, sorted"
    if ordered:
        description += f", from {number(ordered[0].score)} to {number(ordered[-1].score)}"
    return drawing("".join(parts), description, 1000, 260, "wide")


def bland_altman(results: Sequence[CaseResult], agreement: Mapping[str, Any]) -> str:
    """Differences of the measured circumferences over their means, with bias and limits of agreement."""
    pairs = _measured(results)
    errors = agreement["error_mm"]
    limits = [errors[name] for name in ("bias", "lower_limit", "upper_limit") if name in errors]
    means = [(predicted + reference) / 2 for _, reference, predicted in pairs]
    differences = [predicted - reference for _, reference, predicted in pairs]
    x_range, y_range = padded_range(means), padded_range([0, *differences, *limits])
    axes = Axes(
        x_range,
        y_range,
        "mean of reference and prediction (mm)",
        "prediction − reference (mm)",
        nice_ticks(*x_range),
        nice_ticks(*y_range, 6),
    )
    parts = [axes.frame(), axes.line((x_range[0], 0), (x_range[1], 0), "zero")]
    for (result, reference, predicted), mean, difference in zip(pairs, means, differences, strict=True):
        title = f"{escape(result.case)}: {number(difference, 1, sign=True)} mm ({_both(reference, predicted)})"
        parts.append(axes.point(mean, difference, "dot", title))
    names = {"upper_limit": f"+{LIMITS_SD} SD", "bias": "bias", "lower_limit": f"−{LIMITS_SD} SD"}
    for name, label in names.items():
        if name in errors:
            parts.append(axes.line((x_range[0], errors[name]), (x_range[1], errors[name]), f"limit {name}"))
            text = f"{label} {number(errors[name], 1, sign=True)} mm"
            below = name == "lower_limit"
            y = axes.y(errors[name]) + (15 if below else -6)
            parts.append(f'<text class="note end halo" x="{axes.right_px - 4}" y="{y:.1f}">{text}</text>')
    described = ", ".join(f"{label} {number(errors[name], 1)} mm" for name, label in names.items() if name in errors)
    return drawing("".join(parts), f"Bland-Altman plot of {plural(len(pairs), 'case')}: {described}")


def circumference_scatter(results: Sequence[CaseResult]) -> str:
    """Predicted over reference circumferences, with the line of identity and the band of human variability."""
    pairs = _measured(results)
    values = [value for _, reference, predicted in pairs for value in (reference, predicted)]
    # Room around the values, so that the band fits even where all are alike.
    low, high = 0.94 * min(values), 1.06 * max(values)
    ticks = nice_ticks(low, high)
    axes = Axes((low, high), (low, high), "reference circumference (mm)", "prediction (mm)", ticks, ticks)
    corners = [(low, low * (1 + OBSERVER_VARIABILITY)), (high / (1 + OBSERVER_VARIABILITY), high), (high, high)]
    corners += [(high, high * (1 - OBSERVER_VARIABILITY)), (low / (1 - OBSERVER_VARIABILITY), low), (low, low)]
    band = " ".join(f"{axes.x(x)},{axes.y(y)}" for x, y in corners)
    parts = [f'<polygon class="band" points="{band}"/>', axes.frame(), axes.line((low, low), (high, high), "zero")]
    for result, reference, predicted in pairs:
        parts.append(axes.point(reference, predicted, "dot", f"{escape(result.case)}: {_both(reference, predicted)}"))
    return drawing("".join(parts), f"Predicted over reference circumference of {plural(len(pairs), 'case')}")


def _measured(results: Sequence[CaseResult]) -> list[tuple[CaseResult, float, float]]:
    return [
        (result, result.reference_ac_mm, result.predicted_ac_mm)
        for result in results
        if ac_error_mm(result) is not None and result.reference_ac_mm is not None and result.predicted_ac_mm is not None
    ]


def _both(reference_mm: float, predicted_mm: float) -> str:
    return f"reference {number(reference_mm, 1)} mm, prediction {number(predicted_mm, 1)} mm"


def f1_plot(frame_f1: Mapping[str, Any], intervals: Mapping[str, Any], suffix: str) -> str:
    """F1 of presence in both protocols at three thresholds, the own one with its interval."""
    rows: list[tuple[str, str, float | None, Mapping[str, Any] | None]] = []
    for protocol, heading in (("annotated_sweeps", "annotated sweeps"), ("all_frames", "all frames")):
        values = frame_f1[protocol]
        rows.append(("heading", heading, None, None))
        for key, label, kind in (
            ("at_own_threshold", "own threshold", "own"),
            ("at_half", "threshold 0.5", "half"),
            ("at_best_threshold_optimistic", "best (optimistic)", "best"),
        ):
            around = intervals.get(f"frame_f1_{protocol}{suffix}") if kind == "own" else None
            rows.append((kind, label, values.get(key, {}).get("f1"), around))
    row_height, left, width = 30.0, 190.0, 560.0
    height = len(rows) * row_height + 40
    axes = Axes((0, 1), (0, 1), "", "", _UNIT_TICKS, (), width=width - 60, height=height, left=left, bottom=34)
    parts, described = [axes.frame()], []
    for index, (kind, label, value, around) in enumerate(rows):
        y = 14 + (index + 0.5) * row_height
        parts.append(f'<text class="{"row-heading" if kind == "heading" else "row"}" x="4" y="{y + 5}">{label}</text>')
        if kind == "heading":
            described.append(label)
            continue
        if around:
            ends = f'x1="{axes.x(around["lower"])}" x2="{axes.x(around["upper"])}"'
            parts.append(f'<line class="whisker" {ends} y1="{y}" y2="{y}"/>')
        if value is not None:
            parts.append(f'<circle class="f1-{kind}" cx="{axes.x(value)}" cy="{y}" r="6"/>')
        parts.append(f'<text class="row value" x="{width - 64}" y="{y + 5}">{number(value)}</text>')
        described.append(f"{label} {number(value)}" + (f" ({interval(around)})" if around else ""))
    return drawing("".join(parts), f"F1 of presence: {', '.join(described)}", width, height, "plot f1")


def reliability_plot(calibration: Mapping[str, Any]) -> str:
    """Observed share of positive frames over the submitted probability, by bin; dots grow with their frames."""
    unit = (-0.03, 1.03)  # a margin for the dots at 0 and 1
    axes = Axes(unit, unit, "submitted probability", "observed share of frames", _UNIT_TICKS, _UNIT_TICKS)
    bins = [values for values in calibration["reliability"].values() if values["frames"]]
    largest = max(values["frames"] for values in bins)
    points = [(values["mean_probability"], values["observed_fraction"]) for values in bins]
    parts = [axes.frame(), axes.line((0, 0), (1, 1), "zero"), axes.path(points, "reliability")]
    for values, (probability, observed) in zip(bins, points, strict=True):
        title = f"{plural(values['frames'], 'frame')}: submitted {number(probability)}, observed {number(observed)}"
        parts.append(axes.point(probability, observed, "dot solid", title, 4 + 7 * (values["frames"] / largest) ** 0.5))
    described = ", ".join(f"{number(probability, 2)}: {number(observed, 2)}" for probability, observed in points)
    return drawing("".join(parts), f"Reliability, submitted probability: observed share, {described}")
