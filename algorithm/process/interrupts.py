"""SIGTERM and Ctrl-C end the program with its clean-up."""

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType

CLEAN_UP_S = 5.0


class Interrupts:
    """Turns both signals into a KeyboardInterrupt that carries the signal's number.

    A second one within CLEAN_UP_S seconds is ignored, since it would break the clean-up, or the exit while a decoder's
    threads end. A later one interrupts again, for where the first got lost: what C code calls back into may swallow it.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        """Of the last signal that interrupted."""
        self._interrupted_at = -CLEAN_UP_S
        self._held = False
        self._pending: int | None = None

    def install(self) -> None:
        """Handle signals from now on; one that is ignored, as Ctrl-C in a shell's background, stays so."""
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside, a signal waits until the end: torch aborts the process when its import is interrupted."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._pending is not None:
            self._interrupt(self._pending)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._held:
            self._pending = number
        elif time.monotonic() - self._interrupted_at >= CLEAN_UP_S:
            self._interrupt(number)

    def _interrupt(self, number: int) -> None:
        self.number, self._interrupted_at, self._pending = number, time.monotonic(), None
        raise KeyboardInterrupt(number)
