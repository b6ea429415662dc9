"""MetaImage (`.mha`, `.mhd` with `.raw` or `.zraw`): what its header says, held against the size of its file.

`pixel_stream.py` decodes the pixels of one file, `metaimage_list.py` those of one file a frame. Format: the MetaIO
documentation of ITK; pixels written as text are refused.
"""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from acouslic.errors import AcouslicError
from acouslic.reading.source import SourceHeader, colour_note, refuse_other_units

PIXEL_TYPES = {
    "MET_UCHAR": "u1",
    "MET_CHAR": "i1",
    "MET_USHORT": "u2",
    "MET_SHORT": "i2",
    "MET_UINT": "u4",
    "MET_INT": "i4",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}

_MAX_HEADER_BYTES = 4 << 20
_MOST_CHANNELS = 4
_MAX_INFLATION = 1032
"""Deflate cannot do better: 258 bytes for two bits."""
_CONVERT = "convert it with SimpleITK: SimpleITK.WriteImage(SimpleITK.ReadImage(old), new_mha, True)"


@dataclass(frozen=True)
class MetaImageHeader:
    """What a header says, checked against the size of the file that holds the pixels."""

    path: Path
    dim_size: tuple[int, ...]
    """Fastest axis first: (columns, rows), (columns, rows, frames), or four of which at most one more is not 1."""
    element_spacing: tuple[float, ...] | None
    """As `dim_size`; None where the header has none."""
    pixel_type: str
    dtype: np.dtype
    channels: int
    compressed: bool
    pixel_path: Path
    """The file that holds the pixels: the header's own, or the one it names, the first of several."""
    pixel_offset: int
    stored_bytes: int
    """Length of the pixels in that file, compressed or not."""
    frame_paths: tuple[Path, ...] = ()
    """One raw file a frame, where the header names several."""

    @property
    def pixel_bytes(self) -> int:
        """Length of the pixels once decoded."""
        return math.prod(self.dim_size) * self.channels * self.dtype.itemsize

    @property
    def frames(self) -> int:
        """How many frames there are."""
        return math.prod(self.dim_size[2:])


def header_text(
    frames: int, rows: int, columns: int, spacing: tuple[float, float, float], compressed_bytes: int
) -> str:
    """The header of a compressed uint8 stack in one `.mha`, with the keys SimpleITK writes.

    `spacing` is (column, row, frame), written so that reading gives the same floats.
    """
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = True",
        f"CompressedDataSize = {compressed_bytes}",
        "TransformMatrix = 1 0 0 0 1 0 0 0 1",
        "Offset = 0 0 0",
        "CenterOfRotation = 0 0 0",
        "AnatomicalOrientation = RAI",
        "ElementSpacing = " + " ".join(repr(float(value)) for value in spacing),
        f"DimSize = {columns} {rows} {frames}",
        "ElementType = MET_UCHAR",
        "ElementDataFile = LOCAL",
    ]
    return "\n".join(lines) + "\n"


def read_header(path: Path) -> MetaImageHeader:
    """Read and check the header of a `.mha` or `.mhd`; no pixel is decoded.

    Raises AcouslicError for anything that is not a MetaImage of one binary grey channel whose pixels are exactly as
    many bytes as the header says (for compressed pixels: as many as could be).
    """
    fields, header_bytes = _read_fields(path)
    _refuse_exotic(path, fields)
    dim_size = _dim_size(path, fields)
    _check_directions(path, fields, len(dim_size))
    pixel_type = _required(path, fields, "ElementType")
    if pixel_type not in PIXEL_TYPES:
        raise AcouslicError(
            f"{path}: ElementType {pixel_type!r:.80} is not one of {', '.join(PIXEL_TYPES)}; write the frames as uint8"
        )
    msb = _boolean(path, fields, "BinaryDataByteOrderMSB") or _boolean(path, fields, "ElementByteOrderMSB")
    dtype = np.dtype(PIXEL_TYPES[pixel_type]).newbyteorder(">" if msb else "<")
    channels = _integer(path, fields, "ElementNumberOfChannels", 1)
    if not 1 <= channels <= _MOST_CHANNELS:
        raise AcouslicError(f"{path}: expected one grey channel, got ElementNumberOfChannels = {channels}")
    compressed = _boolean(path, fields, "CompressedData")
    named = MetaImageHeader(
        path,
        dim_size,
        _spacing(path, fields, len(dim_size)),
        pixel_type,
        dtype,
        channels,
        compressed,
        pixel_path=path,
        pixel_offset=header_bytes,
        stored_bytes=0,
    )
    if _is_list(fields):
        paths = _frame_paths(named, fields["ElementDataFile"])
        return replace(named, pixel_path=paths[0], pixel_offset=0, frame_paths=paths)
    pixel_path, offset, stored_bytes = _locate_pixels(path, fields, header_bytes, named.pixel_bytes, compressed)
    return replace(named, pixel_path=pixel_path, pixel_offset=offset, stored_bytes=stored_bytes)


def named_files(path: Path) -> list[Path]:
    """The files beside `path` that its header names for the pixels, whether they are there or not; none where the
    pixels follow the header. Raises AcouslicError for a header that is damaged or names files elsewhere."""
    fields, header_bytes = _read_fields(path)
    value = fields["ElementDataFile"]
    if value.upper() == "LOCAL":
        return []
    names = _frame_names(path, value, header_bytes) if _is_list(fields) else [value]
    return [_neighbour(path, name) for name in names]


def source_header(header: MetaImageHeader) -> SourceHeader:
    """What every reader says of its file."""
    spacing = header.element_spacing
    return SourceHeader(
        header.path,
        header.frames,
        header.dim_size[1],
        header.dim_size[0],
        header.pixel_type,
        pixel_bytes=header.dtype.itemsize * header.channels,
        spacing_mm=None if spacing is None else (spacing[1], spacing[0]),
        frame_spacing=1.0 if spacing is None or len(spacing) < 3 else spacing[2],
        notes=(colour_note(header.path),) if header.channels > 1 else (),
        is_still=len(header.dim_size) == 2,
    )


def _read_fields(path: Path) -> tuple[dict[str, str], int]:
    """The `Key = Value` lines up to ElementDataFile, and the number of bytes they take."""
    fields: dict[str, str] = {}
    try:
        with path.open("rb") as file:
            while "ElementDataFile" not in fields:
                line = file.readline(_MAX_HEADER_BYTES)
                key, equals, value = line.decode("utf-8", "surrogateescape").partition("=")
                if not equals or file.tell() > _MAX_HEADER_BYTES:
                    raise AcouslicError(
                        f"{path} is not a MetaImage: its text header ends before an ElementDataFile line; "
                        "the file is truncated or of another kind"
                    )
                if key.strip() in fields:
                    raise AcouslicError(f"{path}: its header has two lines {key.strip()!r:.80}")
                fields[key.strip()] = value.strip()
            return fields, file.tell()
    except FileNotFoundError:
        raise AcouslicError(f"{path} does not exist") from None
    except OSError as error:
        raise AcouslicError(f"{path} could not be read: {error.strerror or error}") from error


def _refuse_exotic(path: Path, fields: dict[str, str]) -> None:
    if fields.get("ObjectType", "Image") != "Image":
        raise AcouslicError(f"{path}: ObjectType is {fields['ObjectType']!r:.80}, expected Image")
    if not _boolean(path, fields, "BinaryData", default=True):
        raise AcouslicError(f"{path}: its pixels are written as text (BinaryData = False); {_CONVERT}")


def _dim_size(path: Path, fields: dict[str, str]) -> tuple[int, ...]:
    texts = _required(path, fields, "DimSize").split()
    dimensions = _required(path, fields, "NDims")
    if dimensions not in ("2", "3", "4"):
        raise AcouslicError(f"{path}: expected a stack of frames with NDims = 3, got NDims = {dimensions!r:.80}")
    if len(texts) != int(dimensions) or not all(re.fullmatch("[0-9]{1,9}", text) for text in texts):
        raise AcouslicError(f"{path}: DimSize must be {dimensions} whole numbers, not {' '.join(texts)!r:.80}")
    sizes = tuple(map(int, texts))
    if 0 in sizes:
        what = "no pixels" if 0 in sizes[:2] else "no frames"
        raise AcouslicError(f"{path} holds {what}: DimSize = {' '.join(texts)}")
    if len(sizes) == 4 and min(sizes[2:]) > 1:
        raise AcouslicError(
            f"{path} holds {sizes[3]} volumes of {sizes[2]} frames: expected one stack of frames (3-D); save one volume"
        )
    return sizes


def _spacing(path: Path, fields: dict[str, str], dimensions: int) -> tuple[float, ...] | None:
    key = "ElementSpacing" if "ElementSpacing" in fields else "ElementSize"
    if key not in fields:
        return None
    try:
        values = tuple(map(float, fields[key].split()))
    except ValueError:
        values = ()
    refuse_other_units(path, [fields.get("DistanceUnits", "")])
    if len(values) != dimensions or not all(math.isfinite(value) and value > 0 for value in values):
        raise AcouslicError(f"{path}: {key} must be {dimensions} positive numbers in mm, not {fields[key]!r:.80}")
    return values


def _check_directions(path: Path, fields: dict[str, str], dimensions: int) -> None:
    """The axes' directions do not matter for a sweep, but where they cannot be, the header is damaged."""
    for key in ("TransformMatrix", "Rotation", "Orientation"):
        if key not in fields:
            continue
        try:
            texts = fields[key].split()[: dimensions**2]
            matrix = np.array([float(text) for text in texts]).reshape(dimensions, dimensions)
        except ValueError:
            matrix = np.zeros((dimensions, dimensions))
        if not np.isfinite(matrix).all() or np.linalg.det(matrix) == 0:
            raise AcouslicError(f"{path}: {key} must be {dimensions**2} numbers, one direction an axis; it is damaged")


def _locate_pixels(
    path: Path, fields: dict[str, str], header_bytes: int, pixel_bytes: int, compressed: bool
) -> tuple[Path, int, int]:
    """(file, offset, stored bytes) of the pixels, held against the file's size."""
    pixel_path, start = _pixel_file(path, fields["ElementDataFile"], header_bytes)
    file_bytes = _regular_file_bytes(path, pixel_path)
    header_size = _integer(path, fields, "HeaderSize", 0)
    if header_size > 0:
        start = header_size
    elif header_size == -1 and not compressed:
        start = file_bytes - pixel_bytes
    elif header_size:
        raise AcouslicError(f"{path}: HeaderSize = {header_size} is not supported here; {_CONVERT}")
    stored_bytes = file_bytes - start
    if compressed:
        announced = _integer(path, fields, "CompressedDataSize", 0) or stored_bytes
        possible = stored_bytes == announced and pixel_bytes <= stored_bytes * _MAX_INFLATION
        expected = f"{announced:,} compressed bytes that inflate to {pixel_bytes:,}"
    else:
        possible, expected = stored_bytes == pixel_bytes, f"{pixel_bytes:,} bytes of pixels"
    if not possible or start < (header_bytes if pixel_path == path else 0):
        raise AcouslicError(
            f"{path}: the header announces {expected}, but {pixel_path.name} holds {max(stored_bytes, 0):,} bytes of "
            "pixels; the file is truncated or its header is wrong"
        )
    return pixel_path, start, stored_bytes


def _pixel_file(path: Path, name: str, header_bytes: int) -> tuple[Path, int]:
    """The file that ElementDataFile names, and where its pixels start."""
    if name.upper() == "LOCAL":
        return path, header_bytes
    return _neighbour(path, name), 0


def _neighbour(path: Path, name: str) -> Path:
    """A file that a header names, which must lie beside it; some writers begin with `./`."""
    name = name.removeprefix("./")
    if name in ("", ".", "..") or set(name) & set("/\\\0") or not name.isprintable():
        raise AcouslicError(f"{path}: ElementDataFile must name a file in the same folder, not {name!r:.80}")
    return path.parent / name


def _regular_file_bytes(path: Path, pixel_path: Path) -> int:
    try:
        file_bytes = pixel_path.stat().st_size
    except OSError as error:
        raise AcouslicError(
            f"{path} keeps its pixels in {pixel_path}, which could not be read: {error.strerror or error}"
        ) from None
    if not pixel_path.is_file():
        raise AcouslicError(f"{path} keeps its pixels in {pixel_path}, which is not a regular file")
    return file_bytes


def _is_list(fields: dict[str, str]) -> bool:
    """Whether the header names one file a frame: in a list that follows it, or by a pattern."""
    return _names_follow(fields["ElementDataFile"]) or "%" in fields["ElementDataFile"]


def _names_follow(value: str) -> bool:
    return value.split()[:1] == ["LIST"]


def _frame_paths(header: MetaImageHeader, value: str) -> tuple[Path, ...]:
    """One raw file a frame, each of the right length."""
    path = header.path
    if header.compressed:
        raise AcouslicError(f"{path}: its pixels are compressed and spread over several files; {_CONVERT}")
    names = _frame_names(path, value, header.pixel_offset)
    if len(names) != header.frames:
        raise AcouslicError(f"{path} names {len(names)} files for its {header.frames} frames: expected one a frame")
    paths = tuple(_neighbour(path, name) for name in names)
    frame_bytes = header.pixel_bytes // header.frames
    for frame_path in paths:
        if (file_bytes := _regular_file_bytes(path, frame_path)) != frame_bytes:
            raise AcouslicError(
                f"{path}: expected {frame_bytes:,} bytes of pixels in {frame_path.name}, but it has {file_bytes:,}; "
                "the file is truncated or the header is wrong"
            )
    return paths


def _frame_names(path: Path, value: str, header_bytes: int) -> list[str]:
    return _listed_names(path, value, header_bytes) if _names_follow(value) else _pattern_names(path, value)


def _listed_names(path: Path, value: str, header_bytes: int) -> list[str]:
    """The lines after the header."""
    if value.split()[1:] not in ([], ["2"], ["2D"]):
        raise AcouslicError(f"{path}: ElementDataFile = {value!r:.80} is not one file a frame; {_CONVERT}")
    with path.open("rb") as file:
        file.seek(header_bytes)
        lines = file.read(_MAX_HEADER_BYTES).decode("utf-8", "surrogateescape").split("\n")
    return [line.strip() for line in lines if line.strip()]


def _pattern_names(path: Path, value: str) -> list[str]:
    """`frame%03d.raw 1 840 1`: what a C program would print for each number."""
    parsed = re.fullmatch(r"([^%\s]*%0?[0-9]{0,2}d[^%\s]*) +([0-9]{1,6}) +([0-9]{1,6})(?: +([1-9][0-9]{0,5}))?", value)
    if parsed is None:
        raise AcouslicError(f"{path}: ElementDataFile = {value!r:.80} is no pattern of names with first, last and step")
    pattern, first, last, step = parsed.groups(default="1")
    return [pattern % number for number in range(int(first), int(last) + 1, int(step))]


def _required(path: Path, fields: dict[str, str], key: str) -> str:
    if not fields.get(key):
        raise AcouslicError(f"{path} is not a MetaImage that can be read: its header has no {key}")
    return fields[key]


def _boolean(path: Path, fields: dict[str, str], key: str, *, default: bool = False) -> bool:
    text = fields.get(key)
    if text is None:
        return default
    if text.lower() not in ("true", "false"):
        raise AcouslicError(f"{path}: {key} must be True or False, not {text!r:.80}")
    return text.lower() == "true"


def _integer(path: Path, fields: dict[str, str], key: str, default: int) -> int:
    try:
        return int(fields.get(key, default))
    except ValueError:
        raise AcouslicError(f"{path}: {key} must be a whole number, not {fields[key]!r:.80}") from None
