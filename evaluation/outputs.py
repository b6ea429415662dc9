"""What a run leaves behind: `metrics.json` for the leaderboard, `per_case.csv` for people, `report.html`."""

import contextlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from acouslic.errors import AcouslicError
from acouslic.printable import printable
from acouslic.sockets import CIRCUMFERENCE_FILE
from acouslic.table import csv_text
from acouslic.write import write_text
from evaluation.metrics.case_result import CaseResult
from evaluation.metrics.official import CASE_METRICS, aggregate
from evaluation.metrics.summary import per_case_columns, summarise

METRICS_FILE = "metrics.json"
PER_CASE_FILE = "per_case.csv"
REPORT_FILE = "report.html"


def write_outputs(output_dir: Path, results: Sequence[CaseResult], notes: Mapping[str, Any]) -> dict[str, Any]:
    """Write all three files for the results, sorted by case, and return the metrics.

    `notes` are further entries of `metrics.json`. Raises AcouslicError where a file cannot be written.
    """
    ordered = sorted(results, key=lambda result: result.case)
    metrics = submission_metrics(ordered) | dict(notes)
    write_files(output_dir, ordered, metrics, per_case_csv(ordered))
    return metrics


def write_files(output_dir: Path, results: Sequence[CaseResult], metrics: Mapping[str, Any], table: str) -> None:
    """Write the metrics, the table of cases (CSV text) and the report of the results: all of them, or none.

    Raises AcouslicError where a file cannot be written, and ValueError as `check_metrics`.
    """
    # Only here: workers need neither matplotlib nor the templates. What matplotlib says of its font cache is no error.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    from evaluation.report.page import write_report

    check_metrics(metrics)
    try:
        write_text(output_dir / PER_CASE_FILE, table)
        write_report(output_dir / REPORT_FILE, results, metrics)
        # Last, so that metrics are only there where everything is.
        text = json.dumps(metrics, allow_nan=False, ensure_ascii=False, indent=1)
        write_text(output_dir / METRICS_FILE, text + "\n")
    except BaseException:
        with contextlib.suppress(AcouslicError):
            remove_outputs(output_dir)
        raise


def remove_outputs(output_dir: Path, *, inputs: Sequence[Path] = ()) -> None:
    """Take away what an earlier run left. Raises AcouslicError where it cannot be removed, a file is in the way, one of
    `inputs` would go, or the report there is the page of an analysed case."""
    names = (METRICS_FILE, PER_CASE_FILE, REPORT_FILE)
    for path in inputs:
        if path.resolve() in [(output_dir / name).resolve() for name in names]:
            raise AcouslicError(f"{path} would be replaced by this run's own {path.name}: name another --output")
    if (output_dir / CIRCUMFERENCE_FILE).exists():
        raise AcouslicError(f"{output_dir} holds an analysed case, whose page has the same name: name another --output")
    for name in names:
        try:
            (output_dir / name).unlink(missing_ok=True)
        except NotADirectoryError:
            raise AcouslicError(f"{output_dir} is no folder, or lies below a file: name a folder") from None
        except OSError as error:
            raise AcouslicError(
                f"{output_dir / name}, of an earlier run, cannot be removed: {error.strerror}"
            ) from None


def submission_metrics(results: Sequence[CaseResult]) -> dict[str, Any]:
    """The content of `metrics.json`: the official aggregates under their names at the top, so that `score.mean` is a
    path for a leaderboard, then what is ours, then the cases.

    Who may see them can tell parts of the reference from them: an official metric of a case beside what was predicted
    gives its circumference away.
    """
    return {
        **aggregate([result.official for result in results]),
        "undefined_overlap_cases": sum(result.undefined_overlap for result in results),
        "both_empty_cases": sum(result.both_empty for result in results),
        **summarise(results),
        "cases": [_case_metrics(result) for result in results],
    }


def per_case_csv(results: Sequence[CaseResult]) -> str:
    """One row a case: `case`, `frame_number`, the official metrics by their names, then ours; None is an empty cell."""
    rows: list[list[Any]] = []
    for result in results:
        ours = per_case_columns(result)
        if not rows:
            rows.append(["case", "frame_number", *CASE_METRICS, *ours])
        official = [result.official[name] for name in CASE_METRICS]
        rows.append([result.case, result.frame_number, *official, *ours.values()])
    return csv_text(rows)


def check_metrics(value: Any, where: str = "metrics") -> None:
    """Raises ValueError for a key with a dot, which no leaderboard path can name, and a number that is not finite."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str) or "." in key:
                raise ValueError(f"{where} has the key {key!r}")
            check_metrics(item, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            check_metrics(item, f"{where}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}")


def _case_metrics(result: CaseResult) -> dict[str, Any]:
    return {
        "case": result.case,
        "frame_number": result.frame_number,
        **result.official,
        "score": result.score,
        "predicted_ac_mm": result.predicted_ac_mm,
        "undefined_overlap": result.undefined_overlap,
        "exec_duration_s": result.exec_duration_s,
        "failure": None if result.failure is None else printable(result.failure),
    }
