"""One case, from its files to its result. This is what a worker does."""

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from acouslic.errors import AcouslicError
from acouslic.frame_labels import OPTIMAL
from acouslic.geometry import SPACING_MM, sweep_index, sweep_ranges
from acouslic.sockets import NO_FRAME
from evaluation.inputs.case_truth import CaseTruth
from evaluation.inputs.frame_scores import FrameScores, read_frame_scores
from evaluation.inputs.ground_truth import TruthSource, read_truth
from evaluation.inputs.masks import read_predicted_mask
from evaluation.inputs.own_judgement import read_own_judgement
from evaluation.inputs.predictions import Submission
from evaluation.metrics.case_result import CaseResult, Polygon
from evaluation.metrics.official import distance_in_sweep, score_case

_OUTLINE_TOLERANCE_PX = 0.75
"""How far a simplified outline may run from the real one, where that takes no more corners than allowed."""
_MOST_OUTLINES, _MOST_CORNERS = 10, 400
_SPACING_TOLERANCE = 0.01


@dataclass(frozen=True)
class CaseTask:
    """What a worker needs to know."""

    source: TruthSource
    submission: Submission | None
    """None for a case that has failed already: it gets the scores of "no frame"."""
    failure: str | None
    lenient: bool
    cache_dir: Path | None


def evaluate_case(task: CaseTask) -> CaseResult:
    """The result of one case.

    Raises AcouslicError, naming the case, for a damaged reference, and for a damaged submission unless `lenient`.
    """
    truth = read_truth(task.source, task.cache_dir)
    failure = task.failure
    if task.submission is not None:
        try:
            return _evaluate_submission(truth, task.submission)
        except AcouslicError as error:
            if not task.lenient:
                raise
            failure = str(error)
        except MemoryError:
            failure = f"case {truth.case}: its output needs more memory than a worker may take"
            if not task.lenient:
                raise AcouslicError(failure) from None
    nothing = np.zeros((truth.rows, truth.columns), dtype=bool)
    return _result(truth, NO_FRAME, nothing, None, failure=failure, exec_duration_s=None)


def _evaluate_submission(truth: CaseTruth, submission: Submission) -> CaseResult:
    mask = read_predicted_mask(submission.mask_path, truth, submission.frame_number)
    scores = None
    if submission.scores_path is not None:
        scores = read_frame_scores(submission.scores_path, truth.frames, truth.case)
    judgement = None
    if submission.judgement_path is not None:
        judgement = read_own_judgement(submission.judgement_path, truth.case)
    result = _result(
        truth, submission.frame_number, mask, scores, failure=None, exec_duration_s=submission.exec_duration_s
    )
    return replace(
        result,
        suitable=None if judgement is None else judgement.suitable,
        interval_mm=None if judgement is None else judgement.interval_mm,
        confidence=_confidence(scores, submission.frame_number),
    )


def _confidence(scores: FrameScores | None, frame_number: int) -> float | None:
    if scores is None or scores.presence_alone_probability is None:
        return None
    return 0.0 if frame_number == NO_FRAME else float(scores.presence_alone_probability[frame_number])


def _result(
    truth: CaseTruth,
    frame_number: int,
    mask: np.ndarray,
    scores: FrameScores | None,
    *,
    failure: str | None,
    exec_duration_s: float | None,
) -> CaseResult:
    official = score_case(truth, frame_number, mask)
    outline_frame = int(official.values["NearestAnnotatedFrame"])  # where an overlap borrows another frame's reference
    if outline_frame == frame_number:
        outline_frame = _reference_outline_frame(truth, frame_number)
    reference = () if outline_frame == NO_FRAME else outlines_px(truth.mask(outline_frame))
    return CaseResult(
        case=truth.case,
        subject_id=truth.subject_id,
        frame_number=frame_number,
        official=official.finite(),
        undefined_overlap=bool(official.undefined()),
        both_empty=official.both_empty,
        reference_ac_mm=official.reference_ac_mm,
        predicted_ac_mm=official.predicted_ac_mm,
        frame_labels=truth.frame_labels,
        annotated_sweeps=truth.annotated_sweeps(),
        presence_probability=None if scores is None else scores.presence_probability,
        optimality_probability=None if scores is None else scores.optimality_probability,
        presence_threshold=None if scores is None else scores.presence_threshold,
        optimality_threshold=None if scores is None else scores.optimality_threshold,
        annotated_distance_frames=distance_in_sweep(truth.frame_labels > 0, frame_number),
        optimal_distance_frames=distance_in_sweep(truth.frame_labels == OPTIMAL, frame_number),
        rows=truth.rows,
        columns=truth.columns,
        other_pixel_size=truth.spacing_mm is not None
        and not np.allclose(truth.spacing_mm, SPACING_MM, rtol=_SPACING_TOLERANCE, atol=0),
        reference_outline_frame_number=outline_frame,
        reference_outline_px=reference,
        predicted_outline_px=outlines_px(mask),
        failure=failure,
        exec_duration_s=exec_duration_s,
    )


def outlines_px(mask: np.ndarray) -> tuple[Polygon, ...]:
    """The outer outlines of a mask, bool (R, C), as simplified polygons; none for an empty one.

    A mask can be built to have a hundred thousand outlines: the largest ten are kept, of at most 400 corners each.
    """
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    largest = sorted(contours, key=cv2.contourArea, reverse=True)[:_MOST_OUTLINES]
    return tuple(_simplified(contour) for contour in largest)


def _simplified(contour: np.ndarray) -> Polygon:
    tolerance_px = _OUTLINE_TOLERANCE_PX
    polygon = cv2.approxPolyDP(contour, tolerance_px, True)
    while len(polygon) > _MOST_CORNERS:
        tolerance_px *= 2
        polygon = cv2.approxPolyDP(contour, tolerance_px, True)
    return polygon.reshape(-1, 2)


def _reference_outline_frame(truth: CaseTruth, frame_number: int) -> int:
    """The annotated frame nearest to the chosen one, in its sweep where that has any; the first where none is chosen,
    -1 where there is none."""
    annotated = truth.annotated_frames
    if not len(annotated):
        return NO_FRAME
    if frame_number == NO_FRAME:
        return int(annotated[0])
    sweep = sweep_ranges(truth.frames)[sweep_index(frame_number, truth.frames)]
    in_sweep = annotated[(annotated >= sweep.start) & (annotated < sweep.stop)]
    candidates = in_sweep if len(in_sweep) else annotated
    return int(candidates[np.abs(candidates - frame_number).argmin()])
