"""`report.html`: one page that explains a run, with nothing to load and nothing to install."""

import base64
import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from acouslic.write import write_text
from evaluation.metrics.case_result import CaseResult
from evaluation.metrics.frame_f1 import case_counts
from evaluation.metrics.summary import scored_suffix
from evaluation.report import pictures, plots, tables, text

PICTURES, OUTLINES = 12, 6
"""Of the worst cases, and of the poorest outlines among the others."""
SECTIONS = {
    "score": "Score",
    "circumference": "Circumference",
    "frames": "Frames",
    "calibration": "Calibration",
    "judgement": "Its own judgement",
    "sets": "Sets",
    "sweeps": "Sweeps",
    "worst": "Worst cases",
    "official": "Official metrics",
    "cases-section": "All cases",
}


def write_report(path: Path, results: Sequence[CaseResult], metrics: Mapping[str, Any]) -> None:
    """Write the page. `metrics` is the content of `metrics.json` of the same results: official aggregates and
    `summarise`. At least one case is needed. Raises AcouslicError where the file cannot be written.

    Every text from outside is escaped, and the page forbids any script but its own and any request.
    """
    write_text(path, report_page(results, metrics))


def report_page(results: Sequence[CaseResult], metrics: Mapping[str, Any]) -> str:
    """The page as text. Of each case it holds a table row and some marks, of the worst a picture."""
    scored = "score" in metrics
    worst = sorted(results, key=lambda result: (_merit(result), result.case))[:PICTURES]
    poor_outlines = _poor_outlines(results, {result.case for result in worst}) if scored else []
    anchors = {result.case: f"case-{index}" for index, result in enumerate([*worst, *poor_outlines], start=1)}
    suffix = scored_suffix(results, "presence")
    style, script = _part("page.css"), _part("page.js")
    template = _environment().get_template("page.html")
    return template.render(
        results=results,
        metrics=metrics,
        intervals=defaultdict(lambda: None, metrics["intervals"]),
        scored=scored,
        sections=_sections(metrics),
        shares=[(kind, name, share_of(_means(metrics))) for kind, _, name, share_of in plots.SHARES if scored],
        frame_f1=metrics.get(f"frame_f1{suffix}"),
        calibration=metrics.get(f"calibration{suffix}"),
        suffix=suffix,
        worst=worst,
        poor_outlines=poor_outlines,
        anchors=anchors,
        plots=plots,
        tables=tables,
        pictures=pictures,
        units=_units(metrics),
        style=style,
        style_hash=_content_hash(style),
        script=script,
        script_hash=_content_hash(script),
    )


def _environment() -> Environment:
    """Templates that escape markup and show characters that do not print, in whatever they are given."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.do"],
        finalize=lambda value: text.visible(value) if type(value) is str else value,
    )
    environment.filters |= {"number": text.number, "percent": text.percent, "interval": text.interval}
    environment.filters |= {"cut": text.visible, "plural": text.plural}
    return environment


def _sections(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Anchor and name of what the page has."""
    present = {
        "score": "score" in metrics,
        "circumference": "score" in metrics,
        "judgement": metrics.get("suitability", {}).get("cases_judged"),
        "sets": metrics.get("sets"),
        "sweeps": "score" in metrics,
        "official": "score" in metrics,
    }
    return [(anchor, name) for anchor, name in SECTIONS.items() if present.get(anchor, True)]


def _merit(result: CaseResult) -> float:
    """The score of the case, or F1 over its frames where only those were judged."""
    if result.has_score:
        return result.score
    counts = case_counts(result, "presence", "own_threshold", "all_frames")
    f1 = None if counts is None else counts.f1
    return 1.0 if f1 is None else f1


def _means(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: metrics[name]["mean"] for name in ("nae_circumference", "DiceCoefficientSoft", "wfss")}


def _poor_outlines(results: Sequence[CaseResult], shown: set[str]) -> list[CaseResult]:
    """Cases that lose by their outline alone; the worst cases often chose no frame or a wrong one."""
    outlined = [
        result
        for result in results
        if result.case not in shown and result.annotated_distance_frames == 0 and result.predicted_outline_px
    ]
    return sorted(outlined, key=lambda result: (result.official["DiceCoefficient"], result.case))[:OUTLINES]


def _units(metrics: Mapping[str, Any]) -> str:
    """What the intervals are over, in words."""
    units = metrics["intervals"]["units"]
    if not metrics["subjects"]:
        return text.plural(units, "case")
    if units == metrics["subjects"]:
        return f"{text.plural(units, 'subject')}, each with all its cases"
    return f"{units:,} subjects and cases of unknown subject"


def _part(name: str) -> Markup:
    """A file of the page, which lies beside this module: markup of our own."""
    return Markup(Path(__file__).with_name(name).read_text(encoding="utf-8"))


def _content_hash(part: str) -> str:
    """What a content security policy knows a script or style by."""
    return base64.b64encode(hashlib.sha256(part.encode("utf-8")).digest()).decode("ascii")
