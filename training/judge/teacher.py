"""What the ensemble teaches of each frame, and what a student makes of it: probabilities, before any smoothing.

A case is taught only by members that did not learn from it: what a member says of its own training cases is too sure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from algorithm.frames.preprocess import normalise
from algorithm.judgement.select_frame import Values
from algorithm.model.manifest import SelectionConfig
from algorithm.model.networks import MemberConfig, PreprocessingConfig
from algorithm.model.student import Student
from training.judge.calibrate import Calibration, judge_cases
from training.learn.out_of_fold import OutOfFold
from training.learn.student_learner import TaughtTable
from training.release.cache import Cache, CachedCase

_UNSMOOTHED = SelectionConfig(smoothing_sigma_frames=0.0, choice_sigma_frames=0.0)
_BATCH = 64


@dataclass(frozen=True)
class FrameOpinions:
    """What somebody says of every frame of a case."""

    presence: Values
    """(F,) in 0..1."""
    optimality: Values | None
    """(F,) in 0..1; None from whom does not judge it."""


def teach(scored: Sequence[OutOfFold], members: Sequence[MemberConfig]) -> dict[str, FrameOpinions]:
    """By case, the mean of the calibrated members that did not learn from it; `scored` is each member's word.

    A black frame has presence 0: in inference it has that, whatever a student makes of it.
    """
    calibrations = [Calibration.of(member) for member in members]
    return {
        case.uuid: FrameOpinions(case.frames.presence_alone, case.frames.optimality)
        for case in judge_cases(scored, calibrations, _UNSMOOTHED)
    }


def taught_table(cache: Cache, uuids: Sequence[str], lessons: Mapping[str, FrameOpinions]) -> TaughtTable:
    """The frames of some cases, with what is taught of them."""
    taught = [lessons[uuid] for uuid in uuids]
    optimality = [lesson.optimality for lesson in taught if lesson.optimality is not None]
    return TaughtTable(
        [cache.case(uuid) for uuid in uuids],
        np.concatenate([lesson.presence for lesson in taught]),
        np.concatenate(optimality) if len(optimality) == len(taught) else None,
    )


@torch.inference_mode()
def ask_student(
    student: Student, case: CachedCase, preprocessing: PreprocessingConfig, device: torch.device
) -> FrameOpinions:
    """What a student in float32 on `device` says of every frame of a case."""
    presence, optimality = [], []
    for start in range(0, case.frame_count, _BATCH):
        frames = torch.from_numpy(np.array(case.frames[start : start + _BATCH])).to(device)
        found = student(normalise(frames, preprocessing, torch.float32))
        presence.append(_probability(found[0]))
        if found[1] is not None:
            optimality.append(_probability(found[1]))
    return FrameOpinions(np.concatenate(presence), np.concatenate(optimality) if optimality else None)


def _probability(logit: torch.Tensor) -> Values:
    return np.asarray(logit.sigmoid().cpu().numpy().astype(np.float64))
