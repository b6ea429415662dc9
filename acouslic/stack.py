"""Reading a sweep stack: header first, then frames, in chunks, into an array of the caller's.

Two kinds of file are read: MetaImage, decoded by `pixel_stream.py`, and multi-page TIFF, decoded by OpenCV a few pages
at a time. Frames are uint8; other pixel types are accepted where every value is a whole number in 0..255.

In-plane spacing. A header that states a spacing that cannot be (zero, negative, NaN) is damaged and refused. One that
states none, exactly 1 (what writers put that know nothing), or one no ultrasound scanner has (outside 0.05..2 mm) is
taken to be silent: the challenge's 0.28 mm is assumed, and `spacing_note` says so. In a TIFF the resolution of screens
and printers (72, 96, 300 dots per inch), which writers put by default, counts as silence too.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from acouslic.errors import AcouslicError
from acouslic.geometry import SPACING_MM
from acouslic.reading.metaimage import MetaImageHeader, read_header
from acouslic.reading.pixel_stream import PixelSource, open_pixels
from acouslic.reading.tiff import TiffHeader, read_tiff_header, read_tiff_pages
from acouslic.sockets import STACK_SUFFIXES

CHUNK_FRAMES = 16
MAX_STACK_BYTES = 8 << 30
"""No sweep comes near this; a header that asks for more is damaged."""
_PLAUSIBLE_MM = (0.05, 2.0)
_UNKNOWN_MM = 1.0
_DEFAULT_DOTS_PER_INCH = (72, 96, 300)
_SIGNATURES = ((128, b"DICM", "DICOM"), (344, b"n+1\0", "NIfTI"), (344, b"ni1\0", "NIfTI"), (0, b"\x89PNG", "PNG"),
               (0, b"\xff\xd8\xff", "JPEG"), (0, b"\x1f\x8b", "gzip"), (0, b"PK\x03\x04", "zip"),
               (0, b"II*\0", "TIFF"), (0, b"MM\0*", "TIFF"), (0, b"II+\0", "TIFF"), (0, b"MM\0+", "TIFF"))  # fmt: skip


OpenPixels = Callable[[MetaImageHeader], AbstractContextManager[PixelSource]]


@dataclass(frozen=True)
class StackHeader:
    """What is known of a stack before its pixels are decoded."""

    path: Path
    frames: int
    rows: int
    columns: int
    spacing_mm: tuple[float, float]
    """(row, column) spacing."""
    spacing_note: str | None
    """A sentence for log and results where the file's spacing was absent or implausible and 0.28 mm was assumed."""
    pixel_type: str
    """As the file names it: `MET_UCHAR`, `MET_SHORT`, ..., for TIFF a numpy name such as `uint8`."""
    frame_spacing: float = 1.0
    """The file's third spacing, handed on to the mask. It is a time or nothing, never millimetres."""


@dataclass(frozen=True)
class SweepStack:
    """A whole stack in memory."""

    frames: np.ndarray
    """uint8 (frames, rows, columns)."""
    header: StackHeader


class StackReader:
    """A stack whose header has been read and checked. Every reading opens the file anew."""

    def __init__(self, header: StackHeader, source: MetaImageHeader | TiffHeader, opener: OpenPixels) -> None:
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
        """The frames in order, in bounded memory: the array is one buffer, valid until the next step.

        Raises as `read_into`.
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
        if isinstance(self._source, TiffHeader):
            return _fill_from_tiff(self._source, destination_of, chunks)
        return _fill_from_metaimage(self._source, self._open_pixels, destination_of, chunks)


def open_stack(path: Path, *, allow_single_frame_2d: bool = False, opener: OpenPixels = open_pixels) -> StackReader:
    """Read and check the header of a `.mha`, `.mhd`, `.tif` or `.tiff`; no pixel is decoded.

    A 2-D image is refused, or with `allow_single_frame_2d` taken as a stack of one frame. `opener` decodes the pixels
    of a MetaImage.
    Raises AcouslicError, naming what was found and what is expected, for any other file.
    """
    suffix, kind = path.suffix.lower(), _kind_of(path)
    if suffix not in STACK_SUFFIXES:
        found = f"{path} holds {kind}" if kind else f"{path} is no image of a known kind"
        raise AcouslicError(f"{found}; expected a sweep stack ({', '.join(STACK_SUFFIXES)})")
    expected_kind = "TIFF" if suffix in (".tif", ".tiff") else None
    if kind != expected_kind:
        raise AcouslicError(f"{path} holds {kind or 'no TIFF'}; expected what its suffix {path.suffix} says")
    source = read_tiff_header(path) if expected_kind == "TIFF" else read_header(path)
    if len(source.dim_size) == 2 and not allow_single_frame_2d:
        raise AcouslicError(
            f"{path} is a single 2-D image of {source.dim_size[1]} x {source.dim_size[0]} pixels; expected a stack of "
            "frames (3-D)"
        )
    columns, rows, frames = (*source.dim_size, 1)[:3]
    if frames * rows * columns > MAX_STACK_BYTES:
        raise AcouslicError(
            f"{path}: {frames} x {rows} x {columns} pixels are more than the {MAX_STACK_BYTES:,} allowed"
        )
    spacing_mm, note = _in_plane_spacing(source)
    frame_spacing = source.element_spacing[2] if source.element_spacing and len(source.dim_size) == 3 else 1.0
    header = StackHeader(path, frames, rows, columns, spacing_mm, note, source.pixel_type, frame_spacing)
    return StackReader(header, source, opener)


def read_stack(path: Path, *, allow_single_frame_2d: bool = False) -> SweepStack:
    """A whole stack at once.

    Raises AcouslicError as `open_stack` and `StackReader.read_into`, and where it does not fit into memory.
    """
    reader = open_stack(path, allow_single_frame_2d=allow_single_frame_2d)
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
    with opener(source) as pixels:
        for indices in chunks:
            destination = destination_of(indices)
            if source.dtype == np.uint8:
                pixels.read_into(destination.data.cast("B"))
            else:
                values = np.empty(destination.shape, dtype=source.dtype)
                pixels.read_into(values.view(np.uint8).data.cast("B"))
                _narrow(values, destination, indices.start, source.path)
            if indices is chunks[-1]:
                pixels.finish()
            yield indices


def _fill_from_tiff(
    source: TiffHeader, destination_of: Callable[[range], np.ndarray], chunks: list[range]
) -> Iterator[range]:
    for indices in chunks:
        destination = destination_of(indices)
        for offset, page in enumerate(read_tiff_pages(source, indices)):
            _narrow(page, destination[offset], indices[offset], source.path)
        yield indices


def _narrow(values: np.ndarray, destination: np.ndarray, first_frame: int, path: Path) -> None:
    """Copy values (frames, rows, columns) or (rows, columns) of any type into uint8, refusing what does not fit."""
    with np.errstate(invalid="ignore"):  # NaN and what is out of range is found by comparing
        np.copyto(destination, values, casting="unsafe")
    if values.dtype == np.uint8:
        return
    wrong = destination != values
    if wrong.any():
        frame = first_frame + (int(np.argwhere(wrong)[0][0]) if wrong.ndim == 3 else 0)
        raise AcouslicError(
            f"{path}: expected whole numbers in 0..255, got {values[wrong][0]} ({values.dtype.name}) in frame {frame} "
            "(counted from 0); rescale the frames to uint8"
        )


def _in_plane_spacing(source: MetaImageHeader | TiffHeader) -> tuple[tuple[float, float], str | None]:
    """((row, column) spacing in mm, a note where it is assumed)."""
    if source.element_spacing is None:
        why = "states no pixel spacing"
    else:
        column_mm, row_mm = source.element_spacing[:2]
        stated = f"{row_mm:g} x {column_mm:g} mm"
        dots_per_inch = {round(25.4 / value, 2) for value in (row_mm, column_mm)}
        if not all(_PLAUSIBLE_MM[0] <= value <= _PLAUSIBLE_MM[1] for value in (row_mm, column_mm)):
            why = f"states a pixel spacing of {stated}, which no ultrasound scanner has"
        elif any(math.isclose(value, _UNKNOWN_MM, rel_tol=1e-6) for value in (row_mm, column_mm)):
            why = f"states a pixel spacing of {stated}, which stands for unknown"
        elif isinstance(source, TiffHeader) and dots_per_inch <= set(_DEFAULT_DOTS_PER_INCH):
            why = f"states a pixel spacing of {stated}, which is the resolution of a screen or printer"
        else:
            return (row_mm, column_mm), None
    return (SPACING_MM, SPACING_MM), f"{source.path.name} {why}; {SPACING_MM} mm is assumed"


def _kind_of(path: Path) -> str | None:
    """The format that the first bytes of a file belong to; None for a MetaImage and everything unknown."""
    # Opening a pipe or a device would wait for somebody to write to it.
    if path.exists() and not path.is_file():
        raise AcouslicError(f"{path} is not a regular file; expected a sweep stack ({', '.join(STACK_SUFFIXES)})")
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except FileNotFoundError:
        raise AcouslicError(f"{path} does not exist") from None
    except OSError as error:
        raise AcouslicError(f"{path} could not be read: {error.strerror or error}") from error
    if path.name.lower().endswith(".nii.gz"):
        return "NIfTI"
    for offset, signature, kind in _SIGNATURES:
        if start[offset : offset + len(signature)] == signature:
            return kind
    return None
