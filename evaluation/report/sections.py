"""The report's sections: what the numbers mean, in the order of the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.metrics.case_result import CaseResult
from evaluation.metrics.summary import scored_suffix
from evaluation.report.markup import escape, figure, interval, number, paragraph, plural, section
from evaluation.report.pictures import case_picture
from evaluation.report.plots import (
    bland_altman,
    case_bars,
    circumference_scatter,
    f1_plot,
    reliability_plot,
    score_bar,
)
from evaluation.report.tables import (
    PROTOCOL_WORDS,
    agreement_table,
    case_table,
    choice_tables,
    f1_table,
    ranking_table,
    sweep_rows,
)

_FAILURES_LISTED = 100


def notices(results: Sequence[CaseResult], metrics: Mapping[str, Any]) -> str:
    """What spoils the figures: failed cases, missing scores, undefined overlaps. Empty where there is nothing."""
    parts = []
    failed = [result for result in results if result.failure is not None]
    if failed:
        listed = "".join(
            # The message names the case.
            f"<li>{escape(result.failure)}</li>"
            for result in failed[:_FAILURES_LISTED]
        )
        more = f"<p>And {len(failed) - _FAILURES_LISTED:,} more.</p>" if len(failed) > _FAILURES_LISTED else ""
        parts.append(
            f'<div class="notice bad"><p><strong>{plural(len(failed), "case")} could not be scored</strong> and count '
            f'with the worst scores there are.</p><ul class="failures">{listed}</ul>{more}</div>'
        )
    for target, name in (("presence", "presence"), ("optimal", "optimal-plane")):
        scored = metrics[f"cases_with_{target}_scores"]
        if 0 < scored < len(results):
            parts.append(
                f'<p class="notice">Only {scored:,} of {len(results):,} cases have {name} scores. Their frame '
                "classification is that of these cases alone and not comparable with a complete run.</p>"
            )
    undefined = sum(result.undefined_overlap for result in results)
    if undefined:
        both_empty = sum(result.both_empty for result in results)
        parts.append(
            f'<p class="notice">In {plural(undefined, "case")} some overlap measure is undefined, because nothing was '
            f"predicted inside the field of view (in {both_empty:,} of them the reference is empty there too, and Dice "
            "itself is undefined). The official evaluator reports such values as infinite; here they count as 0.</p>"
        )
    return section("notices", "To know first", *parts) if parts else ""


def score_section(results: Sequence[CaseResult], metrics: Mapping[str, Any]) -> str:
    """The score, its three parts, and every case as a bar."""
    intervals = metrics["intervals"]
    headline = (
        f'<div class="headline"><strong>{number(metrics["score"]["mean"], 4)}</strong>'
        f"<span>95 % interval {interval(intervals.get('score'))}</span></div>"
    )
    means = {name: metrics[name]["mean"] for name in ("nae_circumference", "DiceCoefficientSoft", "wfss")}
    parts = "".join(
        f'<div class="part {kind}"><h3>{name}</h3><div class="value">{number(metrics[key]["mean"])}</div>'
        f"<p>95 %: {interval(intervals.get(key))}</p><p>{meaning}</p></div>"
        for kind, name, key, meaning in (
            (
                "circumference",
                "NAE, counts ½ (1 − NAE)",
                "nae_circumference",
                "Error of the abdominal circumference as a share of the larger of the two. Smaller is better; 1 where "
                "the reference or the measurement is missing.",
            ),
            (
                "dice",
                "Soft Dice, counts ¼",
                "DiceCoefficientSoft",
                "Overlap of the outlines, 1 is perfect. A frame without annotation borrows that of an annotated one up "
                "to 14 frames away, and loses one fifteenth a frame.",
            ),
            (
                "wfss",
                "WFSS, counts ¼",
                "wfss",
                "Quality of the chosen frame: 1 for the best plane the case has, 0.6 for a suboptimal one where an "
                "optimal one exists, else 0.",
            ),
        )
    )
    caption = "Every case, worst first: blue its circumference, green its soft Dice, amber its WFSS."
    return section(
        "score",
        "Score",
        headline,
        score_bar(means),
        f'<div class="parts">{parts}</div>',
        figure(case_bars(results), caption),
    )


def circumference_section(results: Sequence[CaseResult], metrics: Mapping[str, Any]) -> str:
    """How well the circumferences agree."""
    agreement = metrics["circumference"]
    missing = (
        f"{plural(agreement['cases_measured'], 'case')} measured; {agreement['cases_without_reference']:,} without a "
        f"reference in the chosen sweep, {agreement['cases_without_ellipse']:,} without a measurable outline."
    )
    if not agreement["cases_measured"]:
        return section("circumference", "Circumference", paragraph(f"There is nothing to compare: {missing}"))
    left = figure(
        bland_altman(results, agreement),
        "Bland-Altman plot. Above 0 the prediction is too large; about 95 % of cases lie between the outer lines.",
    )
    right = figure(
        circumference_scatter(results),
        "Prediction against reference. The green band is ±9 %, about the variability between human observers.",
    )
    plots = f'<div class="pair">{left}{right}</div>'
    return section(
        "circumference", "Circumference", paragraph(missing), plots, agreement_table(agreement, metrics["intervals"])
    )


def frames_section(results: Sequence[CaseResult], metrics: Mapping[str, Any]) -> str:
    """How well frames are classified and chosen."""
    suffix = scored_suffix(results, "presence")
    frame_f1 = metrics.get(f"frame_f1{suffix}")
    text = (
        "Does a frame show the abdomen? <em>Annotated sweeps</em> counts only sweeps with a reference circumference, "
        "as the paper does (F1 0.757 for FetalCLIP with a linear head, on its own test split); <em>all frames</em> "
        "counts every frame, as a blind sweep demands, and is harder. Never compare one with the other."
    )
    choices = choice_tables(metrics["frame_choice"])
    if frame_f1 is None:
        figures = paragraph(
            "The submission gives no frame scores. What remains is the chosen frame as a classifier of one frame a "
            "case: its precision says how often the choice was right; its recall is small by nature."
        )
        figures += f'<div class="pair">{choices}</div>'
    else:
        scored = metrics["cases_with_presence_scores"]
        of = "" if scored == len(results) else f" Over the {scored:,} of {len(results):,} cases with scores."
        plot = figure(
            f1_plot(frame_f1, metrics["intervals"], suffix),
            "F1 of presence. The bar is the 95 % interval at the submission's own threshold; the best threshold was "
            f"chosen on these very frames and flatters.{of}",
        )
        figures = f'<div class="pair wide-left">{plot}<div>{choices}</div></div>'
    return section(
        "frames",
        "Frames",
        paragraph(text),
        figures,
        ranking_table(results, metrics),
        f1_table(results, metrics),
    )


def calibration_section(results: Sequence[CaseResult], metrics: Mapping[str, Any]) -> str:
    """What the probabilities are worth."""
    calibration = metrics.get(f"calibration{scored_suffix(results, 'presence')}")
    if calibration is None:
        return section("calibration", "Calibration", paragraph("The submission gives no frame scores."))
    figures = []
    for protocol, values in calibration.items():
        if values["frames"]:
            caption = (
                f"<strong>{PROTOCOL_WORDS[protocol].capitalize()}</strong>, {values['frames']:,} frames: Brier score "
                f"{number(values['brier_score'], 4)}, expected calibration error "
                f"{number(values['expected_calibration_error'], 4)}."
            )
            figures.append(figure(reliability_plot(values), caption))
    text = (
        "Do the submitted probabilities mean what they say? On the dashed line they do; below it they are too high. "
        "Larger dots hold more frames. The Brier score is the mean squared distance from the truth, 0 is perfect."
    )
    return section("calibration", "Calibration", paragraph(text), f'<div class="pair">{"".join(figures)}</div>')


def sweeps_section(metrics: Mapping[str, Any]) -> str:
    """Where the choices fell."""
    return section("sweeps", "Sweeps", sweep_rows(metrics["sweeps"]))


def worst_section(
    worst: Sequence[CaseResult], poor_outlines: Sequence[CaseResult], anchors: Mapping[str, str], count: int
) -> str:
    """A picture of each of the worst cases and of further poor outlines; `anchors` are their ids, `count` is of all."""
    title = "Worst cases" if len(worst) < count else "Cases, worst first"
    text = (
        "Outlines in the field of view of the scanner; the evaluation has no ultrasound to show behind them. The strip "
        "below is the whole case: its sweeps, the annotated frames, the submitted probability and the choice."
    )
    lines = (
        ('<path class="reference" d="M1 2h24v10h-24z"/>', "reference"),
        ('<path class="reference elsewhere" d="M1 2h24v10h-24z"/>', "reference of another frame"),
        ('<path class="prediction" d="M1 2h24v10h-24z"/>', "prediction"),
        ('<rect class="optimal" x="1" y="2" width="24" height="10"/>', "optimal frames"),
        ('<rect class="suboptimal" x="1" y="2" width="24" height="10"/>', "suboptimal frames"),
        ('<path class="presence" d="M1 12L8 10L13 2L18 10L25 12"/>', "probability"),
        ('<path class="chosen-mark" d="M6 2h14l-7 10Z"/>', "chosen frame"),
    )
    key = "".join(f'<li><svg viewBox="0 0 26 14" aria-hidden="true">{mark}</svg>{name}</li>' for mark, name in lines)
    parts = [paragraph(text), f'<ul class="key">{key}</ul>', _pictures(worst, anchors)]
    if poor_outlines:
        parts.append("<h3>Further outlines with the smallest Dice, in annotated frames</h3>")
        parts.append(_pictures(poor_outlines, anchors))
    return section("worst", title, *parts)


def _pictures(results: Sequence[CaseResult], anchors: Mapping[str, str]) -> str:
    return f'<div class="cases">{"".join(case_picture(result, anchors[result.case]) for result in results)}</div>'


def cases_section(results: Sequence[CaseResult], anchors: Mapping[str, str]) -> str:
    """The table of all cases."""
    controls = (
        '<p class="filter" hidden><label for="filter">Show cases whose name contains</label>'
        '<input id="filter" type="search" autocomplete="off"><span id="shown" role="status"></span></p>'
    )
    text = (
        "A heading sorts by its column, again in reverse; <code>#sort=score</code> at the end of the address does the "
        "same, <code>#sort=-score</code> in reverse. Linked cases have a picture above."
    )
    return section("cases-section", "All cases", paragraph(text, "small"), controls, case_table(results, anchors))
