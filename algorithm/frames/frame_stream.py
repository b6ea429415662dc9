"""A sweep stack that is decoded in a thread of its own while the program does something else. No torch.

The thread starts before torch is imported and weights are loaded, so that on a cold start decoding costs no time; it
runs ahead of its reader by a bounded number of bytes.
"""

import atexit
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from acouslic.stack import CHUNK_FRAMES, StackHeader, open_stack
from algorithm.frames.parallel_pixels import open_pixels_on_several_cores

MAX_AHEAD_BYTES = 400_000_000
"""A case of 840 x 562 x 744 fits, so that damage anywhere in it is met before much has been computed."""


class FrameStream:
    """The frames of the stack at `path`, in order, once. Decoding starts at once; close it when done, in any case."""

    def __init__(self, path: Path, spacing_mm: tuple[float, float] | None = None, *, stills: bool = True) -> None:
        """`spacing_mm` (row, column) and `stills` as in `acouslic.stack.open_stack`."""
        self._path = path
        self._spacing_mm, self._stills = spacing_mm, stills
        self._changed = threading.Condition()
        self._header: StackHeader | None = None
        self._chunks: deque[tuple[range, NDArray[np.uint8]]] = deque()
        self._error: Exception | None = None
        self._ended = False
        self._closed = False
        self._read_s = 0.0
        self._thread = threading.Thread(target=self._decode, name=f"decode {path.name}", daemon=True)
        self._thread.start()
        # Decoders have threads that must not outlive the interpreter, also where somebody forgets to close.
        atexit.register(self.close)

    @property
    def header(self) -> StackHeader:
        """What the stack's header says. Waits for it; raises AcouslicError as `acouslic.stack.open_stack`."""
        with self._changed:
            self._changed.wait_for(lambda: self._header is not None or self._ended)
            if self._header is None:
                self._raise_error()
            assert self._header is not None
            return self._header

    @property
    def read_s(self) -> float:
        """Seconds of decoding so far, without waiting for room."""
        return self._read_s

    def chunks(self) -> Iterator[tuple[range, NDArray[np.uint8]]]:
        """Each chunk's frame indices and frames, uint8 (n, rows, columns), the caller's own. Waits where it must.

        Raises AcouslicError as `StackReader.iter_own_chunks`, as soon as the thread has met the damage.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._chunks or self._ended)
                self._raise_error()
                if not self._chunks:
                    return
                chunk = self._chunks.popleft()
                self._changed.notify_all()
            yield chunk

    def close(self) -> None:
        """End the thread; waits until it has ended. The stream is not to be read any more then."""
        with self._changed:
            self._closed = True
            self._chunks.clear()
            self._changed.notify_all()
        self._thread.join()
        # Its traceback leads to the frames of whoever read the stream, and through them to all of a case's pixels.
        self._error = None
        atexit.unregister(self.close)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _decode(self) -> None:
        try:
            self._decode_until_closed()
        except Exception as error:
            # Not handled here: handed to whoever reads the stream.
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _decode_until_closed(self) -> None:
        start = time.monotonic()
        reader = open_stack(
            self._path, opener=open_pixels_on_several_cores, spacing_mm=self._spacing_mm, stills=self._stills
        )
        header = reader.header
        with self._changed:
            self._header = header
            self._changed.notify_all()
        most_ahead = max(2, MAX_AHEAD_BYTES // (CHUNK_FRAMES * header.rows * header.columns))
        for chunk in reader.iter_own_chunks(CHUNK_FRAMES):
            self._read_s += time.monotonic() - start
            with self._changed:
                self._changed.wait_for(lambda: len(self._chunks) < most_ahead or self._closed)
                if self._closed:
                    return
                self._chunks.append(chunk)
                self._changed.notify_all()
            start = time.monotonic()
