"""NIfTI and NRRD, decoded by SimpleITK.

SimpleITK is loaded for these alone. It takes a NIfTI that was cut off for a whole one, and a compressed stream without
its checksum too, so `whole_file.py` holds what a header announces against what is there before anything is decoded.
The whole stack is decoded at once, into a second copy: the file's frames in its own type.
"""

import contextlib
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acouslic.errors import AcouslicError
from acouslic.reading.source import SourceHeader, colour_note, one_channel
from acouslic.reading.whole_file import check_nifti, check_nrrd, named_file
from acouslic.sockets import stack_suffix

_PIXEL_TYPES = {
    "8-bit unsigned integer": "u1", "8-bit signed integer": "i1", "16-bit unsigned integer": "u2",
    "16-bit signed integer": "i2", "32-bit unsigned integer": "u4", "32-bit signed integer": "i4",
    "64-bit unsigned integer": "u8", "64-bit signed integer": "i8", "32-bit float": "f4", "64-bit float": "f8",
}  # fmt: skip

_MOST_CHANNELS = 4


@dataclass(frozen=True)
class Volume:
    """A volume whose header SimpleITK has read, and whose file is as long as that says."""

    header: SourceHeader
    channels: int

    def frames(self) -> Generator[NDArray[Any], None, None]:
        """As `FrameSource.frames`."""
        itk, header = _itk(), self.header
        reader = itk.ImageFileReader()
        try:
            with _name_for_itk(header.path) as name:
                reader.SetFileName(name)
                image = reader.Execute()  # kept, because the view does not keep its memory
            pixels = itk.GetArrayViewFromImage(image)
        except RuntimeError:
            raise AcouslicError(f"{header.path} could not be decoded: it is damaged, or too large for memory") from None
        shape = (header.frames, header.rows, header.columns, self.channels)
        if pixels.size != np.prod(shape):
            raise AcouslicError(f"{header.path} was changed while it was read: copy it again, and run again")
        for frame_index, frame in enumerate(pixels.reshape(shape)):
            yield one_channel(frame, header.path, frame_index)


def open_volume(path: Path, kind: str) -> Volume:
    """Read and check the header of a volume; no pixel is decoded. `kind` is `NIfTI` or `NRRD`.

    The first axis is a frame's columns, the second its rows, the third the frames, as SimpleITK writes them; a fourth
    may be there where only one of the last two is longer than 1. Raises AcouslicError for anything else, and where the
    file does not hold what its header says.
    """
    (check_nifti if kind == "NIfTI" else check_nrrd)(path)
    reader = _itk().ImageFileReader()
    try:
        with _name_for_itk(path) as name:
            reader.SetFileName(name)
            reader.ReadImageInformation()
    except RuntimeError:
        raise AcouslicError(f"{path} is not a {kind} that SimpleITK can read: damaged, or of a rare form") from None
    sizes = reader.GetSize()
    longer = [size for size in sizes[2:] if size > 1]
    if len(sizes) not in (2, 3, 4) or len(longer) > 1:
        raise AcouslicError(f"{path} has {' x '.join(map(str, sizes))} pixels: expected one stack of frames (3-D)")
    pixel_name = _itk().GetPixelIDValueAsString(reader.GetPixelID()).removeprefix("vector of ")
    if pixel_name not in _PIXEL_TYPES:
        raise AcouslicError(f"{path} has pixels of type {pixel_name}: write the frames as uint8")
    dtype, channels = np.dtype(_PIXEL_TYPES[pixel_name]), reader.GetNumberOfComponents()
    if channels > _MOST_CHANNELS:
        raise AcouslicError(
            f"{path} holds {channels} values a pixel: where these are frames, as in a sequence of Slicer (kinds: "
            "list), save them along the third axis"
        )
    spacing = reader.GetSpacing()
    if not all(np.isfinite(value) and value > 0 for value in spacing):
        raise AcouslicError(f"{path}: its pixel spacing must be positive numbers in mm")
    header = SourceHeader(
        path,
        longer[0] if longer else 1,
        sizes[1],
        sizes[0],
        dtype.name,
        pixel_bytes=dtype.itemsize * channels,
        spacing_mm=(spacing[1], spacing[0]),
        frame_spacing=spacing[2] if len(spacing) > 2 else 1.0,
        notes=(colour_note(path),) if channels > 1 else (),
        is_still=len(sizes) == 2,
    )
    return Volume(header, channels)


@contextlib.contextmanager
def _name_for_itk(path: Path) -> Iterator[str]:
    """A name by which SimpleITK finds the file: its own, or where that is no UTF-8, which would end the process, that
    of a link."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        suffix = stack_suffix(path.name)
        beside = named_file(path) if suffix in (".nrrd", ".nhdr") else None
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder, f"linked{suffix}")
            link.symlink_to(path.absolute())
            if beside is not None:
                Path(folder, beside.name).symlink_to(beside.absolute())
            yield str(link)
    else:
        yield str(path)


def _itk() -> ModuleType:
    import SimpleITK

    # Its warnings go to stderr, which the platform shows to the user.
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK
