"""Multi-page TIFF: OpenCV decodes the pages, a few at a time; tifffile says how large a pixel is.

SimpleITK, the platform's reader, would decode the whole stack into a buffer of its own, a second copy. OpenCV starts at
any page. Pages and pixel sizes are equal to SimpleITK's (but for white-is-zero files, which only OpenCV turns the right
way round).
"""

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from acouslic.errors import AcouslicError
from acouslic.reading.tiff_directory import tiff_page_sizes

_MOST_PAGES = 100_000


@dataclass(frozen=True)
class TiffHeader:
    """What the list of pages and the first page say."""

    path: Path
    dim_size: tuple[int, ...]
    """Fastest axis first: (columns, rows) or (columns, rows, pages)."""
    element_spacing: tuple[float, ...]
    """(column, row, 1) spacing in mm; 1 where the file has no resolution."""
    pixel_type: str
    """The numpy name of the first page's type."""


def read_tiff_header(path: Path) -> TiffHeader:
    """Read and check what the first page says. Raises AcouslicError where the file is damaged or has colour."""
    # Walked by ourselves: OpenCV counts no further where the chain of pages leads out of a file that was cut off.
    pages = len(tiff_page_sizes(path, _MOST_PAGES))
    first = _decode(path, range(1))[0]
    dim_size = (first.shape[1], first.shape[0], pages) if pages > 1 else (first.shape[1], first.shape[0])
    return TiffHeader(path, dim_size, (*_pixel_spacing(path), 1.0), first.dtype.name)


def read_tiff_pages(header: TiffHeader, indices: range) -> list[np.ndarray]:
    """The pages at `indices`: (rows, columns) each, in the file's own type. Raises AcouslicError for a damaged one."""
    pages = _decode(header.path, indices)
    columns, rows = header.dim_size[:2]
    for frame_index, page in zip(indices, pages, strict=True):
        if page.shape != (rows, columns):
            raise AcouslicError(
                f"{header.path}: expected all frames to be {rows} x {columns} as the first, got "
                f"{page.shape[0]} x {page.shape[1]} in frame {frame_index} (counted from 0)"
            )
    return pages


def _decode(path: Path, indices: range) -> list[np.ndarray]:
    try:
        with _silent_opencv():
            read, pages = cv2.imreadmulti(str(path), indices.start, len(indices), flags=cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise AcouslicError(f"{path}: frames could not be decoded: {error.err}") from error
    if not read or len(pages) != len(indices):
        raise AcouslicError(
            f"{path}: frames {indices.start} to {indices.stop - 1} (counted from 0) could not be decoded; the file is "
            "truncated, damaged or compressed in an unusual way"
        )
    if any(page.ndim != 2 for page in pages):
        raise AcouslicError(f"{path}: expected one grey channel, got colour")
    return list(pages)


_MM_OF_RESOLUTION_UNIT = {2: 25.4, 3: 10.0}
"""Inch and centimetre. Without a unit a resolution says how the axes relate, not how large a pixel is."""


def _pixel_spacing(path: Path) -> tuple[float, float]:
    """(column, row) in mm; 1 where the first page has no resolution, a zero one or no unit for it.

    As SimpleITK has it, which keeps single precision.
    """
    # Here, because a container that starts for one .mha has no use for it.
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            tags = file.pages.first.tags
            unit_mm = _MM_OF_RESOLUTION_UNIT.get(tags.valueof("ResolutionUnit", 2))
            found = [tags.get(name) for name in ("XResolution", "YResolution")]
            resolutions = [None if tag is None else (tag.value, int(tag.dtype), tag.count) for tag in found]
    except (tifffile.TiffFileError, OSError, ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        raise AcouslicError(f"{path} is not a TIFF that can be read: {error}") from error
    dots = [_dots(path, *resolution) for resolution in resolutions if resolution is not None]
    if unit_mm is None or len(dots) < 2 or 0 in dots:
        return 1.0, 1.0
    column_mm, row_mm = unit_mm / dots[0], unit_mm / dots[1]
    if not all(math.isfinite(value) and value > 0 for value in (column_mm, row_mm)):
        raise AcouslicError(f"{path}: expected a positive resolution, got pixels of {row_mm} x {column_mm} mm")
    return column_mm, row_mm


_RATIONAL = 5
"""The tag type of a fraction of two 32-bit numbers, the one that a resolution should have."""


def _dots(path: Path, value: object, kind: int, count: int) -> float:
    """A resolution as a number: a fraction, or the plain number that some writers put in its place."""
    if count == 1:
        numbers = value if isinstance(value, tuple) else (value,)
        if kind == _RATIONAL and numbers[1]:
            return float(numbers[0] / numbers[1])
        if kind != _RATIONAL and isinstance(numbers[0], int | float):
            return float(numbers[0])
    raise AcouslicError(f"{path}: expected a resolution that is a number, got {value!r:.60}")


@contextmanager
def _silent_opencv() -> Iterator[None]:
    """OpenCV prints a warning for every tag it does not know to stderr, which the platform shows to the user."""
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
