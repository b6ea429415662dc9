"""What was submitted: the platform's `predictions.json`, or a folder of outputs of `algorithm predict`.

Everything here comes from strangers. It is checked where it enters, and every message names the case or the job.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from acouslic.errors import AcouslicError
from acouslic.sockets import (
    CIRCUMFERENCE_FILE,
    FRAME_NUMBER_FILE,
    FRAME_NUMBER_SLUG,
    NO_FRAME,
    SCORES_FILE,
    SEGMENTATION_FILE,
    SEGMENTATION_SLUG,
    SWEEP_SLUG,
    case_name,
    socket_of,
)
from acouslic.strict_json import read_strict_json, shown
from evaluation.inputs.safe_path import checked_name, checked_relative_path, one_mask_inside, regular_file_inside

PREDICTIONS_FILE = "predictions.json"
PREDICTIONS_LIMIT_BYTES = 16 << 20
"""A job takes a few kB. Nested empty lists, the worst there is, take some 25 times this in memory."""
FRAME_NUMBER_LIMIT_BYTES = 4096

_SUCCEEDED = "Succeeded"
_DURATION = re.compile(r"P(?:(\d{1,4})D)?T(?:(\d{1,4})H)?(?:(\d{1,4})M)?(?:(\d{1,6}(?:\.\d{1,9})?)S)?")


@dataclass(frozen=True)
class Submission:
    """One case's output. Its files exist, are regular and lie inside the job's folder; nothing of them is read yet."""

    case: str
    frame_number: int
    """-1 none, otherwise at least 0; whether the stack has such a frame is known with the reference only."""
    mask_path: Path
    scores_path: Path | None
    """`frame-quality-scores.json`; None where the submission has none."""
    exec_duration_s: float | None = None
    judgement_path: Path | None = None
    """`fetal-abdominal-circumference.json`; None where there is none, and on the platform, which has no such output."""


def read_platform_predictions(input_dir: Path) -> list[Submission]:
    """The submissions of the platform's `/input`, sorted by case.

    Jobs may say `socket`, `interface` or both; a frame number whose `value` is null is read from its file. Raises
    AcouslicError at the first job that did not succeed, names a file outside its own folder, or lacks something, and
    for a case that two jobs answer.
    """
    # The platform's /input may itself be a link; what lies below it may not lead out.
    root = input_dir.resolve()
    jobs = read_strict_json(root / PREDICTIONS_FILE, PREDICTIONS_LIMIT_BYTES, "the list of jobs")
    if not isinstance(jobs, list) or not jobs:
        raise AcouslicError(f"{PREDICTIONS_FILE} must be a list of at least one job, not {shown(jobs)}")
    submissions: dict[str, Submission] = {}
    for index, job in enumerate(jobs):
        submission = _platform_submission(root, job, f"job {index} of {PREDICTIONS_FILE}")
        if submission.case in submissions:
            raise AcouslicError(
                f"case {submission.case} is there twice in {PREDICTIONS_FILE}: two jobs have it as input"
            )
        submissions[submission.case] = submission
    return [submissions[case] for case in sorted(submissions)]


def predicted_cases(folder: Path) -> list[str]:
    """The cases of a folder of `acouslic predict`, sorted: its folders, but for hidden and empty ones."""
    return [name for name, empty in _case_folders(folder) if not empty]


def empty_folders(folder: Path) -> list[str]:
    """The folders of `predicted_cases` that hold nothing, as a run leaves them that was stopped; sorted."""
    return [name for name, empty in _case_folders(folder) if empty]


def _case_folders(folder: Path) -> list[tuple[str, bool]]:
    try:
        folders = sorted(item for item in folder.iterdir() if item.is_dir() and not item.name.startswith("."))
        found = [(item.name, not any(item.iterdir())) for item in folders]
    except OSError as error:
        raise AcouslicError(
            f"{error.filename or folder} could not be read: {error.strerror}; expected a folder of predictions"
        ) from None
    return [(checked_name(name, f"{folder}: the name of a case"), empty) for name, empty in found]


def read_local_prediction(folder: Path, case: str) -> Submission:
    """One case of a folder of `algorithm predict`: `DIR/<case>/` laid out as the platform's `/output`.

    The case's folder may be a link. Raises AcouslicError, naming the case, where a file is missing or leads out of it.
    """
    what = f"case {case}"
    root = (folder / case).resolve()
    mask_path = one_mask_inside(root, PurePosixPath(SEGMENTATION_FILE).parent, what)
    frame_number = _frame_number_of_file(root, PurePosixPath(FRAME_NUMBER_FILE), what)
    judgement_path = _optional_file(root, CIRCUMFERENCE_FILE, what)
    scores_path = _optional_file(root, SCORES_FILE, what)
    return Submission(case, frame_number, mask_path, scores_path, judgement_path=judgement_path)


def check_cases(submitted: Iterable[str], expected: Iterable[str]) -> None:
    """Raises AcouslicError, naming a case, unless exactly the expected cases were submitted."""
    submitted_set, expected_set = set(submitted), set(expected)
    unknown, missing = sorted(submitted_set - expected_set), sorted(expected_set - submitted_set)
    if unknown:
        raise AcouslicError(
            f"case {unknown[0]} is not one of the {len(expected_set)} cases of the reference{_more(unknown)}: expected "
            "the folder that holds one folder a case"
        )
    if missing:
        raise AcouslicError(
            f"case {missing[0]} is missing from the submission{_more(missing)}; every case must be there"
        )


def checked_frame_number(value: object, what: str) -> int:
    """A frame number as JSON has it: an integer from -1. Raises AcouslicError for anything else, 3.0 and true too."""
    if type(value) is not int or value < NO_FRAME:
        raise AcouslicError(f"{what}: the frame number must be an integer from 0, or -1 for none, not {shown(value)}")
    return value


def _more(cases: list[str]) -> str:
    return f" (and {len(cases) - 1} more)" if len(cases) > 1 else ""


def _platform_submission(root: Path, job: Any, where: str) -> Submission:
    if not isinstance(job, dict):
        raise AcouslicError(f"{where} must be an object, not {shown(job)}")
    case = _case_of_job(job, where)
    what = f"case {case}"
    status = job.get("status", _SUCCEEDED)
    if status != _SUCCEEDED:
        raise AcouslicError(f"{what}: its job did not succeed, its status is {shown(status)}")
    job_root = root / checked_name(job.get("pk"), f"{what}: the job's pk") / "output"
    number_entry = _entry(job, "outputs", FRAME_NUMBER_SLUG, what)
    mask_path = one_mask_inside(job_root, _relative_path(job, SEGMENTATION_SLUG, what), what)
    if number_entry.get("value") is not None:
        frame_number = checked_frame_number(number_entry["value"], what)
    else:
        frame_number = _frame_number_of_file(job_root, _relative_path(job, FRAME_NUMBER_SLUG, what), what)
    duration_s = _duration_s(job.get("exec_duration"))
    if duration_s is None:
        duration_s = _duration_s(job.get("invoke_duration"))
    return Submission(case, frame_number, mask_path, _optional_file(job_root, SCORES_FILE, what), duration_s)


def _case_of_job(job: dict[str, Any], where: str) -> str:
    image = _entry(job, "inputs", SWEEP_SLUG, where).get("image")
    if not isinstance(image, dict):
        raise AcouslicError(f"{where}: its input {SWEEP_SLUG} has no image")
    name = checked_name(image.get("name"), f"{where}: the name of its input image")
    return checked_name(case_name(name), f"{where}: the name of its case")


def _entry(job: dict[str, Any], side: str, slug: str, what: str) -> dict[str, Any]:
    """The one input or output of a job with a socket's slug."""
    entries = job.get(side)
    if not isinstance(entries, list):
        raise AcouslicError(f"{what}: {side} must be a list of sockets, not {shown(entries)}")
    found = [entry for entry in entries if isinstance(entry, dict) and socket_of(entry).get("slug") == slug]
    if len(found) != 1:
        raise AcouslicError(f"{what}: expected one entry for {slug} among its {side}, found {len(found)}")
    return found[0]


def _relative_path(job: dict[str, Any], slug: str, what: str) -> PurePosixPath:
    value = socket_of(_entry(job, "outputs", slug, what)).get("relative_path")
    return checked_relative_path(value, f"{what}: relative_path of {slug}")


def _frame_number_of_file(root: Path, relative: PurePosixPath, what: str) -> int:
    path = regular_file_inside(root, relative, what)
    return checked_frame_number(read_strict_json(path, FRAME_NUMBER_LIMIT_BYTES, what), what)


def _optional_file(root: Path, name: str, what: str) -> Path | None:
    # A broken link is there: it is a damaged submission, not one without this file.
    path = root / name
    return regular_file_inside(root, PurePosixPath(name), what) if path.exists() or path.is_symlink() else None


def _duration_s(value: object) -> float | None:
    """Seconds of an ISO 8601 duration as the platform writes it, "P0DT00H00M42.5S"; None for anything else."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
