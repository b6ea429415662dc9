"""Writing results so that no half-written file is ever seen, and reading them back.

Every file is written to a hidden temporary name in its own folder, flushed to the disk and renamed. The mask stack is
composed here instead of by SimpleITK: a case is 351 MB of zeros around one mask, and those need not exist in memory.
"""

import errno
import fcntl
import json
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from acouslic.errors import AcouslicError, ShortageError
from acouslic.reading.metaimage import header_text, read_header
from acouslic.sockets import FRAME_NUMBER_FILE, NO_FRAME, SEGMENTATION_FILE
from acouslic.stack import StackHeader, open_stack

_COMPRESSION_LEVEL = 6
_ZLIB_HEADER = b"\x78\x9c"
_ADLER_MODULUS = 65521


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file, or nothing: see `replacing`."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file, or nothing."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON with one trailing newline. NaN and infinity are a ValueError: they are not JSON.

    The bytes of a path that are not UTF-8 are escaped, and name the same path when they are read back.
    """
    text = json.dumps(value, allow_nan=False, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def check_writable(folder: Path) -> None:
    """Raises ShortageError where no file can be written into `folder`, which is made if it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Under a name that no other process has: many may begin in one folder at once.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ShortageError(f"{folder} could not be written: {why_not_written(error)}") from error


def write_mask_stack(
    path: Path,
    mask: np.ndarray,
    frame_index: int | None,
    frames: int,
    spacing_mm: tuple[float, float],
    frame_spacing: float = 1.0,
) -> None:
    """Write a compressed `.mha` of `frames` x rows x columns, uint8 {0, 1}: `mask` in frame `frame_index`, else zeros.

    `mask` is (rows, columns), bool or 0/non-zero; without a frame (None) only its shape counts and it must be empty.
    `spacing_mm` is (row, column); `frame_spacing` the third value of the input's header, handed on.
    Raises AcouslicError where the file cannot be written; nothing is left of it then.
    """
    if mask.ndim != 2 or (frame_index is not None and not 0 <= frame_index < frames):
        raise ValueError(f"mask of shape {mask.shape} does not fit frame {frame_index} of {frames}")
    if frame_index is None and mask.any():
        raise ValueError("a mask that is not empty needs a frame")
    pixels = _compress_around(np.ascontiguousarray(mask != 0).tobytes(), frame_index, frames)
    rows, columns = mask.shape
    header = header_text(frames, rows, columns, (spacing_mm[1], spacing_mm[0], frame_spacing), len(pixels))
    write_bytes(path, header.encode("ascii") + pixels)


def check_outputs(output_dir: Path, stack: StackHeader) -> None:
    """Read the two sockets of a case back from `output_dir` and hold them against the input's header.

    Raises AcouslicError unless the segmentation folder holds exactly one file, an image of the input's shape and
    spacing with uint8 values {0, 1}, non-zero only in the chosen frame, and the frame number lies in -1..frames-1.
    """
    number_path, mask_path = output_dir / FRAME_NUMBER_FILE, output_dir / SEGMENTATION_FILE
    try:
        frame_number = json.loads(number_path.read_text(encoding="utf-8"))
        names = sorted(item.name for item in mask_path.parent.iterdir())
    except (OSError, ValueError) as error:
        raise ShortageError(f"{output_dir} could not be read back after writing: {error}") from None
    if type(frame_number) is not int or not NO_FRAME <= frame_number < stack.frames:
        raise AcouslicError(f"{number_path}: expected a frame number in -1..{stack.frames - 1}, got {frame_number!r}")
    if names != [mask_path.name]:
        raise AcouslicError(f"{mask_path.parent}: expected {mask_path.name} alone, got {', '.join(names)}")
    reader = open_stack(mask_path)
    got, expected = reader.header, (stack.frames, stack.rows, stack.columns)
    if (got.frames, got.rows, got.columns) != expected or got.pixel_type != "MET_UCHAR":
        raise AcouslicError(
            f"{mask_path}: expected MET_UCHAR of {expected} after writing, got {got.pixel_type} of "
            f"{(got.frames, got.rows, got.columns)}"
        )
    # As the file states it: 1 mm and what no scanner has, which may have been given, read as 0.28 mm.
    stated = read_header(mask_path).element_spacing
    got_spacing = None if stated is None else (stated[1], stated[0], *stated[2:])
    expected_spacing = (*stack.spacing_mm, stack.frame_spacing)
    if got_spacing != expected_spacing:
        raise AcouslicError(f"{mask_path}: expected spacing {expected_spacing} after writing, got {got_spacing}")
    for indices, masks in reader.iter_chunks():
        for frame_index, mask in zip(indices, masks, strict=True):
            highest = int(mask.max())
            if highest > 1 or (highest == 1 and frame_index != frame_number):
                raise AcouslicError(f"{mask_path}: unexpected value {highest} in frame {frame_index} after writing")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the name `path` when the block ends well, and vanishes when it does not.

    Missing folders are made. Two that write the same file at once take turns, and the last one's stays. Raises
    ShortageError where the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _opened_alone(temporary) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise ShortageError(f"{path} could not be written: {why_not_written(error)}") from error


@contextmanager
def _opened_alone(path: Path) -> Iterator[BinaryIO]:
    """The empty file at `path`, which nobody else has opened so until the block ends. On a file system without locks
    that is not sure."""
    while True:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b") as file:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _lies_at(path, file):
                continue  # Whoever had it before has given it its name.
            file.truncate()
            yield file
            return


def _lies_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def why_not_written(error: OSError) -> str:
    """What kept a file from being written, and what to do."""
    advice = {
        errno.ENOSPC: "free some, or name another folder",
        errno.EDQUOT: "free some, or name another folder",
        errno.EROFS: "mount it writable, or name another folder",
        errno.EACCES: "give the folder write permission, or name another one",
        errno.EPERM: "give the folder write permission, or name another one",
        errno.ENAMETOOLONG: "shorten the name",
    }
    return f"{error.strerror or error}; {advice.get(error.errno or 0, 'look after the disk, or name another folder')}"


def _compress_around(frame: bytes, frame_index: int | None, frames: int) -> bytes:
    """A zlib stream of `frames` frames, all zeros but the one at `frame_index`, in the time of compressing two.

    A full flush ends at a byte and refers to nothing before it, so one compressed frame of zeros can be repeated.
    """
    zeros = bytes(len(frame))
    compressor = zlib.compressobj(_COMPRESSION_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    compressed_zeros = compressor.compress(zeros) + compressor.flush(zlib.Z_FULL_FLUSH)
    before = frames if frame_index is None else frame_index
    parts = [_ZLIB_HEADER, compressed_zeros * before]
    checksum = _adler_of_zeros(1, before * len(frame))
    if frame_index is not None:
        after = frames - frame_index - 1
        parts += [compressor.compress(frame), compressor.flush(zlib.Z_FULL_FLUSH), compressed_zeros * after]
        checksum = _adler_of_zeros(zlib.adler32(frame, checksum), after * len(frame))
    parts += [compressor.flush(zlib.Z_FINISH), checksum.to_bytes(4, "big")]
    return b"".join(parts)


def _adler_of_zeros(checksum: int, count: int) -> int:
    """`zlib.adler32(bytes(count), checksum)` without the bytes: zeros leave the low sum and add it to the high one."""
    low, high = checksum & 0xFFFF, checksum >> 16
    return (high + count * low) % _ADLER_MODULUS << 16 | low
