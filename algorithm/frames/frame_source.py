"""Where the pipeline gets its frames: a file that is being decoded, or an array in memory. No torch."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from acouslic.errors import AcouslicError
from acouslic.geometry import SPACING_MM
from acouslic.stack import CHUNK_FRAMES, StackHeader

_ARRAY = Path("an array")
"""Stands in the log where a file's path would."""


class FrameSource(Protocol):
    """Frames in their order, once. `FrameStream` is the one for files."""

    @property
    def header(self) -> StackHeader:
        """What is known before the frames are."""

    @property
    def read_s(self) -> float:
        """Seconds of decoding so far."""

    def chunks(self) -> Iterator[tuple[range, NDArray[np.uint8]]]:
        """Each chunk's frame indices and frames, uint8 (n, rows, columns), at most `CHUNK_FRAMES` of them."""


class ArrayFrames:
    """The frames of a stack that is in memory."""

    def __init__(self, frames: NDArray[np.uint8], spacing_mm: tuple[float, float] | None) -> None:
        """`frames` is uint8 (frames, rows, columns), `spacing_mm` (row, column); None assumes the challenge's 0.28 mm.

        Raises AcouslicError for an array of another kind, an empty one, or a spacing that is not a positive number.
        """
        if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.ndim != 3 or 0 in frames.shape:
            kind = f"{frames.dtype} {frames.shape}" if isinstance(frames, np.ndarray) else type(frames).__name__
            raise AcouslicError(f"the sweep is {kind}; expected an array of uint8 (frames, rows, columns)")
        note = None
        if spacing_mm is None:
            spacing_mm, note = (SPACING_MM, SPACING_MM), f"no pixel spacing was given; {SPACING_MM} mm is assumed"
        if len(spacing_mm) != 2 or not all(math.isfinite(value) and value > 0 for value in spacing_mm):
            raise AcouslicError(f"spacing_mm is {spacing_mm}; expected two positive numbers, (row, column), in mm")
        count, rows, columns = frames.shape
        spacing = (float(spacing_mm[0]), float(spacing_mm[1]))
        self.header = StackHeader(
            _ARRAY, count, rows, columns, str(frames.dtype), spacing_mm=spacing, spacing_note=note
        )
        self.read_s = 0.0
        self._frames = frames

    def chunks(self) -> Iterator[tuple[range, NDArray[np.uint8]]]:
        """As `FrameSource.chunks`; each chunk is a copy, since torch takes no array that must not be written."""
        for start in range(0, len(self._frames), CHUNK_FRAMES):
            indices = range(start, min(start + CHUNK_FRAMES, len(self._frames)))
            yield indices, np.array(self._frames[indices.start : indices.stop], order="C")
