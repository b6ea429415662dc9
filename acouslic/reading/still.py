"""One picture, PNG or JPEG: a stack of one frame. imagecodecs decodes it once its size is known."""

import struct
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acouslic.errors import AcouslicError
from acouslic.reading.source import MAX_FRAME_BYTES, SourceHeader, colour_note, one_channel

_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
"""By colour type; a palette is decoded to its colours."""
_PNG_ENDS_WITH = b"IEND\xaeB`\x82"
_JPEG_ENDS_WITH = b"\xff\xd9"


@dataclass(frozen=True)
class Still:
    """A picture whose size is known."""

    header: SourceHeader
    kind: str

    def frames(self) -> Generator[NDArray[Any], None, None]:
        """As `FrameSource.frames`: one."""
        path = self.header.path
        pixels = decode_still(_content(path), self.kind, path)
        if pixels.shape[:2] != (self.header.rows, self.header.columns):
            raise AcouslicError(f"{path} was changed while it was read: run again")
        yield one_channel(pixels, path, 0)


def open_still(path: Path, kind: str) -> Still:
    """Read the size of a picture. `kind` is `PNG` or `JPEG`. Raises AcouslicError where it is damaged."""
    rows, columns, channels, pixel_bytes = still_size(_content(path), kind, path)
    return Still(
        SourceHeader(
            path,
            1,
            rows,
            columns,
            pixel_type="uint8" if pixel_bytes == channels else "uint16",
            pixel_bytes=pixel_bytes,
            spacing_mm=None,
            is_still=True,
            notes=(colour_note(path),) if channels > 2 else (),
        ),
        kind,
    )


def still_size(content: bytes, kind: str, path: Path) -> tuple[int, int, int, int]:
    """(rows, columns, channels, bytes a pixel) as the file says. Raises AcouslicError where it is cut off."""
    try:
        if kind == "PNG":
            # The signature, then the chunk IHDR, which is always the first.
            columns, rows, depth, colour = struct.unpack(">IIBB", content[16:26])
            channels = _PNG_CHANNELS[colour]
            complete = content[12:16] == b"IHDR" and content.rstrip(b"\0\r\n").endswith(_PNG_ENDS_WITH)
        else:
            from tifffile.tifffile import jpeg_shape

            depth, rows, columns, channels = jpeg_shape(content)
            complete = content.rstrip(b"\0").endswith(_JPEG_ENDS_WITH)
    except (struct.error, KeyError, ValueError, IndexError) as error:
        raise AcouslicError(f"{path} is a damaged {kind} ({type(error).__name__}): save it anew") from None
    if not complete:
        raise AcouslicError(f"{path} is a {kind} that is cut off: copy it again")
    return rows, columns, channels, channels * (2 if depth > 8 else 1)


def decode_still(content: bytes, kind: str, path: Path) -> NDArray[Any]:
    """Pixels (rows, columns, channels), uint8 or uint16. Raises AcouslicError where they are damaged."""
    import imagecodecs

    try:
        pixels = np.asarray(imagecodecs.png_decode(content) if kind == "PNG" else imagecodecs.jpeg8_decode(content))
    except MemoryError:
        raise
    except Exception as error:
        # Each codec has exceptions of its own.
        raise AcouslicError(f"{path} is a damaged {kind} ({type(error).__name__}): save it anew") from None
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FRAME_BYTES + 1)
    except OSError as error:
        raise AcouslicError(f"{path} could not be read: {error.strerror or error}") from error
    if len(content) > MAX_FRAME_BYTES:
        raise AcouslicError(f"{path} is larger than {MAX_FRAME_BYTES:,} bytes: no picture of a scanner is")
    return content
