"""`report.html`: one page that explains a run, with nothing to load and nothing to install."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from acouslic.write import write_text
from evaluation.metrics.case_result import CaseResult
from evaluation.report.markup import plural, section
from evaluation.report.sections import (
    calibration_section,
    cases_section,
    circumference_section,
    frames_section,
    notices,
    score_section,
    sweeps_section,
    worst_section,
)
from evaluation.report.tables import official_table

TITLE = "Fetal abdomen in blind sweeps: evaluation"
PICTURES, OUTLINES = 12, 6
"""Of the worst cases, and of the poorest outlines among the others."""
_SECTIONS = (
    ("score", "Score"),
    ("circumference", "Circumference"),
    ("frames", "Frames"),
    ("calibration", "Calibration"),
    ("sweeps", "Sweeps"),
    ("worst", "Worst cases"),
    ("official", "Official metrics"),
    ("cases-section", "All cases"),
)


def write_report(path: Path, results: Sequence[CaseResult], metrics: Mapping[str, Any]) -> None:
    """Write the page. `metrics` is the content of `metrics.json` of the same results: official aggregates and
    `summarise`. At least one case is needed. Raises AcouslicError where the file cannot be written.

    Every text from outside is escaped, and the page forbids any script but its own and any request.
    """
    write_text(path, report_page(results, metrics))


def report_page(results: Sequence[CaseResult], metrics: Mapping[str, Any]) -> str:
    """The page as text. Of each case it holds a table row and two dots, of the worst a picture."""
    worst = sorted(results, key=lambda result: (result.score, result.case))[:PICTURES]
    poor_outlines = _poor_outlines(results, {result.case for result in worst})
    anchors = {result.case: f"case-{index}" for index, result in enumerate([*worst, *poor_outlines], start=1)}
    sections = [
        notices(results, metrics),
        score_section(results, metrics),
        circumference_section(results, metrics),
        frames_section(results, metrics),
        calibration_section(results, metrics),
        sweeps_section(metrics),
        worst_section(worst, poor_outlines, anchors, len(results)),
        section("official", "Official metrics", official_table(metrics)),
        cases_section(results, anchors),
    ]
    style, script = _part("page.css"), _part("page.js")
    return Template(_part("page.html")).substitute(
        title=TITLE,
        lead=_lead(metrics),
        navigation="".join(f'<a href="#{anchor}">{name}</a>' for anchor, name in _SECTIONS),
        sections="\n".join(part for part in sections if part),
        footer="Intervals are 95 % percentile intervals of "
        f"{metrics['intervals']['resamples']:,} resamples of {_units(metrics)}.",
        style=style,
        style_hash=_content_hash(style),
        script=script,
        script_hash=_content_hash(script),
    )


def _poor_outlines(results: Sequence[CaseResult], shown: set[str]) -> list[CaseResult]:
    """Cases that lose by their outline alone; the worst cases often chose no frame or a wrong one."""
    outlined = [
        result
        for result in results
        if result.case not in shown and result.annotated_distance_frames == 0 and result.predicted_outline_px
    ]
    return sorted(outlined, key=lambda result: (result.official["DiceCoefficient"], result.case))[:OUTLINES]


def _lead(metrics: Mapping[str, Any]) -> str:
    cases = plural(metrics["case_count"], "case")
    subjects = f" of {plural(metrics['subjects'], 'subject')}" if metrics["subjects"] else ""
    return (
        f"{cases}{subjects}, scored by the rules of the ACOUSLIC-AI challenge, with frame classification beside them."
    )


def _units(metrics: Mapping[str, Any]) -> str:
    """What was resampled, in words."""
    units = metrics["intervals"]["units"]
    if not metrics["subjects"]:
        return plural(units, "case")
    if units == metrics["subjects"]:
        return f"{plural(units, 'subject')}, each with all its cases"
    return f"{units:,} subjects and cases of unknown subject"


def _part(name: str) -> str:
    """A file of the page, which lies beside this module."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _content_hash(text: str) -> str:
    """What a content security policy knows a script or style by."""
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
