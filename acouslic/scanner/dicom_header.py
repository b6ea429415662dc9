"""What a DICOM file says of itself, as far as a sweep needs it: never a patient's name."""

import functools
import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from acouslic.errors import AcouslicError
from acouslic.reading.source import MAX_STACK_BYTES

_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "InstanceNumber",
    "AcquisitionDateTime", "ContentDate", "ContentTime", "Modality", "NumberOfFrames", "Rows", "Columns",
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PixelSpacing", "SequenceOfUltrasoundRegions", "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData",
]  # fmt: skip
"""All that is read, beside the pixels."""
TRANSFER_SYNTAXES = {
    "1.2.840.10008.1.2": "implicit little endian", "1.2.840.10008.1.2.1": "explicit little endian",
    "1.2.840.10008.1.2.2": "explicit big endian", "1.2.840.10008.1.2.5": "RLE",
    "1.2.840.10008.1.2.4.50": "JPEG baseline", "1.2.840.10008.1.2.4.51": "JPEG extended",
    "1.2.840.10008.1.2.4.57": "JPEG lossless", "1.2.840.10008.1.2.4.70": "JPEG lossless, first order",
    "1.2.840.10008.1.2.4.80": "JPEG-LS lossless", "1.2.840.10008.1.2.4.81": "JPEG-LS",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 lossless", "1.2.840.10008.1.2.4.91": "JPEG 2000",
}  # fmt: skip
_PHOTOMETRIC = {
    "MONOCHROME1": 1, "MONOCHROME2": 1, "PALETTE COLOR": 1, "RGB": 3, "YBR_FULL": 3, "YBR_FULL_422": 3, "YBR_ICT": 3,
    "YBR_RCT": 3,
}  # fmt: skip
_TISSUE, _TWO_DIMENSIONS, _CENTIMETRES = 1, 1, 3
_MOST_FRAMES = 100_000


@dataclass(frozen=True)
class DicomFile:
    """One file, checked as far as its header allows."""

    path: Path
    dataset: Any
    """The elements of `_TAGS` that are there, with the file's meta information; no pixels."""
    label: str
    """What messages call it: its SOPInstanceUID."""
    frames: int
    rows: int
    columns: int
    samples: int
    pixel_bytes: int
    region: tuple[slice, slice] | None
    """Rows and columns of the two-dimensional image of tissue; None where the file names none."""
    spacing_mm: tuple[float, float] | None
    """(row, column): of the region, or else as `PixelSpacing`; None where neither states it."""
    study_uid: str
    series_uid: str
    sop_class_uid: str
    sop_uid: str

    @property
    def transfer_syntax(self) -> str:
        """Its UID, one of TRANSFER_SYNTAXES."""
        return str(self.dataset.file_meta.TransferSyntaxUID)

    @property
    def order(self) -> tuple[object, ...]:
        """Sorts the files of a case: by series, by number in it, by time, by UID."""
        dataset = self.dataset
        content = f"{dataset.get('ContentDate', '')}{dataset.get('ContentTime', '')}"
        moment = str(dataset.get("AcquisitionDateTime") or content)
        return (_whole(dataset.get("SeriesNumber")), _whole(dataset.get("InstanceNumber")), moment, self.sop_uid)


@functools.cache
def load_pydicom() -> ModuleType:
    """The library, loaded here because only a DICOM file has a use for it."""
    import pydicom
    import pydicom.config

    # It logs and warns of what it mends, with the values, and a value may be a patient's name.
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    return pydicom


def read_dataset(source: "Path | BinaryIO") -> Any:
    """The elements of `_TAGS`; a stream then stands at the pixels."""
    return load_pydicom().dcmread(source, stop_before_pixels=True, specific_tags=_TAGS)


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do; False where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_dicom_header(path: Path) -> DicomFile:
    """Read what precedes the pixels. Raises AcouslicError where that is damaged, or the file is no ultrasound image."""
    try:
        return _checked(path, read_dataset(path))
    except (AcouslicError, MemoryError):
        raise
    except OSError as error:
        raise AcouslicError(f"{path} could not be read: {error.strerror or error}") from None
    except Exception as error:
        # Damaged elements meet pydicom's parsers and converters with every kind of exception.
        what = type(error).__name__
        raise AcouslicError(f"{path} is a damaged DICOM file: its header cannot be read ({what})") from None


def _checked(path: Path, dataset: Any) -> DicomFile:
    uids = [str(dataset.get(f"{name}InstanceUID", "")) for name in ("Study", "Series", "SOP")]
    for name, uid in zip(("Study", "Series", "SOP"), uids, strict=True):
        if not re.fullmatch(r"[0-9.]{1,64}", uid):
            raise AcouslicError(f"{path} is a damaged DICOM file: expected a {name}InstanceUID of digits and dots")
    label = f"DICOM {uids[2]}"
    syntax = str(getattr(dataset.file_meta, "TransferSyntaxUID", ""))
    if syntax not in TRANSFER_SYNTAXES:
        raise AcouslicError(f"{label}: its transfer syntax {syntax!r:.70} is not read here; export it uncompressed")
    if dataset.get("Modality") != "US":
        found = str(dataset.get("Modality", "none"))
        raise AcouslicError(f"{label}: expected ultrasound (Modality US), got {found!r:.20}")
    frames = int(dataset.get("NumberOfFrames") or 1)
    rows, columns, samples = (int(dataset.get(name) or 0) for name in ("Rows", "Columns", "SamplesPerPixel"))
    photometric, bits = str(dataset.get("PhotometricInterpretation", "")), int(dataset.get("BitsAllocated") or 0)
    if min(frames, rows, columns) < 1 or frames > _MOST_FRAMES:
        raise AcouslicError(f"{label} holds no frames that can be read: {frames} of {rows} x {columns} pixels")
    if _PHOTOMETRIC.get(photometric) != samples or bits not in (8, 16) or dataset.get("PixelRepresentation", 0) != 0:
        raise AcouslicError(
            f"{label}: expected unsigned pixels of 8 bits, grey, RGB or YBR, got {samples} of {bits} bits, "
            f"{photometric!r:.30}"
        )
    stored, high = (int(dataset.get(name) or bits) for name in ("BitsStored", "HighBit"))
    if "HighBit" in dataset and high != stored - 1:
        raise AcouslicError(f"{label}: its values are not the lowest {stored} bits (HighBit {high}); export it again")
    pixel_bytes = samples * bits // 8
    if frames * rows * columns * pixel_bytes > MAX_STACK_BYTES:
        raise AcouslicError(f"{label}: {frames} frames of {rows} x {columns} are more than {MAX_STACK_BYTES:,} bytes")
    region, spacing_mm = _region(dataset, rows, columns, label)
    return DicomFile(
        path=path,
        dataset=dataset,
        label=label,
        frames=frames,
        rows=rows,
        columns=columns,
        samples=samples,
        pixel_bytes=pixel_bytes,
        region=region,
        spacing_mm=spacing_mm,
        study_uid=uids[0],
        series_uid=uids[1],
        sop_class_uid=str(dataset.get("SOPClassUID", "")),
        sop_uid=uids[2],
    )


def _region(
    dataset: Any, rows: int, columns: int, label: str
) -> tuple[tuple[slice, slice] | None, tuple[float, float] | None]:
    """The largest two-dimensional region of tissue, and the pixel size that holds there."""
    best: tuple[int, tuple[slice, slice], tuple[float, float]] | None = None
    for item in dataset.get("SequenceOfUltrasoundRegions") or []:
        units = (item.get("PhysicalUnitsXDirection"), item.get("PhysicalUnitsYDirection"))
        kind = (item.get("RegionDataType"), item.get("RegionSpatialFormat"))
        if kind != (_TISSUE, _TWO_DIMENSIONS) or units != (_CENTIMETRES, _CENTIMETRES):
            continue
        left, top, right, bottom = (
            int(item.get(f"RegionLocation{name}", -1)) for name in ("MinX0", "MinY0", "MaxX1", "MaxY1")
        )
        column_mm, row_mm = (10 * abs(float(item.get(f"PhysicalDelta{axis}") or 0)) for axis in "XY")
        if not (0 <= left < right and 0 <= top < bottom and right <= columns and bottom <= rows):
            raise AcouslicError(
                f"{label}: its image region ({left}, {top}) to ({right}, {bottom}) lies outside its frame"
            )
        if not all(math.isfinite(value) and value > 0 for value in (row_mm, column_mm)):
            raise AcouslicError(f"{label}: the pixel size of its image region must be a positive number")
        # The last row and column belong to the region; some writers name the first ones outside.
        region = (slice(top, min(bottom + 1, rows)), slice(left, min(right + 1, columns)))
        area = (bottom - top) * (right - left)
        if best is None or area > best[0]:
            best = area, region, (row_mm, column_mm)
    if best is not None:
        return best[1], best[2]
    stated = dataset.get("PixelSpacing")
    if not stated:
        return None, None
    row_mm, column_mm = (float(value) for value in stated)
    if not all(math.isfinite(value) and value > 0 for value in (row_mm, column_mm)):
        raise AcouslicError(f"{label}: its PixelSpacing must be two positive numbers in mm")
    return None, (row_mm, column_mm)


def _whole(value: object) -> int:
    """A number to sort by; 0 where there is none."""
    text = str(value or "")
    return int(text) if re.fullmatch("-?[0-9]{1,12}", text) else 0
