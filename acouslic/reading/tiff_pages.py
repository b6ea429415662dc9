"""The pages of a TIFF, checked before a pixel is decoded: how each is stored, and where its strips or tiles lie."""

import functools
import itertools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from acouslic.errors import AcouslicError

if TYPE_CHECKING:
    from tifffile import TiffPage

WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
NONE, JPEG, _FAX = 1, 7, (2, 3, 4)
_BYTE_CODECS = {NONE: "none", 5: "LZW", 8: "deflate", 32946: "deflate", 32773: "PackBits", 50000: "Zstandard",
                34925: "LZMA"}  # fmt: skip
"""Compressions that know nothing of pixels: they turn bytes into bytes."""


@functools.cache
def load_tifffile() -> ModuleType:
    """The library, loaded here because a container that starts for one .mha has no use for it."""
    import tifffile

    # It logs what it mends; what matters of that is refused here, and stderr is shown to the platform's user.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    return tifffile


class Segment(NamedTuple):
    """A strip or tile: where it is stored, and how many bytes it decodes to."""

    offset: int
    stored_bytes: int
    least_bytes: int
    """The rows that the page has."""
    most_bytes: int
    """The rows of a full strip; some writers fill up the last one."""


@dataclass(frozen=True)
class Layout:
    """How the pages of one kind are stored; nearly always the same for all pages."""

    shape: tuple[int, int, int, int, int]
    """(planes, 1, rows, columns, channels), tifffile's order."""
    dtype: np.dtype
    stored_dtype: np.dtype
    """The same in the file's byte order."""
    decode: Callable[..., Any]
    """tifffile's function from a segment's bytes to its pixels and their place."""
    decompress: Callable[..., Any] | None
    """From stored bytes to the bytes of pixels; None where `decode` does that, or there is nothing to do."""
    compression: int
    photometric: int
    palette: NDArray[Any] | None
    """(3, colours), each channel's value of a stored one."""


@dataclass(frozen=True)
class Page:
    """One page that has been checked."""

    layout: Layout
    segments: tuple[Segment, ...]
    contiguous: bool
    """Whether its one segment is the whole page, as it is: nothing between its strips, nothing to decode."""
    jpeg_tables: bytes | None


def checked_page(
    page: "TiffPage", path: Path, frame_index: int, file_bytes: int, layouts: dict[object, Layout]
) -> Page:
    """Check a directory. `layouts` keeps what pages have in common, by what makes them alike.

    Raises AcouslicError where the page is stored in a way that is not known here, or lies outside the file.
    """
    where = f"{path}: frame {frame_index} (counted from 0)"
    palette = page.tags.get(320)
    key = (
        page.shaped, page.compression, page.photometric, page.bitspersample, page.sampleformat, page.fillorder,
        page.predictor, page.planarconfig, page.rowsperstrip, page.tilewidth, page.tilelength, page.extrasamples,
        262 in page.tags, page.tags.valueof(274, 1), None if palette is None else np.asarray(palette.value).tobytes(),
    )  # fmt: skip
    if key not in layouts:
        _check_form(page, where)
    segments = _segments(page, where, file_bytes)
    plain = page.compression == NONE and page.predictor == 1 and page.fillorder == 1 and page.bitspersample != 1
    whole = _whole(segments) if plain and not page.is_tiled and page.shaped[0] == 1 else None
    if key not in layouts:
        layouts[key] = _layout(page, where)
    return Page(layouts[key], segments if whole is None else (whole,), whole is not None, page.jpegtables)


def _check_form(page: "TiffPage", where: str) -> None:
    """Refuse what is not stored in a way that is known here."""
    sizes = (
        page.imagelength,
        page.imagewidth,
        page.samplesperpixel,
        page.rowsperstrip,
        page.tilelength,
        page.tilewidth,
    )
    # A damaged tag can make any of them a fraction or a list.
    if not all(isinstance(size, int) for size in sizes) or min(sizes[:3]) < 1 or page.imagedepth != 1:
        raise AcouslicError(f"{where} is damaged: it has no width or length")
    if page.tags.valueof(274, 1) != 1:
        raise AcouslicError(
            f"{where} is stored turned or mirrored (Orientation {page.tags.valueof(274)!s:.10}): save it upright"
        )
    if 262 not in page.tags:
        raise AcouslicError(f"{where} is damaged: it does not say what its values mean (no PhotometricInterpretation)")
    known = {WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _YCBCR: 3}
    photometric, compression = int(page.photometric), int(page.compression)
    if photometric not in known or (photometric == _YCBCR and compression != JPEG):
        raise AcouslicError(f"{where}: expected one grey channel, got colour (PhotometricInterpretation {photometric})")
    if page.samplesperpixel - known[photometric] not in (0, 1) or page.planarconfig not in (1, 2):
        raise AcouslicError(f"{where}: expected one grey channel, got {page.samplesperpixel}")
    if compression not in (*_BYTE_CODECS, JPEG, *_FAX):
        raise AcouslicError(
            f"{where}: its compression ({compression}) is not read here; save the stack uncompressed, or by deflate"
        )
    if page.dtype is None or page.bitspersample not in (1, 8, 16, 32, 64):
        raise AcouslicError(f"{where}: expected pixels of 8 bits, got {page.bitspersample!s:.30}")
    if page.is_tiled and (page.tiledepth != 1 or page.tilelength < 1 or page.tilewidth < 1):
        raise AcouslicError(f"{where} is damaged: its tiles have no width or length")
    if not page.is_tiled and page.rowsperstrip < 1:
        raise AcouslicError(f"{where} is damaged: its strips have no rows")


def _layout(page: "TiffPage", where: str) -> Layout:
    compression, decompress = int(page.compression), None
    if compression in _BYTE_CODECS and compression != NONE:
        # Decompressed here, within bounds; the rest is then that of an uncompressed page.
        decompress = load_tifffile().TIFF.DECOMPRESSORS[compression]
        page.compression = NONE
        page.fillorder, turned = 1, page.fillorder == 2
        if turned:
            decompress = _after_turning_bits(decompress)
    palette = None
    if page.photometric == _PALETTE:
        colours = 1 << page.bitspersample if page.bitspersample in (1, 8, 16) else 0
        palette = np.asarray(page.colormap)
        if palette.shape != (3, colours) or (not np.issubdtype(page.dtype, np.unsignedinteger) and page.dtype != bool):
            raise AcouslicError(f"{where} is damaged: its palette does not fit its pixels")
    dtype = np.dtype(page.dtype)
    stored_dtype = dtype.newbyteorder(page.parent.byteorder)
    return Layout(
        page.shaped, dtype, stored_dtype, page.decode, decompress, compression, int(page.photometric), palette
    )


def _after_turning_bits(decompress: Callable[..., Any]) -> Callable[..., Any]:
    import imagecodecs

    def decode(stored: bytes, *, out: int) -> Any:
        return decompress(imagecodecs.bitorder_decode(stored), out=out)

    return decode


def _segments(page: "TiffPage", where: str, file_bytes: int) -> tuple[Segment, ...]:
    planes, _, rows, columns, channels = page.shaped
    if page.is_tiled:
        length, width = page.tilelength, page.tilewidth
        count = math.ceil(rows / length) * math.ceil(columns / width)
    else:
        length, width = page.rowsperstrip, columns
        count = math.ceil(rows / length)
    row_bytes = math.ceil(width * channels * page.bitspersample / 8)
    offsets, counts = page.dataoffsets, page.databytecounts
    if len(offsets) != count * planes or len(counts) != count * planes:
        raise AcouslicError(f"{where} needs {count * planes} strips or tiles, but its directory lists {len(offsets)}")
    segments = []
    for number, (offset, stored_bytes) in enumerate(zip(offsets, counts, strict=True)):
        present = length if page.is_tiled else min(length, rows - number % count * length)
        segment = Segment(offset, stored_bytes, least_bytes=present * row_bytes, most_bytes=length * row_bytes)
        short = int(page.compression) == NONE and stored_bytes < segment.least_bytes
        whole = isinstance(offset, int) and isinstance(stored_bytes, int)
        if not (whole and offset > 0 and 0 < stored_bytes <= file_bytes - offset) or short:
            raise AcouslicError(
                f"{where}: strip or tile {number} is said to be {stored_bytes!s:.30} bytes at {offset!s:.30} of the "
                f"file's {file_bytes}; the file is truncated or damaged"
            )
        segments.append(segment)
    return tuple(segments)


def _whole(segments: tuple[Segment, ...]) -> Segment | None:
    """Uncompressed strips that follow each other, as one."""
    for one, following in itertools.pairwise(segments):
        if one.offset + one.least_bytes != following.offset:
            return None
    total = sum(segment.least_bytes for segment in segments)
    return Segment(segments[0].offset, total, total, total)
