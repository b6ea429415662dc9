"""The field of view: the fixed fan of the challenge's scanner, drawn from its rule, or what lights up in a stack."""

import cv2
import numpy as np

from acouslic.geometry import COLUMNS, ROWS

_ASPECT_TOLERANCE = 0.01
LIT_LEVEL = 16
"""A pixel that is brighter in any frame is lit; compression leaves less than this beside the picture."""
_LEAST_LIT = 0.05
"""Share of a frame that must be lit before anything is concluded from it."""
_MOST_OUTSIDE = 0.02
"""Lit pixels outside the assumed field, as a share of it: more do not belong to this fan."""
_MOST_DARK = 0.3
"""Pixels of the assumed field that are dark in all frames; more may be another fan where the picture ends abruptly, and
are shadow or depth where it fades."""
_LEAST_FOUND = 0.3
"""Share of the assumed field that another fan inside it must cover; less is a body in the dark."""
_LEAST_SOLID = 0.9
"""Share of its convex hull that a fan fills."""
_ABRUPT_LEVEL = 60
_EDGE_PX = 4
_GAP_SHARE = 0.02
"""Of a frame's rows: dark gaps in the picture up to this size are closed."""


def field_of_view(rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    """Which pixels of a frame the scanner fills: bool (rows, columns).

    At 562 x 744 this is the official evaluator's mask to the pixel (267,936 pixels true). A frame of the same aspect
    ratio (within 1 %) gets the same fan, scaled: each of its pixels asks the official pixel nearest its centre. Of a
    frame of any other shape nothing is known, and all of it counts as inside.
    """
    if rows < 1 or columns < 1:
        raise ValueError(f"a frame needs rows and columns, not {rows} x {columns}")
    if abs(rows * COLUMNS / (columns * ROWS) - 1) > _ASPECT_TOLERANCE:
        return np.ones((rows, columns), dtype=bool)
    official = _official_fan()
    nearest_row = ((np.arange(rows) + 0.5) * ROWS / rows).astype(int)
    nearest_column = ((np.arange(columns) + 0.5) * COLUMNS / columns).astype(int)
    return official[np.ix_(nearest_row, nearest_column)]


def _official_fan() -> np.ndarray:
    """The fan at 562 x 744: two slanted edges and two arcs, the lower one cut off by the last row."""
    y, x = np.mgrid[:ROWS, :COLUMNS].astype(float)
    left_edge = np.round(266.3484 - 0.57466 * y)
    between_edges = (x >= left_edge) & (x <= COLUMNS - left_edge)
    below_upper_arc = np.hypot(x - 372, y + 185.12) >= 213.11
    above_lower_arc = np.hypot(x - 372, y + 184.6) <= 747.615
    above_lower_arc[-1] = (x[-1] >= 315) & (x[-1] <= 430)
    return between_edges & below_upper_arc & above_lower_arc


def found_field_of_view(brightest: np.ndarray, assumed: np.ndarray) -> np.ndarray | None:
    """The field of view that a stack itself shows, bool (rows, columns), where it is not the assumed one; else None.

    `brightest` is each pixel's highest value over frames of the stack, uint8 (rows, columns). What lights up, without
    gaps and without what lies apart from it (text, a colour bar), is the field. It differs from `assumed` where it
    reaches beyond it, or where much of that stays dark and the picture ends abruptly there. Where hardly anything
    lights up, nothing is concluded.
    """
    if brightest.shape != assumed.shape:
        raise ValueError(f"pixels {brightest.shape} and field of view {assumed.shape} must be the same (rows, columns)")
    found = _without_gaps(brightest > LIT_LEVEL)
    if found.mean() < _LEAST_LIT:
        return None
    outside = np.count_nonzero(found & ~assumed) / np.count_nonzero(assumed)
    dark = np.count_nonzero(assumed & ~found) / np.count_nonzero(assumed)
    smaller = _MOST_DARK < dark <= 1 - _LEAST_FOUND and _solidity(found) >= _LEAST_SOLID
    if outside > _MOST_OUTSIDE or (smaller and _ends_abruptly(brightest, found, assumed)):
        return found
    return None


def _without_gaps(lit: np.ndarray) -> np.ndarray:
    """The largest connected part of what is lit, its gaps closed and its holes filled."""
    size = 2 * max(1, round(_GAP_SHARE * lit.shape[0] / 2)) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    # Closing at the frame's edge would take what lies beyond for dark.
    padded = np.pad(lit.astype(np.uint8), size)
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, kernel)[size:-size, size:-size]
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(closed, connectivity=8)
    if count == 1:
        return np.zeros(lit.shape, dtype=bool)
    largest = labels == 1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA]))
    background = np.pad(~largest, 1, constant_values=True).astype(np.uint8)
    _, outer = cv2.connectedComponents(background, connectivity=4)
    return np.asarray(outer[1:-1, 1:-1] != outer[0, 0])


def _solidity(found: np.ndarray) -> float:
    """Its area over that of its convex hull."""
    contours, _ = cv2.findContours(found.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    hull = cv2.fillConvexPoly(np.zeros(found.shape, np.uint8), cv2.convexHull(np.concatenate(contours)), 1)
    return np.count_nonzero(found) / np.count_nonzero(hull)


def _ends_abruptly(brightest: np.ndarray, found: np.ndarray, assumed: np.ndarray) -> bool:
    """Whether the picture is bright up to where it ends inside the assumed field, as at a fan's own edge."""
    reach = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * _EDGE_PX + 1, 2 * _EDGE_PX + 1))
    dark = (assumed & ~found).astype(np.uint8)
    edge = (cv2.dilate(dark, reach) > 0) & found
    return bool(edge.any() and np.median(brightest[edge]) >= _ABRUPT_LEVEL)
