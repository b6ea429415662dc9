"""A run of the program that is stopped at some moment, and what it says then."""

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

SIGNALS = (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
"""Drawn from; SIGTERM is what platforms and clusters send."""
END_S = 120


@dataclass(frozen=True)
class Ended:
    """A run that was stopped."""

    number: int
    code: int
    seconds: float
    """From the signal to the end."""
    stderr: str
    output: Path


@dataclass(frozen=True)
class Mode:
    """A way to run the program, and what must hold when it was stopped."""

    command: Callable[[Path], list[str]]
    """Given the folder of the output."""
    check: Callable[[Ended], list[str]]
    """The faults."""
    environment: Callable[[Path], dict[str, str]]


class Run(Protocol):
    """What stopping needs of a process."""

    @property
    def returncode(self) -> int:
        """Once it has ended; of a signal the number, negative."""

    def wait(self, timeout: float) -> object:
        """Raises TimeoutExpired where it goes on for longer."""

    def send_signal(self, number: int) -> None:
        """Nothing where it has ended."""

    def communicate(self, timeout: float | None = None) -> tuple[object, str]:
        """Wait for the end; the second is what stood on stderr. Raises TimeoutExpired."""

    def kill(self) -> None:
        """At once."""


def start_process(mode: Mode, variables: dict[str, str], output: Path) -> Run:
    """A process of its own."""
    return subprocess.Popen(
        mode.command(output),
        env=variables | mode.environment(output),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_interrupts,
    )


def stopped_run(process: Run, output: Path, number: int, delay_s: float) -> Ended:
    """Wait, stop, and wait for the end."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(delay_s)
    stopped_at = time.monotonic()
    process.send_signal(number)
    try:
        _, stderr = process.communicate(timeout=END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        _, stderr = process.communicate()
        stderr += f"it did not end within {END_S} s\n"
    return Ended(number, process.returncode, time.monotonic() - stopped_at, stderr, output)


def hear_interrupts() -> None:
    """In the child: a shell that put this in the background has it ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def check_words(ended: Ended, sentence: str = "stopped by a signal") -> list[str]:
    """Exit code and stderr of a run that was stopped."""
    lines = ended.stderr.splitlines()
    if ended.code == -ended.number:
        # Python's own start: no code of ours has run.
        begun = ended.number != signal.SIGKILL and "algorithm" in ended.stderr
        return [f"a traceback: {ended.stderr}"] if begun else []
    if ended.code == 0:
        return [f"exit code 0, but on stderr: {ended.stderr}"] if lines else []
    if ended.code != 128 + ended.number:
        return [f"exit code {ended.code}: {ended.stderr}"]
    if len(lines) != 1 or sentence not in lines[0]:
        return [f"expected one sentence, got: {ended.stderr}"]
    return []


def files_below(folder: Path) -> set[str]:
    """Relative paths of all files."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
