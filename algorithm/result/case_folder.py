"""The folder of a case's results, which is there whole or not at all, whatever ends the program."""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from acouslic.errors import ShortageError
from acouslic.sockets import CIRCUMFERENCE_FILE, FRAME_NUMBER_FILE
from acouslic.write import why_not_written
from algorithm.result.outputs import AMENDMENT_FILE, remove_results
from algorithm.result.record import origin_of

_SUFFIX = ".partial"
_OLD_S = 24 * 3600.0
"""A hidden folder that has not changed for so long is nobody's any more, where locks cannot say so."""
_LOOK_AGAIN_S = 0.1


def _nothing() -> None:
    """Nothing is to be done before a result lands."""


@contextlib.contextmanager
def complete_or_absent(case_dir: Path, *, before_landing: Callable[[], object] = _nothing) -> Iterator[Path]:
    """A hidden folder beside `case_dir` to write results into; when the block ends well it takes that name.

    The results of an earlier run in `case_dir` are removed first; files that are not ours stay, and amendments of
    another result than the new one are then called `outdated-amended-1`. Whatever ends the block
    early leaves nothing, and a process that is killed leaves the hidden folder alone, which `remove_leftovers` removes.
    The folder is locked as long as this process works in it, so that no other takes it for such a leftover. Where two
    processes do the same case alike, the first to end wins. `before_landing` is called when all is written.
    Raises ShortageError where the folder cannot be made or take its name, and where another process has meanwhile put
    the result of other files, settings or another model there.
    """
    remove_results(case_dir)
    with contextlib.suppress(OSError):
        case_dir.rmdir()
    try:
        partial, lock = _locked_folder(case_dir)
    except OSError as error:
        raise _not_written(case_dir, error) from error
    try:
        yield partial
        before_landing()
        try:
            _land(partial, case_dir)
        except OSError as error:
            raise _not_written(case_dir, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(lock)


def remove_leftovers(output_dir: Path, cases: Iterable[str], *, patience_s: float = 0.0) -> None:
    """Remove the hidden folders of these cases that processes left behind when they were killed.

    One that a process works in stays; `patience_s` is how long to wait for processes that are just ending. On a file
    system without locks only what has not changed for a day is removed.
    """
    prefixes = tuple(_prefix(case) for case in cases)
    if not output_dir.is_dir() or not prefixes:
        return
    known = set(prefixes)
    length = len(prefixes[0])
    deadline = time.monotonic() + patience_s
    for path in list(output_dir.iterdir()):
        if path.name.endswith(_SUFFIX) and path.name[:length] in known:
            while not _remove_unused(path) and time.monotonic() < deadline:
                time.sleep(_LOOK_AGAIN_S)


def _locked_folder(case_dir: Path) -> tuple[Path, int]:
    """A new hidden folder beside `case_dir`, and the descriptor that holds its lock until it is closed."""
    while True:
        partial = case_dir.with_name(f"{_prefix(case_dir.name)}{uuid.uuid4().hex[:8]}{_SUFFIX}")
        partial.mkdir(parents=True)
        try:
            lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # Another process took it for a leftover before it was locked.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)  # Likewise: it is just being removed.
            continue
        except OSError:
            return partial, lock  # Not every file system has locks; there nobody removes it for a day.
        if partial.is_dir():
            return partial, lock
        os.close(lock)


def _remove_unused(path: Path) -> bool:
    """Remove a hidden folder unless somebody works in it; whether nobody does."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return True  # Gone already, or none of ours.
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    except BlockingIOError:
        return False
    except OSError:
        if time.time() - os.fstat(lock).st_mtime > _OLD_S:
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)
    return True


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
        if origin_of(case_dir) == origin_of(partial):
            return  # Another process was faster: its result is as good.
        raise ShortageError(
            f"{case_dir} has meanwhile got the result of another run, which has other settings, another model or other "
            "files: name another output folder for one of the two"
        )
    _set_outdated_apart(case_dir, partial)
    files = [path for path in partial.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: path.name == FRAME_NUMBER_FILE):
        target = case_dir / path.relative_to(partial)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)


def _set_outdated_apart(case_dir: Path, partial: Path) -> None:
    """Rename the amendments in `case_dir` that do not amend the result in `partial`: a reader takes the highest number
    for the correction of the result beside it."""
    result = partial / CIRCUMFERENCE_FILE
    amended_sha256 = hashlib.sha256(result.read_bytes()).hexdigest() if result.is_file() else ""
    for folder in sorted(case_dir.glob("amended-*")):
        try:
            amends = json.loads((folder / AMENDMENT_FILE).read_text(encoding="utf-8"))["amends_sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # None of ours.
        if amends != amended_sha256:
            names = (f"outdated-amended-{number}" for number in itertools.count(1))
            folder.rename(next(new for name in names if not (new := case_dir / name).exists()))


def _not_written(case_dir: Path, error: OSError) -> ShortageError:
    return ShortageError(f"{case_dir} could not be written: {why_not_written(error)}")
