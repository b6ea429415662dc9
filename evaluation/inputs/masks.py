"""The predicted mask of a case: its header checked before a pixel is decoded, all of its frames checked, one kept."""

from pathlib import Path

import numpy as np

from acouslic.errors import AcouslicError
from acouslic.reading.metaimage import read_header
from acouslic.sockets import NO_FRAME
from acouslic.stack import StackHeader, open_stack
from evaluation.inputs.case_truth import CaseTruth
from evaluation.inputs.safe_path import MASK_SUFFIXES

UINT8_TYPES = ("MET_UCHAR", "uint8")
_SPACING_TOLERANCE = 0.01


def read_predicted_mask(path: Path, truth: CaseTruth, frame_number: int) -> np.ndarray:
    """The submitted mask of the chosen frame: bool (R, C), all False where `frame_number` is -1.

    The file is a stack of the case's shape, or one 2-D image (also as a stack of one frame), which is then the mask of
    the chosen frame. As in the official evaluator all frames of a stack must hold 0 and 1 only, but what other frames
    than the chosen one show does not count. Its spacing must be the reference's, where both state one: TIFF files often
    state none. Raises AcouslicError, naming the case, for anything else.
    """
    what = f"case {truth.case}"
    if frame_number >= truth.frames:
        raise AcouslicError(f"{what}: the frame number {frame_number} is outside -1..{truth.frames - 1}")
    try:
        if path.suffix.lower() not in MASK_SUFFIXES:
            raise AcouslicError(f"{what}: the mask {path.name} must be one file: {', '.join(MASK_SUFFIXES)}")
        reader = open_stack(path, most_frames=truth.frames)
        _check_header(reader.header, truth, what)
        single = reader.header.frames == 1
        mask = np.zeros((truth.rows, truth.columns), dtype=bool)
        for indices, chunk in reader.iter_chunks():
            if chunk.max() > 1:
                raise AcouslicError(f"{what}: the mask {path.name} holds other values than 0 and 1")
            if frame_number != NO_FRAME and (single or frame_number in indices):
                mask = chunk[0 if single else frame_number - indices.start].astype(bool)
    except (MemoryError, ValueError) as error:
        raise AcouslicError(f"{what}: the mask {path.name} cannot be read: {type(error).__name__}") from error
    except AcouslicError as error:
        if str(error).startswith(what):
            raise
        raise AcouslicError(f"{what}: the mask cannot be read: {error}") from error
    return mask


def _expected_size(truth: CaseTruth) -> str:
    return f"expected the input's {truth.frames} of {truth.rows} x {truth.columns}, or one frame of that size"


def _check_header(header: StackHeader, truth: CaseTruth, what: str) -> None:
    mask = f"{what}: the mask {header.path.name}"
    suffix = header.path.suffix.lower()
    if suffix == ".mha" and read_header(header.path).pixel_path != header.path:
        raise AcouslicError(f"{mask} names another file as its pixels; write it as one file (ElementDataFile = LOCAL)")
    got, expected = (header.frames, header.rows, header.columns), (truth.frames, truth.rows, truth.columns)
    if got not in (expected, (1, *expected[1:])):
        raise AcouslicError(f"{mask} has {got[0]} frames of {got[1]} x {got[2]} pixels; {_expected_size(truth)}")
    if header.notes:
        raise AcouslicError(f"{mask} is stored in colour; expected one grey channel")
    if header.pixel_type not in UINT8_TYPES:
        raise AcouslicError(f"{mask} has pixels of type {header.pixel_type}; expected unsigned 8-bit integers (uint8)")
    if suffix == ".mha" and truth.spacing_mm is not None:
        stated = header.spacing_note is None
        if not stated or not np.allclose(header.spacing_mm, truth.spacing_mm, rtol=_SPACING_TOLERANCE, atol=0):
            found = "{:g} x {:g} mm".format(*header.spacing_mm) if stated else "no plausible one"
            raise AcouslicError(
                f"{mask} must have the input's pixel spacing, {truth.spacing_mm[0]:g} x {truth.spacing_mm[1]:g} mm; "
                f"found {found}"
            )
