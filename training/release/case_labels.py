"""How many frames of a case are used and labelled, from the runs csv, a cache, or the table of circumferences alone."""

import ast
import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from acouslic.errors import AcouslicError
from acouslic.geometry import FRAMES_PER_CASE, FRAMES_PER_SWEEP, sweep_ranges
from acouslic.release import CaseCircumferences
from training.release.cache import Cache

_RUN_COLUMNS = ("filestem", "opt_seq", "subopt_seq")


@dataclass(frozen=True)
class CaseLabels:
    """Counts over the sweeps of a case that have a circumference."""

    annotated_sweeps: int
    annotated_sweep_frames: int
    """All frames of those sweeps, labelled or not."""
    optimal_frames: int | None
    """Frames with label 1; None where unknown."""
    suboptimal_frames: int | None


def labels_of_table(rows: dict[str, CaseCircumferences]) -> dict[str, CaseLabels]:
    """From the table alone: sweeps of 140 frames, labels unknown."""
    return {
        uuid: CaseLabels(count := len(_annotated_sweeps(row)), count * FRAMES_PER_SWEEP, None, None)
        for uuid, row in rows.items()
    }


def labels_of_runs(path: Path, rows: dict[str, CaseCircumferences]) -> dict[str, CaseLabels]:
    """From a csv of inclusive frame runs (columns filestem, opt_seq, subopt_seq), cases of 840 frames.

    Raises AcouslicError for a missing column, a case that is not in it, and a run that makes no sense.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            missing = [column for column in _RUN_COLUMNS if column not in (table.fieldnames or ())]
            if missing:
                raise AcouslicError(f"{path}: column {missing[0]} is missing; expected {', '.join(_RUN_COLUMNS)}")
            runs = {row["filestem"]: (row["opt_seq"], row["subopt_seq"]) for row in table}
    except FileNotFoundError:
        raise AcouslicError(f"{path} is missing: expected a csv of runs of labelled frames") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AcouslicError(f"{path} is not a readable csv file: {error}") from None
    labels = {}
    for uuid, row in rows.items():
        if uuid not in runs:
            raise AcouslicError(f"{path} has no line for case {uuid} of the table of circumferences")
        optimal, suboptimal = (_frames_of_runs(text, f"{path}, {uuid}") for text in runs[uuid])
        labels[uuid] = _count(row, FRAMES_PER_CASE, optimal, suboptimal)
    return labels


def labels_of_cache(folder: Path, rows: dict[str, CaseCircumferences]) -> dict[str, CaseLabels]:
    """From a prepared cache. Raises AcouslicError where it lacks a case."""
    cache = Cache(folder)
    labels = {}
    for uuid, row in rows.items():
        case = cache.case(uuid)
        frames = [set((case.labels == label).nonzero()[0].tolist()) for label in (1, 2)]
        labels[uuid] = _count(row, case.frame_count, frames[0], frames[1])
    return labels


def _annotated_sweeps(row: CaseCircumferences) -> list[int]:
    return [index for index, value in enumerate(row.sweep_ac_mm) if value is not None]


def _count(row: CaseCircumferences, frame_count: int, optimal: set[int], suboptimal: set[int]) -> CaseLabels:
    sweeps = sweep_ranges(frame_count)
    used: Iterable[int] = (index for index in _annotated_sweeps(row) if index < len(sweeps))
    frames = {frame for index in used for frame in sweeps[index]}
    return CaseLabels(len(_annotated_sweeps(row)), len(frames), len(frames & optimal), len(frames & suboptimal))


def _frames_of_runs(text: str, where: str) -> set[int]:
    """The frames of a text such as `[(55, 68), (344, 349)]`: pairs of first and last frame."""
    try:
        pairs = ast.literal_eval(text)
        ranges = [range(first, last + 1) for first, last in pairs]
    except (ValueError, TypeError, SyntaxError):
        raise AcouslicError(f"{where}: expected runs such as [(55, 68)], got {text!r}") from None
    if any(not run or run.start < 0 or run.stop > FRAMES_PER_CASE for run in ranges):
        raise AcouslicError(f"{where}: runs {text} leave the frames 0..{FRAMES_PER_CASE - 1}")
    return {frame for run in ranges for frame in run}
