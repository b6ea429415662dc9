"""How far half precision is from float32, both ours: every member on every frame of some stacks.

Half precision must keep each probability within 0.02, the rank correlation of a case's frames above 0.999, and the
chosen frame in at least 98 % of cases.
"""

import contextlib
import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from acouslic.errors import AcouslicError
from algorithm.engine.batches import choose_batch_frames
from algorithm.engine.device import (
    MOST_HALF_DIFFERENCE,
)
from algorithm.engine.ensemble import Ensemble
from algorithm.frames.frame_stream import FrameStream
from algorithm.frames.resized_frames import ResizedFrames
from algorithm.judgement.score import FrameScores, score_case
from algorithm.model.artifact import load_artifact
from algorithm.model.manifest import ScoringConfig, SelectionConfig
from bench.figures.frame_choice import choose_frame, rank_correlation

LEAST_RANK_CORRELATION = 0.999
LEAST_SAME_FRAME_SHARE = 0.98


@dataclass(frozen=True)
class CaseParity:
    """How far two precisions are apart on one case."""

    sweep: str
    probability_difference: float
    """The largest of any member on any frame, presence, and of the members' mean, optimality."""
    rank_correlation: float
    """Of the frames by the members' mean presence probability."""
    float32_frame: int
    half_frame: int
    float32_quality_lost: float
    """By how much the frame chosen in half precision is worse in float32's own eyes: presence probability."""


def score_exhaustively(
    model: Path, sweeps: Sequence[Path], device: torch.device, dtype: torch.dtype
) -> list[tuple[FrameScores, np.ndarray]]:
    """All members on all frames of each stack, and which frames are blank (F,).

    Raises AcouslicError for a stack of black frames alone.
    """
    artifact = load_artifact(model)
    ensemble = Ensemble.from_artifact(artifact, device, dtype)
    tower, preprocessing = artifact.manifest.tower, artifact.manifest.preprocessing
    batch_frames = choose_batch_frames(tower, ensemble.members, device, dtype)
    found = []
    for sweep in sweeps:
        with contextlib.closing(FrameStream(sweep)) as stream:
            resized = ResizedFrames(stream, tower.image_size, preprocessing, device)
            scores = score_case(
                ensemble,
                resized.frames,
                ScoringConfig(mode="exhaustive"),
                batch_frames=batch_frames,
                wait_for=resized.fill,
            )
            blank = resized.blank()
            if blank.all():
                raise AcouslicError(f"{sweep} has only black frames: there is none to choose")
            found.append((scores, blank))
    del ensemble
    gc.collect()
    return found


def compare(
    sweep: str, exact: FrameScores, half: FrameScores, blank: np.ndarray, selection: SelectionConfig
) -> CaseParity:
    """One case, its frames not all blank."""
    differences = [np.abs(exact.member_presence - half.member_presence).max()]
    if exact.optimality_probability is not None:
        assert half.optimality_probability is not None
        differences.append(np.abs(exact.optimality_probability - half.optimality_probability).max())
    chosen = [choose_frame(s.presence_probability, s.optimality_probability, blank, selection) for s in (exact, half)]
    presence = chosen[0].presence_probability
    return CaseParity(
        sweep=sweep,
        probability_difference=float(np.max(differences)),
        rank_correlation=rank_correlation(exact.presence_probability, half.presence_probability),
        float32_frame=chosen[0].frame_index,
        half_frame=chosen[1].frame_index,
        float32_quality_lost=float(presence[chosen[0].frame_index] - presence[chosen[1].frame_index]),
    )


def summary(cases: Sequence[CaseParity], precision: str, device: str) -> dict[str, object]:
    """The worst of all cases, and whether the bounds hold."""
    difference = float(np.max([case.probability_difference for case in cases]))
    correlation = min(case.rank_correlation for case in cases)
    same = sum(case.float32_frame == case.half_frame for case in cases) / len(cases)
    return {
        "precision": precision,
        "device": device,
        "cases": [asdict(case) for case in cases],
        "probability_difference": difference,
        "rank_correlation": correlation,
        "same_frame_share": same,
        "within_bounds": difference <= MOST_HALF_DIFFERENCE
        and correlation > LEAST_RANK_CORRELATION
        and same >= LEAST_SAME_FRAME_SHARE,
    }
