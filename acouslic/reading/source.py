"""What every reader hands over: a header that has been checked, and then the frames one after another."""

from collections.abc import Generator, Iterable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from acouslic.errors import AcouslicError
from acouslic.printable import printable

MAX_STACK_BYTES = 8 << 30
"""Of decoded pixels in the file's own type. No sweep comes near this; a header that asks for more is damaged."""
MAX_FRAME_BYTES = 512 << 20
"""Likewise of one frame."""
MM_OF_UNIT = {"m": 1e3, "cm": 10.0, "mm": 1.0, "nm": 1e-6, "in": 25.4, "inch": 25.4} | dict.fromkeys(
    ("um", "micron", "microns", "\u00b5m", "\u03bcm", "\\u00B5m"), 1e-3
)
"""The units of length that headers name; the last as ImageJ escapes it."""


@dataclass(frozen=True)
class SourceFile:
    """One DICOM file of a stack. No name of a patient, only what results may refer to."""

    path: Path
    frames: int
    """All of them, in the file's order; the frames of the next file follow."""
    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class FileFacts:
    """What a file says of its frames, for its reader and for whoever uses them."""

    path: Path
    frames: int
    rows: int
    columns: int
    pixel_type: str
    """As the file names it: `MET_SHORT` in a MetaImage, elsewhere a numpy name such as `uint8`."""
    _: KW_ONLY
    frame_spacing: float = 1.0
    """The third spacing of the file, handed on to the mask. It is a time or nothing, never millimetres."""
    notes: tuple[str, ...] = ()
    """Sentences on how the file was read, for log and results."""
    sweep_lengths: tuple[int, ...] = ()
    """Frames of each sweep, where the file or folder tells them apart; else empty."""
    sources: tuple[SourceFile, ...] = ()
    """The DICOM files of the frames, in the frames' order; empty for every other kind."""
    label: str = ""
    """What logs and results call the file where its name may be a patient's; else empty."""

    @property
    def name(self) -> str:
        """What results and notes call it, printable whatever bytes its name holds."""
        return printable(self.label or self.path.name)

    @property
    def where(self) -> str:
        """What logs and messages call it."""
        return self.label or str(self.path)


@dataclass(frozen=True, kw_only=True)
class SourceHeader(FileFacts):
    """What is known of the frames in a file before any of them is decoded."""

    pixel_bytes: int
    """Of one decoded pixel, all channels together."""
    spacing_mm: tuple[float, float] | None
    """(row, column) as the file states it; None where it states none."""
    spacing_is_resolution: bool = False
    """Whether the spacing was written as dots per inch, which many writers fill in without knowing it."""
    is_still: bool = False
    """Whether the file holds a single picture, not a stack of one frame."""

    def __post_init__(self) -> None:
        if 0 in (self.frames, self.rows, self.columns):
            raise AcouslicError(f"{self.where} holds no pixels: {self.frames} frames of {self.rows} x {self.columns}")
        frame_bytes = self.rows * self.columns * self.pixel_bytes
        if frame_bytes > MAX_FRAME_BYTES or frame_bytes * self.frames > MAX_STACK_BYTES:
            raise AcouslicError(
                f"{self.where}: {self.frames} x {self.rows} x {self.columns} pixels of {self.pixel_bytes} bytes are "
                f"more than the {MAX_STACK_BYTES:,} bytes allowed for a stack, or the {MAX_FRAME_BYTES:,} for a frame"
            )


class FrameSource(Protocol):
    """A file whose header has been read."""

    @property
    def header(self) -> SourceHeader:
        """What the file says of its frames."""

    def frames(self) -> Generator[NDArray[Any], None, None]:
        """Each frame in order, (rows, columns), in the file's own number type, valid until the next one.

        Opens the file anew. Raises AcouslicError as soon as the pixels are damaged or end.
        """


def one_channel(pixels: NDArray[Any], path: Path, frame_index: int) -> NDArray[Any]:
    """The grey picture (rows, columns) in pixels (rows, columns, channels) whose colours are equal.

    One channel is grey, two are grey and opacity, three are colours, four are colours and opacity. Raises AcouslicError
    where the colours differ anywhere, or a pixel is not opaque.
    """
    channels = pixels.shape[2]
    colours = channels - (channels in (2, 4))
    if channels not in (1, 2, 3, 4) or any((pixels[..., 0] != pixels[..., k]).any() for k in range(1, colours)):
        raise AcouslicError(
            f"{path}: expected one grey channel, got colour in frame {frame_index} (counted from 0); "
            "save the frames in grey"
        )
    if colours < channels:
        opaque = np.iinfo(pixels.dtype).max if np.issubdtype(pixels.dtype, np.integer) else 1
        if (pixels[..., -1] != opaque).any():
            raise AcouslicError(
                f"{path}: frame {frame_index} (counted from 0) has transparent pixels; save the frames in grey"
            )
    return pixels[..., 0]


def refuse_other_units(path: Path, units: Iterable[str]) -> None:
    """Raises AcouslicError where one of the units that a header names for its spacing is a length other than mm."""
    for unit in units:
        if MM_OF_UNIT.get(unit, 1.0) != 1.0:
            raise AcouslicError(f"{path} states its pixel spacing in {unit}: save it in mm")


def colour_note(path: Path) -> str:
    """The one sentence about grey frames that are stored in colour."""
    return f"{printable(path.name)} stores grey frames in colour; its channels are equal, and one of them is used"
