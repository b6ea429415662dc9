"""A folder that is one case: DICOM files of one study, or PNG pictures that are the frames of one sweep."""

import re
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from acouslic.errors import AcouslicError
from acouslic.geometry import told_apart
from acouslic.reading.source import FrameSource, SourceHeader
from acouslic.reading.still import Still, open_still
from acouslic.scanner.dicom_header import is_dicom
from acouslic.sockets import STACK_SUFFIXES


@dataclass(frozen=True)
class PictureFolder:
    """PNG pictures of one size, in the order of the numbers in their names."""

    header: SourceHeader
    stills: tuple[Still, ...]

    def frames(self) -> Generator[NDArray[Any], None, None]:
        """As `FrameSource.frames`."""
        for still in self.stills:
            yield from still.frames()


def open_folder(path: Path) -> FrameSource:
    """Read and check the headers of a folder's files; no pixel is decoded.

    Raises AcouslicError where it does not hold DICOM files or PNG pictures alone, or they do not make one stack.
    """
    dicom, pictures = case_files(path)
    if dicom and pictures:
        raise AcouslicError(f"{path} holds DICOM files and pictures: give each kind a folder of its own")
    if dicom:
        from acouslic.scanner.dicom import open_dicom

        return open_dicom(path, dicom)
    if not pictures:
        raise AcouslicError(
            f"{path} is not a regular file; expected a sweep stack, or a folder of DICOM files or of PNG pictures"
        )
    stills = tuple(open_still(picture, "PNG") for picture in pictures)
    first = stills[0].header
    for still in stills:
        if (still.header.rows, still.header.columns) != (first.rows, first.columns):
            raise AcouslicError(
                f"{still.header.path}: expected pictures of {first.rows} x {first.columns} as {first.path.name}, got "
                f"{still.header.rows} x {still.header.columns}"
            )
    header = SourceHeader(
        path,
        len(stills),
        first.rows,
        first.columns,
        first.pixel_type,
        pixel_bytes=max(still.header.pixel_bytes for still in stills),
        spacing_mm=None,
        notes=next((still.header.notes for still in stills if still.header.notes), ()),
        sweep_lengths=told_apart([len(stills)]),
    )
    return PictureFolder(header, stills)


def case_files(path: Path) -> tuple[list[Path], list[Path]]:
    """(DICOM files, PNG pictures) in a folder, each in the order of the numbers in their names; hidden ones apart.

    Raises AcouslicError where the folder or one of its items cannot be looked at, or one may not be read that is beside
    DICOM, or beside nothing else that is known.
    """
    try:
        files = [item for item in path.iterdir() if item.is_file() and not item.name.startswith(".")]
    except OSError as error:
        # Of one of its items, where that is a link that leads where nobody may go.
        raise AcouslicError(f"{error.filename or path} could not be read: {error.strerror or error}") from None
    files.sort(key=_by_numbers)
    pictures = [item for item in files if item.suffix.lower() == ".png"]
    others = [item for item in files if item.suffix.lower() not in _NEVER_DICOM and item.name.upper() != _CONTENTS]
    dicom = [item for item in others if is_dicom(item)]
    if dicom or len(others) == len(files):
        # One that may not be read may be a sweep: without it the case would be another one, or none.
        for item in set(others).difference(dicom):
            refuse_unreadable(item)
    return dicom, pictures


def refuse_unreadable(path: Path) -> None:
    """Raises AcouslicError where a file may not be read."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise AcouslicError(f"{path} could not be read: {error.strerror or error}") from None


_NEVER_DICOM = (*(suffix for suffix in STACK_SUFFIXES if suffix != ".dcm"), ".raw", ".zraw", ".gz")
"""Not looked into: a folder may hold thousands of them."""


_CONTENTS = "DICOMDIR"
"""Lists the files of a disc or a stick that a scanner has written, and holds no pixels (DICOM PS3.10, 8.6)."""


def _by_numbers(path: Path) -> tuple[list[tuple[int, str]], str]:
    """`frame2.png` before `frame10.png`."""
    parts = re.split(r"([0-9]+)", path.name)
    return [(int(part[:18]), "") if part.isdecimal() else (0, part) for part in parts], path.name
