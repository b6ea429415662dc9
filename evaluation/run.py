"""A scoring run from its tasks to its files."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from acouslic.printable import printable
from evaluation.case_evaluation import CaseTask
from evaluation.evaluate import evaluate
from evaluation.metrics.agreement import other_pixel_sizes
from evaluation.outputs import write_outputs


def run(
    tasks: Sequence[CaseTask],
    output_dir: Path,
    *,
    workers: int | None = None,
    sets: Mapping[str, str] | None = None,
    left_out: Mapping[str, str] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Score the tasks, write `metrics.json`, `per_case.csv` and `report.html`, and say what failed.

    `sets` names the set of each case, `left_out` the reason for each case that is not scored; `notes` are further
    entries of `metrics.json`. Raises AcouslicError where a case cannot be scored or a file cannot be written.
    """
    results = evaluate(tasks, workers=workers)
    if sets is not None:
        results = [replace(result, set_name=sets[result.case]) for result in results]
    more = dict(notes or {})
    if left_out:
        more["cases_left_out"] = [
            {"case": case, "reason": printable(reason)} for case, reason in sorted(left_out.items())
        ]
    metrics = write_outputs(output_dir, results, more)
    for reason in (left_out or {}).values():
        print(f"left out: {printable(reason)}")
    for result in results:
        if result.failure is not None:
            print(f"failed: {printable(result.failure)}")
    warning = other_pixel_sizes(results)
    if warning is not None:
        print(f"warning: {warning}")
    print(f"score {metrics['score']['mean']:.4f} over {len(results)} cases; results in {output_dir}")
