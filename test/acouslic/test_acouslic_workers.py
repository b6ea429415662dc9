"""Processes that share a command's work, and how they end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from acouslic.errors import AcouslicError
from acouslic.workers import map_over

WAITING = """
import multiprocessing, time
from acouslic.workers import map_over
try:
    with map_over(2) as over:
        work = over(time.sleep, [300, 300, 300])
        print(len(multiprocessing.active_children()), flush=True)
        list(work)
except KeyboardInterrupt:
    print("ended", flush=True)
"""
"""A command whose two workers are busy for minutes."""


@pytest.fixture
def waiting(repository: Path) -> subprocess.Popen[str]:
    """That command, its workers started or about to."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING],
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "2\n"
    return process


def test_results_come_in_their_order() -> None:
    """From two processes as from this one."""
    for count in (1, 2):
        with map_over(count) as over:
            assert list(over(divmod, [7, 8, 9], [2, 2, 2])) == [(3, 1), (4, 0), (4, 1)]


def test_a_worker_that_is_killed_is_one_sentence() -> None:
    """As the kernel does where memory runs out."""
    with (
        pytest.raises(AcouslicError, match=r"one of 2 processes was ended from outside .* fewer --jobs"),
        map_over(2) as over,
    ):
        list(over(os._exit, [9]))


def test_no_worker_outlives_its_command(waiting: subprocess.Popen[str]) -> None:
    """Killed outright, a command cannot end them: each holds its end of the pipes until it has ended."""
    waiting.kill()
    waiting.communicate(timeout=60)


def test_ctrl_c_is_answered_by_the_command_alone(waiting: subprocess.Popen[str]) -> None:
    """A terminal sends it to all of them. None writes a traceback, whether it had started or not, and nobody waits."""
    os.killpg(waiting.pid, signal.SIGINT)
    assert waiting.communicate(timeout=60) == ("ended\n", "")
    assert waiting.returncode == 0
