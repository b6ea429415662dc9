"""The folder of a case's results, where several processes do the same case or one was killed."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import subprocess
import sys

import pytest

from acouslic.errors import ShortageError
from acouslic.sockets import CIRCUMFERENCE_FILE, FRAME_NUMBER_FILE
from algorithm.result.case_folder import complete_or_absent, remove_leftovers
from algorithm.result.outputs import AMENDMENT_FILE
from algorithm.result.record import Maker, write_record
from algorithm.result.table import ResultRow

_KILLED = """
import os, signal, sys
from pathlib import Path
from algorithm.result.case_folder import complete_or_absent
with complete_or_absent(Path(sys.argv[1])) as folder:
    (folder / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_second_process_leaves_the_first_ones_work_alone(tmp_path):
    """Only what nobody works in is a leftover; the first to end wins, and nothing hidden stays."""
    case_dir = tmp_path / "a"
    with complete_or_absent(case_dir) as first:
        (first / FRAME_NUMBER_FILE).write_text("1")
        remove_leftovers(tmp_path, ["a"], patience_s=0.3)
        with complete_or_absent(case_dir) as second:
            (second / FRAME_NUMBER_FILE).write_text("2")
        remove_leftovers(tmp_path, ["a"])
        assert first.is_dir()
    assert (case_dir / FRAME_NUMBER_FILE).read_text() == "2"
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("spacing_mm", "source", "age", "is_refused"),
    [(0.2, "a", "", False), (0.4, "a", "", True), (0.2, "b", "", True), (0.2, "a", "28w3d", True)],
)
def test_a_result_of_another_origin_is_not_taken_for_ones_own(spacing_mm, source, age, is_refused, tmp_path):
    """Two runs do one case at once: alike, the first to end wins, though it took another time; with another pixel size,
    of another stack or at another age, the second fails, since its table would contradict the folder."""

    def write(folder, spacing_mm, source, age, seconds):
        (folder / FRAME_NUMBER_FILE).write_text(str(seconds))
        maker = Maker("0", "m", "x", {"spacing_mm": spacing_mm})
        write_record(folder, {"path": source}, maker, ResultRow("a", seconds=seconds, gestational_age=age))

    with contextlib.ExitStack() as second:
        if is_refused:
            second.enter_context(pytest.raises(ShortageError, match="has meanwhile got the result of another run"))
        folder = second.enter_context(complete_or_absent(tmp_path / "a"))
        with complete_or_absent(tmp_path / "a") as first:
            write(first, 0.2, "a", "", 1)
        write(folder, spacing_mm, source, age, 2)
    assert (tmp_path / "a" / FRAME_NUMBER_FILE).read_text() == "1"
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


def test_amendments_of_an_earlier_result_are_set_apart(tmp_path):
    """The same result again keeps its amendment; another one does not get it, and nothing of it is lost."""
    case_dir = tmp_path / "a"

    def analyse(content):
        with complete_or_absent(case_dir) as folder:
            (folder / CIRCUMFERENCE_FILE).write_text(content)
            (folder / FRAME_NUMBER_FILE).write_text("1")
        return sorted(item.name for item in case_dir.iterdir() if item.is_dir())

    for content in ("first", "second"):
        analyse(content)
        amended = case_dir / "amended-1"
        amended.mkdir()
        sha256 = hashlib.sha256(content.encode()).hexdigest()
        (amended / AMENDMENT_FILE).write_text(json.dumps({"amends_sha256": sha256}))
    assert analyse("second") == ["amended-1", "outdated-amended-1"]
    assert analyse("third") == ["outdated-amended-1", "outdated-amended-2"]
    assert (case_dir / CIRCUMFERENCE_FILE).read_text() == "third"


def test_what_a_killed_process_left_is_removed_at_once(repository, tmp_path):
    """Its lock went with it. What is left of another case stays."""
    for case in "ab":
        subprocess.run([sys.executable, "-c", _KILLED, tmp_path / case], cwd=repository, check=False)
    assert len(list(tmp_path.iterdir())) == 2
    remove_leftovers(tmp_path, ["a"])
    (left,) = tmp_path.iterdir()
    remove_leftovers(tmp_path, ["b"])
    assert not left.exists()


def test_without_locks_only_what_is_old_is_removed(tmp_path, monkeypatch):
    """On a file system that has none, another process may still be at work in a young folder."""

    def refuse(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with complete_or_absent(tmp_path / "a") as folder:
        remove_leftovers(tmp_path, ["a"])
        assert folder.is_dir()
        os.utime(folder, (1, 1))
        remove_leftovers(tmp_path, ["a"])
        assert not folder.exists()
        folder.mkdir()
        (folder / FRAME_NUMBER_FILE).touch()
    assert (tmp_path / "a" / FRAME_NUMBER_FILE).is_file()
