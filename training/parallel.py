"""Several folds beside each other, each in a process of its own: on a GPU of its own, or on its share of the cores.

Every process is `python -m training fit` of one fold, with the settings of the whole in a file. What it prints goes to
`log.txt` in the fold's folder. A signal is passed on, and all are waited for.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from acouslic.errors import AcouslicError
from algorithm.process.cores import usable_cores
from training.learn.keeping import StoppedError

_POLL_S = 0.2


@dataclass
class _Running:
    fold: int
    process: subprocess.Popen[bytes]
    log: Path
    log_start: int
    """Byte of its log where its own words begin: an earlier process of the run may have written to it."""
    place: int
    """Its number among the processes that run at once, from 0; decides its GPU."""


@dataclass
class FoldProcesses:
    """Trains folds 1 to `folds`, at most `at_once` beside each other."""

    command: Sequence[str]
    """Of `fit`, without fold and folder."""
    out: Path
    """Gets `fold_1`, `fold_2`, ..."""
    folds: int
    at_once: int
    gpus: Sequence[str] = ()
    """Names for CUDA_VISIBLE_DEVICES; none is no GPU."""
    failed: dict[int, str] = field(default_factory=dict)
    """What is said of each fold that failed."""
    _running: list[_Running] = field(default_factory=list)
    _stopped_by: int | None = None

    def run(self) -> None:
        """Train them all. Raises StoppedError after a signal, and AcouslicError, naming each fold that failed and its
        log, once the others are done."""
        # One that is ignored, as Ctrl-C in a shell's background, stays so: the folds have inherited that.
        heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._pass_on) for number in heard}
        running = self._running
        waiting = list(range(1, self.folds + 1))
        try:
            while running or (waiting and self._stopped_by is None):
                while waiting and len(running) < self.at_once and self._stopped_by is None:
                    self._try_to_start(waiting.pop(0))
                time.sleep(_POLL_S)
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    self._note_end(one)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._stopped_by is not None:
            name = signal.Signals(self._stopped_by).name
            text = f"stopped by {name}: each fold kept what it says in its log.txt under {self.out}, and the same "
            raise StoppedError(self._stopped_by, text + "command goes on from there")
        if self.failed:
            # By fold, whichever ended first.
            reasons = "; ".join(f"fold {fold}: {reason}" for fold, reason in sorted(self.failed.items()))
            raise AcouslicError(f"{len(self.failed)} of {self.folds} folds failed: {reasons}")

    def _try_to_start(self, fold: int) -> None:
        """Where there is no room for a log, or for a process, the fold has failed and those that run go on."""
        free = min(set(range(self.at_once)) - {one.place for one in self._running})
        try:
            self._running.append(self._start(fold, free))
        except OSError as error:
            self.failed[fold] = f"it could not be started: {error}"
            print(f"fold {fold}: {self.failed[fold]}", flush=True)
            return
        if self._stopped_by is not None:  # a signal that came while it was started has not reached it
            self._running[-1].process.send_signal(self._stopped_by)

    def _start(self, fold: int, place: int) -> _Running:
        folder = self.out / f"fold_{fold}"
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "log.txt"
        if self.gpus:
            where = f"GPU {self.gpus[place % len(self.gpus)]}"
            share = {"CUDA_VISIBLE_DEVICES": self.gpus[place % len(self.gpus)]}
        else:
            # Threads of several folds on one core would wait for each other.
            cores = max(1, usable_cores()[0] // min(self.at_once, self.folds))
            where, share = f"{cores} CPU core{'s' if cores > 1 else ''}", {"OMP_NUM_THREADS": str(cores)}
        with log.open("ab") as file:
            log_start = file.tell()
            process = subprocess.Popen(
                [*self.command, f"--fold={fold}", f"--out={folder}"],
                stdout=file,
                stderr=file,
                env=os.environ | share,
                start_new_session=True,  # Ctrl-C reaches it once, through this process
            )
        print(f"fold {fold} of {self.folds} on {where}, in {folder}; its words go to {log.name}", flush=True)
        return _Running(fold, process, log, log_start, place)

    def _note_end(self, one: _Running) -> None:
        code, said = one.process.returncode, _last_line(one.log, one.log_start)
        if code < 0:
            killed = f"it was ended by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                killed += ", as the system does where memory runs out"
            said = f"{killed}; its last words: {said}"
        if code and self._stopped_by is None:
            self.failed[one.fold] = f"{said} ({one.log})"
        print(f"fold {one.fold} {'is done' if code == 0 else f'ended with {code}'}: {said}", flush=True)

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        self._stopped_by = number
        for one in self._running:
            one.process.send_signal(number)


def fit_command(cache: Path, split: Path, settings: Path) -> list[str]:
    """`fit` of one fold, but for its fold and folder."""
    words = [f"--cache={cache}", f"--split={split}", f"--config={settings}"]
    return [sys.executable, "-m", "training", "fit", *words]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by the names that its children need."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(index) for index in range(torch.cuda.device_count())]
    return [name.strip() for name in named.split(",")][: len(names)] if named and names else names


def _last_line(log: Path, start: int) -> str:
    """The last line that is not empty, from the byte `start` on."""
    try:
        text = log.read_bytes()[start:].decode("utf-8", errors="replace")
    except OSError as error:
        return f"its log cannot be read: {error}"
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][-300:] if lines else "it said nothing"
