"""Calibration of members, and the cases as they are judged by members that did not learn from them.

Each member's logits become probabilities by sigmoid(logit / temperature), fitted on its validation cases (Guo et al.
2017). There is no shift: with half of the negatives hard-mined the logits have their odds right, and a shift fitted on
ten cases followed two or three of them (-1.0 to -2.1 where other patients wanted -0.2 to +0.35: training/RESULTS.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from acouslic.frame_labels import OPTIMAL
from acouslic.geometry import sweep_ranges
from algorithm.judgement.select_frame import FrameJudgement, judge_frames, probability_of
from algorithm.model.manifest import SelectionConfig
from algorithm.model.networks import MemberConfig
from training.learn.out_of_fold import OutOfFold

Values = NDArray[np.float64]

_TEMPERATURES = (0.5, 20.0)
"""Where classes are separable nothing else would stop the temperature."""


@dataclass(frozen=True)
class Calibration:
    """How one member's logits become probabilities."""

    presence_temperature: float = 1.0
    optimality_temperature: float = 1.0

    @classmethod
    def of(cls, member: MemberConfig) -> "Calibration":
        """A finished member's."""
        return cls(member.presence_temperature, member.optimality_temperature)

    def applied_to(self, member: MemberConfig) -> MemberConfig:
        """The member with this calibration."""
        return replace(
            member,
            presence_temperature=self.presence_temperature,
            optimality_temperature=self.optimality_temperature,
        )


@dataclass(frozen=True)
class CaseJudgement:
    """One case, judged by the members that did not learn from it."""

    uuid: str
    label: NDArray[np.uint8]
    frames: FrameJudgement
    """Of the mean of the members."""
    seen: NDArray[np.bool_]
    """(F,): the frames that the case's scale is read from, which are not black."""
    sweeps: Sequence[range]


def calibrate_member(scored: OutOfFold) -> Calibration:
    """Fit a member on its validation frames that are not black: of those nobody asks it."""
    presence = fit_temperature(scored.presence_logit[~scored.black], scored.label[~scored.black] > 0)
    if len(scored.optimality_logit) == 0:
        return Calibration(presence)
    annotated = (scored.label > 0) & ~scored.black
    return Calibration(
        presence, fit_temperature(scored.optimality_logit[annotated], scored.label[annotated] == OPTIMAL)
    )


def fit_temperature(logit: NDArray[np.float32], positive: NDArray[np.bool_]) -> float:
    """The temperature, from 0.5 to 20, with the least cross-entropy of `logit` (n,) against `positive` (n,); 1 where
    only one class is there, or no frame."""
    if positive.all() or not positive.any():
        return 1.0
    logits = torch.from_numpy(logit.astype(np.float64))
    targets = torch.from_numpy(positive.astype(np.float64))
    log_temperature = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([log_temperature], lr=0.5, max_iter=200, line_search_fn="strong_wolfe")

    def temperature() -> torch.Tensor:
        return log_temperature.exp().clamp(*_TEMPERATURES)

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits / temperature(), targets)
        # A faint pull towards 1 keeps separable frames from running away.
        value = value + 1e-4 * log_temperature.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return float(temperature().detach())


def judge_cases(
    scored: Sequence[OutOfFold],
    calibrations: Sequence[Calibration],
    selection: SelectionConfig,
    reviewed: Mapping[str, Values] | None = None,
) -> list[CaseJudgement]:
    """Every case that any member validated on, once, with the mean of those members' probabilities; `reviewed` is
    presence (F,) as a case head sees it, by uuid.

    A black frame shows nothing, whatever the members make of it: its presence is 0, as in inference.
    """
    presence: dict[str, list[Values]] = {}
    optimality: dict[str, list[Values]] = {}
    labels: dict[str, NDArray[np.uint8]] = {}
    black: dict[str, NDArray[np.bool_]] = {}
    for member, calibration in zip(scored, calibrations, strict=True):
        start = 0
        for uuid, count in zip(member.uuid.tolist(), member.frame_counts.tolist(), strict=True):
            rows = slice(start, start + count)
            start += count
            labels[uuid] = member.label[rows]
            black[uuid] = member.black[rows] | black.get(uuid, False)
            presence.setdefault(uuid, []).append(
                _probability(member.presence_logit[rows], calibration.presence_temperature)
            )
            if len(member.optimality_logit):
                optimality.setdefault(uuid, []).append(
                    _probability(member.optimality_logit[rows], calibration.optimality_temperature)
                )

    def judge(uuid: str) -> CaseJudgement:
        mean = np.where(black[uuid], 0.0, np.mean(presence[uuid], axis=0))
        mean_optimality = np.mean(optimality[uuid], axis=0) if uuid in optimality else None
        again = None if reviewed is None else reviewed[uuid]
        sweeps = sweep_ranges(len(mean))
        frames = judge_frames(mean, mean_optimality, sweeps, selection, again)
        return CaseJudgement(uuid, labels[uuid], frames, mean > 0, sweeps)

    return [judge(uuid) for uuid in presence]


def _probability(logit: NDArray[np.float32], temperature: float) -> Values:
    return probability_of(logit.astype(np.float64) / temperature)
