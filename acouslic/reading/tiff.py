"""TIFF: tifffile reads the directories, imagecodecs decodes strips and tiles, one page at a time in one pass.

Both are lenient where a sweep must not be measured: they cut a chain of pages short where it leads out of the file,
fill in what is missing, and drop what is too much. So every directory, size and place in the file is checked here
before a pixel is decoded, and each strip or tile must decode to exactly the bytes that it stands for. The file is read,
never mapped into memory: one that shrinks meanwhile is a sentence, not a signal.

Pages and pixel sizes are equal to SimpleITK's, which would decode the whole stack into a second copy (and shows
white-is-zero files the wrong way round). A page that is stored turned or mirrored is refused.
"""

import io
import math
import os
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from acouslic.errors import AcouslicError
from acouslic.reading.source import MM_OF_UNIT, SourceHeader, colour_note, one_channel
from acouslic.reading.tiff_pages import JPEG, NONE, WHITE_IS_ZERO, Layout, Page, Segment, checked_page, load_tifffile

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

MOST_PAGES = 100_000
_JPEG_ENDS_WITH = b"\xff\xd9"
_MOST_VALUE_BYTES = 16 << 20
"""Of one tag. The offsets of a page of 60,000 strips take half a megabyte."""
_SPARE_DIRECTORY_BYTES = 64 << 20
"""Directories may point at the same values again and again; together they may take this and the file's own size."""


@dataclass(frozen=True)
class TiffStack:
    """A TIFF whose directories have all been read and checked."""

    header: SourceHeader
    pages: tuple[Page, ...]

    def frames(self) -> Generator[NDArray[Any], None, None]:
        """As `FrameSource.frames`."""
        path = self.header.path
        try:
            with path.open("rb", buffering=0) as file:
                for frame_index, page in enumerate(self.pages):
                    yield _grey(_decoded(page, file, path, frame_index), page.layout, path, frame_index)
        except OSError as error:
            raise AcouslicError(f"{path} could not be read: {error.strerror or error}") from error


def open_tiff(path: Path, most_pages: int = MOST_PAGES) -> TiffStack:
    """Read and check the directories of a TIFF; no pixel is decoded.

    Raises AcouslicError where the chain of pages leads in a circle or out of the file, has more than `most_pages`, or
    a page has another size than the first, lies beyond the file's end, or is stored in a way that is not known here.
    """
    tifffile = load_tifffile()
    try:
        with (
            _DirectoryFile(path) as file,
            tifffile.TiffFile(file, is_ndpi=False, is_lsm=False, is_scanimage=False) as tiff,
        ):
            pages, first = _read_pages(tiff, path, most_pages, file.total_bytes)
            described_mm = _described_spacing(path, first)
            spacing_mm = described_mm or _resolution_spacing(path, first)
    except (AcouslicError, MemoryError):
        raise
    except OSError as error:
        raise AcouslicError(f"{path} could not be read: {error.strerror or error}") from None
    except Exception as error:
        # A parser of a hundred private tags meets damaged ones with every kind of exception.
        raise AcouslicError(f"{path} is damaged: its directories cannot be read ({type(error).__name__})") from None
    planes, _, rows, columns, channels = pages[0].layout.shape
    colours = planes * channels
    header = SourceHeader(
        path,
        len(pages),
        rows,
        columns,
        pixel_type="uint8" if pages[0].layout.dtype == bool else pages[0].layout.dtype.name,
        pixel_bytes=max(page.layout.dtype.itemsize * page.layout.shape[0] * page.layout.shape[4] for page in pages),
        spacing_mm=spacing_mm,
        spacing_is_resolution=described_mm is None,
        is_still=len(pages) == 1,
        notes=(colour_note(path),) if colours > 1 or pages[0].layout.palette is not None else (),
    )
    return TiffStack(header, pages)


class _DirectoryFile(io.FileIO):
    """A file of which only as much may be read as directories can need."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")
        self._path = path
        self.total_bytes = os.fstat(self.fileno()).st_size
        self._left = self.total_bytes + _SPARE_DIRECTORY_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MOST_VALUE_BYTES:
            raise AcouslicError(f"{self._path} is damaged: a tag that takes more than {_MOST_VALUE_BYTES:,} bytes")
        self._left -= size
        if self._left < 0:
            raise AcouslicError(f"{self._path} is damaged: its directories take more bytes than the file has")
        return super().read(size) or b""


def _read_pages(tiff: "TiffFile", path: Path, most_pages: int, file_bytes: int) -> tuple[tuple[Page, ...], "TiffPage"]:
    """All pages, checked, and the first directory."""
    pages: list[Page] = []
    layouts: dict[object, Layout] = {}
    seen: set[int] = set()
    for number, page in enumerate(tiff.pages):
        assert isinstance(page, load_tifffile().TiffPage), "frames are only made where they are asked for"
        if page.offset in seen:
            raise AcouslicError(f"{path}: its chain of pages leads in a circle")
        if number == most_pages:
            raise AcouslicError(f"{path} chains more than {most_pages} pages")
        seen.add(page.offset)
        rows, columns = (pages[0].layout.shape if pages else page.shaped)[2:4]
        if (page.imagelength, page.imagewidth) != (rows, columns):
            raise AcouslicError(
                f"{path}: expected all frames to be {rows} x {columns} as the first, got {page.imagelength} x "
                f"{page.imagewidth} in frame {number} (counted from 0)"
            )
        pages.append(checked_page(page, path, number, file_bytes, layouts))
    if not pages:
        raise AcouslicError(f"{path} is a TIFF without a page, or its first one lies beyond its end")
    _check_chain_ends(tiff, path)
    first = tiff.pages.first
    announced = _described_pages(first, path)
    if len(pages) == 1 and announced > 1 and not first.is_ome:
        pages = _undeclared_pages(pages[0], announced, path, most_pages, file_bytes)
    if announced > len(pages):
        raise AcouslicError(
            f"{path} is damaged or cut off: its description announces {announced} frames, its chain has {len(pages)}"
        )
    return tuple(pages), first


def _check_chain_ends(tiff: "TiffFile", path: Path) -> None:
    """tifffile takes a chain that leads out of the file for one that ends there."""
    place = tiff.pages.next_page_offset
    if place is not None:
        tiff.filehandle.seek(place)
        pointer = tiff.filehandle.read(tiff.tiff.offsetsize)
        if len(pointer) == tiff.tiff.offsetsize and not any(pointer):
            return
    raise AcouslicError(f"{path} is damaged or cut off: its chain of pages leads in a circle or beyond its end")


def _undeclared_pages(only: Page, count: int, path: Path, most_pages: int, file_bytes: int) -> list[Page]:
    """The pages of a file that has one directory for all `count` of them: ImageJ's above 4 GB, and tifffile's truncated
    ones. Their pixels follow each other without a gap."""
    if count > most_pages:
        raise AcouslicError(f"{path} announces {count} frames, more than {most_pages}")
    if not only.contiguous:
        raise AcouslicError(f"{path} announces {count} frames, but has a single page that is compressed or tiled")
    first, page_bytes = only.segments[0].offset, only.segments[0].least_bytes
    if first + count * page_bytes > file_bytes:
        raise AcouslicError(
            f"{path} announces {count} frames of {page_bytes:,} bytes, but only {file_bytes - first:,} bytes of pixels "
            "are there; the file is truncated"
        )
    places = range(first, first + count * page_bytes, page_bytes)
    return [replace(only, segments=(Segment(place, page_bytes, page_bytes, page_bytes),)) for place in places]


def _described_pages(directory: "TiffPage", path: Path) -> int:
    """How many frames the description of the first directory announces; 1 where it announces none."""
    tifffile = load_tifffile()
    if directory.is_ome:
        return _planes_of_ome(directory.description, path)
    if (text := directory.imagej_description) is not None:
        count = tifffile.tifffile.imagej_description_metadata(text).get("images", 1)
        if type(count) is not int or count < 1:
            raise AcouslicError(f"{path}: its ImageJ description must state a number of images")
        return count
    if (text := directory.shaped_description) is not None:
        described = tifffile.tifffile.shaped_description_metadata(text)
        shape = described.get("shape") if isinstance(described, dict) else None
        if isinstance(shape, list | tuple) and all(type(size) is int and size > 0 for size in shape):
            return max(1, math.prod(shape) // math.prod(directory.shape))
    return 1


def _planes_of_ome(text: str, path: Path) -> int:
    """How many planes all images of an OME description have, of which some may lie in other files; colours that share
    a plane count as one (OME-TIFF specification)."""
    planes = 0
    try:
        for pixels in ElementTree.fromstring(text).iterfind("{*}Image/{*}Pixels"):
            # SizeC counts the colours of a pixel one by one, a Channel has all that share a plane.
            channels = len(pixels.findall("{*}Channel")) or 1
            planes += int(pixels.get("SizeZ", 1)) * int(pixels.get("SizeT", 1)) * channels
    except (ElementTree.ParseError, ValueError):
        raise AcouslicError(f"{path} is damaged: its OME description cannot be read") from None
    return max(1, planes)


def _decoded(page: Page, file: io.FileIO, path: Path, frame_index: int) -> NDArray[Any]:
    """The pixels of a page, as `Layout.shape`."""
    layout = page.layout
    if page.contiguous:
        stored = _read(file, page.segments[0], path)
        return np.frombuffer(stored, layout.stored_dtype).reshape(layout.shape)
    pixels = np.empty(layout.shape, layout.dtype)
    for number, segment in enumerate(page.segments):
        damage = f"{path}: frame {frame_index} (counted from 0) is damaged: its strip or tile {number}"
        stored = _read(file, segment, path)
        try:
            content = _inflated(stored, segment, layout, damage)
            part, (plane, _, row, column, _), _ = layout.decode(content, number, jpegtables=page.jpeg_tables)
            place = pixels[plane, 0, row : row + part.shape[1], column : column + part.shape[2]]
            place[...] = part[0, : place.shape[0], : place.shape[1]]
        except (AcouslicError, MemoryError):
            raise
        except Exception as error:
            # Each codec has exceptions of its own.
            raise AcouslicError(f"{damage} cannot be decoded ({type(error).__name__})") from None
    return pixels


def _read(file: io.FileIO, segment: Segment, path: Path) -> bytes:
    stored = os.pread(file.fileno(), segment.stored_bytes, segment.offset)
    if len(stored) != segment.stored_bytes:
        raise AcouslicError(f"{path} ends before its pixels do: it was changed while it was read, or is damaged")
    return stored


def _inflated(stored: bytes, segment: Segment, layout: Layout, damage: str) -> bytes:
    """What tifffile's function takes: a segment's bytes without the compression that is bytes alone.

    Raises AcouslicError, opened by `damage`, where they are not as many as the segment has pixels for, or where a JPEG
    within the segment is of another size or cut off.
    """
    if layout.decompress is not None:
        # One byte more than is right shows what is too much, and bounds the memory that a small strip can ask for.
        content = layout.decompress(stored, out=segment.most_bytes + 1)
        if not segment.least_bytes <= len(content) <= segment.most_bytes:
            raise AcouslicError(f"{damage} does not decode to the {segment.least_bytes:,} bytes of its pixels")
        return bytes(content[: segment.least_bytes])
    if layout.compression == JPEG:
        _, rows, columns, _ = load_tifffile().tifffile.jpeg_shape(stored)
        if rows * columns * layout.shape[4] * layout.dtype.itemsize > segment.most_bytes:
            raise AcouslicError(f"{damage} holds a JPEG of {rows} x {columns} pixels")
        if not stored.rstrip(b"\0").endswith(_JPEG_ENDS_WITH):
            raise AcouslicError(f"{damage} holds a JPEG that is cut off")
    elif layout.compression == NONE:
        return stored[: segment.least_bytes]
    return stored


def _grey(pixels: NDArray[Any], layout: Layout, path: Path, frame_index: int) -> NDArray[Any]:
    """The picture (rows, columns) in the pixels of a page: one channel, black where it is dark."""
    planes = pixels[:, 0]
    values = planes[0] if layout.shape[0] == 1 else np.moveaxis(planes[..., 0], 0, -1)
    if layout.dtype == bool:
        values = values * np.uint8(255)
    if layout.palette is not None:
        indices = values[..., 0] // (255 if layout.dtype == bool else 1)
        # A palette has 16 bits a colour; as libtiff does, one that is all below 256 is taken for one of 8 bits.
        unused_bits = 8 if layout.palette.max() > 255 else 0
        values = (layout.palette[:, indices] >> unused_bits).astype(np.uint8).transpose(1, 2, 0)
    grey = one_channel(values, path, frame_index)
    if layout.photometric == WHITE_IS_ZERO:
        if not np.issubdtype(grey.dtype, np.unsignedinteger):
            raise AcouslicError(f"{path}: white is zero is not understood of pixels of type {grey.dtype.name}")
        grey = np.iinfo(grey.dtype).max - grey
    return grey


_NO_UNIT = 1
_MM_OF_RESOLUTION_UNIT = {2: 25.4, 3: 10.0}
"""Inch and centimetre. Without a unit a resolution says how the axes relate, not how large a pixel is."""


def _described_spacing(path: Path, page: "TiffPage") -> tuple[float, float] | None:
    """(row, column) in mm as the description of the first page has it; None where that names no unit of length.

    OME states sizes, in micrometres by default. ImageJ names the unit of a resolution whose tag says that it has none.
    """
    if page.is_ome:
        pixels = ElementTree.fromstring(page.description).find("{*}Image/{*}Pixels")
        found = {} if pixels is None else pixels.attrib
        sizes = [_size_in_ome(path, found[name]) for name in ("PhysicalSizeY", "PhysicalSizeX") if name in found]
        units = [found.get(f"PhysicalSize{axis}Unit", "um") for axis in "YX"]
    elif page.imagej_description is not None and page.tags.valueof("ResolutionUnit") == _NO_UNIT:
        described = load_tifffile().tifffile.imagej_description_metadata(page.imagej_description)
        sizes = [1 / dots for dots in reversed(_resolution(path, page)) if dots]
        units = [str(described.get("yunit", described.get("unit"))), str(described.get("unit"))]
    else:
        return None
    sizes_mm = [size * MM_OF_UNIT[unit] for size, unit in zip(sizes, units, strict=False) if unit in MM_OF_UNIT]
    return _checked_spacing(path, sizes_mm[0], sizes_mm[1]) if len(sizes_mm) == 2 else None


def _size_in_ome(path: Path, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise AcouslicError(f"{path}: expected a pixel size that is a number, got {text!r:.60}") from None


def _resolution_spacing(path: Path, page: "TiffPage") -> tuple[float, float] | None:
    """(row, column) in mm; None where the first page has no resolution, a zero one or no unit for it.

    As SimpleITK has it, which keeps single precision and puts 1 for none.
    """
    unit_mm = _MM_OF_RESOLUTION_UNIT.get(page.tags.valueof("ResolutionUnit", 2))
    dots = _resolution(path, page)
    if unit_mm is None or len(dots) < 2 or 0 in dots:
        return None
    return _checked_spacing(path, unit_mm / dots[1], unit_mm / dots[0])


def _checked_spacing(path: Path, row_mm: float, column_mm: float) -> tuple[float, float]:
    if not all(math.isfinite(value) and value > 0 for value in (column_mm, row_mm)):
        raise AcouslicError(f"{path}: expected a positive resolution, got pixels of {row_mm} x {column_mm} mm")
    return row_mm, column_mm


def _resolution(path: Path, page: "TiffPage") -> list[float]:
    """(columns, rows) per unit, as far as the page has the tags."""
    found = [page.tags.get(name) for name in ("XResolution", "YResolution")]
    return [_dots(path, tag.value, int(tag.dtype), tag.count) for tag in found if tag is not None]


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
