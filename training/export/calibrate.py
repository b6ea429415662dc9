"""Calibration and operating points, chosen on frames that the judging member did not learn from.

Each member's logits become probabilities by sigmoid((logit + shift) / temperature), fitted on its validation cases
(Platt 1999; the shift undoes the share of annotated frames that sampling raised, and is folded into the head's bias).
What the best frame of a case says about the others (`manifest.CaseContext`) and the thresholds are then chosen on
out-of-fold probabilities, smoothed and ranked by the code that inference uses.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from acouslic.ellipse import circumference_px
from acouslic.fov import field_of_view
from acouslic.geometry import sweep_ranges
from algorithm.frames.preprocess import mask_to_frame
from algorithm.judgement.select_frame import (
    FrameJudgement,
    choose_candidates,
    in_context,
    judge_frames,
    presence_logit,
    probability_of,
)
from algorithm.model.manifest import CaseContext, SelectionConfig, Thresholds
from algorithm.result.segment import clean_mask
from training.learn.frame_metrics import best_f1
from training.learn.out_of_fold import OutOfFold
from training.release.cache import Cache

Values = NDArray[np.float64]

_MASK_THRESHOLDS = tuple(float(value) for value in np.round(np.arange(0.30, 0.71, 0.05), 2))
_MOST_MASKS = 400
"""Annotated frames on which the mask threshold is chosen: more change its second decimal no more."""
_FEWEST_CONTEXT_CASES = 8
"""Annotated cases from which on a context is fitted: what the best frame says is learned from cases, not frames."""
_CONTEXT_FOLDS = 10


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
    frames: FrameJudgement
    """Of the mean of the members."""


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

    def temperature() -> torch.Tensor:
        return parameters[1].exp().clamp(0.2, 20.0)

    # A faint pull towards (0, 1) keeps separable frames from running away.
    _minimise_cross_entropy(
        parameters,
        lambda: (logits + (parameters[0] if shift else 0.0)) / temperature(),
        targets,
        lambda: 1e-4 * parameters.square().sum(),
    )
    return (float(parameters[0].detach()) if shift else 0.0), float(temperature().detach())


def fit_context(cases: Sequence[CaseJudgement]) -> CaseContext | None:
    """What a case's best frame says about its others: the context with the least cross-entropy over all frames.

    None where fewer than eight cases are annotated; where the fit says the opposite of what a context is for, that a
    surer case makes its frames likelier; and where, fitted on nine tenths of the cases in turn, it foretells the other
    tenth no better than presence alone.
    """
    if sum(bool((case.label > 0).any()) for case in cases) < _FEWEST_CONTEXT_CASES:
        return None
    context = _fit_context(cases)
    if context is None:
        return None
    held_out = 0.0
    for fold in range(min(_CONTEXT_FOLDS, len(cases))):
        others = _fit_context([case for k, case in enumerate(cases) if k % _CONTEXT_FOLDS != fold])
        held_out += sum(_cross_entropy(case, others) for case in cases[fold::_CONTEXT_FOLDS])
    return context if held_out < sum(_cross_entropy(case, None) for case in cases) else None


def _fit_context(cases: Sequence[CaseJudgement]) -> CaseContext | None:
    logits = [presence_logit(case.frames.presence_alone) for case in cases]
    best = [float(values.max()) for values in logits]
    logit = torch.from_numpy(np.concatenate(logits))
    best_of_case = torch.from_numpy(np.repeat(best, [len(values) for values in logits]))
    targets = torch.from_numpy(np.concatenate([case.label > 0 for case in cases]).astype(np.float64))
    unchanged = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    # Frames are many and determine slope and offset; cases are few, and what they say of each other is believed less.
    pull = torch.tensor([1e-5, 1e-3 / len(cases), 1e-5], dtype=torch.float64)
    parameters = unchanged.clone().requires_grad_()
    _minimise_cross_entropy(
        parameters,
        lambda: parameters[0] * logit + parameters[1] * best_of_case + parameters[2],
        targets,
        lambda: (pull * (parameters - unchanged).square()).sum(),
    )
    slope, best_slope, offset = (round(value, 4) for value in parameters.detach().tolist())
    if slope <= 0 or best_slope >= 0:
        return None
    return CaseContext(slope, best_slope, offset, (round(min(best), 4), round(max(best), 4)))


def _cross_entropy(case: CaseJudgement, context: CaseContext | None) -> float:
    """Of a case's frames, summed."""
    alone = case.frames.presence_alone
    logit = presence_logit(in_context(alone, alone, context))
    return float(np.logaddexp(0.0, np.where(case.label > 0, -logit, logit)).sum())


def _minimise_cross_entropy(
    parameters: torch.Tensor,
    logits: Callable[[], torch.Tensor],
    targets: torch.Tensor,
    penalty: Callable[[], torch.Tensor],
) -> None:
    optimiser = torch.optim.LBFGS([parameters], lr=0.5, max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits(), targets) + penalty()
        value.backward()
        return value

    optimiser.step(loss)


def judge_cases(
    scored: Sequence[OutOfFold], calibrations: Sequence[Calibration], selection: SelectionConfig
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

    def judge(uuid: str) -> FrameJudgement:
        mean = np.mean(presence[uuid], axis=0)
        mean_optimality = np.mean(optimality[uuid], axis=0) if uuid in optimality else None
        return judge_frames(mean, mean_optimality, sweep_ranges(len(mean)), selection)

    return [CaseJudgement(uuid, labels[uuid], judge(uuid)) for uuid in presence]


def judge_in_context(
    scored: Sequence[OutOfFold], calibrations: Sequence[Calibration], selection: SelectionConfig
) -> tuple[SelectionConfig, list[CaseJudgement]]:
    """`selection` with a context fitted to these cases, where they allow one, and the cases as it judges them."""
    cases = judge_cases(scored, calibrations, replace(selection, context=None))
    selection = replace(selection, context=fit_context(cases))
    return selection, [replace(case, frames=_judge_again(case.frames, selection)) for case in cases]


def _judge_again(frames: FrameJudgement, selection: SelectionConfig) -> FrameJudgement:
    alone = frames.presence_alone
    return replace(frames, presence=in_context(alone, alone, selection.context))


def choose_thresholds(cases: Sequence[CaseJudgement], mask_threshold: float) -> Thresholds:
    """The operating points: highest frame F1 for presence and, among annotated frames, for optimality."""
    label = np.concatenate([case.label for case in cases])
    _, presence = best_f1(np.concatenate([case.frames.presence for case in cases]).astype(np.float32), label > 0)
    optimality = 0.5
    judged = [case for case in cases if case.frames.optimality is not None]
    if judged:
        judged_label = np.concatenate([case.label for case in judged])
        probability = np.concatenate([case.frames.optimality for case in judged if case.frames.optimality is not None])
        annotated = judged_label > 0
        _, optimality = best_f1(probability[annotated].astype(np.float32), judged_label[annotated] == 1)
    return Thresholds(
        presence=round(presence, 4),
        optimality=round(optimality, 4),
        mask=mask_threshold,
        # Down, or it could pass the very case it was set on.
        suitable=math.floor(_suitable_threshold(cases) * 1e4) / 1e4,
    )


def _suitable_threshold(cases: Sequence[CaseJudgement]) -> float:
    """Where the chosen frame's presence alone best tells annotated choices from wrong ones; at most 0.5."""
    chosen_presence, right = [], []
    for case in cases:
        frame = choose_candidates(case.frames.quality, sweep_ranges(len(case.label)), 1)[0]
        chosen_presence.append(case.frames.presence_alone[frame])
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
    return probability_of((logit.astype(np.float64) + shift) / temperature)
