"""Random changes of a training batch: drawn on the host ahead of the step, made on the device in a few kernels.

What needs a frame's whole histogram (CLAHE) is done on the host, by OpenCV, while frames are read; so is everything of
the published recipe, whose copies are fixed: a frame's second copy is the same in every epoch. Geometry moves image and
mask together; looks change the image alone.
"""

import math
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from training.recipe.settings import AugmentSettings

# The probe's virtual apex and reach in the square frame, as shares of its side: beams fan out from here
# (docs of the challenge: 744 px side, apex 185 px above the first row, which lies 91 px below the square's top).
_APEX_X, _APEX_Y = 0.5, (91 - 185) / 744
_FIRST_RADIUS, _LAST_RADIUS = 213 / 744, 748 / 744
_HALF_ANGLE = math.atan(0.5747)

_TILES = (8, 8)
_CLAHE_CLIP = (1.0, 3.0)
_GAMMA, _GAIN = (0.7, 1.4), (0.75, 1.3)
_MOST_BLUR, _MOST_NOISE = 0.005, 0.08
_REACH = 3
"""Of the blur, in deviations of the strongest."""

Bytes = NDArray[np.uint8]
Values = NDArray[np.floating[Any]]


class Change(NamedTuple):
    """What happens to each frame of a batch, a value a frame; the columns of `FrameBatch.changes`."""

    xx: Values
    """Where an output position comes from, x' = xx x + xy y + x0, on a square of -1..1; and so for y."""
    xy: Values
    x0: Values
    yx: Values
    yy: Values
    y0: Values
    slope: Values
    """Gain at the deepest point less that at the probe."""
    shadow: Values
    """Share of light that a shadow takes; 0 is no shadow."""
    centre: Values
    width: Values
    start: Values
    speckle: Values
    gamma: Values
    gain: Values
    blur: Values
    """Standard deviation of a Gaussian, as a share of the side."""
    noise: Values
    """Standard deviation of what is added where the frame is not black, of a range of 1."""


def draw_changes(settings: AugmentSettings, count: int, rng: np.random.Generator) -> Tensor:
    """Changes of our recipe for a batch, float32 (count, columns of `Change`); (count, 0) for another recipe."""
    if settings.recipe != "sweep":
        return torch.zeros(count, 0)

    def some(probability: float) -> NDArray[np.bool_]:
        return rng.random(count) < probability

    def between(low: float, high: float) -> NDArray[np.float64]:
        return rng.uniform(low, high, count)

    moved, flipped = some(settings.affine), some(settings.flip)
    angle = np.radians(between(-settings.degrees, settings.degrees)) * moved
    scale = np.where(moved, between(*settings.scale), 1.0)
    shift_x, shift_y = (2 * between(-settings.shift, settings.shift) * moved for _ in range(2))
    # Backwards: undo the shift, then rotation and scale about the centre, then the flip.
    cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
    side = np.where(flipped, -1.0, 1.0)
    bent = some(settings.gain)
    columns = Change(
        xx=side * cosine,
        xy=side * sine,
        x0=-side * (cosine * shift_x + sine * shift_y),
        yx=-sine,
        yy=cosine,
        y0=sine * shift_x - cosine * shift_y,
        slope=some(settings.attenuation) * between(-0.6, 0.6),
        shadow=some(settings.shadow) * between(0.2, 0.9),
        centre=between(-0.9, 0.9),
        width=between(0.04, 0.16),
        start=between(0.0, 0.6),
        speckle=some(settings.speckle) * between(0.05, 0.3),
        # Contrast multiplies and gamma bends: both keep black black, as the display's gain does.
        gamma=np.where(bent, between(*_GAMMA), 1.0),
        gain=np.where(bent, between(*_GAIN), 1.0),
        # Drawn last and only where wanted: a recipe without them has the random numbers that it always had.
        blur=some(settings.blur) * between(0.0, _MOST_BLUR) if settings.blur else np.zeros(count),
        noise=some(settings.noise) * between(0.0, _MOST_NOISE) if settings.noise else np.zeros(count),
    )
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))


def apply_changes(frames: Tensor, masks: Tensor, changes: Tensor, settings: AugmentSettings) -> tuple[Tensor, Tensor]:
    """Frames and masks uint8 (B, S, S), masks 0/1, to the same form, changed as `draw_changes` says of `settings`;
    torch's random state draws the grain of speckle and noise.

    Padding and the outside of the fan stay black, since nothing here adds light.
    """
    if changes.shape[1] == 0 or len(frames) == 0:
        return frames, masks
    # A grid of positions in half precision is off by half a pixel, in steps.
    with torch.autocast(frames.device.type, enabled=False):
        column = dict(zip(Change._fields, changes[:, :, None, None, None].unbind(1), strict=True))
        grey = _change_beams(frames[:, None].float().div_(255), column)
        if settings.blur:
            grey = _blur(grey, column["blur"]) * (frames[:, None] > 0)
        if settings.noise:
            grain = torch.randn(grey.shape, device=grey.device).mul_(column["noise"])
            grey = grey.add_(grain.mul_(frames[:, None] > 0)).clamp_(0, 1)
        grid = F.affine_grid(changes[:, :6].unflatten(1, (2, 3)), [len(frames), 1, *frames.shape[1:]], False)
        both = torch.cat([grey, masks[:, None].float()], dim=1)
        grey, moved = F.grid_sample(both, grid, "bilinear", "zeros", False).split(1, dim=1)
        grey = grey.pow(column["gamma"]).mul_(column["gain"] * 255).round_().clamp_(0, 255)
        return grey[:, 0].to(torch.uint8), (moved[:, 0] > 0.5).to(torch.uint8)


def _change_beams(grey: Tensor, column: dict[str, Tensor]) -> Tensor:
    """Depth attenuation, shadows and speckle on grey levels (B, 1, S, S) in 0..1; columns are (B, 1, 1, 1)."""
    size, device = grey.shape[-1], grey.device
    depth, angle = _beam_coordinates(size, device)
    below = ((depth - column["start"]) * 10).clamp_(0, 1)
    shade = torch.exp(-(((angle - column["centre"]) / column["width"]) ** 2)).mul_(below)
    factor = (1 + column["slope"] * (depth - 0.5)).mul_(1 - column["shadow"] * shade)
    grain = torch.randn(len(grey), 1, size, size, device=device)
    grain = F.avg_pool2d(grain, (1, 3), stride=1, padding=(0, 1))
    return grey.mul_(factor).mul_(1 + column["speckle"] * math.sqrt(3) * grain).clamp_(0, 1)


def _blur(grey: Tensor, deviation: Tensor) -> Tensor:
    """(B, 1, S, S) under a Gaussian whose deviation, a share of the side (B, 1, 1, 1), is each frame's own."""
    side = grey.shape[-1]
    reach = max(1, math.ceil(_REACH * _MOST_BLUR * side))
    at = torch.arange(-reach, reach + 1, device=grey.device) / side
    # A share that no float32 tells from 0 leaves the middle alone.
    kernel = torch.exp(-0.5 * (at / deviation[:, :, 0].clamp_min(1e-6)) ** 2)
    kernel = (kernel / kernel.sum(2, keepdim=True))[:, :, :, None]
    for turned, padding in ((kernel, (reach, 0)), (kernel.transpose(2, 3), (0, reach))):
        grey = F.conv2d(grey.transpose(0, 1), turned, padding=padding, groups=len(grey)).transpose(0, 1)
    return grey


def _beam_coordinates(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Depth 0..1 along the beam and angle -1..1 across the fan, each (1, 1, S, S)."""
    at = (torch.arange(size, device=device) + 0.5) / size
    dx, dy = at[None, :] - _APEX_X, at[:, None] - _APEX_Y
    depth = (torch.hypot(dx, dy) - _FIRST_RADIUS) / (_LAST_RADIUS - _FIRST_RADIUS)
    return depth.clamp(0, 1)[None, None], (torch.atan2(dx, dy) / _HALF_ANGLE)[None, None]


def equalise_some(frames: Bytes, settings: AugmentSettings, rng: np.random.Generator) -> Bytes:
    """CLAHE on about the share `settings.clahe` of our recipe's frames (B, S, S), as they are read. It lifts black next
    to bright pixels by a few grey levels."""
    if settings.recipe != "sweep" or settings.clahe == 0:
        return frames
    chosen = np.flatnonzero(rng.random(len(frames)) < settings.clahe)
    for row in chosen:
        frames[row] = cv2.createCLAHE(rng.uniform(*_CLAHE_CLIP), _TILES).apply(frames[row])
    return frames


def published_copy(frame: Bytes, mask: Bytes, copy: int, rng: np.random.Generator) -> tuple[Bytes, Bytes]:
    """A frame and its mask (S, S) as the published recipe shows them: copy 0 is the frame itself, others are changed.

    Brightness and contrast within 20 % with probability 0.5, then CLAHE (clip limit 1 to 4, 8 x 8 tiles) with 0.5, then
    always +-20 degrees and +-20 % shift, black outside: albumentations' ColorJitter, CLAHE and Affine with their
    defaults (FetalCLIP-IQA, commit fbcbdd2). Saturation and hue do nothing to grey frames. There it comes before
    frames are shrunk from 744 pixels to 224, here after: `bench/augmentation_order.py` says what that changes.
    """
    if copy == 0:
        return frame, mask
    if rng.random() < 0.5:
        frame = _jitter(frame, rng)
    if rng.random() < 0.5:
        frame = _as_bytes(cv2.createCLAHE(rng.uniform(1.0, 4.0), _TILES).apply(frame))
    size = frame.shape[0]
    middle = (size - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), rng.uniform(-20.0, 20.0), 1.0)
    matrix[:, 2] += rng.uniform(-0.2, 0.2, 2) * size
    moved = cv2.warpAffine(frame, matrix, (size, size), flags=cv2.INTER_LINEAR)
    return _as_bytes(moved), _as_bytes(cv2.warpAffine(mask, matrix, (size, size), flags=cv2.INTER_NEAREST))


def _jitter(frame: Bytes, rng: np.random.Generator) -> Bytes:
    """Brightness and contrast, in either order; contrast turns about the mean of the whole frame, padding included."""
    steps = ["brightness", "contrast"]
    if rng.random() < 0.5:
        steps.reverse()
    for step in steps:
        factor = rng.uniform(0.8, 1.2)
        offset = float(frame.mean()) * (1 - factor) if step == "contrast" else 0.0
        levels = (np.arange(256) * factor + offset).round().clip(0, 255).astype(np.uint8)
        frame = levels[frame]
    return frame


def _as_bytes(image: NDArray[Any]) -> Bytes:
    """OpenCV's result, whose type its annotations leave open."""
    return image.astype(np.uint8, copy=False)
