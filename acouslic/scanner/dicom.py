"""Ultrasound in DICOM, one file or one a sweep: grey frames, sweeps and pixel size. pydicom reads it.

Results and messages refer to UIDs alone. A patient's name is never read, and a file's own name, which may hold it, is
not passed on once its header has been read: it is called by its SOPInstanceUID.

What lies outside the image region (text, colour bars, another view) is set to black; the pixel size is the region's
(DICOM PS3.3 C.8.5.5). Decoders: pydicom's own for uncompressed and RLE, pylibjpeg's for the JPEGs.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acouslic.errors import AcouslicError
from acouslic.geometry import told_apart
from acouslic.reading.source import SourceFile, SourceHeader
from acouslic.scanner.dicom_header import DicomFile, read_dicom_header
from acouslic.scanner.dicom_pixels import grey_frames

_SPACING_TOLERANCE = 1e-3


@dataclass(frozen=True)
class DicomStack:
    """The files of a case, in order."""

    header: SourceHeader
    files: tuple[DicomFile, ...]

    def frames(self) -> Generator[NDArray[Any], None, None]:
        """As `FrameSource.frames`."""
        first = 0
        for file in self.files:
            for grey in grey_frames(file, first):
                if file.region is not None:
                    inside = grey[file.region].copy()
                    grey[...] = 0
                    grey[file.region] = inside
                yield grey
            first += file.frames


def open_dicom(path: Path, paths: Sequence[Path]) -> DicomStack:
    """Read and check the headers of the files of one case; no pixel is decoded. `path` is what the user named.

    A file of many frames is a sweep; files of one frame each are one sweep a series, in the order of their numbers.
    Raises AcouslicError where a file is damaged or no ultrasound, or the files are not of one study, frame size and
    pixel size.
    """
    files = _in_order([read_dicom_header(one) for one in paths])
    first = files[0]
    studies = {file.study_uid for file in files}
    if len(studies) > 1:
        raise AcouslicError(
            f"the folder holds DICOM files of {len(studies)} studies, such as {first.study_uid}: give each study a "
            "folder of its own"
        )
    if len({file.sop_uid for file in files}) < len(files):
        raise AcouslicError(f"the folder holds two copies of one DICOM file, of study {first.study_uid}: keep one")
    for file in files:
        if (file.rows, file.columns) != (first.rows, first.columns):
            raise AcouslicError(
                f"{file.label}: expected frames of {first.rows} x {first.columns} as in {first.label}, got {file.rows} "
                f"x {file.columns}"
            )
        if (file.spacing_mm is None) != (first.spacing_mm is None) or (
            file.spacing_mm is not None
            and not np.allclose(file.spacing_mm, first.spacing_mm or 0, rtol=_SPACING_TOLERANCE, atol=0)
        ):
            raise AcouslicError(f"{file.label}: its pixel size differs from that of {first.label}; expected one depth")
    return DicomStack(_header(path, files), tuple(files))


def dicom_case_name(paths: Sequence[Path]) -> str:
    """What a case of these files is called: the UID of the one file, of the series, or of the study.

    Raises AcouslicError as `read_dicom_header`.
    """
    files = [read_dicom_header(path) for path in paths]
    if len(files) == 1:
        return files[0].sop_uid
    series = {file.series_uid for file in files}
    return files[0].series_uid if len(series) == 1 else files[0].study_uid


def _in_order(files: Sequence[DicomFile]) -> list[DicomFile]:
    """By series, in each as `DicomFile.order` has it. A series comes where its first file would: their numbers may be
    missing or the same, and frames of one sweep must not come between those of another."""
    begins: dict[str, tuple[object, ...]] = {}
    for file in sorted(files, key=lambda file: file.order):
        begins.setdefault(file.series_uid, file.order)
    return sorted(files, key=lambda file: (begins[file.series_uid], file.order))


def _header(path: Path, files: Sequence[DicomFile]) -> SourceHeader:
    first = files[0]
    label = first.label if len(files) == 1 else f"DICOM study {first.study_uid}"
    notes = []
    if first.samples > 1:
        notes.append(f"{label} stores its frames in colour; their brightness is used")
    if first.region is None:
        notes.append(f"{label} names no image region; the whole frame is used")
    bits = 8 * first.pixel_bytes // first.samples
    return SourceHeader(
        path,
        sum(file.frames for file in files),
        first.rows,
        first.columns,
        pixel_type=f"uint{bits}",
        pixel_bytes=max(file.pixel_bytes for file in files),
        spacing_mm=first.spacing_mm,
        notes=tuple(notes),
        sweep_lengths=_sweep_lengths(files),
        sources=tuple(
            SourceFile(file.path, file.frames, file.study_uid, file.series_uid, file.sop_class_uid, file.sop_uid)
            for file in files
        ),
        label=label,
    )


def _sweep_lengths(files: Sequence[DicomFile]) -> tuple[int, ...]:
    """A file of many frames is a sweep, and so are the single frames of a series that follow each other."""
    lengths: list[int] = []
    series_of_stills = None
    for file in files:
        if file.frames == 1 and file.series_uid == series_of_stills:
            lengths[-1] += 1
        else:
            lengths.append(file.frames)
        series_of_stills = file.series_uid if file.frames == 1 else None
    return told_apart(lengths)
