"""Scores and labels of the frames of many cases, from one table: a `.csv`, or an `.npz` of equally long arrays."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from acouslic.errors import AcouslicError
from acouslic.geometry import sweep_ranges
from acouslic.sockets import NO_FRAME
from acouslic.strict_json import shown
from acouslic.table import plain_cell
from evaluation.inputs.ground_truth import NPZ_ERRORS

REQUIRED = ("case", "frame", "label", "presence")
OPTIONAL = ("optimality", "set", "subject", "annotated_sweep", "chosen")
_TEXT = {"case", "set", "subject"}
_HIGHEST_LABEL = 2
_PLAIN_KINDS = "biufUS"
"""Of numpy's kinds of arrays: real numbers and text."""


@dataclass(frozen=True, eq=False)
class FrameTable:
    """The frames of one case, all F of them in order."""

    case: str
    labels: np.ndarray
    """uint8 (F,): 0 nothing, 1 optimal, 2 suboptimal."""
    presence: np.ndarray
    """float64 (F,) in 0..1."""
    optimality: np.ndarray | None
    """float64 (F,) in 0..1."""
    annotated_sweeps: tuple[bool, ...]
    chosen: int
    """The chosen frame; -1 for none."""
    set_name: str | None
    subject_id: str | None


def read_frame_table(path: Path) -> list[FrameTable]:
    """The cases of the table, sorted by name.

    Raises AcouslicError, naming file and case, for a missing or unknown column, a value out of range, frames that are
    not 0 to F - 1 once each, and a set, subject or annotated sweep that is not the same in all rows it belongs to.
    """
    columns = _read_npz(path) if path.suffix.lower() == ".npz" else _read_csv(path)
    missing = [name for name in REQUIRED if name not in columns]
    unknown = sorted(set(columns) - set(REQUIRED) - set(OPTIONAL))
    if missing or unknown:
        wrong = f"lacks the column {missing[0]}" if missing else f"has the unknown column {shown(unknown[0])}"
        raise AcouslicError(f"{path} {wrong}; columns are {', '.join(REQUIRED)}; optional {', '.join(OPTIONAL)}")
    checked = {name: _checked_column(path, name, values) for name, values in columns.items()}
    if not len(checked["case"]):
        raise AcouslicError(f"{path} has no rows")
    tables = [
        _case_table(path, str(case), {name: values[checked["case"] == case] for name, values in checked.items()})
        for case in np.unique(checked["case"])
    ]
    without = [table.case for table in tables if table.set_name is None]
    if 0 < len(without) < len(tables):
        raise AcouslicError(
            f"{path}: case {shown(without[0])} has no set, others have: fill the column, or leave it out"
        )
    return tables


def _read_csv(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = list(csv.reader(file, strict=True)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AcouslicError(f"{path} is not a readable CSV file: {error}") from None
    wrong = next((line for line, row in enumerate(rows, start=2) if len(row) != len(header)), None)
    if wrong is not None or len(set(header)) != len(header):
        raise AcouslicError(f"{path}: line {wrong or 1} does not fit the header")
    cells = np.array(rows, dtype=str).reshape(len(rows), len(header))
    return {name: cells[:, index] for index, name in enumerate(header)}


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        # From bytes: numpy leaves a file open that turns out to be damaged.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            columns = {name: arrays[name] for name in arrays.files}
    except NPZ_ERRORS as error:
        raise AcouslicError(f"{path} is not a readable .npz file: {error}") from None
    lengths = {array.shape for array in columns.values()}
    if len(lengths) > 1 or any(len(shape) != 1 for shape in lengths):
        raise AcouslicError(f"{path}: expected arrays of one length, one value a frame; got the shapes {lengths}")
    return columns


def _checked_column(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    """Text, or float64 in the column's range."""
    if values.dtype.kind not in _PLAIN_KINDS:
        raise AcouslicError(f"{path}: the column {name} holds neither numbers nor text, but {values.dtype!s:.40}")
    if name in _TEXT and values.dtype.kind == "f" and np.isnan(values).any():
        raise AcouslicError(
            f"{path}: the column {name} holds numbers and NaN, as pandas writes missing text; save text"
        )
    if name in _TEXT:
        try:
            texts = np.array([plain_cell(value) for value in values.astype(str).tolist()], dtype=str)
        except UnicodeDecodeError:
            raise AcouslicError(f"{path}: the column {name} holds bytes beyond ASCII; save it as text") from None
        if name == "case" and (texts == "").any():
            raise AcouslicError(f"{path}: row {int(np.argmax(texts == '')) + 1} names no case")
        return texts
    try:
        numbers = values.astype(np.float64)
    except ValueError:
        raise AcouslicError(f"{path}: the column {name} holds something that is not a number") from None
    highest = {"frame": np.inf, "label": _HIGHEST_LABEL}.get(name, 1)
    whole = name not in ("presence", "optimality")
    good = (numbers >= 0) & (numbers <= highest) & ((numbers == np.floor(numbers)) | (not whole))
    if not good.all():
        row = int(np.argmin(good))
        kind = "a whole number" if whole else "a number"
        limits = "from 0" if name == "frame" else f"in 0..{highest}"
        raise AcouslicError(f"{path}: {name} must be {kind} {limits}; row {row + 1} has {shown(str(values[row]))}")
    return numbers


def _case_table(path: Path, case: str, columns: Mapping[str, np.ndarray]) -> FrameTable:
    where = f"{path}: case {shown(case)}"
    frames = columns["frame"]
    order = np.argsort(frames, kind="stable")
    if not np.array_equal(frames[order], np.arange(len(frames))):
        raise AcouslicError(f"{where}: its frames must be 0 to {len(frames) - 1}, each once")
    rows = {name: values[order] for name, values in columns.items()}
    sweeps = sweep_ranges(len(frames))
    labels = rows["label"].astype(np.uint8)
    annotated = rows.get("annotated_sweep", labels > 0)
    if "annotated_sweep" in rows and any(np.ptp(annotated[sweep.start : sweep.stop]) for sweep in sweeps):
        raise AcouslicError(f"{where}: annotated_sweep must be the same in all frames of a sweep")
    optimality = rows.get("optimality")
    score = rows["presence"] if optimality is None else rows["presence"] * optimality
    chosen = np.flatnonzero(rows["chosen"]) if "chosen" in rows else [int(np.argmax(score))]
    if len(chosen) > 1:
        raise AcouslicError(f"{where}: {len(chosen)} frames are chosen; at most one can be")
    return FrameTable(
        case=case,
        labels=labels,
        presence=rows["presence"],
        optimality=optimality,
        annotated_sweeps=tuple(bool(annotated[sweep.start : sweep.stop].any()) for sweep in sweeps),
        chosen=int(chosen[0]) if len(chosen) else NO_FRAME,
        set_name=_one(where, "set", rows),
        subject_id=_one(where, "subject", rows),
    )


def _one(where: str, name: str, rows: Mapping[str, np.ndarray]) -> str | None:
    """The one value of a column; None where there is no such column or it is empty."""
    if name not in rows:
        return None
    values = set(rows[name].tolist())
    if len(values) > 1:
        raise AcouslicError(f"{where}: its rows name more than one {name}")
    return values.pop() or None
