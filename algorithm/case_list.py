"""The cases that files, folders, patterns and lists on a command line stand for."""

import contextlib
import csv
import glob
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from acouslic.errors import AcouslicError
from acouslic.paths import sees_file, sees_folder
from acouslic.scanner.dicom import dicom_case_name
from acouslic.scanner.dicom_header import is_dicom
from acouslic.scanner.folder import case_files, refuse_unreadable
from acouslic.sockets import (
    FRAME_NUMBER_FILE,
    STACK_SUFFIXES,
    SWEEP_FOLDER,
    SweepInput,
    case_name,
    find_sweep_input,
    stack_suffix,
)
from algorithm.result.growth import parse_age
from algorithm.result.table import INDEX_FILE, PARQUET_FILE, RESULTS_FILE

log = logging.getLogger(__name__)

_RELEASE_FOLDER = "images/stacked_fetal_ultrasound"
_STILL_SUFFIXES = (".png", ".jpg", ".jpeg")
_LONGEST_NAME_BYTES = 255

_COLUMNS = ("path", "case", "gestational_age")
LIST_SUFFIXES = (".csv", ".parquet")
"""Of a table that names stacks: a column `path`, relative to the table's folder where it is not absolute, and if wanted
the columns `case` and `gestational_age`."""


def find_sweeps(paths: Sequence[Path]) -> list[SweepInput]:
    """The stacks that files, folders and patterns stand for, in the order given.

    A folder is one of stacks, of stacks in the raw release's layout, a case in the platform's layout, a case of DICOM
    files or of PNG pictures, or one of such folders. A DICOM case is called by its UID, since the name of a file may be
    a patient's. Raises AcouslicError where there is nothing in one, or cases lie both in it and in its folders, or
    deeper; where a stack is given twice, two cases would have the same name, or one has a name that no folder can have.
    """
    sweeps = [sweep for path in paths for match in _matches(path) for sweep in _sweeps_at(match)]
    twice = [path for path, count in Counter(sweep.path for sweep in sweeps).items() if count > 1]
    if twice:
        raise AcouslicError(f"{twice[0]} is given twice: name every stack once")
    counts = Counter(sweep.case for sweep in sweeps)
    for case, count in counts.items():
        if count > 1:
            double = [sweep for sweep in sweeps if sweep.case == case]
            if all(map(_is_called_by_uid, double)):
                raise AcouslicError(
                    f"{count} of the stacks are copies or parts of one DICOM object, {case}: keep one copy, or put the "
                    "parts into one folder"
                )
            names = ", ".join(str(sweep.path) for sweep in double)
            raise AcouslicError(f"{count} stacks would write to the same folder {case!r}: {names}; rename all but one")
        check_case_name(case)
    return sweeps


def _is_called_by_uid(sweep: SweepInput) -> bool:
    """Whether the case's name is from DICOM: another name of the file would not change it, and must not be told."""
    dicom = case_files(sweep.path)[0] if sees_folder(sweep.path) else [sweep.path]
    return bool(dicom) and is_dicom(dicom[0]) and sweep.case == dicom_case_name(dicom)


def check_case_name(case: str) -> None:
    """Raises AcouslicError where no folder can have this name, or a table or the page of all cases has it."""
    if case in ("", ".", "..", RESULTS_FILE, PARQUET_FILE, INDEX_FILE):
        raise AcouslicError(f"a stack's name gives the case name {case!r}, which no folder can have: rename it")


def check_apart(sweep: SweepInput, output_dir: Path) -> None:
    """Raises AcouslicError where the folder of the case's results would be the one that its files lie in."""
    with contextlib.suppress(OSError):  # Where the case's folder is not there yet, it is another one.
        folder = sweep.path if sweep.path.is_dir() else sweep.path.parent
        if (output_dir / sweep.case).samefile(folder):
            raise AcouslicError(
                f"the results of {sweep.case} would go into {folder}, among the files of the sweep: name another "
                "output folder"
            )


def _matches(path: Path) -> list[Path]:
    """What a pattern stands for: a shell outside a container cannot expand one that is meant for the inside.

    Raises AcouslicError where it stands for nothing.
    """
    if not glob.has_magic(str(path)) or os.path.lexists(path):
        return [path]
    matches = sorted(glob.glob(str(path)))  # noqa: PTH207 - absolute patterns too
    if not matches:
        advice = "write a bracket of a name as [[]" if "[" in str(path) else "give sweep stacks or folders of them"
        raise AcouslicError(f"{path} does not exist, and as a pattern it matches nothing: {advice}")
    return [Path(match) for match in matches]


def _sweeps_of_list(path: Path, lists: tuple[Path, ...]) -> list[SweepInput]:
    """The stacks that a table names; `lists` are those that led to it."""
    if path.resolve() in lists:
        raise AcouslicError(f"{path} names itself, or a list that names it: name stacks in it")
    lists = (*lists, path.resolve())
    rows = _rows_of_list(path)
    _refuse_misspelt(path, rows[0] if rows else {})
    sweeps = []
    for line, row in enumerate(rows, start=1):
        if any(row.get(None, ())):  # what csv calls the column of surplus cells
            raise AcouslicError(
                f"{path}: row {line} has more cells than there are columns: put a text with commas in double quotes"
            )
        named = row.get("path")
        if not isinstance(named, str) or not named.strip():
            raise AcouslicError(f"{path}: row {line} names no stack: expected a column `path` with a path in every row")
        stack = path.parent / named
        try:
            is_there = stack.exists()
        except OSError as error:
            raise AcouslicError(f"{path}: row {line} names {stack}: {error.strerror or error}") from None
        if not is_there:
            raise AcouslicError(f"{path}: row {line} names {stack}, which does not exist")
        where = f"{path}: row {line}"
        case, age = _case_in(row, where), _age_in(row, where)
        if case and sees_file(stack) and stack.suffix.lower() not in LIST_SUFFIXES:
            found = [SweepInput(stack, case)]
        else:
            found = _sweeps_at(stack, lists)
        if case and len(found) > 1:
            raise AcouslicError(f"{where} names one case, {case!r}, but {stack} holds {len(found)}: give each a row")
        sweeps += [SweepInput(sweep.path, case or sweep.case, age or sweep.gestational_age) for sweep in found]
    if not sweeps:
        raise AcouslicError(f"{path} lists no stack: expected a column `path` and a row for each")
    return sweeps


def _refuse_misspelt(path: Path, columns: Iterable[Any]) -> None:
    """A column that is meant but spelt otherwise, such as `Gestational Age`, would be left out without a word."""
    for column in columns:
        meant = re.sub(r"[\s-]+", "_", column.lower()) if isinstance(column, str) else ""
        if meant in _COLUMNS and column != meant:
            raise AcouslicError(f"{path}: the column {column!r} must be called {meant!r}: rename it")


def _refuse_doubled(path: Path, columns: Sequence[str]) -> None:
    """Of two columns of one name, one would be left out without a word."""
    for column in _COLUMNS:
        if columns.count(column) > 1:
            raise AcouslicError(f"{path} has {columns.count(column)} columns {column!r}: keep one")


def _fits_a_folder(case: str) -> bool:
    """Whether a folder that is not hidden can be called so: file systems take 255 bytes."""
    return not case.startswith(".") and len(case.encode()) <= _LONGEST_NAME_BYTES


def _age_in(row: dict[Any, Any], where: str) -> str:
    """The gestational age that a row gives, checked; empty where it gives none."""
    age = row.get("gestational_age")
    if age is None or age == "":
        return ""
    try:
        return str(parse_age(str(age)))
    except AcouslicError as error:
        raise AcouslicError(f"{where}: {error}") from None


def _case_in(row: dict[Any, Any], where: str) -> str:
    """The name that a row gives its case, checked; empty where it gives none."""
    case = row.get("case")
    if case is None:
        return ""
    if type(case) is int:  # in Parquet; in CSV it is text
        return str(case)
    wrong = "which no folder can have"
    if isinstance(case, str) and "/" not in case:
        name = case_name(case).strip()
        if case == name and _fits_a_folder(case):
            return case
        if name not in ("", case):
            wrong = f"expected it without {'spaces around it' if case.strip() == name else 'a suffix'}: {name!r}"
    raise AcouslicError(f"{where} names the case {case!r}, {wrong}")


def _rows_of_list(path: Path) -> list[dict[Any, Any]]:
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow.parquet
        except ImportError:
            raise AcouslicError(
                f"{path}: reading Parquet needs pyarrow: run requirements/set_up.sh cohort, or give the list as .csv"
            ) from None
        try:
            # Opened here: a folder's name that is not UTF-8 is none to pyarrow.
            with path.open("rb") as content:
                rows: list[dict[Any, Any]] = pyarrow.parquet.read_table(content).to_pylist()
        except (OSError, ValueError) as error:
            raise AcouslicError(f"{path} is not a readable Parquet file: {error}") from None
        return rows
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True, skipinitialspace=True)
            # With spaces beside the commas a column would be called " case ", and be left out without a word.
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            _refuse_doubled(path, reader.fieldnames)
            return list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise AcouslicError(f"{path} is not a readable CSV file: {error}") from None


def _sweeps_at(path: Path, lists: tuple[Path, ...] = ()) -> list[SweepInput]:
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        raise AcouslicError(f"{path} does not exist: give sweep stacks or folders of them") from None
    except OSError as error:
        raise AcouslicError(f"{path} could not be read: {error.strerror or error}") from None
    if not is_folder and path.suffix.lower() in LIST_SUFFIXES:
        return _sweeps_of_list(path, lists)
    if not is_folder:
        return [sweep_of_file(path)]
    sweeps = _in_layout(path) or _in_folders(path)
    if not sweeps:
        raise AcouslicError(f"{path} holds no sweep stack ({', '.join(STACK_SUFFIXES)})")
    return sweeps


def _in_layout(folder: Path) -> list[SweepInput]:
    """The cases of a folder in the platform's layout or the raw release's; none where it is in neither."""
    if sees_folder(folder / SWEEP_FOLDER):
        return [find_sweep_input(folder)]
    release = folder / _RELEASE_FOLDER
    return _in_folder(release) if sees_folder(release) else []


def _in_folders(path: Path) -> list[SweepInput]:
    """The cases in a folder, or where it has none of its own, in the folders in it.

    Raises AcouslicError where a case would be left out: in a folder beside cases, or one that lies deeper.
    """
    own = _in_folder(path)
    inner = {folder: _in_layout(folder) or _in_folder(folder) for folder in _inner_folders(path)}
    for folder, sweeps in inner.items():
        if own and sweeps:
            raise AcouslicError(
                f"{path} holds sweeps or pictures of its own, and so does {folder}: give each that is meant by name"
            )
        deeper = None if sweeps else _first_deeper(folder)
        if deeper is not None:
            raise AcouslicError(
                f"{deeper} holds sweeps, but lies too deep in {path} to be looked into: give folders such as "
                f"{deeper.parent} in its place"
            )
    # Not their names: this goes to the log, and they may be patients'.
    empty = sum(not sweeps for sweeps in inner.values())
    if empty and not own:
        log.warning("%s: %d of the %d folders in it hold no sweep and are left out", path, empty, len(inner))
    return own or [sweep for sweeps in inner.values() for sweep in sweeps]


def _first_deeper(folder: Path) -> Path | None:
    """A folder at any depth below that holds stacks or DICOM files; pictures alone may be a program's own."""
    for root, folders, files in os.walk(folder):
        here = Path(root)
        is_of_results = FRAME_NUMBER_FILE in files
        folders[:] = [] if is_of_results else sorted(name for name in folders if not name.startswith("."))
        if here != folder and not is_of_results and (stacks_in_folder(here) or case_files(here)[0]):
            return here
    return None


def sweep_of_file(path: Path) -> SweepInput:
    """The case that a file is: called as the file, or by its UID where it is DICOM, whose name may be a patient's.

    Raises AcouslicError where its name cannot be written out, or its DICOM header is damaged or may not be read.
    """
    if is_dicom(path):
        return SweepInput(path, dicom_case_name([path]))
    if stack_suffix(path.name) == ".dcm":
        refuse_unreadable(path)  # What it is called in results stands where nobody may look.
    return SweepInput(path, case_name(path.name))


def _in_folder(folder: Path) -> list[SweepInput]:
    """The cases in a folder: each stack, all DICOM files together; where there are none of these, its pictures.

    PNG pictures are the frames of one sweep; beside stacks they are somebody's previews.
    """
    dicom, pictures = case_files(folder)
    sweeps = [sweep_of_file(stack) for stack in stacks_in_folder(folder) if stack not in dicom]
    if dicom:
        sweeps.insert(0, SweepInput(folder, dicom_case_name(dicom)))
    if not sweeps and pictures:
        return [SweepInput(folder, case_name(folder.resolve().name))]
    if not sweeps:
        stills = [item for item in _visible(folder) if stack_suffix(item.name) in _STILL_SUFFIXES and item.is_file()]
        return [SweepInput(still, case_name(still.name)) for still in stills]
    return sweeps


def stacks_in_folder(folder: Path) -> list[Path]:
    """The files in a folder that are a stack each, sorted by name; hidden files and pictures are none."""
    suffixes = [suffix for suffix in STACK_SUFFIXES if suffix not in _STILL_SUFFIXES]
    stacks = [item for item in _visible(folder) if stack_suffix(item.name) in suffixes]
    return [item for item in stacks if sees_file(item)]


def _inner_folders(folder: Path) -> list[Path]:
    """The folders in a folder; what an earlier run has written of a case is none."""
    return [item for item in _visible(folder) if item.is_dir() and not sees_file(item / FRAME_NUMBER_FILE)]


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(item for item in folder.iterdir() if not item.name.startswith("."))
    except OSError as error:
        raise AcouslicError(f"{folder} could not be read: {error.strerror or error}") from None
