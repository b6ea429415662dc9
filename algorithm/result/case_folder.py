"""The folder of a case's results, which is there whole or not at all, whatever ends the program."""

import contextlib
import hashlib
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from acouslic.errors import ShortageError
from acouslic.sockets import FRAME_NUMBER_FILE
from acouslic.write import why_not_written
from algorithm.result.outputs import remove_results

_SUFFIX = ".partial"


def _nothing() -> None:
    """Nothing is to be done before a result lands."""


@contextlib.contextmanager
def complete_or_absent(case_dir: Path, *, before_landing: Callable[[], object] = _nothing) -> Iterator[Path]:
    """A hidden folder beside `case_dir` to write results into; when the block ends well it takes that name.

    The results of an earlier run in `case_dir` are removed first; files that are not ours stay. Whatever ends the block
    early leaves nothing, and a process that is killed leaves the hidden folder alone, which `remove_leftovers` removes.
    Where two processes do the same case, the first to end wins. `before_landing` is called when all is written.
    Raises ShortageError where the folder cannot be made or take its name.
    """
    remove_results(case_dir)
    with contextlib.suppress(OSError):
        case_dir.rmdir()
    partial = case_dir.with_name(f"{_prefix(case_dir.name)}{uuid.uuid4().hex[:8]}{_SUFFIX}")
    try:
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise _not_written(case_dir, error) from error
        yield partial
        before_landing()
        try:
            _land(partial, case_dir)
        except OSError as error:
            raise _not_written(case_dir, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_leftovers(output_dir: Path, cases: Iterable[str]) -> None:
    """Remove the hidden folders of these cases that processes left behind when they were killed."""
    prefixes = tuple(_prefix(case) for case in cases)
    if not output_dir.is_dir() or not prefixes:
        return
    known = set(prefixes)
    length = len(prefixes[0])
    for path in output_dir.iterdir():
        if path.name.endswith(_SUFFIX) and path.name[:length] in known:
            shutil.rmtree(path, ignore_errors=True)


def _prefix(case: str) -> str:
    """Of the hidden folder: short, since a case's own name may fill what a file system allows."""
    return f".{hashlib.sha256(case.encode()).hexdigest()[:16]}."


def _land(partial: Path, case_dir: Path) -> None:
    """Rename, or where files of somebody else keep the folder there, move each file, the frame number last."""
    try:
        partial.rename(case_dir)
        return
    except OSError:
        if not case_dir.is_dir():
            raise
    if (case_dir / FRAME_NUMBER_FILE).exists():
        # Another process was faster: its result is as good.
        return
    files = [path for path in partial.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: path.name == FRAME_NUMBER_FILE):
        target = case_dir / path.relative_to(partial)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)


def _not_written(case_dir: Path, error: OSError) -> ShortageError:
    return ShortageError(f"{case_dir} could not be written: {why_not_written(error)}")
