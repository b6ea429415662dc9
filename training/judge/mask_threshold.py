"""The probability from which on a pixel belongs to the mask, chosen on frames that the member did not see, and how far
off the circumference then is.

What counts is the frame that a run chooses, and the challenge's score of it: half of that is the circumference against
the table's value for the sweep, which is no frame's own, a quarter is the overlap. A threshold for all annotated frames
alike draws the chosen ones, which are the clearest of their sweep, too small (training/RESULTS.md).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from acouslic.challenge_score import challenge_score
from acouslic.ellipse import circumference_mm
from acouslic.fov import field_of_view
from algorithm.frames.preprocess import mask_to_frame
from algorithm.result.segment import Mask, clean_mask
from training.frames.dataset import soft_masks
from training.learn.out_of_fold import OutOfFold
from training.release.cache import Cache, CaseRecord

_STEP = 0.05
_USUAL = (6, 14)
"""Steps that are tried at first, 0.30 to 0.70; the search goes on beyond an end that is the best."""
_ALL = (1, 19)
"""Steps that can be tried, 0.05 to 0.95."""
_CHOSEN = 3
"""Annotated frames of a sweep, those that the member finds likeliest: any of them could be the chosen one."""
_MOST_MASKS = 400
"""Frames on which the mask threshold is chosen: more do not change its second decimal."""
_MOST_BACKGROUND = 0.05
"""Mean probability outside the annotation from which on a decoder counts as not converged: one of the stand-in said
0.15 everywhere after 300 steps."""


@dataclass(frozen=True)
class MaskThreshold:
    """The threshold, and what a person should know of it."""

    value: float
    error: float
    """Mean error of the circumference at it, relative to the larger of the two values as in the challenge; NaN where no
    member has a decoder."""
    background: float
    """Mean probability outside the annotation; NaN likewise."""
    nine_in_ten: float | None
    """The same error of each sweep's likeliest frame, the mean of its members where several have drawn it: a further
    sweep of such cases lies within it with a probability of nine in ten. None where there are fewer than nine sweeps.
    """

    def describe(self) -> str:
        """What `export` and `calibrate` say of it: one line, and a second where something is odd."""
        if np.isnan(self.error):
            return f"mask threshold {self.value}: no member draws masks"
        lines = [
            f"mask threshold {self.value}: mean error of the circumference {self.error:.2%}; the decoders say "
            f"{self.background:.2f} where no abdomen is"
        ]
        if self.nine_in_ten is not None:
            lines.append(f"the interval of a circumference reaches at least {self.nine_in_ten:.1%} either way")
        low, high = (round(step * _STEP, 2) for step in _USUAL)
        at_end = self.value in (round(step * _STEP, 2) for step in _ALL)
        where = "the end of what was tried" if at_end else f"usual is {low} to {high}"
        if self.background > _MOST_BACKGROUND:
            lines.append(
                f"warning: a mask threshold of {self.value} ({where}) with {self.background:.2f} where no abdomen is "
                f"(at most {_MOST_BACKGROUND} is usual) tells of decoders that were trained too briefly: train for "
                "more epochs"
            )
        elif at_end or not low <= self.value <= high:
            lines.append(
                f"warning: a mask threshold of {self.value} ({where}) tells of outlines that are far from the table's "
                "circumferences: train for more epochs, and compare the table with the annotated masks"
            )
        return "\n".join(lines)


def choose_mask_threshold(scored: Sequence[OutOfFold], cache: Cache) -> MaskThreshold:
    """The threshold with the best outlines of out-of-fold frames that could be chosen, by the challenge's score: 0.5 x
    (1 - error of the circumference) + 0.25 x Dice. It is one of 19, in steps of 0.05.

    A sweep without a value in the table is measured by the frame's own annotation. A mask without an ellipse has an
    error of 1. 0.5 where no member has a decoder.
    """
    frames = list(_frames(scored, cache))
    if not frames:
        return MaskThreshold(0.5, float("nan"), float("nan"), None)
    first, last = _USUAL
    tried = _judge(frames, range(first, last + 1))
    best = _best(tried)
    # Beyond an end that is the best it may go on getting better.
    if best == first:
        tried |= _judge(frames, range(_ALL[0], first))
    elif best == last:
        tried |= _judge(frames, range(last + 1, _ALL[1] + 1))
    best = _best(tried)
    error, background = tried[best].error, _background(frames)
    return MaskThreshold(round(best * _STEP, 2), error, background, _nine_in_ten(frames, best))


@dataclass(frozen=True)
class _Outlines:
    """How well frames are outlined at a threshold: means over them."""

    error: float
    """Of the circumference, in 0..1."""
    dice: float

    @property
    def score(self) -> float:
        """Their part of the challenge's score; the rest is the choice of the frame."""
        return challenge_score(self.error, self.dice, wfss=0.0)


@dataclass(frozen=True)
class _Frame:
    mask: NDArray[np.uint8]
    """(G, G), 0..255 for 0..1."""
    reference: NDArray[np.bool_]
    """(S, S)."""
    record: CaseRecord
    sweep: tuple[str, int]
    """Its case and the number of its sweep there."""
    sweep_ac_mm: float | None
    is_likeliest: bool
    """Of its sweep."""

    def on_frame(self, square: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values on a square brought back to the frame, (rows, columns)."""
        return mask_to_frame(torch.from_numpy(square)[None], self.record.rows, self.record.columns)[0].numpy()

    def outline(self, probability: NDArray[np.float32], threshold: float) -> tuple[Mask, float | None]:
        """The mask of what lies on the frame, and its circumference in mm, as a run has them."""
        fov = field_of_view(self.record.rows, self.record.columns)
        mask, ellipse = clean_mask(probability, fov, threshold, "ellipse")
        return mask, None if ellipse is None else circumference_mm(ellipse, self.record.spacing_mm)


def _frames(scored: Sequence[OutOfFold], cache: Cache) -> Iterator[_Frame]:
    """Of each member the likeliest annotated frames of every sweep, in all at most about `_MOST_MASKS`."""
    sweeps = [(member, *found) for member in scored for found in _likeliest(member, cache).items()]
    masks = sum(len(places) for _, _, places in sweeps)
    # Whole sweeps are left out: every n-th mask would be of one rank alone.
    for member, (uuid, number), places in sweeps[:: max(1, -(-masks // _MOST_MASKS))]:
        case = cache.case(uuid)
        for rank, (at, frame_index) in enumerate(places):
            yield _Frame(
                mask=member.mask_probability[at],
                reference=case.mask(frame_index) > 0,
                record=case.record,
                sweep=(uuid, number),
                sweep_ac_mm=case.sweep_ac_mm[number],
                is_likeliest=rank == 0,
            )


def _likeliest(member: OutOfFold, cache: Cache) -> dict[tuple[str, int], list[tuple[int, int]]]:
    """By case and sweep: of its likeliest frames, the best first, the index into the member's masks and the frame."""
    of_sweep: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for at, (uuid, frame_index) in enumerate(member.mask_places()):
        number = int(cache.case(uuid).sweep_of_frame[frame_index])
        of_sweep.setdefault((uuid, number), []).append((at, frame_index))
    logit = member.presence_logit[member.mask_rows]
    return {sweep: sorted(found, key=lambda place: -logit[place[0]])[:_CHOSEN] for sweep, found in of_sweep.items()}


def _judge(frames: Sequence[_Frame], steps: range) -> dict[int, _Outlines]:
    """The outlines by threshold, in steps."""
    judged = [found for frame in frames if (found := _judge_frame(frame, steps)) is not None]
    # Nothing to measure by: no threshold is better than another.
    means = np.mean(judged, axis=0) if judged else np.tile([1.0, 0.0], (len(steps), 1))
    return {step: _Outlines(float(error), float(dice)) for step, (error, dice) in zip(steps, means, strict=True)}


def _judge_frame(frame: _Frame, steps: range) -> list[tuple[float, float]] | None:
    """Error of the circumference and Dice at each threshold; both sides come from their squares by the same way back.
    None where there is no value to measure by."""
    reference, own_mm = frame.outline(frame.on_frame(frame.reference.astype(np.float32)), 0.5)
    true_mm = frame.sweep_ac_mm or own_mm
    if true_mm is None:
        return None
    probability = frame.on_frame(frame.mask.astype(np.float32) / np.float32(255))
    judged = []
    for step in steps:
        mask, found_mm = frame.outline(probability, round(step * _STEP, 2))
        error = 1.0 if found_mm is None else abs(found_mm - true_mm) / max(found_mm, true_mm)
        pixels = np.count_nonzero(mask) + np.count_nonzero(reference)
        judged.append((error, 2 * np.count_nonzero(mask & reference) / pixels if pixels else 1.0))
    return judged


def _nine_in_ten(frames: Sequence[_Frame], step: int) -> float | None:
    """The error within which one more sweep lies with a probability of nine in ten: of n errors that of rank
    0.9 (n + 1), the split conformal quantile (Lei et al. 2018). An error of 1 makes no interval."""
    of_sweep: dict[tuple[str, int], list[float]] = {}
    for frame in frames:
        if frame.is_likeliest and (found := _judge_frame(frame, range(step, step + 1))) is not None:
            of_sweep.setdefault(frame.sweep, []).append(found[0][0])
    # A sweep counts once, however many members have drawn it.
    errors = sorted(float(np.mean(of_members)) for of_members in of_sweep.values())
    rank = math.ceil(0.9 * (len(errors) + 1))
    return errors[rank - 1] if rank <= len(errors) and errors[rank - 1] < 1 else None


def _best(tried: dict[int, _Outlines]) -> int:
    return max(tried, key=lambda step: (tried[step].score, -abs(step * _STEP - 0.5)))


def _background(frames: Sequence[_Frame]) -> float:
    """Of all pixels outside the annotation, in each member's own grid."""
    outside = []
    for frame in frames:
        reference = torch.from_numpy(frame.reference.view(np.uint8))[None]
        covered = soft_masks(reference, frame.mask.shape[-1])[0].numpy()
        outside.append(frame.mask[covered == 0])
    return float(np.concatenate(outside).mean() / 255)
