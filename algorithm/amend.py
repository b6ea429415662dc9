"""`amend`: adds a measurement by hand beside the result that it corrects."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from acouslic.ellipse import circumference_mm, draw_ellipse
from acouslic.errors import AcouslicError
from acouslic.fov import field_of_view
from acouslic.locks import locked
from acouslic.sockets import CIRCUMFERENCE_FILE, FRAME_NUMBER_FILE, SCORES_FILE, SEGMENTATION_FILE
from acouslic.stack import StackHeader, open_stack
from acouslic.write import check_outputs, write_bytes, write_json, write_mask_stack
from algorithm.result.correction import Correction, ellipse_of, read_correction
from algorithm.result.growth import judge_growth, parse_age
from algorithm.result.outputs import AMENDMENT_FILE, SCHEMA_VERSION, ellipse_json, growth_json
from algorithm.result.segment import Mask, as_measured

_AMENDED = re.compile(r"amended-([0-9]{1,9})")
_CHANGING = (
    "frame_number",
    "sweep",
    "circumference_mm",
    "interval_mm",
    "circumference_error",
    "ellipse",
    "suitable",
    "growth",
)
"""Fields of the result that a correction may change."""
_SAME_MM = 0.01
"""Between the browser's circumference and ours: the same formula on numbers of three decimals."""


def amend(case_dir: Path, correction_path: Path) -> Path:
    """Write what a correction makes of the result in `case_dir` into a new folder there, `amended-1` or the next.

    The folder holds the files of a case, and `amendment.json` with who changed what. The original stays as it is, and
    so do earlier amendments; the one with the highest number counts. Returns the new folder.
    Raises AcouslicError where the correction is not one that the case's page saves, belongs to another result, or does
    not measure what it says, and where a file cannot be written; nothing new stays then.
    """
    correction = read_correction(correction_path)
    original = _read_original(case_dir, correction)
    # The original's spacing may have been given by hand: the mask alone would not be believed where it says 1 mm.
    row_mm, column_mm = original["spacing_mm"]
    header = open_stack(case_dir / SEGMENTATION_FILE, spacing_mm=(row_mm, column_mm)).header
    if correction.frame_number >= header.frames:
        raise AcouslicError(f"{correction_path} names frame {correction.frame_number}; the last is {header.frames - 1}")
    sweep = _sweep_number(case_dir, correction.frame_number)
    mask, is_measured_so = _draw(correction, header)
    amended = _amended(original, correction, sweep, is_measured_so=is_measured_so)
    # Another reader may correct the same case now: each gets a folder of its own, one after the other.
    with locked(case_dir, wait=True):
        folder = _next_folder(case_dir)
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            _write(partial, case_dir, amended, mask, header)
            amendment = _amendment(original, amended, correction, correction_path)
            write_json(partial / AMENDMENT_FILE, amendment)
            check_outputs(partial, header)
            partial.rename(folder)
        except OSError as error:
            raise AcouslicError(f"{folder} could not be written: {error.strerror}") from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _read_original(case_dir: Path, correction: Correction) -> dict[str, Any]:
    """The original's `fetal-abdominal-circumference.json`, which must be the one that was corrected."""
    path = case_dir / CIRCUMFERENCE_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AcouslicError(
            f"{path} could not be read ({error.strerror}): name the folder of the case that was corrected"
        ) from None
    if hashlib.sha256(content).hexdigest() != correction.result_sha256:
        raise AcouslicError(
            f"the correction was made for another result than the one in {case_dir}: name that case's folder, or "
            "correct the new result on its page"
        )
    original: dict[str, Any] = json.loads(content)
    return original


def _amended(original: dict[str, Any], correction: Correction, sweep: int, *, is_measured_so: bool) -> dict[str, Any]:
    """The amended content of `fetal-abdominal-circumference.json`; `is_measured_so` says whether the official evaluator
    measures the mask as the ellipse is."""
    ellipse = ellipse_of(correction)
    row_mm, column_mm = original["spacing_mm"]
    measured_mm = circumference_mm(ellipse, (row_mm, column_mm))
    if abs(measured_mm - correction.circumference_mm) > _SAME_MM:
        raise AcouslicError(
            f"the correction says {correction.circumference_mm:.2f} mm, but its ellipse measures {measured_mm:.2f} mm: "
            "save it again from the page"
        )
    notes = [f"measured by hand by {correction.reader}, see {AMENDMENT_FILE}"]
    if not is_measured_so:
        notes.append("the challenge's evaluator measures another circumference on this mask: the field of view cuts it")
    growth = original.get("growth")
    if growth is not None:
        judged = judge_growth(measured_mm, None, parse_age(growth["gestational_age"]))
        growth, notes = growth_json(judged), [*notes, *judged.notes]
    return {
        **original,
        "schema_version": SCHEMA_VERSION,
        # Somebody looked at this frame and measured it; whether it is suitable is no longer the model's to say.
        "suitable": True,
        "frame_number": correction.frame_number,
        "sweep": sweep,
        "circumference_mm": measured_mm,
        "interval_mm": None,
        "circumference_error": None,
        "ellipse": ellipse_json(ellipse),
        "growth": growth,
        "notes": [*notes, *(f"of the model's result: {note}" for note in original["notes"])],
    }


def _sweep_number(case_dir: Path, frame_index: int) -> int:
    """The sweep of a frame, counted from 1, as the case's scores have the sweeps."""
    path = case_dir / SCORES_FILE
    try:
        sweeps = json.loads(path.read_text(encoding="utf-8"))["sweeps"]
        return next(sweep["sweep"] for sweep in sweeps if sweep["first_frame"] <= frame_index <= sweep["last_frame"])
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        raise AcouslicError(f"{path} is missing or damaged: analyse the case again") from None


def _draw(correction: Correction, header: StackHeader) -> tuple[Mask, bool]:
    """The corrected ellipse as a mask (rows, columns), and whether the official evaluator measures it so. Raises
    AcouslicError where none of it lies in the field of view."""
    ellipse, fov = ellipse_of(correction), field_of_view(header.rows, header.columns)
    drawn = draw_ellipse(ellipse, header.rows, header.columns)
    inside = drawn & fov
    if not np.any(inside):
        raise AcouslicError("the correction's ellipse lies outside the field of view: measure the abdomen again")
    mask, official = as_measured(inside, ellipse, fov)
    return mask, official is not None


def _write(folder: Path, case_dir: Path, amended: dict[str, Any], mask: Mask, header: StackHeader) -> None:
    write_mask_stack(
        folder / SEGMENTATION_FILE,
        mask,
        amended["frame_number"],
        header.frames,
        header.spacing_mm,
        header.frame_spacing,
    )
    write_json(folder / CIRCUMFERENCE_FILE, amended)
    write_bytes(folder / SCORES_FILE, (case_dir / SCORES_FILE).read_bytes())
    write_json(folder / FRAME_NUMBER_FILE, amended["frame_number"])


def _amendment(original: dict[str, Any], amended: dict[str, Any], correction: Correction, path: Path) -> dict[str, Any]:
    """Who changed what, when and why."""
    changed = {
        name: {"from": original.get(name), "to": amended.get(name)}
        for name in _CHANGING
        if original.get(name) != amended.get(name)
    }
    return {
        "schema_version": 1,
        "amends_sha256": correction.result_sha256,
        "reader": correction.reader,
        "comment": correction.comment,
        "made_at": correction.made_at,
        "correction_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "changed": changed,
    }


def _next_folder(case_dir: Path) -> Path:
    """The one after the highest number, which counts; one that somebody has removed leaves a gap."""
    taken = [int(found[1]) for path in case_dir.iterdir() if (found := _AMENDED.fullmatch(path.name))]
    return case_dir / f"amended-{max(taken, default=0) + 1}"
