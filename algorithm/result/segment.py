"""From the decoder's probabilities to a clean mask and its ellipse: one frame, NumPy and OpenCV alone."""

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from acouslic.ellipse import Ellipse, circumference_px, draw_ellipse, fit_ellipse, fit_seen_outline, mark_outline

Mask = NDArray[np.bool_]

MIN_AGREEMENT = 0.5
"""An ellipse counts where, inside the field of view, it and its component share at least this part of their union.
A body cut off by the fan stays well above; a fit to a stray arc, whose ellipse runs far away, falls below."""
_USUAL_CHANGE, _MOST_CHANGE = 0.01, 0.05
"""How far, as a share, the official circumference of a mask may be from that of the ellipse that it was filled from: as
drawn, and at all. Where the fan cuts nothing off they differ by less than 0.001. Where it does, the outline is open:
traced there and back it encloses nothing, and the official fit, which takes what encloses the most, may take a small
piece beside it. Then the outline gets a mark."""


def clean_mask(
    probability: NDArray[np.floating], fov: Mask, threshold: float, mask_shape: Literal["ellipse", "component"]
) -> tuple[Mask, Ellipse | None]:
    """One frame's mask and the official ellipse fitted to *that* mask.

    `probability` is (rows, columns) in 0..1, `fov` of the same shape. Pixels above `threshold` inside the field of
    view; the largest 8-connected component of them; its holes filled; with `mask_shape` "ellipse" the ellipse fitted
    to it, filled, inside the field of view, if need be with a mark (`as_measured`). Where no ellipse can be fitted, or
    it does not agree with the component, the mask is the component (all False if nothing is above the threshold) and
    the ellipse None.
    """
    component = _fill_holes(_largest_component((probability > threshold) & fov)) & fov
    ellipse = fit_ellipse(component, fov) if mask_shape == "component" else fit_seen_outline(component, fov)
    if ellipse is None:
        return component, None
    filled = draw_ellipse(ellipse, *component.shape) & fov
    if _intersection_over_union(filled, component) < MIN_AGREEMENT:
        return component, None
    if mask_shape == "component":
        return component, ellipse
    mask, official = as_measured(filled, ellipse, fov)
    return (component, None) if official is None else (mask, official)


def as_measured(filled: Mask, ellipse: Ellipse, fov: Mask) -> tuple[Mask, Ellipse | None]:
    """A filled ellipse, (rows, columns), such that the official evaluator measures `ellipse`, and its official ellipse:
    as it is, or, where that is nearer, with a mark on its outline (`mark_outline`). Where neither is measured so, as it
    is, and None."""
    official = fit_ellipse(filled, fov)
    if _change(ellipse, official) <= _USUAL_CHANGE:
        return filled, official
    marked = mark_outline(filled, fov)
    tried = [(filled, official), (marked, fit_ellipse(marked, fov))]
    mask, official = min(tried, key=lambda one: _change(ellipse, one[1]))
    return (mask, official) if _change(ellipse, official) <= _MOST_CHANGE else (filled, None)


def _change(ellipse: Ellipse, official: Ellipse | None) -> float:
    """Of the circumference, as a share of the ellipse's; without an official one infinite."""
    return np.inf if official is None else abs(circumference_px(official) / circumference_px(ellipse) - 1)


def _largest_component(mask: Mask) -> Mask:
    """The 8-connected component with the most pixels; of equals the one met first, row by row."""
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count == 1:
        return np.zeros_like(mask)
    largest = 1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA]))
    return np.asarray(labels == largest)


def _fill_holes(mask: Mask) -> Mask:
    """Everything that no 4-connected path of background joins to the frame's outside becomes part of the mask."""
    background = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
    _, labels = cv2.connectedComponents(background, connectivity=4)
    return np.asarray(labels[1:-1, 1:-1] != labels[0, 0])


def _intersection_over_union(first: Mask, second: Mask) -> float:
    union = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / union if union else 0.0
