"""stdout and stderr that never decide how a run ends: closed, full or broken, they lose text and nothing else.

A job whose log cannot be written has still done its work; and where it failed, its reason must not be replaced by the
trouble of saying it.
"""

import io
import os
import sys
from typing import Any


def set_up_streams() -> None:
    """UTF-8 on both streams, whatever the locale; what cannot be written is dropped without an error.

    Streams that somebody has put in place of the process's own, as a test does, are only set to UTF-8.
    """
    _occupy_standard_descriptors()
    sys.stdout = _set_up(sys.stdout, sys.__stdout__, 1)
    sys.stderr = _set_up(sys.stderr, sys.__stderr__, 2)


class UnfailingFile(io.RawIOBase):
    """A file descriptor that takes everything: what cannot be written is dropped.

    There is no buffer below the text layer. Its lock, held by a thread while the process ends, would abort the process
    ("could not acquire lock for <_io.BufferedWriter name='<stdout>'> at interpreter shutdown").
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def write(self, content: Any) -> int:
        """All of `content`; its length, whatever became of it."""
        rest = memoryview(content).cast("B")
        size = len(rest)
        while len(rest):
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except OSError:
                # Also where a pipe is full that somebody made non-blocking: its reader may never come.
                break
        return size

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether a terminal is behind it."""
        return os.isatty(self._descriptor)


def _set_up(stream: Any, own: Any, descriptor: int) -> Any:
    if stream is None or stream is own:
        if isinstance(getattr(stream, "buffer", None), UnfailingFile):
            return stream
        if stream is not None:
            _flush_quietly(stream)
        replaced = io.TextIOWrapper(
            UnfailingFile(descriptor),  # type: ignore[type-var]
            encoding="utf-8",
            errors="backslashreplace",
            line_buffering=True,
            write_through=True,
        )
        # Python flushes these at its end, and complains where it cannot.
        setattr(sys, {1: "__stdout__", 2: "__stderr__"}[descriptor], replaced)
        return replaced
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    return stream


def _flush_quietly(stream: Any) -> None:
    try:
        stream.flush()
    except (OSError, ValueError):
        # What was in its buffer is lost; detached, it does not try again when it is collected.
        try:
            stream.detach()
        except (OSError, ValueError):
            return


def _occupy_standard_descriptors() -> None:
    """Open /dev/null where the process was started without stdin, stdout or stderr.

    Else the next file that is opened, perhaps a result, gets that number, and a library's message is written into it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
