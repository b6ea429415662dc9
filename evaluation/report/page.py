"""`report.html`: one page that explains a run, with nothing to load and nothing to install."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from acouslic.geometry import sweep_ranges
from acouslic.page.drawing import curve_path, outline_path
from acouslic.page.render import render
from acouslic.printable import one_line
from acouslic.write import write_text
from evaluation.metrics.agreement import other_pixel_sizes
from evaluation.metrics.case_result import CaseResult
from evaluation.metrics.summary import scored_suffix
from evaluation.report import pictures, plots, tables, text

PICTURES, OUTLINES = 12, 6
"""Of the worst cases, and of the poorest outlines among the others."""
_TEMPLATE = Path(__file__).with_name("page.html")
_FILTERS = {
    function.__name__: function for function in (text.number, text.percent, text.interval, text.plural, one_line)
}
_DRAWING = {"outline_path": outline_path, "curve_path": curve_path, "sweep_ranges": sweep_ranges}


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
    suffix = scored_suffix(results, "presence")
    values = {
        "results": results,
        "metrics": defaultdict(lambda: None, metrics),
        "intervals": defaultdict(lambda: None, metrics["intervals"]),
        "scored": scored,
        "frame_f1": metrics.get(f"frame_f1{suffix}"),
        "calibration": metrics.get(f"calibration{suffix}"),
        "other_pixel_sizes": other_pixel_sizes(results) if scored else None,
        "worst": worst,
        "poor_outlines": poor_outlines,
        "anchors": {result.case: f"case-{index}" for index, result in enumerate([*worst, *poor_outlines], start=1)},
        "plots": plots,
        "tables": tables,
        "pictures": pictures,
        **_DRAWING,
    }
    styles, scripts = ("page.css", "report.css"), ("theme.js", "table.js", "report.js")
    return render(_TEMPLATE, values, styles=styles, scripts=scripts, filters=_FILTERS)


def _merit(result: CaseResult) -> float:
    """The score of the case, or F1 over its frames where only those were judged."""
    if result.has_score:
        return result.score
    f1 = tables.f1_of(result)
    return 1.0 if f1 is None else f1


def _poor_outlines(results: Sequence[CaseResult], shown: set[str]) -> list[CaseResult]:
    """Cases that lose by their outline alone; the worst cases often chose no frame or a wrong one."""
    outlined = [
        result
        for result in results
        if result.case not in shown and result.annotated_distance_frames == 0 and result.predicted_outline_px
    ]
    return sorted(outlined, key=lambda result: (result.official["DiceCoefficient"], result.case))[:OUTLINES]
