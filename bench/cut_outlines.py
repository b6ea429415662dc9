"""How well bodies that the fan cuts are measured, on bodies drawn at random.

    python bench/cut_outlines.py [--bodies 1500]

A body is an ellipse with an uneven outline, as decoders draw them, of which the fan shows 70 to 99.9 %. It goes the way
of a chosen frame's mask. Counted are bodies without an ellipse, and those whose circumference is more than a tenth off
that of the whole body; both cost most of a case's score. The mean error counts a body without an ellipse as 1. The last
line is JSON.
"""

import argparse
import json
from collections.abc import Iterator, Sequence

import numpy as np

from acouslic.ellipse import Ellipse, circumference_px
from acouslic.fov import field_of_view
from algorithm.result.segment import Mask, clean_mask
from bench.setting.command import at_least, exit_with

SEED = 1
_SEEN = (0.7, 0.999)


def draw_bodies(fov: Mask, count: int, seed: int = SEED) -> Iterator[tuple[Mask, float]]:
    """Of so many drawn bodies those that the fan cuts: what it shows of each, and the whole circumference in px."""
    generator = np.random.default_rng(seed)
    rows, columns = np.indices(fov.shape)
    for _ in range(count):
        high, wide = generator.uniform(80, 160, 2)
        unevenness, waves = generator.choice([0.01, 0.02, 0.03]), generator.integers(5, 14)
        row, on_the_right = generator.integers(150, 500), generator.integers(2)
        edge = np.flatnonzero(fov[row])[-1 if on_the_right else 0]
        column = edge + (-1 if on_the_right else 1) * generator.uniform(0.6, 1.05) * wide
        direction = np.arctan2(rows - row, columns - column)
        distance = np.hypot((rows - row) / high, (columns - column) / wide)
        body = distance <= 1 + unevenness * np.sin(waves * direction)
        if _SEEN[0] <= np.count_nonzero(body & fov) / np.count_nonzero(body) <= _SEEN[1]:
            yield body & fov, circumference_px(Ellipse((0, 0), (wide, high), 0))


def measure(count: int) -> dict[str, float]:
    """The counts over drawn bodies, and the mean error."""
    fov = field_of_view()
    errors = []
    for body, whole_px in draw_bodies(fov, count):
        _, ellipse = clean_mask(body.astype(np.float32), fov, 0.5, "ellipse")
        errors.append(1.0 if ellipse is None else abs(circumference_px(ellipse) / whole_px - 1))
    found = np.array(errors)
    return {
        "bodies": len(found),
        "without_ellipse": int((found == 1).sum()),
        "a_tenth_off": int(((found > 0.1) & (found != 1)).sum()),
        "mean_error": float(np.minimum(found, 1).mean()),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bodies", type=at_least(1), default=1500, help="drawn, cut or not (default: %(default)s)")
    figures = measure(parser.parse_args(arguments).bodies)
    print(f"{figures['bodies']} bodies that the fan cuts: {figures['without_ellipse']} without an ellipse, ", end="")
    print(f"{figures['a_tenth_off']} more than a tenth off, mean error {figures['mean_error']:.4f}")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    exit_with(main)
