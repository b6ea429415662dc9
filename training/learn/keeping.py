"""What a run keeps when it is ended: checkpoints by time, and an orderly stop at SIGTERM and Ctrl-C.

A run that is stopped between two steps writes `last.ckpt` first, so that nothing is lost. One that is killed outright
loses what was trained since the last one: `SAVE_EVERY_S` at most, and the validation that it was in.
"""

import contextlib
import io
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch
import torch.distributed
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from acouslic.errors import AcouslicError
from acouslic.write import replacing

SAVE_EVERY_S = 600.0
"""Longest time between two checkpoints while a run trains."""
_BEFORE_VALIDATION_S = 60.0
"""A run that is about to validate writes one where the last is older than this: it can write none while it
validates."""
_AGREE_EVERY = 8
"""Several processes compare notes after so many steps: it makes them wait for each other."""


class StoppedError(AcouslicError):
    """A run ended by a signal. Its text says what is kept and how to go on; empty where another process says it."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.exit_code = 128 + number


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that are there whole or not at all. Lightning copies them from the system's temporary folder over the
    one before: where that is another disk, a run that is killed meanwhile, or a full disk, would leave half of one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: ARG002  # Lightning's signature
        """Raises ShortageError where it cannot be written; the one before is still there then."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with replacing(Path(path)) as file:
            file.write(buffer.getbuffer())


class StopRequest:
    """The number of the signal that asked the run to stop, None before one has come."""

    def __init__(self) -> None:
        self.number: int | None = None

    def handle(self, trainer: lightning.Trainer) -> None:
        """From now on SIGTERM and Ctrl-C are noted, and passed on to the processes that Lightning has started."""

        def note(number: int, _: FrameType | None) -> None:
            again, self.number = self.number is not None, number
            launcher = trainer.strategy.launcher
            if launcher is not None and hasattr(launcher, "kill"):
                launcher.kill(signal.Signals(number))
            if again and number == signal.SIGINT:
                raise KeyboardInterrupt(number)  # whoever presses Ctrl-C twice does not want to wait for the step

        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, note)

    @contextlib.contextmanager
    def handlers_kept(self) -> Iterator[None]:
        """Afterwards signals do what they did before."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Keeping(Callback):
    """Writes `last.ckpt` by time, and stops the run in an orderly way where a signal asks for it."""

    def __init__(self, path: Path, request: StopRequest, save_every_s: float = SAVE_EVERY_S) -> None:
        self._path = path
        self._request = request
        self._save_every_s = save_every_s
        self._saved_at = time.monotonic()
        self._steps = 0

    def setup(self, trainer: lightning.Trainer, *_: Any, **__: Any) -> None:
        """Take over both signals: Lightning, which has just taken SIGTERM, would end the run with exit code 0."""
        self._request.handle(trainer)
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """A signal during the preparations."""
        self._stop_if_asked(trainer)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Save where it is time or where the run has to stop. Never after the epoch's last step: Lightning would go on
        from there without its validation."""
        progress = trainer.fit_loop.epoch_loop.batch_progress
        if progress.is_last_batch:
            return
        self._steps += 1
        left = trainer.num_training_batches - progress.current.ready
        if trainer.world_size > 1 and self._steps % _AGREE_EVERY and left != 1:
            return
        age_s = time.monotonic() - self._saved_at
        is_due = age_s >= self._save_every_s or (left == 1 and age_s >= _BEFORE_VALIDATION_S)
        stops, saves = _agree(trainer, self._request.number is not None, is_due)
        if stops or saves:
            trainer.save_checkpoint(self._path)
            self._saved_at = time.monotonic()
        if stops:
            kept = f"everything up to this step is kept in {self._path}, and the same command goes on from there"
            self._stop(trainer, kept)

    def on_validation_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """One process alone can stop here; several wait for the next epoch, where they agree."""
        if trainer.world_size == 1:
            self._stop_if_asked(trainer)

    def on_train_epoch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """After the checkpoint of the epoch before. (At an epoch's end this callback comes before that is written.)"""
        self._saved_at = time.monotonic()
        stops, _saves = _agree(trainer, self._request.number is not None, saves=False)
        if stops:
            self._stop(trainer, what_is_kept(self._path))

    def _stop_if_asked(self, trainer: lightning.Trainer) -> None:
        if self._request.number is not None and trainer.world_size == 1:
            self._stop(trainer, what_is_kept(self._path))

    def _stop(self, trainer: lightning.Trainer, kept: str) -> None:
        number = self._request.number or signal.SIGTERM
        place = f"in epoch {trainer.current_epoch + 1}, step {trainer.global_step}"
        text = f"stopped by {signal.Signals(number).name} {place}: {kept}"
        raise StoppedError(number, text if trainer.is_global_zero else "")


def what_is_kept(path: Path) -> str:
    """Of a run that ends where it cannot save."""
    if not path.is_file():
        return "no checkpoint was written yet, so the same command begins anew"
    age_s = max(0.0, time.time() - path.stat().st_mtime)
    return f"what was trained until {age_s:.0f} s ago is kept in {path}, and the same command goes on from there"


@contextlib.contextmanager
def ended_by(request: StopRequest, path: Path) -> Iterator[None]:
    """Inside, whatever Lightning makes of a signal becomes a StoppedError.

    Processes other than the first just end, with exit code 0: the first one would be killed if they did not.
    """
    try:
        with request.handlers_kept():
            yield
    except (StoppedError, SIGTERMException, SystemExit, KeyboardInterrupt) as error:
        is_ours = isinstance(error, StoppedError)
        if request.number is None and not is_ours:
            raise
        if os.environ.get("LOCAL_RANK", "0") != "0" or (is_ours and not str(error)):
            raise SystemExit(0) from None
        if isinstance(error, StoppedError):
            raise
        number = request.number or signal.SIGTERM
        raise StoppedError(number, f"stopped by {signal.Signals(number).name}: {what_is_kept(path)}") from None


def _agree(trainer: lightning.Trainer, stops: bool, saves: bool) -> tuple[bool, bool]:
    """Whether any process stops, and whether any saves: each has its own clock, and a signal may reach only one."""
    if trainer.world_size == 1:
        return stops, saves
    wishes = torch.tensor([float(stops), float(saves)], device=trainer.strategy.root_device)
    torch.distributed.all_reduce(wishes, torch.distributed.ReduceOp.MAX)
    anyone_stops, anyone_saves = wishes.tolist()
    return bool(anyone_stops), bool(anyone_saves)
