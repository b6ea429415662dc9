"""SIGTERM and Ctrl-C end the program with its clean-up, until its result is complete."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

CLEAN_UP_S = 5.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Turns both signals into a KeyboardInterrupt that carries the signal's number.

    A second one within CLEAN_UP_S seconds is ignored, since it would break the clean-up, or the exit while a decoder's
    threads end. A later one interrupts again, in case the first got lost: C code that calls back into Python may
    swallow it.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        """Of the last signal that interrupted."""
        self.kept = "nothing of an incomplete result was kept"
        """What whoever stopped the program should know of its results."""
        self._interrupted_at = -CLEAN_UP_S
        self._holds = 0
        self._pending: int | None = None
        self._ended = False

    def install(self) -> None:
        """Handle signals from now on; one that is ignored, as Ctrl-C in a shell's background, stays so."""
        for number in _SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside, a signal waits until the end. Torch aborts the process when its import is interrupted."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
        if self._pending is not None and not self._holds and not self._ended:
            self._interrupt(self._pending)

    def raise_noted(self) -> None:
        """Raise KeyboardInterrupt where a signal has interrupted: C code that an interrupt meets may have raised an
        error of its own instead."""
        if self.number is not None:
            raise KeyboardInterrupt(self.number)

    def end(self) -> None:
        """The result is complete: no signal interrupts from now on, and none is heard while Python ends.

        Call it where a KeyboardInterrupt would still take the result back, so that each moment is on one of two sides.
        """
        self._ended = True
        for number in _SIGNALS:
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, signal.SIG_IGN)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._ended:
            return
        if self._holds:
            self._pending = number
        elif time.monotonic() - self._interrupted_at >= CLEAN_UP_S:
            self._interrupt(number)

    def _interrupt(self, number: int) -> None:
        self.number, self._interrupted_at, self._pending = number, time.monotonic(), None
        raise KeyboardInterrupt(number)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """As `Interrupts.held`, where nobody knows what answers the signals: inside, both wait; after it the first of them
    is answered. In another thread than the main one, where no signal is answered, it does nothing.

    A block of this thread alone would not do: a library's thread may take the signal, and Python then runs the handler
    in the main thread all the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    answered = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in answered:
            signal.signal(number, lambda number, _: waiting.append(number))
        yield
    finally:
        for number, handler in answered.items():
            signal.signal(number, handler)
        if waiting:
            signal.raise_signal(waiting[0])
