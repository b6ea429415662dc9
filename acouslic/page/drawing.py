"""Outlines and curves as paths of an SVG drawing."""

from collections.abc import Iterable

import numpy as np


def outline_path(polygons: Iterable[np.ndarray]) -> str:
    """Polygons, each (n, 2) of whole x and y, as a closed path; "" for none."""
    return "".join("M" + "L".join(f"{x} {y}" for x, y in polygon.tolist()) + "Z" for polygon in polygons)


def curve_path(probability: np.ndarray, most_points: int) -> str:
    """Probabilities (F,) as a line in a drawing F wide and 100 high; of many frames the highest of each few."""
    count = len(probability)
    step = -(-count // most_points)
    points = [
        (start + min(step, count - start) / 2, 100 * (1 - float(probability[start : start + step].max())))
        for start in range(0, count, step)
    ]
    return "M" + "L".join(f"{x:g} {y:.2f}" for x, y in points)
