"""The probability from which on a pixel belongs to the mask, chosen on frames that the member did not see."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from acouslic.ellipse import circumference_px
from acouslic.fov import field_of_view
from algorithm.frames.preprocess import mask_to_frame
from algorithm.result.segment import clean_mask
from training.frames.dataset import soft_masks
from training.learn.out_of_fold import OutOfFold
from training.release.cache import Cache

_STEP = 0.05
_USUAL = (6, 14)
"""Steps that are tried at first, 0.30 to 0.70; the search goes on beyond an end that is the best."""
_ALL = (1, 19)
"""Steps that can be tried, 0.05 to 0.95."""
_MOST_MASKS = 400
"""Annotated frames on which the mask threshold is chosen: more do not change its second decimal."""
_MOST_BACKGROUND = 0.05
"""Mean probability outside the annotation from which on a decoder counts as not converged: one of the stand-in said
0.15 everywhere after 300 steps."""


@dataclass(frozen=True)
class MaskThreshold:
    """The threshold, and what a person should know of it."""

    value: float
    error: float
    """Mean relative error of the circumference at it; NaN where no member has a decoder."""
    background: float
    """Mean probability outside the annotation; NaN likewise."""

    def describe(self) -> str:
        """What `export` and `calibrate` say of it: one line, and a second where something is odd."""
        if np.isnan(self.error):
            return f"mask threshold {self.value}: no member draws masks"
        lines = [
            f"mask threshold {self.value}: mean error of the circumference {self.error:.2%}; the decoders say "
            f"{self.background:.2f} where no abdomen is"
        ]
        low, high = (round(step * _STEP, 2) for step in _USUAL)
        at_end = self.value in (round(step * _STEP, 2) for step in _ALL)
        if at_end or not low <= self.value <= high or self.background > _MOST_BACKGROUND:
            where = "the end of what was tried" if at_end else f"usual is {low} to {high}"
            lines.append(
                f"warning: a mask threshold of {self.value} ({where}) with {self.background:.2f} where no abdomen is "
                f"(at most {_MOST_BACKGROUND} is usual) tells of decoders that were trained too briefly: train for "
                "more epochs"
            )
        return "\n".join(lines)


def choose_mask_threshold(scored: Sequence[OutOfFold], cache: Cache) -> MaskThreshold:
    """The threshold with the least mean relative error of the circumference on annotated out-of-fold frames.

    A frame whose mask gives no ellipse counts as an error of 1. 0.5 where no member has a decoder.
    """
    frames = list(_frames(scored, cache))
    if not frames:
        return MaskThreshold(0.5, float("nan"), float("nan"))
    first, last = _USUAL
    errors = _mean_errors(frames, range(first, last + 1))
    best = _best(errors)
    # Beyond an end that is the best the error may go on falling.
    if best == first:
        errors |= _mean_errors(frames, range(_ALL[0], first))
    elif best == last:
        errors |= _mean_errors(frames, range(last + 1, _ALL[1] + 1))
    best = _best(errors)
    return MaskThreshold(round(best * _STEP, 2), errors[best], _background(frames))


@dataclass(frozen=True)
class _Frame:
    mask: NDArray[np.uint8]
    """(G, G), 0..255 for 0..1."""
    reference: NDArray[np.bool_]
    """(S, S)."""
    rows: int
    columns: int


def _frames(scored: Sequence[OutOfFold], cache: Cache) -> Iterator[_Frame]:
    """At most about `_MOST_MASKS` frames, as many of each member."""
    for member in scored:
        step = max(1, -(-len(scored) * len(member.mask_rows) // _MOST_MASKS))
        first_row = np.concatenate([[0], np.cumsum(member.frame_counts)])
        for row, mask in list(zip(member.mask_rows, member.mask_probability, strict=True))[::step]:
            at = int(np.searchsorted(first_row, row, side="right")) - 1
            case = cache.case(str(member.uuid[at]))
            yield _Frame(mask, case.mask(int(row - first_row[at])) > 0, case.record.rows, case.record.columns)


def _mean_errors(frames: Sequence[_Frame], steps: range) -> dict[int, float]:
    """Mean relative error of the circumference by threshold, in steps."""
    errors = [error for frame in frames if (error := _circumference_errors(frame, steps)) is not None]
    # Nothing to measure by: no threshold is better than another.
    means = np.mean(errors, axis=0) if errors else np.ones(len(steps))
    return dict(zip(steps, means.tolist(), strict=True))


def _best(errors: dict[int, float]) -> int:
    return min(errors, key=lambda step: (errors[step], abs(step * _STEP - 0.5)))


def _background(frames: Sequence[_Frame]) -> float:
    """Of all pixels outside the annotation, in each member's own grid."""
    outside = []
    for frame in frames:
        reference = torch.from_numpy(frame.reference.view(np.uint8))[None]
        covered = soft_masks(reference, frame.mask.shape[-1])[0].numpy()
        outside.append(frame.mask[covered == 0])
    return float(np.concatenate(outside).mean() / 255)


def _circumference_errors(frame: _Frame, steps: range) -> list[float] | None:
    """Relative error at each threshold; both sides come from their squares by the same way back. None where the
    reference itself has no ellipse."""
    fov = field_of_view(frame.rows, frame.columns)

    def on_frame(square: NDArray[np.float32]) -> NDArray[np.float32]:
        return mask_to_frame(torch.from_numpy(square)[None], frame.rows, frame.columns)[0].numpy()

    def measure(probability: NDArray[np.float32], threshold: float) -> float | None:
        _, ellipse = clean_mask(probability, fov, threshold, "ellipse")
        return None if ellipse is None else circumference_px(ellipse)

    true = measure(on_frame(frame.reference.astype(np.float32)), 0.5)
    if true is None:
        return None
    probability = on_frame(frame.mask.astype(np.float32) / np.float32(255))
    found = [measure(probability, round(step * _STEP, 2)) for step in steps]
    return [1.0 if value is None else abs(value - true) / true for value in found]
