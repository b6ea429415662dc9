"""What it changes that the published recipe's copies are made at the training's size here, and at 744 pixels there.

    python bench/augmentation_order.py [--draws 50] [--size 224] [PICTURE ...]

The same copy is made twice, from the same random numbers: of the padded frame, which is shrunk then, as the published
code does, and of the frame that was shrunk before, as `training/frames/augment.py` does. For each set of changes:

order_levels     mean absolute difference of the two, in grey levels of 255, over the pixels that are not black in both
spread_levels    the same between two copies of other random numbers: what the augmentation itself is made of
mean_levels      how far the mean grey level of the two is apart

Without pictures 10 frames are drawn, of a generated case. The last line is JSON.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from acouslic.errors import AcouslicError
from algorithm.frames.preprocess import resize_frames, square_offsets
from algorithm.model.networks import PreprocessingConfig
from bench.setting.command import at_least, exit_with
from bench.setting.machine import today
from training.frames.augment import published_copy
from training.phantom.draw_case import generate_case

CHANGES = {
    "affine": (1.0, 1.0),
    "jitter, affine": (0.0, 0.0, 1.0),
    "CLAHE, affine": (1.0, 0.0),
    "all": (0.0, 0.0, 0.0),
}
"""By name, what the recipe's draws of `random` answer: below 0.5 is yes. Jitter draws its order in between."""
_DRAWN_FRAMES = 10

Bytes = NDArray[np.uint8]


class Decided(np.random.Generator):
    """Random numbers, but for which changes are made."""

    def __init__(self, seed: tuple[int, ...], answers: Sequence[float]) -> None:
        super().__init__(np.random.PCG64(seed))
        self._answers = iter(answers)

    def random(self, *_: object, **__: object) -> float:  # type: ignore[override]  # of one number alone
        """The next answer."""
        return next(self._answers)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table and a line of JSON; 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "pictures", nargs="*", type=Path, metavar="PICTURE", help="a frame as a picture (default: 10 frames are drawn)"
    )
    parser.add_argument("--draws", type=at_least(2), default=50, help="copies of each frame (default: %(default)s)")
    parser.add_argument(
        "--size", type=at_least(1), default=224, help="side of the training image in pixels (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    frames = [_read(path) for path in options.pictures] or _drawn()
    figures = {name: measure(frames, answers, options.size, options.draws) for name, answers in CHANGES.items()}
    for name, values in figures.items():
        print(f"{name}: {values}")
    print(json.dumps({"date": today(), "frames": len(frames), "draws": options.draws, "size": options.size} | figures))
    return 0


def measure(frames: Sequence[Bytes], answers: Sequence[float], size: int, draws: int) -> dict[str, float]:
    """The figures of one set of changes, means over `draws` copies of each frame (rows, columns)."""
    order, spread, mean = [], [], []
    for number, frame in enumerate(frames):
        square, small = padded(frame), shrunk(frame, size)
        earlier = None
        for draw in range(draws):
            here, there = (_copy(image, (number, draw), answers) for image in (small, square))
            there = shrunk(there, size)
            order.append(difference(here, there))
            mean.append(abs(float(here.mean()) - float(there.mean())))
            if earlier is not None:
                spread.append(difference(here, earlier))
            earlier = here
    levels = {"order_levels": order, "spread_levels": spread, "mean_levels": mean}
    return {name: round(float(np.mean(values)), 2) for name, values in levels.items()}


def difference(one: Bytes, other: Bytes) -> float:
    """Mean absolute difference in grey levels over what is not black in both; 0 where all is."""
    seen = (one > 0) | (other > 0)
    return float(np.abs(one.astype(np.int16) - other)[seen].mean()) if seen.any() else 0.0


def padded(frame: Bytes) -> Bytes:
    """The frame in the middle of a square of zeros."""
    side, top, left = square_offsets(*frame.shape)
    square = np.zeros((side, side), np.uint8)
    square[top : top + frame.shape[0], left : left + frame.shape[1]] = frame
    return square


def shrunk(frame: Bytes, size: int) -> Bytes:
    """A frame as the network sees it, (size, size)."""
    return resize_frames(torch.from_numpy(frame)[None], size, PreprocessingConfig())[0].numpy()


def _copy(image: Bytes, seed: tuple[int, ...], answers: Sequence[float]) -> Bytes:
    return published_copy(image, np.zeros_like(image), 1, Decided(seed, answers))[0]


def _read(path: Path) -> Bytes:
    picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if picture is None:
        raise AcouslicError(f"{path} is no picture")
    return picture.astype(np.uint8, copy=False)


def _drawn() -> list[Bytes]:
    return list(generate_case((1,), sweeps=1, frames_per_sweep=_DRAWN_FRAMES).frames)


if __name__ == "__main__":
    exit_with(main)
