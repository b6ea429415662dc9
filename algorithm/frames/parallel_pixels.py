"""The compressed pixels of a sweep inflated on several cores.

A GPU scores a case in less time than one core takes to inflate it. rapidgzip starts in the middle of a deflate stream,
which has no marks to start at, by guessing where its blocks begin. Whatever it stumbles over is left to the decoder of
`acouslic.reading.pixel_stream`, which takes over at the same byte and says what is wrong with the file. It inflates
ahead, two pieces of the stream a thread: 0.1 GB more for a sweep, up to 1.5 GB for a file that was made to take memory.
"""

import contextlib
import io
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from zlib_ng import zlib_ng

from acouslic.errors import AcouslicError
from acouslic.reading.metaimage import MetaImageHeader
from acouslic.reading.pixel_stream import PixelSource, open_pixels
from algorithm.process.cores import usable_cores

LEAST_CORES = 4
"""Beside a GPU that outruns one core there are more; where there are fewer, scoring takes them all."""
MOST_THREADS = 8
"""More gain nothing: the stream is put together by one (bench/LOG.md, 30)."""
LEAST_STORED_BYTES = 16 << 20
_ZLIB_ENDS_WITH = 4
"""Bytes: the checksum, Adler-32."""
_PIECE_BYTES = 1 << 20


@contextlib.contextmanager
def open_pixels_on_several_cores(header: MetaImageHeader) -> Iterator[PixelSource]:
    """As `acouslic.reading.pixel_stream.open_pixels`, on up to MOST_THREADS cores where they are many and zlib's."""
    threads = min(MOST_THREADS, usable_cores()[0])
    with open_pixels(header) as pixels:
        few = threads < LEAST_CORES or header.stored_bytes < LEAST_STORED_BYTES
        if few or not header.compressed or _address_space_is_limited():
            yield pixels
            return
        with header.pixel_path.open("rb", buffering=0) as file:
            part = _PartOfFile(file, header.pixel_offset, header.stored_bytes)
            if not _is_zlib(part):
                yield pixels
                return
            with contextlib.closing(_ParallelPixels(part, pixels, threads, header.pixel_path)) as parallel:
                yield parallel


class _ParallelPixels:
    """Decoded pixel bytes in order. Raises AcouslicError as `acouslic.reading.pixel_stream.PixelStream`."""

    def __init__(self, part: "_PartOfFile", strict: PixelSource, threads: int, path: Path) -> None:
        import rapidgzip  # only here: it takes 10 ms

        self._strict, self._path = strict, path
        self._stored_checksum = part.end(_ZLIB_ENDS_WITH)
        self._stumbled = False
        self._delivered = 0
        self._checksum = zlib_ng.adler32(b"")
        self._reader = rapidgzip.open(part, parallelization=threads)

    def read_into(self, destination: memoryview) -> None:
        """Fill `destination` (bytes) with the next decoded bytes."""
        if not self._stumbled:
            filled = self._read(destination)
            self._delivered += filled
            self._checksum = zlib_ng.adler32(destination[:filled], self._checksum)
            if filled == len(destination):
                return
            self._leave_to_strict()
            destination = destination[filled:]
        self._strict.read_into(destination)

    def finish(self) -> None:
        """Check, after the last pixel, that nothing follows and that the checksum is right."""
        if not self._stumbled:
            more = self._read(memoryview(bytearray(1)))
            if not more and not self._stumbled and self._stored_checksum == self._checksum.to_bytes(4, "big"):
                return
            self._leave_to_strict()
        self._strict.finish()

    def close(self) -> None:
        """End its threads."""
        self._reader.close()

    def _read(self, destination: memoryview) -> int:
        """How many bytes of `destination` could be filled; all of them unless something is wrong."""
        filled = 0
        try:
            while filled < len(destination):
                count = self._reader.readinto(destination[filled:])
                if not count:
                    break
                filled += count
        except (ValueError, RuntimeError, OSError, MemoryError):
            # Not handled here: the strict decoder meets the same damage and has words for it.
            self._stumbled = True
        return filled

    def _leave_to_strict(self) -> None:
        """Bring the strict decoder to where this one has come to; damage before that is met on the way."""
        self._stumbled = True
        checksum, left = zlib_ng.adler32(b""), self._delivered
        scratch = memoryview(bytearray(_PIECE_BYTES))
        while left:
            piece = scratch[: min(len(scratch), left)]
            self._strict.read_into(piece)
            checksum = zlib_ng.adler32(piece, checksum)
            left -= len(piece)
        if checksum != self._checksum:
            raise AcouslicError(f"{self._path} was changed while it was read: copy it again, and run again")


class _PartOfFile(io.RawIOBase):
    """`length` bytes of a file from `start` on, as a file of their own. Its position is not that of the file."""

    def __init__(self, file: io.FileIO, start: int, length: int) -> None:
        self._descriptor, self._start, self._length, self._position = file.fileno(), start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        count = max(0, min(len(buffer), self._length - self._position))
        read = os.preadv(self._descriptor, [memoryview(buffer)[:count]], self._start + self._position)
        self._position += read
        return read

    def end(self, count: int) -> bytes:
        """The last `count` bytes."""
        return os.pread(self._descriptor, count, self._start + self._length - count)


def _address_space_is_limited() -> bool:
    """As by `ulimit -v` on some clusters: rapidgzip reserves 9 GB of it for 8 threads, and dies without a word."""
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def _is_zlib(part: _PartOfFile) -> bool:
    """Whether it begins as a zlib stream does (RFC 1950): deflate, and a header that is a multiple of 31."""
    first = part.read(2) or b""
    part.seek(0)
    return len(first) == 2 and first[0] & 0x0F == 8 and int.from_bytes(first, "big") % 31 == 0
