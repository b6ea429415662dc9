"""The page directories of a TIFF, walked before any library does: a chain that leads in a circle hangs them.

Format: TIFF 6.0 and its 64-bit form, BigTIFF. Only what bounds the work is read: how many pages there are, and how
large each is.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from acouslic.errors import AcouslicError

_WIDTH_TAG, _LENGTH_TAG = 256, 257
_MOST_ENTRIES = 1000


@dataclass(frozen=True)
class _Form:
    """How a classic TIFF or a BigTIFF lays out its directories; formats in the file's byte order."""

    first: int
    """Where the offset of the first directory stands."""
    offset: struct.Struct
    count: struct.Struct
    entry: struct.Struct
    """(tag, type, count); the value or its offset follows in as many bytes as `offset` has."""


def tiff_page_sizes(path: Path, most_pages: int) -> list[tuple[int, int]]:
    """(rows, columns) of each page.

    Raises AcouslicError where the file is no TIFF, ends inside a directory, chains more than `most_pages` of them or
    leads back to one that was there already, or a page states no size.
    """
    sizes: list[tuple[int, int]] = []
    seen: set[int] = set()
    try:
        with path.open("rb") as file:
            order, form = _form(file.read(4), path)
            offset = _unpack_at(file, form.first, form.offset, path)[0]
            while offset:
                if offset in seen or len(sizes) == most_pages:
                    raise AcouslicError(f"{path} chains more than {most_pages} pages, or leads in a circle")
                seen.add(offset)
                size, offset = _read_directory(file, offset, form, order, path)
                sizes.append(size)
    except OSError as error:
        raise AcouslicError(f"{path} could not be read: {error.strerror or error}") from None
    return sizes


def _form(signature: bytes, path: Path) -> tuple[str, _Form]:
    """The byte order and the layout that the first four bytes announce."""
    order = {b"II": "<", b"MM": ">"}.get(signature[:2])
    if order is not None and len(signature) == 4:
        version = struct.unpack(f"{order}H", signature[2:])[0]
        if version == 42:
            return order, _Form(4, struct.Struct(f"{order}I"), struct.Struct(f"{order}H"), struct.Struct(f"{order}HHI"))
        if version == 43:
            return order, _Form(8, struct.Struct(f"{order}Q"), struct.Struct(f"{order}Q"), struct.Struct(f"{order}HHQ"))
    raise AcouslicError(f"{path} is not a TIFF, as its suffix says")


def _read_directory(file: BinaryIO, offset: int, form: _Form, order: str, path: Path) -> tuple[tuple[int, int], int]:
    """((rows, columns), offset of the next directory or 0) of the directory at `offset`."""
    entries = _unpack_at(file, offset, form.count, path)[0]
    if entries > _MOST_ENTRIES:
        raise AcouslicError(f"{path} is damaged: a page with {entries} tags")
    found: dict[int, int] = {}
    for index in range(entries):
        place = offset + form.count.size + index * (form.entry.size + form.offset.size)
        tag, kind, _ = _unpack_at(file, place, form.entry, path)
        if tag in (_WIDTH_TAG, _LENGTH_TAG):
            value = struct.Struct(order + ("H" if kind == 3 else "I"))
            found[tag] = _unpack_at(file, place + form.entry.size, value, path)[0]
    if len(found) != 2:
        raise AcouslicError(f"{path} is damaged: a page without width or length")
    end = offset + form.count.size + entries * (form.entry.size + form.offset.size)
    return (found[_LENGTH_TAG], found[_WIDTH_TAG]), _unpack_at(file, end, form.offset, path)[0]


def _unpack_at(file: BinaryIO, offset: int, layout: struct.Struct, path: Path) -> tuple[int, ...]:
    # Offsets are the file's own claims: 64-bit ones can be too large to seek to.
    if offset < 1 << 62:
        file.seek(offset)
        content = file.read(layout.size)
        if len(content) == layout.size:
            return layout.unpack(content)
    raise AcouslicError(f"{path} is damaged or cut off: a directory lies beyond its end")
