"""A student's run: as a member's, but what it learns of each frame is what the ensemble says, not a label."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from algorithm.frames.preprocess import normalise
from algorithm.model.networks import PreprocessingConfig
from training.frames.dataset import FrameBatch, FrameTable
from training.learn.learner import FrameLearner
from training.learn.losses import shared_mean
from training.network.student import StudentNetwork
from training.recipe.settings import TrainSettings
from training.release.cache import CachedCase

GIVEN_A_CHANCE = 0.1
"""Presence from which on a frame counts as annotated, for sampling and for the figures of validation."""


class TaughtTable(FrameTable):
    """All frames of some cases with what their teacher says of each; `label` is 1 for those it gives a chance."""

    def __init__(
        self, cases: Sequence[CachedCase], presence: NDArray[np.float64], optimality: NDArray[np.float64] | None
    ) -> None:
        """`presence` and `optimality` are probabilities (N,), a row a frame."""
        super().__init__(cases)
        self.presence, self.optimality = presence, optimality
        self.label = (presence >= GIVEN_A_CHANCE).astype(np.uint8)

    def presence_target(self, soft_ends: float) -> NDArray[np.float32]:  # noqa: ARG002  # no run has an end here
        """(N,): what the teacher says."""
        return self.presence.astype(np.float32)

    @property
    def mask_pixels(self) -> NDArray[np.int64]:
        """(N,): as large as can be. No mask is asked for, so none is too small."""
        return np.full(len(self), np.iinfo(np.int64).max)


class StudentLearner(FrameLearner):
    """Trains a student on the frames of one taught table and looks at it on those of another."""

    optimality_target: Tensor

    def __init__(
        self,
        network: StudentNetwork,
        settings: TrainSettings,
        preprocessing: PreprocessingConfig,
        train_table: TaughtTable,
        validation_table: TaughtTable,
    ) -> None:
        super().__init__(network, settings, preprocessing, train_table, validation_table)
        target = train_table.optimality
        tensor = torch.zeros(0) if target is None else torch.from_numpy(target.astype(np.float32))
        self.register_buffer("optimality_target", tensor, persistent=False)

    def _losses(
        self,
        frames: Tensor,
        masks: Tensor,  # noqa: ARG002  # a student draws none
        batch: FrameBatch,
    ) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        output = self.network(normalise(frames, self.preprocessing, torch.float32))
        target = self.presence_target[batch.rows]
        assert output.presence is not None
        parts = {"presence": _mean_cross_entropy(output.presence, target, torch.ones_like(target, dtype=torch.bool))}
        total = self.settings.loss.presence_factor * parts["presence"]
        if output.optimality is not None:
            # Of a frame without an abdomen nobody can say how good its plane is.
            parts["optimality"] = _mean_cross_entropy(
                output.optimality, self.optimality_target[batch.rows], batch.label > 0
            )
            total = total + self.settings.loss.optimality_factor * parts["optimality"]
        parts["loss"] = total.detach()
        return total, parts, output.presence


def _mean_cross_entropy(logit: Tensor, target: Tensor, included: Tensor) -> Tensor:
    """Of (B,) logits against (B,) probabilities, over the frames `included` (B,)."""
    return shared_mean(F.binary_cross_entropy_with_logits(logit.float(), target, reduction="none"), included)
