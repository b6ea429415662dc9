"""`evaluation frames`: frame scores and labels alone, e.g. out of fold, judged by the same code and in the same report.

No masks and no circumferences are needed, so that of the official metrics only the frame selection score remains.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from acouslic.frame_labels import OPTIMAL
from acouslic.sockets import NO_FRAME
from acouslic.table import csv_text
from evaluation.inputs.frame_table import FrameTable, read_frame_table
from evaluation.metrics.case_result import CaseResult
from evaluation.metrics.frame_f1 import PROTOCOLS, TARGETS, case_counts
from evaluation.metrics.official import distance_in_sweep, weighted_frame_selection_score
from evaluation.metrics.summary import counts_prefix, summarise_frames
from evaluation.outputs import remove_outputs, write_files


def main(arguments: Sequence[str]) -> int:
    """The command line. Raises AcouslicError, with one sentence, for a table that cannot be judged."""
    parser = argparse.ArgumentParser(
        prog="acouslic evaluate frames",
        description="Judge frame scores against labels, without masks: the same table and report as `local`.",
        epilog="SCORES has a row for each frame of each case. Columns (arrays of equal length in an .npz): case, frame "
        "(from 0), label (0 nothing, 1 optimal, 2 suboptimal), presence (0..1); and if you like optimality (0..1), set "
        "(a fold or site), subject, annotated_sweep (0 or 1: the sweep has a reference circumference; by default those "
        "with a label), chosen (1 for the chosen frame; by default the frame of the highest score).",
    )
    parser.add_argument("scores", type=Path, metavar="SCORES", help="a .csv or .npz file")
    parser.add_argument("--output", type=Path, required=True, help="where metrics.json, per_case.csv, report.html go")
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="presence counts as positive from this value on (%(default)s)"
    )
    parser.add_argument(
        "--optimality_threshold",
        type=float,
        default=0.5,
        help="optimality counts as positive from this value on (%(default)s)",
    )
    options = parser.parse_args(arguments)
    for name in ("threshold", "optimality_threshold"):
        if not 0 <= getattr(options, name) <= 1:
            parser.error(f"--{name} must be in 0..1")
    remove_outputs(options.output, inputs=[options.scores])
    results = [
        replace(
            case_result(table),
            presence_threshold=options.threshold,
            optimality_threshold=None if table.optimality is None else options.optimality_threshold,
        )
        for table in read_frame_table(options.scores)
    ]
    metrics = summarise_frames(results)
    write_files(options.output, results, metrics, frames_csv(results))
    f1 = metrics["frame_f1"]["all_frames"]["at_own_threshold"].get("f1")
    print(f"F1 over all frames of {len(results)} cases: {'undefined' if f1 is None else f'{f1:.4f}'}")
    print(f"results in {options.output}")
    return 0


def case_result(table: FrameTable) -> CaseResult:
    """What is known of a case from its frames alone."""
    return CaseResult(
        case=table.case,
        subject_id=table.subject_id,
        frame_number=table.chosen,
        official={"wfss": weighted_frame_selection_score(table.labels, table.chosen)},
        undefined_overlap=False,
        both_empty=False,
        reference_ac_mm=None,
        predicted_ac_mm=None,
        frame_labels=table.labels,
        annotated_sweeps=table.annotated_sweeps,
        presence_probability=table.presence,
        optimality_probability=table.optimality,
        annotated_distance_frames=distance_in_sweep(table.labels > 0, table.chosen),
        optimal_distance_frames=distance_in_sweep(table.labels == OPTIMAL, table.chosen),
        set_name=table.set_name,
    )


def frames_csv(results: Sequence[CaseResult]) -> str:
    """One row a case: the chosen frame, its WFSS, and the counts at the own threshold by target and protocol."""
    rows: list[list[object]] = []
    for result in results:
        row: dict[str, object] = {
            "case": result.case,
            "set": result.set_name,
            "subject_id": result.subject_id,
            "frame_number": None if result.frame_number == NO_FRAME else result.frame_number,
            "wfss": result.official["wfss"],
            "annotated_distance_frames": result.annotated_distance_frames,
        }
        for target in TARGETS:
            for protocol in PROTOCOLS:
                counts = case_counts(result, target, "own_threshold", protocol)
                for cell in ("tp", "fp", "fn", "tn"):
                    name = f"{counts_prefix(target, 'own_threshold', protocol)}_{cell}"
                    row[name] = None if counts is None else getattr(counts, cell)
        rows += [list(row)] if not rows else []
        rows.append(list(row.values()))
    return csv_text(rows)
