"""Outlines the best candidate frame that can be outlined, and says how sure its circumference is."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acouslic.ellipse import Ellipse, circumference_mm, draw_ellipse
from acouslic.geometry import index_of_sweep, sweep_ranges
from algorithm.engine.outline_start import OutlineStart, join
from algorithm.frames.preprocess import mask_to_frame, normalise
from algorithm.model.manifest import Manifest
from algorithm.process.memory import is_out_of_memory
from algorithm.result.segment import Mask, clean_mask

INTERVAL_PERCENTILES = (2.5, 97.5)
WORTH_A_NOTE = 0.05
"""Share of an ellipse beyond the field of view from which on a note says so."""
_TOGETHER = 4
"""Candidates that are outlined at once where the first has no ellipse."""


class Segmenter(Protocol):
    """What outlining needs of `ensemble.Ensemble`."""

    @property
    def manifest(self) -> Manifest:
        """Of the artifact."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the images it takes."""

    def segment(self, images: Tensor, start: OutlineStart | None = None) -> Tensor:
        """(batch, 3, S, S) to mask probabilities (members with a decoder, batch, G, G), float32; from `start` on where
        scoring has kept it."""


@dataclass(frozen=True)
class Outline:
    """A chosen frame with its mask and what was measured on it."""

    frame_index: int
    mask: Mask
    """(rows, columns)."""
    ellipse: Ellipse | None
    """The official fit to `mask`."""
    circumference_mm: float | None
    interval_mm: tuple[float, float] | None
    """Contains the circumference; None where there is none, or nothing that it could be compared with."""


def outline_best(
    ensemble: Segmenter,
    frames: Tensor,
    candidates: Sequence[int],
    fov: Mask,
    spacing_mm: tuple[float, float],
    sweeps: Sequence[range] | None = None,
    starts: Mapping[int, OutlineStart] | None = None,
    *,
    blank: NDArray[np.bool_] | None = None,
) -> Outline:
    """The first of `candidates` (frame indices, at least one) whose mask has an ellipse, outlined and measured.

    `frames` are the case's square images, uint8 (F, S, S), `fov` (rows, columns) is the field of view of a frame and
    `spacing_mm` its (row, column) spacing; `sweeps` are the frames of each sweep, by default as the challenge has them,
    and `starts` what scoring has kept of some frames, by index. `blank` (F,) are black frames, by default none: beside
    the chosen one they are not measured, for a decoder draws something on black too.
    Where no candidate has an ellipse, the first is returned without one.
    """
    selection = ensemble.manifest.selection
    sweeps = sweep_ranges(len(frames)) if sweeps is None else sweeps
    painter = _Painter(ensemble, frames, fov, starts or {})
    first_mask = None
    for frame_index, probability in painter.draw_in_turn(candidates):
        mask, ellipse = painter.clean(probability.mean(0))
        if ellipse is not None:
            value_mm = circumference_mm(ellipse, spacing_mm)
            sweep = sweeps[index_of_sweep(frame_index, sweeps)]
            reach = selection.neighbour_frames
            near = range(max(sweep.start, frame_index - reach), min(sweep.stop, frame_index + reach + 1))
            shown = near if blank is None else [index for index in near if not blank[index]]
            others = painter.draw([index for index in shown if index != frame_index])
            interval_mm = _interval(painter, [probability, *others], spacing_mm, value_mm)
            return Outline(frame_index, mask, ellipse, value_mm, interval_mm)
        first_mask = mask if first_mask is None else first_mask
    assert first_mask is not None
    return Outline(candidates[0], first_mask, None, None, None)


def interval_around(value: float, measured: Sequence[float], error: float = 0.0) -> tuple[float, float]:
    """The middle 95 % of what was measured, widened where it must be to contain `value` and all that differs from it by
    at most `error`, below 1, of the larger of the two."""
    low, high = np.percentile([*measured, value], INTERVAL_PERCENTILES)
    return min(float(low), value * (1 - error)), max(float(high), value / (1 - error))


def share_beyond(ellipse: Ellipse, fov: Mask) -> float:
    """How much of a filled ellipse lies outside the field of view (rows, columns), in 0..1: nobody has seen that part
    of it."""
    first_px, second_px = (semi_axis + 0.5 for semi_axis in ellipse.semi_axes_px)
    inside = np.count_nonzero(draw_ellipse(ellipse, *fov.shape) & fov)
    return max(0.0, 1 - inside / (np.pi * first_px * second_px))


@dataclass(frozen=True)
class _Painter:
    """Draws the masks of one case's frames; see `outline_best`."""

    ensemble: Segmenter
    frames: Tensor
    fov: Mask
    starts: Mapping[int, OutlineStart]

    def draw_in_turn(self, candidates: Sequence[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Each candidate with its decoders' probabilities. The first nearly always has an ellipse, so it is asked
        alone; where it has none the others seldom have, so they are asked together, a few at a time."""
        groups = [candidates[:1]]
        groups += [candidates[start : start + _TOGETHER] for start in range(1, len(candidates), _TOGETHER)]
        for group in groups:
            yield from zip(group, self.draw(group), strict=True)

    def draw(self, indices: Sequence[int]) -> list[NDArray[np.float32]]:
        """Each decoder's probabilities on the frames themselves, (members, rows, columns) a frame; no frames: none.

        All frames at once that have a start, and all others, or one by one where memory does not hold them.
        """
        found: dict[int, NDArray[np.float32]] = {}
        for begun in (True, False):
            alike = [index for index in indices if (index in self.starts) == begun]
            if not alike:
                continue
            masks = self._try(alike)
            if masks is None:
                if self.frames.device.type == "cuda":
                    torch.cuda.empty_cache()
                masks = [self._draw_together([index])[0] for index in alike]
            found |= zip(alike, masks, strict=True)
        return [found[index] for index in indices]

    def clean(self, probability: NDArray[np.float32]) -> tuple[Mask, Ellipse | None]:
        """The mask (rows, columns) of one frame's probabilities, and its ellipse."""
        manifest = self.ensemble.manifest
        return clean_mask(probability, self.fov, manifest.thresholds.mask, manifest.selection.mask_shape)

    def _try(self, indices: Sequence[int]) -> list[NDArray[np.float32]] | None:
        """All at once, or None where memory does not hold them. What failed is free once this has returned."""
        try:
            return self._draw_together(indices)
        except RuntimeError as error:
            if len(indices) == 1 or not is_out_of_memory(error):
                raise
            return None

    @torch.inference_mode()
    def _draw_together(self, indices: Sequence[int]) -> list[NDArray[np.float32]]:
        """Frames that all have a start, or none of them."""
        chosen = self.frames.index_select(0, torch.tensor(indices, device=self.frames.device))
        images = normalise(chosen, self.ensemble.manifest.preprocessing, self.ensemble.dtype)
        if indices[0] in self.starts:
            masks = self.ensemble.segment(images, join([self.starts[index] for index in indices]))
        else:
            masks = self.ensemble.segment(images)
        on_frames = torch.stack([mask_to_frame(members, *self.fov.shape) for members in masks.unbind(1)])
        return list(on_frames.cpu().numpy())


def _interval(
    painter: _Painter,
    probabilities: Sequence[NDArray[np.float32]],
    spacing_mm: tuple[float, float],
    value_mm: float,
) -> tuple[float, float] | None:
    """Each member alone outlines each frame, (members, rows, columns); masks without an ellipse say nothing. None for
    fewer than two with one, where the model does not state its error: a single outline agrees with itself."""
    alone = [probability for of_frame in probabilities for probability in of_frame]
    # NumPy and OpenCV let other threads run: beside a GPU, one after another would take a quarter of a second.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        ellipses = [ellipse for _, ellipse in pool.map(painter.clean, alone)]
    measured_mm = [circumference_mm(ellipse, spacing_mm) for ellipse in ellipses if ellipse is not None]
    error = painter.ensemble.manifest.selection.circumference_error
    if error is None and len(measured_mm) < 2:
        return None
    return interval_around(value_mm, measured_mm, error or 0.0)
