"""The ellipse of a mask and its circumference, as the official evaluator has them.

Source: the official evaluation method of ACOUSLIC-AI, commit ebf14b3. It measures an ellipse fitted to the outline of
the predicted mask, leaving out the part of the outline that runs along the edge of the field of view.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

_PADDING_PX = 200
"""The official padding. Points are fitted in padded coordinates, because cv2 computes in single precision."""
_BORDER_DILATIONS = 3
_FEWEST_POINTS = 6


@dataclass(frozen=True)
class Ellipse:
    """An ellipse in pixel coordinates: (0, 0) is the centre of the top left pixel, x the column, y the row."""

    centre_px: tuple[float, float]
    """(x, y)."""
    semi_axes_px: tuple[float, float]
    angle_degrees: float
    """Direction of the first semi-axis, counted from x towards y (clockwise on screen), as cv2's rotated boxes."""


def fit_ellipse(mask: np.ndarray, fov: np.ndarray) -> Ellipse | None:
    """The official ellipse of a mask (rows, columns), bool or 0/non-zero, inside a field of view of the same shape.

    The outline of mask-and-field is drawn one pixel wide, what lies within three pixels of the field's own outline is
    erased, and the ellipse is fitted to the contour of the rest that encloses the largest area. None where the mask is
    empty inside the field, too few points are left (more than 5 are needed) or the fit has no finite axes.
    """
    pieces = outline_pieces(mask, fov)
    return _fit(max(pieces, key=cv2.contourArea)) if pieces else None


def fit_seen_outline(mask: np.ndarray, fov: np.ndarray) -> Ellipse | None:
    """The ellipse of a body of which the field of view may show a part; arguments and None as in `fit_ellipse`.

    Where the field cuts the outline open, none of its pieces encloses more than a few pixels, and the largest of them
    may be a small piece. So the ellipse goes through all pieces that have points enough. A closed outline has the
    official ellipse.
    """
    pieces = outline_pieces(mask, fov)
    if not pieces:
        return None
    largest = max(pieces, key=cv2.contourArea)
    if cv2.contourArea(largest) > np.count_nonzero(mask) / 2:
        return _fit(largest)
    long_enough = [piece for piece in pieces if len(piece) >= _FEWEST_POINTS]
    return _fit(np.concatenate(long_enough)) if long_enough else None


def outline_pieces(mask: np.ndarray, fov: np.ndarray) -> list[np.ndarray]:
    """What the official evaluator fits ellipses to: the pieces of a mask's outline that lie away from the outline of
    the field of view, each an int32 array (points, 1, 2) of x, y in padded coordinates. A line that is not closed is
    traced there and back. Empty where nothing of the mask lies inside the field.
    """
    if mask.shape != fov.shape or mask.ndim != 2:
        raise ValueError(f"mask {mask.shape} and field of view {fov.shape} must be the same (rows, columns)")
    inside = ((mask != 0) & (fov != 0)).astype(np.uint8)
    left, top, width, height = cv2.boundingRect(inside)
    if width == 0:
        return []
    # Only the box around the mask is looked at: contours, their order and their coordinates stay what they are in the
    # whole padded frame.
    box = np.pad(inside[top : top + height, left : left + width], 1)
    outline = np.zeros_like(box)
    contours, _ = cv2.findContours(box, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(outline, contours, -1, 1, 1)
    outline[1:-1, 1:-1][_field_border(fov)[top : top + height, left : left + width]] = 0
    offset = (_PADDING_PX + left - 1, _PADDING_PX + top - 1)
    contours, _ = cv2.findContours(outline, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE, offset=offset)
    return list(contours)


def _fit(points: np.ndarray) -> Ellipse | None:
    """Through points in padded coordinates."""
    if len(points) < _FEWEST_POINTS:
        return None
    (x, y), (first_axis, second_axis), angle_degrees = cv2.fitEllipse(points)
    values = (x, y, first_axis, second_axis, angle_degrees)
    if not all(map(math.isfinite, values)):
        return None
    return Ellipse((x - _PADDING_PX, y - _PADDING_PX), (first_axis / 2, second_axis / 2), angle_degrees)


def mark_outline(mask: np.ndarray, fov: np.ndarray) -> np.ndarray:
    """The mask, bool, with a spike of 2 x 3 pixels in the middle of the longest piece of its outline, so that this
    piece encloses something and the official fit takes it. A mask without an outline stays as it is."""
    marked = mask != 0
    pieces = outline_pieces(mask, fov)
    if pieces:
        piece = max(pieces, key=len)[:, 0] - _PADDING_PX
        middle = len(piece) // 4
        x, y = piece[middle]
        along_x, along_y = np.abs(piece[middle + 1 :][:5] - piece[middle]).max(axis=0, initial=0)
        half_columns, half_rows = (3, 1) if along_y > along_x else (1, 3)
        marked[max(0, y - half_rows) : y + half_rows, max(0, x - half_columns) : x + half_columns] = True
    return marked & (fov != 0)


def circumference_px(ellipse: Ellipse) -> float:
    """Ramanujan's first approximation, in pixels: pi (3 (a + b) - sqrt((3 a + b) (a + 3 b)))."""
    return _ramanujan(*ellipse.semi_axes_px)


def circumference_mm(ellipse: Ellipse, spacing_mm: tuple[float, float]) -> float:
    """The circumference in mm for pixels of `spacing_mm` = (row, column) spacing.

    With square pixels this is the official formula, `circumference_px` times the spacing. Otherwise the ellipse is
    stretched into millimetres, where it is again an ellipse: its semi-axes are the singular values of the map that
    takes the unit circle to it.
    """
    row_mm, column_mm = spacing_mm
    if row_mm == column_mm:
        return circumference_px(ellipse) * row_mm
    angle = math.radians(ellipse.angle_degrees)
    directions = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    circle_to_mm = np.diag([column_mm, row_mm]) @ directions @ np.diag(ellipse.semi_axes_px)
    first_mm, second_mm = np.linalg.svd(circle_to_mm, compute_uv=False)
    return _ramanujan(float(first_mm), float(second_mm))


def draw_ellipse(ellipse: Ellipse, rows: int, columns: int) -> np.ndarray:
    """The filled ellipse as a mask: bool (rows, columns); the part outside the frame is cut off.

    `fit_ellipse` puts its ellipse through the centres of a mask's outermost pixels, which lie on average half a pixel
    inside the edge; the drawn one is that half pixel wider, so that fitting what was drawn gives the ellipse back.
    """
    x, y = np.arange(columns) - ellipse.centre_px[0], np.arange(rows)[:, None] - ellipse.centre_px[1]
    angle = math.radians(ellipse.angle_degrees)
    first, second = (semi_axis + 0.5 for semi_axis in ellipse.semi_axes_px)
    along_first = (x * math.cos(angle) + y * math.sin(angle)) / first
    along_second = (y * math.cos(angle) - x * math.sin(angle)) / second
    return along_first**2 + along_second**2 <= 1


def _ramanujan(a: float, b: float) -> float:
    return math.pi * (3 * (a + b) - math.sqrt((3 * a + b) * (a + 3 * b)))


def _field_border(fov: np.ndarray) -> np.ndarray:
    """The pixels (rows, columns), bool, near the field's outline, where a mask's outline says nothing."""
    return _field_border_of_bytes((fov != 0).tobytes(), *fov.shape)


@lru_cache(maxsize=4)
def _field_border_of_bytes(fov_bytes: bytes, rows: int, columns: int) -> np.ndarray:
    """Cached, because a run asks for one field of view again and again and drawing it takes longer than the fit."""
    padding = _BORDER_DILATIONS + 1
    fov = np.pad(np.frombuffer(fov_bytes, dtype=np.uint8).reshape(rows, columns), padding)
    border = np.zeros_like(fov)
    contours, _ = cv2.findContours(fov, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(border, contours, -1, 1, 1)
    dilated = cv2.dilate(border, np.ones((3, 3), np.uint8), iterations=_BORDER_DILATIONS)
    return dilated[padding:-padding, padding:-padding] != 0
