"""Calibration and operating points, chosen on frames that the judging member did not learn from.

Each member's logits become probabilities by sigmoid((logit + shift) / temperature), fitted on its validation cases
(Platt 1999; the shift undoes the share of annotated frames that sampling raised, and is folded into the head's bias).
Thresholds are then chosen on out-of-fold probabilities, smoothed and ranked by the code that inference uses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from acouslic.ellipse import circumference_px
from acouslic.fov import field_of_view
from acouslic.geometry import sweep_ranges
from algorithm.manifest import SelectionConfig, Thresholds
from algorithm.preprocess import mask_to_frame
from algorithm.segment import clean_mask
from algorithm.select_frame import choose_candidates, frame_quality, smooth_in_sweeps
from training.cache import Cache
from training.frame_metrics import best_f1
from training.out_of_fold import OutOfFold

Values = NDArray[np.float64]

_MASK_THRESHOLDS = tuple(float(value) for value in np.round(np.arange(0.30, 0.71, 0.05), 2))
_MOST_MASKS = 400
"""Annotated frames on which the mask threshold is chosen: more change its second decimal no more."""


@dataclass(frozen=True)
class Calibration:
    """How one member's logits become probabilities."""

    presence_shift: float = 0.0
    presence_temperature: float = 1.0
    optimality_shift: float = 0.0
    optimality_temperature: float = 1.0


@dataclass(frozen=True)
class CaseJudgement:
    """One case, judged by the members that did not learn from it."""

    uuid: str
    label: NDArray[np.uint8]
    presence: Values
    """(frames,), mean of the members, smoothed within sweeps."""
    optimality: Values | None
    """Likewise."""


def calibrate_member(scored: OutOfFold, *, shift: bool = True) -> Calibration:
    """Fit a member on its validation frames; without `shift` (one that judges by its mask) the temperature alone."""
    presence = fit_platt(scored.presence_logit, scored.label > 0, shift=shift)
    if len(scored.optimality_logit) == 0:
        return Calibration(*presence)
    annotated = scored.label > 0
    return Calibration(*presence, *fit_platt(scored.optimality_logit[annotated], scored.label[annotated] == 1))


def fit_platt(logit: NDArray[np.float32], positive: NDArray[np.bool_], *, shift: bool = True) -> tuple[float, float]:
    """(shift, temperature) with the least cross-entropy; (0, 1) where only one class is there.

    The temperature stays within 0.2 and 20: where classes are separable nothing else would stop it.
    """
    if positive.all() or not positive.any():
        return 0.0, 1.0
    logits = torch.from_numpy(logit.astype(np.float64))
    targets = torch.from_numpy(positive.astype(np.float64))
    parameters = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([parameters], lr=0.5, max_iter=200, line_search_fn="strong_wolfe")

    def temperature() -> torch.Tensor:
        return parameters[1].exp().clamp(0.2, 20.0)

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        scaled = (logits + (parameters[0] if shift else 0.0)) / temperature()
        value = torch.nn.functional.binary_cross_entropy_with_logits(scaled, targets)
        # A faint pull towards (0, 1) keeps separable frames from running away.
        value = value + 1e-4 * parameters.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return (float(parameters[0].detach()) if shift else 0.0), float(temperature().detach())


def judge_cases(
    scored: Sequence[OutOfFold], calibrations: Sequence[Calibration], sigma_frames: float
) -> list[CaseJudgement]:
    """Every case that any member validated on, once, with the mean of those members' probabilities."""
    presence: dict[str, list[Values]] = {}
    optimality: dict[str, list[Values]] = {}
    labels: dict[str, NDArray[np.uint8]] = {}
    for member, calibration in zip(scored, calibrations, strict=True):
        start = 0
        for uuid, count in zip(member.uuid.tolist(), member.frame_counts.tolist(), strict=True):
            rows = slice(start, start + count)
            start += count
            labels[uuid] = member.label[rows]
            presence.setdefault(uuid, []).append(
                _probability(member.presence_logit[rows], calibration.presence_shift, calibration.presence_temperature)
            )
            if len(member.optimality_logit):
                optimality.setdefault(uuid, []).append(
                    _probability(
                        member.optimality_logit[rows], calibration.optimality_shift, calibration.optimality_temperature
                    )
                )

    def smoothed(values: list[Values]) -> Values:
        return smooth_in_sweeps(np.mean(values, axis=0), sweep_ranges(len(values[0])), sigma_frames)

    return [
        CaseJudgement(
            uuid, labels[uuid], smoothed(presence[uuid]), smoothed(optimality[uuid]) if uuid in optimality else None
        )
        for uuid in presence
    ]


def choose_thresholds(cases: Sequence[CaseJudgement], selection: SelectionConfig, mask_threshold: float) -> Thresholds:
    """The operating points: highest frame F1 for presence and, among annotated frames, for optimality."""
    label = np.concatenate([case.label for case in cases])
    _, presence = best_f1(np.concatenate([case.presence for case in cases]).astype(np.float32), label > 0)
    optimality = 0.5
    judged = [case for case in cases if case.optimality is not None]
    if judged:
        judged_label = np.concatenate([case.label for case in judged])
        probability = np.concatenate([case.optimality for case in judged if case.optimality is not None])
        annotated = judged_label > 0
        _, optimality = best_f1(probability[annotated].astype(np.float32), judged_label[annotated] == 1)
    return Thresholds(
        presence=round(presence, 4),
        optimality=round(optimality, 4),
        mask=mask_threshold,
        suitable=round(_suitable_threshold(cases, selection), 4),
    )


def _suitable_threshold(cases: Sequence[CaseJudgement], selection: SelectionConfig) -> float:
    """Where the chosen frame's presence best tells annotated choices from wrong ones; at most 0.5."""
    chosen_presence, right = [], []
    for case in cases:
        quality = frame_quality(case.presence, case.optimality, selection.suboptimal_credit)
        frame = choose_candidates(quality, sweep_ranges(len(quality)), 1)[0]
        chosen_presence.append(case.presence[frame])
        right.append(bool(case.label[frame] > 0))
    values, correct = np.array(chosen_presence), np.array(right)
    if correct.all():
        return float(min(0.5, values.min() / 2))
    if not correct.any():
        return 0.5
    candidates = np.sort(values)
    accuracy = [((values >= at) == correct).mean() for at in candidates]
    return float(min(0.5, candidates[int(np.argmax(accuracy))]))


def choose_mask_threshold(scored: Sequence[OutOfFold], cache: Cache) -> tuple[float, float]:
    """The threshold with the least mean relative error of the circumference on annotated out-of-fold frames, and it.

    A frame whose mask gives no ellipse counts as an error of 1. (0.5, nan) where no member has a decoder.
    """
    errors: dict[float, list[float]] = {threshold: [] for threshold in _MASK_THRESHOLDS}
    for member in scored:
        step = max(1, -(-len(scored) * len(member.mask_rows) // _MOST_MASKS))
        first_row = np.concatenate([[0], np.cumsum(member.frame_counts)])
        for row, mask in list(zip(member.mask_rows, member.mask_probability, strict=True))[::step]:
            at = int(np.searchsorted(first_row, row, side="right")) - 1
            case = cache.case(str(member.uuid[at]))
            reference = case.mask(int(row - first_row[at])) > 0
            for threshold, error in _circumference_errors(mask, reference, case.record.rows, case.record.columns):
                errors[threshold].append(error)
    means = {threshold: float(np.mean(values)) for threshold, values in errors.items() if values}
    if not means:
        return 0.5, float("nan")
    best = min(means, key=lambda threshold: (means[threshold], abs(threshold - 0.5)))
    return best, means[best]


def _circumference_errors(
    mask: NDArray[np.uint8], reference: NDArray[np.bool_], rows: int, columns: int
) -> list[tuple[float, float]]:
    """(threshold, relative error) of one frame; both sides come from their squares by the same way back."""
    fov = field_of_view(rows, columns)

    def measure(square: NDArray[np.float32], threshold: float) -> float | None:
        probability = mask_to_frame(torch.from_numpy(square)[None], rows, columns)[0].numpy()
        _, ellipse = clean_mask(probability, fov, threshold, "ellipse")
        return None if ellipse is None else circumference_px(ellipse)

    true = measure(reference.astype(np.float32), 0.5)
    if true is None:
        return []
    result = []
    for threshold in _MASK_THRESHOLDS:
        found = measure(mask.astype(np.float32) / np.float32(255), threshold)
        result.append((threshold, 1.0 if found is None else abs(found - true) / true))
    return result


def _probability(logit: NDArray[np.float32], shift: float, temperature: float) -> Values:
    return 1 / (1 + np.exp(-(logit.astype(np.float64) + shift) / temperature))
