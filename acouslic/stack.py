"""Reading a sweep stack: header first, then frames, in chunks, into an array of the caller's.

`reading/` has a module for each kind of file. A single image is a stack of one frame. Frames are uint8; other pixel
types are accepted where every value is a whole number in 0..255, colour where all channels are equal.

In-plane spacing. A header that states a spacing that cannot be (zero, negative, NaN) is damaged and refused. One that
states none, exactly 1 (what writers put that know nothing), or one no ultrasound scanner has (outside 0.05..2 mm) is
taken to be silent: the challenge's 0.28 mm is assumed, and `spacing_note` says so. The resolution of screens and
printers (72, 96, 300 dots per inch), which writers of pictures put by default, counts as silence too.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from acouslic.errors import AcouslicError
from acouslic.geometry import SPACING_MM, consecutive_ranges, sweep_ranges
from acouslic.paths import sees_folder
from acouslic.reading.kinds import kind_of
from acouslic.reading.metaimage import MetaImageHeader, read_header, source_header
from acouslic.reading.metaimage_list import MetaImageList
from acouslic.reading.pixel_stream import PixelSource, open_pixels
from acouslic.reading.source import FileFacts, FrameSource, SourceHeader, one_channel

CHUNK_FRAMES = 16
_PLAUSIBLE_MM = (0.05, 2.0)
_UNKNOWN_MM = 1.0
_SAME = 0.01
"""Share by which a spacing that was given may differ from the file's without a note."""
_DEFAULT_DOTS_PER_INCH = (72, 96, 300)


OpenPixels = Callable[[MetaImageHeader], AbstractContextManager[PixelSource]]


@dataclass(frozen=True, kw_only=True)
class StackHeader(FileFacts):
    """What is known of a stack before its pixels are decoded."""

    spacing_mm: tuple[float, float]
    """(row, column) spacing."""
    spacing_note: str | None
    """A sentence for log and results where the file's spacing was absent or implausible and 0.28 mm was assumed."""

    @property
    def sweeps(self) -> list[range]:
        """The frames of each sweep, in order: disjoint ranges that cover all frames."""
        return consecutive_ranges(self.sweep_lengths) if self.sweep_lengths else sweep_ranges(self.frames)


@dataclass(frozen=True)
class SweepStack:
    """A whole stack in memory."""

    frames: np.ndarray
    """uint8 (frames, rows, columns)."""
    header: StackHeader


class StackReader:
    """A stack whose header has been read and checked. Every reading opens the file anew."""

    def __init__(self, header: StackHeader, source: MetaImageHeader | FrameSource, opener: OpenPixels) -> None:
        self.header = header
        self._source = source
        self._open_pixels = opener

    def read_into(self, destination: np.ndarray, chunk_frames: int = CHUNK_FRAMES) -> Iterator[range]:
        """Fill `destination` (uint8, C order, (frames, rows, columns)) and yield each range of frames once it is there.

        Raises AcouslicError where the pixels are damaged, end early or do not end where they should, or hold a value
        that is not a whole number in 0..255. Only a run to the end has checked the whole file.
        """
        header = self.header
        if destination.shape != (header.frames, header.rows, header.columns) or destination.dtype != np.uint8:
            raise ValueError(f"destination is {destination.dtype} {destination.shape}, the stack needs {header}")
        if not destination.flags.c_contiguous:
            raise ValueError("destination must be C-contiguous")
        yield from self._fill(lambda indices: destination[indices.start : indices.stop], chunk_frames)

    def iter_chunks(self, chunk_frames: int = CHUNK_FRAMES) -> Iterator[tuple[range, np.ndarray]]:
        """The frames in order, in bounded memory: each range of frame indices with their pixels, uint8 (frames, rows,
        columns), at most `chunk_frames` at a time. The array is one buffer, valid until the next step.

        Raises AcouslicError as `read_into`.
        """
        header = self.header
        buffer = np.empty((min(chunk_frames, header.frames), header.rows, header.columns), dtype=np.uint8)
        for indices in self._fill(lambda indices: buffer[: len(indices)], chunk_frames):
            yield indices, buffer[: len(indices)]

    def iter_own_chunks(self, chunk_frames: int = CHUNK_FRAMES) -> Iterator[tuple[range, np.ndarray]]:
        """As `iter_chunks`, but each array is a new one, the caller's own."""
        header = self.header
        filled: list[np.ndarray] = []

        def next_chunk(indices: range) -> np.ndarray:
            filled.append(np.empty((len(indices), header.rows, header.columns), dtype=np.uint8))
            return filled[-1]

        for indices in self._fill(next_chunk, chunk_frames):
            yield indices, filled.pop()

    def _fill(self, destination_of: Callable[[range], np.ndarray], chunk_frames: int) -> Iterator[range]:
        frames = self.header.frames
        chunks = [range(start, min(start + chunk_frames, frames)) for start in range(0, frames, chunk_frames)]
        if isinstance(self._source, MetaImageHeader):
            return _fill_from_metaimage(self._source, self._open_pixels, destination_of, chunks)
        return _fill_from_frames(self._source, destination_of, chunks)


def open_stack(
    path: Path,
    *,
    opener: OpenPixels = open_pixels,
    most_frames: int | None = None,
    spacing_mm: tuple[float, float] | None = None,
    stills: bool = True,
) -> StackReader:
    """Read and check the header of a stack, of any kind that `STACK_SUFFIXES` names; no pixel is decoded.

    `opener` decodes the pixels of a MetaImage. A TIFF of more than `most_frames` pages is refused on reading one more.
    `spacing_mm` (row, column) stands in place of what the file states; where it states another one, a note says so.
    A single picture is a stack of one frame, or refused where `stills` is false.
    Raises AcouslicError, naming what was found and what is expected, for any other file.
    """
    source = _open_source(path, most_frames)
    found = source_header(source) if isinstance(source, MetaImageHeader) else source.header
    if found.is_still and not stills:
        raise AcouslicError(
            f"{found.where} is a single 2-D image of {found.rows} x {found.columns} pixels; expected a stack of frames "
            "(3-D)"
        )
    stated_mm, note = _in_plane_spacing(found)
    if spacing_mm is not None:
        agree = note is not None or np.allclose(stated_mm, spacing_mm, rtol=_SAME, atol=0)
        note = None if agree else _contradiction(found, stated_mm, spacing_mm)
    facts = {field.name: getattr(found, field.name) for field in fields(FileFacts)} | {"path": path}
    header = StackHeader(**facts, spacing_mm=stated_mm if spacing_mm is None else spacing_mm, spacing_note=note)
    return StackReader(header, source, opener)


def _open_source(path: Path, most_frames: int | None) -> MetaImageHeader | FrameSource:
    """The reader for a file's kind. Imported here, because a container that starts for one .mha needs no other."""
    if sees_folder(path):
        from acouslic.scanner.folder import open_folder

        return open_folder(path)
    kind = kind_of(path)
    if kind == "MetaImage":
        metaimage = read_header(path)
        return MetaImageList(metaimage) if metaimage.frame_paths else metaimage
    if kind == "TIFF":
        from acouslic.reading.tiff import MOST_PAGES, open_tiff

        return open_tiff(path, MOST_PAGES if most_frames is None else most_frames)
    if kind in ("PNG", "JPEG"):
        from acouslic.reading.still import open_still

        return open_still(path, kind)
    if kind == "DICOM":
        from acouslic.scanner.dicom import open_dicom

        return open_dicom(path, [path])
    if kind == "video":
        from acouslic.scanner.video import open_video

        return open_video(path)
    from acouslic.reading.volume import open_volume

    return open_volume(path, kind)


def read_stack(path: Path) -> SweepStack:
    """A whole stack at once.

    Raises AcouslicError as `open_stack` and `StackReader.read_into`, and where it does not fit into memory.
    """
    reader = open_stack(path)
    header = reader.header
    try:
        frames = np.empty((header.frames, header.rows, header.columns), dtype=np.uint8)
    except MemoryError as error:
        raise AcouslicError(f"{path} does not fit into memory: {error}") from error
    for _ in reader.read_into(frames):
        pass
    return SweepStack(frames, header)


def _fill_from_metaimage(
    source: MetaImageHeader, opener: OpenPixels, destination_of: Callable[[range], np.ndarray], chunks: list[range]
) -> Iterator[range]:
    plain = source.dtype == np.uint8 and source.channels == 1
    # A frame at a time: one of doubles takes eight times the memory of its uint8.
    shape = (source.dim_size[1], source.dim_size[0], source.channels)
    values = None if plain else np.empty(shape, dtype=source.dtype)
    with opener(source) as pixels:
        for indices in chunks:
            destination = destination_of(indices)
            if values is None:
                pixels.read_into(destination.data.cast("B"))
            else:
                for frame_index, frame in zip(indices, destination, strict=True):
                    pixels.read_into(values.view(np.uint8).data.cast("B"))
                    _narrow(one_channel(values, source.path, frame_index), frame, frame_index, str(source.path))
            if indices is chunks[-1]:
                pixels.finish()
            yield indices


def _fill_from_frames(
    source: FrameSource, destination_of: Callable[[range], np.ndarray], chunks: list[range]
) -> Iterator[range]:
    with contextlib.closing(source.frames()) as frames:
        for indices in chunks:
            for frame_index, destination in zip(indices, destination_of(indices), strict=True):
                _narrow(next(frames), destination, frame_index, source.header.where)
            yield indices


def _narrow(values: np.ndarray, destination: np.ndarray, frame_index: int, where: str) -> None:
    """Copy values (rows, columns) of any type into uint8, refusing what does not fit."""
    with np.errstate(invalid="ignore"):  # NaN and what is out of range is found by comparing
        np.copyto(destination, values, casting="unsafe")
    if values.dtype == np.uint8:
        return
    wrong = destination != values
    if wrong.any():
        raise AcouslicError(
            f"{where}: expected whole numbers in 0..255, got {values[wrong][0]} ({values.dtype.name}) in frame "
            f"{frame_index} (counted from 0); rescale the frames to uint8"
        )


def _in_plane_spacing(source: SourceHeader) -> tuple[tuple[float, float], str | None]:
    """((row, column) spacing in mm, a note where it is assumed)."""
    if source.spacing_mm is None:
        why = "states no pixel spacing"
    else:
        row_mm, column_mm = source.spacing_mm
        stated = f"{row_mm:g} x {column_mm:g} mm"
        dots_per_inch = {round(25.4 / value, 2) for value in (row_mm, column_mm)}
        if not all(_PLAUSIBLE_MM[0] <= value <= _PLAUSIBLE_MM[1] for value in (row_mm, column_mm)):
            why = f"states a pixel spacing of {stated}, which no ultrasound scanner has"
        elif any(math.isclose(value, _UNKNOWN_MM, rel_tol=1e-6) for value in (row_mm, column_mm)):
            why = f"states a pixel spacing of {stated}, which stands for unknown"
        elif source.spacing_is_resolution and dots_per_inch <= set(_DEFAULT_DOTS_PER_INCH):
            why = f"states a pixel spacing of {stated}, which is the resolution of a screen or printer"
        else:
            return (row_mm, column_mm), None
    return (SPACING_MM, SPACING_MM), f"{source.name} {why}; {SPACING_MM} mm is assumed"


def _contradiction(source: SourceHeader, stated_mm: tuple[float, float], given_mm: tuple[float, float]) -> str:
    """The note where a file states another spacing than the one that was given."""
    stated, given = (f"{row:g} x {column:g} mm" for row, column in (stated_mm, given_mm))
    return f"{source.name} states a pixel spacing of {stated}, but {given} was given and is used"
