"""Which set each case belongs to, e.g. its site: a table that the user wrote."""

import csv
from collections.abc import Iterable
from pathlib import Path

from acouslic.errors import AcouslicError
from acouslic.strict_json import shown
from acouslic.table import plain_cell

COLUMNS = ("case", "set")


def read_sets(path: Path, cases: Iterable[str]) -> dict[str, str]:
    """The set of each of the cases; lines for other cases do not count.

    Raises AcouslicError, naming the file, where it cannot be read, has other columns, names a case twice, leaves a set
    empty, or lacks a case.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
            columns = tuple(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AcouslicError(f"{path} is not a readable CSV file: {error}") from None
    if columns != COLUMNS:
        raise AcouslicError(f"{path} must have the columns case,set, not {shown(','.join(columns))}")
    sets: dict[str, str] = {}
    for line, row in enumerate(rows, start=2):
        case, name = (plain_cell(row[column] or "") for column in COLUMNS)
        if None in row or not case or not name:
            raise AcouslicError(f"{path}: line {line} must have a case and a set")
        if case in sets:
            raise AcouslicError(f"{path}: line {line} names case {shown(case)} again")
        sets[case] = name
    missing = [case for case in cases if case not in sets]
    if missing:
        raise AcouslicError(f"{path} lacks case {shown(missing[0])}; every scored case must be there")
    return sets
