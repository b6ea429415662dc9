"""The raw release of ACOUSLIC-AI: where its files lie, and the table of circumferences."""

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from acouslic.errors import AcouslicError
from acouslic.geometry import SWEEPS_PER_CASE
from acouslic.write import write_text

SWEEP_COLUMNS = tuple(f"sweep_{number}_ac_mm" for number in range(1, SWEEPS_PER_CASE + 1))
_COLUMNS = ("uuid", "subject_id", *SWEEP_COLUMNS)


@dataclass(frozen=True)
class CaseCircumferences:
    """One row of the table."""

    uuid: str
    subject_id: str
    sweep_ac_mm: tuple[float | None, ...]
    """Abdominal circumference in mm for each of the six sweeps; None where the sweep has no annotated frame."""


@dataclass(frozen=True)
class Release:
    """The folder layout of the release, as its archive unpacks."""

    root: Path

    @property
    def circumferences_path(self) -> Path:
        """The table of circumferences."""
        return self.root / "circumferences" / "fetal_abdominal_circumferences_per_sweep.csv"

    def image_path(self, uuid: str) -> Path:
        """The sweep stack of a case."""
        return self.root / "images" / "stacked_fetal_ultrasound" / f"{uuid}.mha"

    def mask_path(self, uuid: str) -> Path:
        """The label stack of a case: 0 nothing, 1 optimal plane, 2 suboptimal plane."""
        return self.root / "masks" / "stacked_fetal_abdomen" / f"{uuid}.mha"

    def cases(self) -> list[str]:
        """The uuids in the table's order, which the published split depends on.

        Raises AcouslicError where the table cannot be read or a case of it lacks its image or its mask.
        """
        uuids = list(read_circumferences(self.circumferences_path))
        if missing := self.missing_files(uuids):
            raise AcouslicError(missing[0])
        return uuids

    def missing_files(self, uuids: Iterable[str]) -> list[str]:
        """A sentence for each image and mask of these cases of the table that is not there."""
        return [
            f"{path} is missing, but {self.circumferences_path} lists case {uuid}"
            for uuid in uuids
            for path in (self.image_path(uuid), self.mask_path(uuid))
            if not path.is_file()
        ]


def read_circumferences(path: Path) -> dict[str, CaseCircumferences]:
    """The table by uuid, in the file's order. Further columns are ignored.

    Raises AcouslicError, naming the line, for a missing column, a row of another length, an empty or repeated uuid, one
    that leads out of its folder as part of a path, and a value that is not a positive number.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, strict=True)
            header = next(rows, [])
            missing = [column for column in _COLUMNS if column not in header]
            if missing:
                raise AcouslicError(f"{path}: column {missing[0]} is missing; expected {', '.join(_COLUMNS)}")
            cases: dict[str, CaseCircumferences] = {}
            for values in rows:
                where = f"{path}, line {rows.line_num}"
                if len(values) != len(header):
                    raise AcouslicError(f"{where}: expected {len(header)} values as in the header, got {len(values)}")
                case = _case_of_row(dict(zip(header, values, strict=True)), where)
                if case.uuid in cases:
                    raise AcouslicError(f"{where}: uuid {case.uuid} is there twice")
                cases[case.uuid] = case
            return cases
    except FileNotFoundError:
        raise AcouslicError(f"{path} is missing: expected the release's table of circumferences") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AcouslicError(f"{path} is not a readable csv file: {error}") from None


def write_circumferences(path: Path, cases: list[CaseCircumferences]) -> None:
    """Write a table that `read_circumferences` reads back unchanged."""
    lines = [",".join(_COLUMNS)]
    for case in cases:
        values = ("" if value is None else repr(float(value)) for value in case.sweep_ac_mm)
        lines.append(",".join((case.uuid, case.subject_id, *values)))
    write_text(path, "\n".join(lines) + "\n")


def _case_of_row(row: dict[str, str], where: str) -> CaseCircumferences:
    uuid, subject_id = row["uuid"].strip(), row["subject_id"].strip()
    if not uuid or not subject_id:
        raise AcouslicError(f"{where}: uuid and subject_id must not be empty")
    if "/" in uuid or "\0" in uuid or uuid in (".", ".."):
        raise AcouslicError(f"{where}: {uuid!r} is no uuid: files and folders are called by it")
    return CaseCircumferences(
        uuid, subject_id, tuple(_circumference(row[column], f"{where}, {column}") for column in SWEEP_COLUMNS)
    )


def _circumference(text: str, where: str) -> float | None:
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        raise AcouslicError(f"{where}: expected a circumference in mm, got {text!r}") from None
    if not (math.isfinite(value) and value > 0):
        raise AcouslicError(f"{where}: expected a positive circumference in mm, got {text!r}")
    return value
