"""The field of view: the fixed fan of the challenge's scanner, drawn from its rule."""

import numpy as np

from acouslic.geometry import COLUMNS, ROWS

_ASPECT_TOLERANCE = 0.01


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
