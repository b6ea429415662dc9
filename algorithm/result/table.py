"""What people read of a run: a line a case, and `results.csv` with a row a case."""

import time
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from acouslic.errors import ShortageError
from acouslic.table import csv_text
from acouslic.write import write_bytes, write_text
from algorithm.result.growth import centile_words, weeks_words
from algorithm.result.outputs import CaseResult

RESULTS_FILE = "results.csv"
PARQUET_FILE = "results.parquet"
INDEX_FILE = "index.html"
_MOST_SHARE_OF_TIME = 0.02
"""Of a run for writing its table again after each case: with 100,000 cases it is a file of 10 MB."""


@dataclass(frozen=True)
class ResultRow:
    """One line of `results.csv`; its fields are the columns. Empty cells where there is nothing to say."""

    case: str
    suitable: bool | None = None
    frame_number: int | None = None
    sweep: int | None = None
    presence_probability: float | None = None
    presence_alone_probability: float | None = None
    circumference_mm: float | None = None
    interval_low_mm: float | None = None
    interval_high_mm: float | None = None
    seconds: float | None = None
    gestational_age: str = ""
    centile: float | None = None
    age_by_circumference_weeks: float | None = None
    """Weak, with `age_error_weeks`, two standard deviations."""
    age_error_weeks: float | None = None
    notes: str = ""
    error: str = ""

    @classmethod
    def of(cls, result: CaseResult, seconds: float) -> "ResultRow":
        """The row of a case that was analysed in `seconds`."""
        low_mm, high_mm = result.interval_mm or (None, None)
        in_case, alone = (
            None if result.frame_index is None else round(float(values[result.frame_index]), 6)
            for values in (result.presence_probability, result.presence_alone_probability)
        )
        growth = result.growth
        return cls(
            case=result.case,
            suitable=result.suitable,
            frame_number=result.frame_number,
            sweep=result.sweep_number,
            presence_probability=in_case,
            presence_alone_probability=alone,
            circumference_mm=_tenths(result.circumference_mm),
            interval_low_mm=_tenths(low_mm),
            interval_high_mm=_tenths(high_mm),
            gestational_age="" if growth is None else str(growth.age),
            centile=None if growth is None else growth.centile,
            age_by_circumference_weeks=None if growth is None else growth.age_by_circumference_weeks,
            age_error_weeks=None if growth is None else growth.age_error_weeks,
            seconds=round(seconds, 2),
            notes="; ".join(result.notes),
        )

    def sentence(self) -> str:
        """The line of result that people see."""
        if self.error:
            return f"{self.case}: failed: {self.error}"
        measured = "no circumference"
        if self.circumference_mm is not None:
            measured = f"circumference {self.circumference_mm:.1f} mm"
        if self.interval_low_mm is not None:
            measured += f" ({self.interval_low_mm:.1f} to {self.interval_high_mm:.1f})"
        if self.centile is not None:
            measured += f", {centile_words(self.centile)} at {self.gestational_age}"
        if self.age_by_circumference_weeks is not None:
            suggested = weeks_words(self.age_by_circumference_weeks)
            measured += f", alone it suggests {suggested} (weak: give or take {self.age_error_weeks:.1f} weeks)"
        where = "no frame" if self.sweep is None else f"frame {self.frame_number} (sweep {self.sweep})"
        verdict = "suitable" if self.suitable else "NOT suitable"
        verdict += f": {self.notes}" if self.notes else ""
        return f"{self.case}: {where}, {measured}, {verdict}, {self.seconds:.1f} s"


COLUMNS = tuple(ResultRow.__dataclass_fields__)


class ResultTable:
    """The rows of a run and the file that holds them, which is always a whole table."""

    def __init__(self, path: Path, cases: Sequence[str]) -> None:
        self.path = path
        self._order = {case: number for number, case in enumerate(cases)}
        self._rows: dict[str, ResultRow] = {}
        self._written_at, self._writing_s = 0.0, 0.0
        self.has_begun = False
        """Whether what an earlier run left beside the file was removed: before that its table stays, too."""

    @property
    def rows(self) -> list[ResultRow]:
        """In the order of the cases, whatever order they were done in."""
        return sorted(self._rows.values(), key=lambda row: self._order[row.case])

    def take(self, row: ResultRow) -> None:
        """Take a row, in place of an earlier one of its case. A case that was not announced comes last."""
        self._order.setdefault(row.case, len(self._order))
        self._rows[row.case] = row

    def holds(self, row: ResultRow) -> bool:
        """Whether exactly this row is there."""
        return self._rows.get(row.case) == row

    def add(self, row: ResultRow) -> None:
        """Take a row and write the file, unless that would take a noticeable share of the time."""
        self.take(row)
        if self._writing_s <= _MOST_SHARE_OF_TIME * (time.monotonic() - self._written_at):
            self.write()

    def remove_earlier(self, index_path: Path) -> None:
        """Remove the page of all cases and the Parquet of an earlier run, which would contradict this one's file.
        Raises ShortageError where one cannot be removed."""
        self.has_begun = True
        for path in (index_path, self.path.with_suffix(".parquet")):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise ShortageError(f"{path} of an earlier run could not be removed: {error.strerror}") from error

    def write(self) -> None:
        """Write the file. Raises AcouslicError where it cannot be written; the earlier one is still there then."""
        start = time.monotonic()
        write_text(self.path, csv_text([COLUMNS, *([getattr(row, name) for name in COLUMNS] for row in self.rows)]))
        self._written_at = time.monotonic()
        self._writing_s = self._written_at - start

    def write_parquet(self) -> None:
        """Write the same table as Parquet, with types, beside the other; needs pyarrow, which comes with Ray."""
        import pyarrow
        import pyarrow.parquet

        kinds = {bool: pyarrow.bool_(), int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}
        hints = typing.get_type_hints(ResultRow)
        schema = pyarrow.schema([(name, kinds[(typing.get_args(hints[name]) or [hints[name]])[0]]) for name in COLUMNS])
        rows = [{name: getattr(row, name) for name in COLUMNS} for row in self.rows]
        buffer = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), buffer)
        write_bytes(self.path.with_suffix(".parquet"), buffer.getvalue().to_pybytes())


def _tenths(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
