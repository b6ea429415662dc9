"""Cine video, .mp4 or .avi, decoded by PyAV: one sweep, whose pixel size nobody has written down."""

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acouslic.errors import AcouslicError
from acouslic.geometry import told_apart
from acouslic.printable import printable
from acouslic.reading.source import SourceHeader
from acouslic.scanner.brightness import brightness

_MOST_FRAMES = 100_000


@dataclass(frozen=True)
class Video:
    """A video whose frames have been counted."""

    header: SourceHeader

    def frames(self) -> Generator[NDArray[Any], None, None]:
        """As `FrameSource.frames`."""
        av, header = _av(), self.header
        where, count = header.where, 0
        try:
            with av.open(_url(header.path)) as container:
                stream = container.streams.video[0]
                # Damage is an error, not something to paint over.
                stream.codec_context.options = {"err_detect": "crccheck+bitstream+buffer+explode"}
                for frame in container.decode(stream):
                    if (frame.height, frame.width) != (header.rows, header.columns) or frame.is_corrupt:
                        raise AcouslicError(f"{where}: its frame {count} (counted from 0) is damaged")
                    if frame.rotation:
                        raise AcouslicError(
                            f"{where} is to be shown turned by {frame.rotation} degrees: save it upright"
                        )
                    if count == header.frames:
                        raise AcouslicError(f"{where} holds more than the {header.frames} frames that it announces")
                    yield brightness(frame.to_ndarray(format="rgb24"), where, count)
                    count += 1
        except av.error.FFmpegError as error:
            what = type(error).__name__
            raise AcouslicError(f"{where}: its frame {count} (counted from 0) is damaged ({what})") from None
        if count < header.frames:
            raise AcouslicError(f"{where} ends after {count} of {header.frames} frames; it is cut off or damaged")


def open_video(path: Path) -> Video:
    """Count the frames of a video; none is decoded.

    Raises AcouslicError where it is damaged, holds no picture, or has pixels that are not square.
    """
    av = _av()
    try:
        with av.open(_url(path)) as container:
            if not container.streams.video:
                raise AcouslicError(f"{path} holds no video")
            stream = container.streams.video[0]
            aspect = stream.sample_aspect_ratio
            if aspect and aspect != 1:
                shape = f"{aspect.numerator}:{aspect.denominator}"
                raise AcouslicError(f"{path} has pixels of {shape}, which are not square: save it with square pixels")
            announced, rows, columns = stream.frames, stream.codec_context.height, stream.codec_context.width
            counted = cut = 0
            for packet in container.demux(stream):
                counted += packet.size > 0
                # What was cut away without encoding the rest anew is still there, for frames that refer to it.
                cut += packet.size > 0 and packet.is_discard
                if packet.is_corrupt or counted > _MOST_FRAMES:
                    raise AcouslicError(f"{path} is damaged, or a video of more than {_MOST_FRAMES} frames")
    except av.error.FFmpegError as error:
        what = type(error).__name__
        raise AcouslicError(f"{path} is not a video that can be read: cut off or damaged ({what})") from None
    if announced > counted:
        raise AcouslicError(f"{path} announces {announced} frames, but holds {counted}; it is cut off")
    header = SourceHeader(
        path,
        counted - cut,
        rows,
        columns,
        pixel_type="uint8",
        pixel_bytes=np.dtype(np.uint8).itemsize * 3,
        spacing_mm=None,
        notes=(f"{printable(path.name)} is a video; the brightness of its frames is used, as its compression left it",),
        sweep_lengths=told_apart([counted - cut]),
    )
    return Video(header)


def _url(path: Path) -> str:
    """What FFmpeg opens the file by. It takes the beginning of `10:22.mp4` for a protocol, but not that of a path from
    the root."""
    return str(path.absolute())


def _av() -> ModuleType:
    import av
    import av.logging

    # It prints to stderr, which the platform shows to the user.
    av.logging.set_level(av.logging.PANIC)
    return av
