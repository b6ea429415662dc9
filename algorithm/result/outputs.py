"""A case's result and its files: all of them complete, or none."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acouslic.ellipse import Ellipse
from acouslic.errors import AcouslicError, ShortageError
from acouslic.geometry import index_of_sweep
from acouslic.sockets import CIRCUMFERENCE_FILE, FRAME_NUMBER_FILE, NO_FRAME, SCORES_FILE, SEGMENTATION_FILE
from acouslic.stack import StackHeader
from acouslic.write import check_outputs, write_bytes, write_json, write_mask_stack
from algorithm.judgement.select_frame import Values, positive_runs
from algorithm.model.manifest import Thresholds
from algorithm.result.growth import AGE_SOURCE, STANDARD, Growth
from algorithm.result.segment import Mask

SCHEMA_VERSION = 1
INTERVAL_OF = "members and neighbouring frames"
INTERVAL_OF_ERROR = f"{INTERVAL_OF}, and the error within which nine of ten validation sweeps lay"
PREVIEW_FILE = "preview.png"
RECORD_FILE = "case.json"
AMENDMENT_FILE = "amendment.json"
REPORT_FILE = "report.html"
DICOM_SEGMENTATION_FILE = "segmentation.dcm"
DICOM_REPORT_FILE = "measurement-report.dcm"
_OF_A_RUN = (FRAME_NUMBER_FILE, SEGMENTATION_FILE, SCORES_FILE, CIRCUMFERENCE_FILE)
"""What `write_result` writes, all that there is without `predict`. The frame number, which says that a result is
complete, is the first to be removed."""
_FOR_PEOPLE = (PREVIEW_FILE, REPORT_FILE, DICOM_SEGMENTATION_FILE, DICOM_REPORT_FILE, RECORD_FILE)
_PROBABILITY_DECIMALS = 6


@dataclass(frozen=True)
class CaseResult:
    """What a run says about a case."""

    case: str
    header: StackHeader
    frame_index: int | None
    """The chosen frame; None where there is none that the settings allow to name."""
    suitable: bool
    mask: Mask
    """(rows, columns); empty without a frame."""
    ellipse: Ellipse | None
    circumference_mm: float | None
    interval_mm: tuple[float, float] | None
    presence_probability: Values
    """(F,), smoothed within sweeps and, where the artifact says how, judged against the case's best frames."""
    presence_alone_probability: Values
    """(F,), smoothed only: what `suitable` is judged by."""
    optimality_probability: Values | None
    refined: NDArray[np.bool_]
    """(F,): seen by the whole ensemble."""
    thresholds: Thresholds
    notes: tuple[str, ...]
    """Sentences that qualify the result."""
    circumference_error: float | None = None
    """The model's: within it, relative to the larger of measured and true, nine of ten validation sweeps lay, and the
    interval reaches at least so far. None where it states none."""
    growth: Growth | None = None
    """What the circumference means at the age that was given; None where none was."""

    @property
    def frame_number(self) -> int:
        """As the platform has it: -1 is none."""
        return NO_FRAME if self.frame_index is None else self.frame_index

    @property
    def sweep_number(self) -> int | None:
        """The chosen frame's sweep, counted from 1."""
        return None if self.frame_index is None else 1 + index_of_sweep(self.frame_index, self.header.sweeps)


def prepare_output(output_dir: Path) -> None:
    """Make sure that `write_result` can write to `output_dir` and that none of its files is there from an earlier run.

    Other files stay: a page, a preview or a record there may be the user's own. `complete_or_absent` removes those of
    an earlier `predict`.
    Raises AcouslicError where the folder cannot be made or written, or where a file that is not ours lies in the
    segmentation's folder: the platform takes exactly one image there.
    """
    remove_files_of_run(output_dir)
    folder = (output_dir / SEGMENTATION_FILE).parent
    probe = folder / ".writable"
    write_bytes(probe, b"")
    probe.unlink()
    foreign = sorted(item.name for item in folder.iterdir())
    if foreign:
        raise AcouslicError(f"{folder} already holds {foreign[0]}, but may only hold the result: empty it")


def remove_files_of_run(output_dir: Path) -> None:
    """Remove the four files that `write_result` writes, whole or partial, and the mask's folder if it is empty then.
    Raises AcouslicError where a file cannot be removed."""
    _remove(output_dir, _OF_A_RUN)


def remove_results(output_dir: Path) -> None:
    """Likewise all files that `predict` writes for a case, those for people too."""
    _remove(output_dir, (*_OF_A_RUN, *_FOR_PEOPLE))


def _remove(output_dir: Path, names: Sequence[str]) -> None:
    for name in names:
        path = output_dir / name
        for leftover in (path, path.with_name(f".{path.stem}.partial{path.suffix}")):
            try:
                leftover.unlink(missing_ok=True)
            except NotADirectoryError:
                pass  # Some part of the path is a file: nothing is there, and writing will say so.
            except OSError as error:
                # A read-only file system refuses before it looks whether there is anything to remove.
                if os.path.lexists(leftover):
                    raise ShortageError(
                        f"{leftover} of an earlier run could not be removed: {error.strerror}"
                    ) from error
    for folder in ((output_dir / SEGMENTATION_FILE).parent, (output_dir / SEGMENTATION_FILE).parent.parent):
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def removed_on_failure(output_dir: Path) -> Iterator[None]:
    """Whatever ends the block early, even an interrupt: no file of `write_result` stays."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(AcouslicError):
            remove_files_of_run(output_dir)
        raise


def write_result(result: CaseResult, output_dir: Path) -> None:
    """Write the four files, the frame number last, and read the platform's two back.

    Raises AcouslicError where a file cannot be written or does not read back as it should; no file stays then.
    """
    header = result.header
    with removed_on_failure(output_dir):
        write_mask_stack(
            output_dir / SEGMENTATION_FILE,
            result.mask,
            result.frame_index,
            header.frames,
            header.spacing_mm,
            header.frame_spacing,
        )
        write_json(output_dir / SCORES_FILE, scores_json(result))
        write_json(output_dir / CIRCUMFERENCE_FILE, circumference_json(result))
        write_json(output_dir / FRAME_NUMBER_FILE, result.frame_number)
        check_outputs(output_dir, header)


def scores_json(result: CaseResult) -> dict[str, Any]:
    """The content of `frame-quality-scores.json`. All frame numbers count from 0 over the whole stack."""
    positive = result.presence_probability >= result.thresholds.presence
    sweeps = result.header.sweeps
    optimality = result.optimality_probability
    return {
        "schema_version": SCHEMA_VERSION,
        "frames": result.header.frames,
        "thresholds": {
            "presence": result.thresholds.presence,
            "optimality": result.thresholds.optimality,
            "suitable": result.thresholds.suitable,
        },
        "presence_probability": _rounded(result.presence_probability),
        "presence_alone_probability": _rounded(result.presence_alone_probability),
        "optimality_probability": None if optimality is None else _rounded(optimality),
        "refined_frames": [[run[0], run[-1]] for run in positive_runs(result.refined, range(len(result.refined)))],
        "sweeps": [
            _sweep_json(number, sweep, result.presence_probability, positive)
            for number, sweep in enumerate(sweeps, start=1)
        ],
    }


def circumference_json(result: CaseResult) -> dict[str, Any]:
    """The content of `fetal-abdominal-circumference.json`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "suitable": result.suitable,
        "frame_number": result.frame_number,
        "sweep": result.sweep_number,
        "circumference_mm": result.circumference_mm,
        "interval_mm": None if result.interval_mm is None else list(result.interval_mm),
        "interval_of": INTERVAL_OF if result.circumference_error is None else INTERVAL_OF_ERROR,
        "circumference_error": result.circumference_error,
        "ellipse": None if result.ellipse is None else ellipse_json(result.ellipse),
        "spacing_mm": list(result.header.spacing_mm),
        "growth": None if result.growth is None else growth_json(result.growth),
        "notes": list(result.notes),
    }


def ellipse_json(ellipse: Ellipse) -> dict[str, Any]:
    """An ellipse in pixels, as `acouslic.ellipse.Ellipse` has it."""
    return {
        "centre_px": list(ellipse.centre_px),
        "semi_axes_px": list(ellipse.semi_axes_px),
        "angle_degrees": ellipse.angle_degrees,
    }


def growth_json(growth: Growth) -> dict[str, Any]:
    """The part of `fetal-abdominal-circumference.json` that follows from a gestational age. Research, no diagnosis."""
    interval = growth.centile_interval
    return {
        "gestational_age": str(growth.age),
        "gestational_age_days": growth.age.days,
        "standard": STANDARD,
        "centile": growth.centile,
        "centile_interval": None if interval is None else list(interval),
        "z_score": _or_none(growth.z_score, 3),
        "expected_mm": _or_none(growth.expected_mm, 1),
        "age_by_circumference_alone": None
        if growth.age_by_circumference_weeks is None
        else {
            "weak": True,
            "weeks": growth.age_by_circumference_weeks,
            "two_standard_deviations_weeks": growth.age_error_weeks,
            "source": AGE_SOURCE,
        },
        "not_a_diagnosis": True,
    }


def _or_none(value: float | None, decimals: int) -> float | None:
    return None if value is None else round(value, decimals)


def _sweep_json(number: int, sweep: range, presence: Values, positive: NDArray[np.bool_]) -> dict[str, Any]:
    inside = presence[sweep.start : sweep.stop]
    best = sweep.start + int(np.argmax(inside))
    runs = positive_runs(positive, sweep)
    longest = max(runs, key=len, default=None)
    return {
        "sweep": number,
        "first_frame": sweep[0],
        "last_frame": sweep[-1],
        "best_frame": best,
        "best_presence_probability": round(float(presence[best]), _PROBABILITY_DECIMALS),
        "positive_frames": sum(map(len, runs)),
        "longest_run": None if longest is None else [longest[0], longest[-1]],
    }


def _rounded(probability: Values) -> list[float]:
    return [round(value, _PROBABILITY_DECIMALS) for value in probability.tolist()]
