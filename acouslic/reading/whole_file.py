"""Whether a NIfTI or NRRD file is as long as its header says, and its compressed stream whole; no pixel is kept."""

import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from zlib_ng import zlib_ng

from acouslic.errors import AcouslicError
from acouslic.reading.source import MAX_STACK_BYTES, refuse_other_units

_MOST_HEADER_BYTES = 4 << 20
_PIECE_BYTES = 1 << 20
_CONVERT = "convert it with SimpleITK: SimpleITK.WriteImage(SimpleITK.ReadImage(old), new_mha, True)"


def check_nifti(path: Path) -> None:
    """Raises AcouslicError unless a NIfTI, compressed or not, holds just the pixels that its header announces.

    Format: nifti1.h and nifti2.h of the NIfTI working group.
    """
    compressed = path.name.lower().endswith(".gz")
    try:
        with path.open("rb") as file:
            start = next(_inflated(file, path), b"") if compressed else file.read(540)
            pixels_at, pixel_bytes = _nifti_extent(start, path)
            file.seek(0)
            there = _inflated_bytes(file, path, pixels_at + pixel_bytes) if compressed else path.stat().st_size
    except OSError as error:
        raise AcouslicError(f"{path} could not be read: {error.strerror or error}") from error
    _check_length(path, pixel_bytes, max(there - pixels_at, 0))


def _nifti_extent(start: bytes, path: Path) -> tuple[int, int]:
    """(where the pixels begin, how many bytes they are)."""
    for order in "<>":
        form = {348: (40, "8h", 72, "h", 108, "f"), 540: (16, "8q", 14, "h", 168, "q")}
        size = struct.unpack_from(f"{order}i", start.ljust(4, b"\0"))[0]
        if size not in form or len(start) < size:
            continue
        dim_at, dim_form, bits_at, bits_form, offset_at, offset_form = form[size]
        dims = struct.unpack_from(f"{order}{dim_form}", start, dim_at)
        bits = struct.unpack_from(f"{order}{bits_form}", start, bits_at)[0]
        offset = struct.unpack_from(f"{order}{offset_form}", start, offset_at)[0]
        # Where pixels are said to begin within the header, SimpleITK takes the four bytes after it for some of them.
        if 1 <= dims[0] <= 7 and min(dims[1 : dims[0] + 1]) > 0 and bits > 0 and size <= offset < 1 << 40:
            pixel_bytes = math.prod(dims[1 : dims[0] + 1]) * bits // 8
            _check_total(path, pixel_bytes)
            return int(offset), pixel_bytes
    raise AcouslicError(f"{path} is not a NIfTI that can be read: its header is damaged")


def check_nrrd(path: Path) -> None:
    """Raises AcouslicError unless an NRRD, or the file that it names, holds just the pixels that its header announces,
    and a spacing in mm.

    Format: the NRRD definition of Teem. Raw and gzip are read; the other encodings are for people's eyes.
    """
    try:
        with path.open("rb") as file:
            fields = _nrrd_fields(file, path)
            refuse_other_units(path, _nrrd_units(fields))
            pixel_bytes = _nrrd_pixel_bytes(fields, path)
            data_path = _named_in(fields, path)
            if data_path is None:
                _check_nrrd_pixels(file, fields, pixel_bytes, path)
                return
        if not data_path.is_file():
            raise AcouslicError(f"{path} keeps its pixels in {data_path}, which is not a regular file")
        with data_path.open("rb") as file:
            _check_nrrd_pixels(file, fields, pixel_bytes, path)
    except OSError as error:
        raise AcouslicError(f"{path} could not be read: {error.strerror or error}") from error


def named_file(path: Path) -> Path | None:
    """The file beside an NRRD that its header names for the pixels, whether it is there or not; None where they follow
    the header. Raises AcouslicError for a header that does not end or names a file elsewhere."""
    try:
        with path.open("rb") as file:
            return _named_in(_nrrd_fields(file, path), path)
    except OSError as error:
        raise AcouslicError(f"{path} could not be read: {error.strerror or error}") from error


def _named_in(fields: dict[str, str], path: Path) -> Path | None:
    named = fields.get("data file", fields.get("datafile"))
    if named is None:
        return None
    named = named.removeprefix("./")  # as Teem writes it
    if named in (".", "..") or not named.isprintable() or set(named) & set("/\\") or "%" in named or named == "LIST":
        raise AcouslicError(f"{path}: its data file must be one file in the same folder, not {named!r:.80}; {_CONVERT}")
    return path.parent / named


def _nrrd_fields(file: BinaryIO, path: Path) -> dict[str, str]:
    """The header's fields, in small letters; the file then stands at the pixels."""
    fields: dict[str, str] = {}
    while line := file.readline(_MOST_HEADER_BYTES):
        text = line.decode("utf-8", "surrogateescape").strip()
        if not text:
            break
        if file.tell() > _MOST_HEADER_BYTES:
            raise AcouslicError(f"{path} is not an NRRD that can be read: its header does not end")
        name, colon, value = text.partition(":")
        if colon and not text.startswith("#") and not value.startswith("="):
            fields[name.strip().lower()] = value.strip()
    return fields


def _nrrd_units(fields: dict[str, str]) -> list[str]:
    """Of the axes and of the space they lie in, each in quotes; SimpleITK looks at neither."""
    return [unit for name in ("units", "space units") for unit in re.findall('"([^"]*)"', fields.get(name, ""))]


def _nrrd_pixel_bytes(fields: dict[str, str], path: Path) -> int:
    kinds = {
        1: ("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"),
        2: ("short", "short int", "signed short", "signed short int", "int16", "int16_t", "ushort", "unsigned short",
            "unsigned short int", "uint16", "uint16_t"),
        4: ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t", "float"),
        8: ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t",
            "ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t", "double"),
    }  # fmt: skip
    value_bytes = next((size for size, names in kinds.items() if fields.get("type", "").lower() in names), None)
    sizes = fields.get("sizes", "").split()
    if value_bytes is None or not sizes or not all(size.isascii() and size.isdigit() for size in sizes):
        raise AcouslicError(f"{path} is not an NRRD that can be read: its type or its sizes are missing or unknown")
    pixel_bytes = math.prod(int(size[:12]) for size in sizes) * value_bytes
    _check_total(path, pixel_bytes)
    return pixel_bytes


def _check_nrrd_pixels(file: BinaryIO, fields: dict[str, str], pixel_bytes: int, path: Path) -> None:
    encoding = fields.get("encoding", "raw").lower()
    skipped = {fields.get(f"{what}{space}skip", "0") for what in ("line", "byte") for space in (" ", "")}
    if encoding not in ("raw", "gzip", "gz") or skipped != {"0"}:
        raise AcouslicError(f"{path}: its pixels are stored in a rare way (encoding {encoding!r:.20}); {_CONVERT}")
    if encoding == "raw":
        start = file.tell()
        there = file.seek(0, 2) - start
    else:
        there = _inflated_bytes(file, path, pixel_bytes)
    _check_length(path, pixel_bytes, there)


def _check_length(path: Path, announced: int, there: int) -> None:
    if there != announced:
        wrong = "the file is truncated or its header is wrong" if there < announced else "its header is wrong"
        raise AcouslicError(
            f"{path}: the header announces {announced:,} bytes of pixels, but {there:,} are there; {wrong}"
        )


def _check_total(path: Path, pixel_bytes: int) -> None:
    if not 0 < pixel_bytes <= MAX_STACK_BYTES:
        raise AcouslicError(
            f"{path}: its header announces {pixel_bytes:,} bytes of pixels; {MAX_STACK_BYTES:,} are allowed"
        )


def _inflated_bytes(file: BinaryIO, path: Path, enough: int) -> int:
    """How many bytes the gzip stream from here on holds, its checksum being right.

    Raises AcouslicError where it is damaged, or holds much more than `enough`.
    """
    total = 0
    for piece in _inflated(file, path):
        total += len(piece)
        if total > enough + _PIECE_BYTES:
            raise AcouslicError(f"{path}: the compressed pixels inflate past the {enough:,} bytes that it announces")
    return total


def _inflated(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """The gzip stream from here on, in pieces, member after member."""
    stored = file.read(_PIECE_BYTES)
    while stored:
        inflater = zlib_ng.decompressobj(16 + zlib_ng.MAX_WBITS)
        while not inflater.eof:
            try:
                piece = inflater.decompress(stored, _PIECE_BYTES)
            except zlib_ng.error:  # type: ignore[misc]  # its stub calls the class an instance
                raise AcouslicError(f"{path}: the compressed pixels are damaged") from None
            stored = inflater.unconsumed_tail or (b"" if inflater.eof else file.read(_PIECE_BYTES))
            if piece:
                yield piece
            elif not stored and not inflater.eof:
                raise AcouslicError(f"{path}: the compressed pixels end early, without their checksum")
        stored = inflater.unused_data or file.read(_PIECE_BYTES)
