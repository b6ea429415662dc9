"""Processes that share a command's work: Ctrl-C is for the command alone to answer, and none of them outlives it."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from acouslic.errors import AcouslicError
from acouslic.interrupts import signals_held

_PARENT_CHECK_S = 2.0
_LAST_WORK_S = 2.0
"""What the work that is under way may still take when a signal ends the command."""


@contextmanager
def map_over(count: int, set_up: Callable[[], None] | None = None) -> Iterator[Callable[..., Iterator[Any]]]:
    """`map`, over this process where `count` is 1, else over `count` fresh ones, each of which calls `set_up` first.

    Where a signal ends the block, so do they, if need be in the middle of what they do: they must write nothing that is
    taken for complete before it is. Raises AcouslicError where one of them is ended from outside.
    """
    if count == 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start, initargs=(os.getpid(), set_up))

    def map_calls(function: Callable[..., Any], *values: Any) -> Iterator[Any]:
        # A process whose start is interrupted would tell of it.
        with signals_held(), deaf_to_interrupts():
            return pool.map(function, *values)

    try:
        with pool:
            try:
                yield map_calls
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                end_workers()
                raise
    except BrokenProcessPool:
        raise AcouslicError(
            f"one of {count} processes was ended from outside (out of memory?); run the command again with fewer --jobs"
        ) from None


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes that start inside do not hear Ctrl-C: in a terminal it reaches them too, and is for this one alone to
    answer."""
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)


def end_workers() -> None:
    """Let this process's workers end what they have begun, so that none leaves half a file, but not for long."""
    end_s = time.monotonic() + _LAST_WORK_S
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.join(max(0.0, end_s - time.monotonic()))
    for worker in workers:
        worker.kill()


def end_with_parent(parent_pid: int) -> None:
    """From now on this process ends when its parent has, also one that was killed outright."""
    threading.Thread(target=_wait_for_the_end_of, args=(parent_pid,), daemon=True).start()


def _wait_for_the_end_of(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(_PARENT_CHECK_S)
    os._exit(1)


def _start(parent_pid: int, set_up: Callable[[], None] | None) -> None:
    end_with_parent(parent_pid)
    if set_up is not None:
        set_up()
