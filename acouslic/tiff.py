"""Multi-page TIFF: SimpleITK says what is in the file, OpenCV decodes its pages a few at a time.

SimpleITK alone would decode the whole stack into a buffer of its own, a second copy. OpenCV starts at any page and its
pages are equal to SimpleITK's (but for white-is-zero files, which only OpenCV turns the right way round).
"""

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import SimpleITK

from acouslic.errors import AcouslicError


@dataclass(frozen=True)
class TiffHeader:
    """What the first page and the list of pages say."""

    path: Path
    dim_size: tuple[int, ...]
    """Fastest axis first: (columns, rows) or (columns, rows, pages)."""
    element_spacing: tuple[float, ...] | None
    """As `dim_size`, in mm. SimpleITK gives 1 where the file has no resolution."""
    pixel_type: str


def read_tiff_header(path: Path) -> TiffHeader:
    """Read and check the header of a TIFF. Raises AcouslicError where it is none, is damaged or has colour."""
    if not path.is_file():
        raise AcouslicError(f"{path} does not exist")
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise AcouslicError(f"{path} is not a TIFF that can be read: {reason}") from error
    dim_size, spacing = tuple(reader.GetSize()), tuple(reader.GetSpacing())
    if reader.GetNumberOfComponents() != 1:
        raise AcouslicError(f"{path}: expected one grey channel, got {reader.GetNumberOfComponents()} (colour?)")
    if not all(math.isfinite(value) and value > 0 for value in spacing):
        raise AcouslicError(f"{path}: its resolution gives a pixel spacing of {spacing} mm, expected positive numbers")
    header = TiffHeader(path, dim_size, spacing, "")
    first = read_tiff_pages(header, range(1))[0]
    return TiffHeader(path, dim_size, spacing, first.dtype.name)


def read_tiff_pages(header: TiffHeader, indices: range) -> list[np.ndarray]:
    """The pages at `indices`: (rows, columns) each, in the file's own type. Raises AcouslicError for a damaged one."""
    columns, rows = header.dim_size[:2]
    try:
        read, pages = cv2.imreadmulti(str(header.path), indices.start, len(indices), flags=cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise AcouslicError(f"{header.path}: frames {indices.start}.. could not be decoded: {error.err}") from error
    if not read or len(pages) != len(indices):
        raise AcouslicError(
            f"{header.path}: frames {indices.start} to {indices.stop - 1} could not be decoded; the file is truncated "
            "or damaged"
        )
    for frame_index, page in zip(indices, pages, strict=True):
        if page.shape != (rows, columns):
            raise AcouslicError(f"{header.path}: frame {frame_index} is {page.shape}, expected {(rows, columns)}")
    return list(pages)
