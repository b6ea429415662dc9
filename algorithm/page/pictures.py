"""The frames of a case as pictures small enough for one page: all of them reduced, the best ones in full size."""

import math
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from acouslic.errors import AcouslicError
from acouslic.stack import StackHeader, open_stack
from algorithm.frames.parallel_pixels import open_pixels_on_several_cores
from algorithm.process.cores import usable_cores

Frame = NDArray[np.uint8]
"""(rows, columns)."""

BUDGET_BYTES = 10_500_000
"""Of all pictures of a case. As text they take a third more, and a page stays below 15 MB."""
_FULL_SHARE = 0.2
"""Of the budget, for the frames in full size."""
_REDUCED_COLUMNS = 400
"""About this wide at most: what a phone shows, and a screen beside the numbers."""
_QUALITIES = (82, 70, 55, 42, 30)
_FULL_QUALITY = 85
_SAMPLES = 12
_FEWEST_COLUMNS = 96
_MOST_REDUCED_BYTES = 200_000_000
"""Of memory, before they are encoded."""


@dataclass(frozen=True)
class FramePictures:
    """JPEG files of a case's frames, grey."""

    reduced: tuple[bytes, ...]
    """Frames in order, all of one size: every one, or of a very long stack every `step`-th."""
    step: int
    full: dict[int, bytes]
    """By frame index: some of those asked for, in the frame's own size."""
    reduced_by: int
    """How many of a frame's pixels become one in a small picture, along a side."""
    most_wanted: Frame | None
    """The first frame that was asked for, as it was read; None where none was."""

    def of(self, frame_index: int) -> bytes:
        """The best picture of a frame; of one that has none, that of the nearest one before it."""
        return self.full.get(frame_index, self.reduced[frame_index // self.step])


def read_pictures(header: StackHeader, wanted: Collection[int], budget_bytes: int = BUDGET_BYTES) -> FramePictures:
    """Read the stack of `header` again; its frames become small pictures, and those `wanted` come in full size as well.

    `wanted` are frame indices, the most important first: what the budget does not hold is left out from the end.
    Size and quality of the small pictures, and whether all frames become one, follow from how well some of the frames
    compress. Raises AcouslicError where the stack can no longer be read, or holds other frames than it did.
    """
    factor = max(1, -(-header.columns // _REDUCED_COLUMNS))
    while header.frames * math.prod(_size(header, factor)) > _MOST_REDUCED_BYTES:
        factor += 1
    size = _size(header, factor)
    order = list(dict.fromkeys(wanted))
    small = np.empty((header.frames, size[1], size[0]), np.uint8)
    kept: dict[int, Frame] = {}
    reader = open_stack(header.path, opener=open_pixels_on_several_cores)
    found = (reader.header.frames, reader.header.rows, reader.header.columns)
    if found != (header.frames, header.rows, header.columns):
        raise AcouslicError("the stack was changed while it was analysed: analyse it again")
    asked = set(order)
    for indices, frames in reader.iter_chunks():
        for index, frame in zip(indices, frames, strict=True):
            small[index] = _reduce(frame, size)
            if index in asked:
                kept[index] = frame.copy()
    full = _within([(index, _encode(kept[index], _FULL_QUALITY)) for index in order], round(budget_bytes * _FULL_SHARE))
    left_bytes = budget_bytes - sum(map(len, full.values()))
    step = 1
    while True:
        quality = _quality(small, left_bytes)
        if quality is not None:
            reduced = _encode_all(small, quality)
            if sum(map(len, reduced)) <= left_bytes:
                return FramePictures(reduced, step, full, factor, kept[order[0]] if order else None)
        if size[0] > _FEWEST_COLUMNS:
            factor += 1
            size = _size(header, factor)
            small = np.stack([_reduce(frame, size) for frame in small])
        else:
            step *= 2
            small = small[::2]


def _size(header: StackHeader, factor: int) -> tuple[int, int]:
    """(width, height)."""
    return max(1, round(header.columns / factor)), max(1, round(header.rows / factor))


def _reduce(frame: Frame, size: tuple[int, int]) -> Frame:
    # Averaging over whole pixels is quick; over parts of pixels it takes longer than decoding the stack.
    whole = frame.shape[1] % size[0] == 0 and frame.shape[0] % size[1] == 0
    reduced = cv2.resize(frame, size, interpolation=cv2.INTER_AREA if whole else cv2.INTER_LINEAR)
    return np.asarray(reduced, dtype=np.uint8)


def _quality(frames: Frame, budget_bytes: int) -> int | None:
    """The best quality with which all frames are expected to fit, from a few of them; None where none is."""
    some = frames[np.linspace(0, len(frames) - 1, min(_SAMPLES, len(frames))).astype(int)]
    for quality in _QUALITIES:
        each = np.mean([len(_encode(frame, quality)) for frame in some])
        if each * len(frames) <= 0.9 * budget_bytes:
            return quality
    return None


def _encode_all(frames: Frame, quality: int) -> tuple[bytes, ...]:
    # OpenCV lets other threads run.
    with ThreadPoolExecutor(usable_cores()[0]) as pool:
        return tuple(pool.map(lambda frame: _encode(frame, quality), frames))


def _encode(frame: Frame, quality: int) -> bytes:
    encoded, content = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert encoded
    return content.tobytes()


def _within(pictures: list[tuple[int, bytes]], budget_bytes: int) -> dict[int, bytes]:
    """The first of `pictures` that the budget holds."""
    held: dict[int, bytes] = {}
    for index, picture in pictures:
        budget_bytes -= len(picture)
        if budget_bytes < 0:
            break
        held[index] = picture
    return held
