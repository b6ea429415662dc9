"""The insides of the generated bodies, drawn once a subject into atlases: abdomen, head, limb, fluid.

Organs lie where anatomy has them, and that tells the planes apart. The full section of the abdomen shows the stomach,
the umbilical vein and one round vertebra; towards its ends ribs, kidneys and bowel take their place. A head has a thick
bright skull, a dark brain and a midline; a limb is little more than a bone and its shadow.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from training.phantom.tissue import ATLAS_REACH, ATLAS_SIDE, Atlas, FloatArray, smooth_noise

_CELLS = (ATLAS_SIDE - 1) / (2 * ATLAS_REACH)
_SOFT_ATTENUATION, _BONE_ATTENUATION = 0.22, 4.5


def _at(u: float, v: float) -> tuple[int, int]:
    """Body coordinates to atlas cells (column, row)."""
    return round((u + ATLAS_REACH) * _CELLS), round((v + ATLAS_REACH) * _CELLS)


def _spot(canvas: FloatArray, u: float, v: float, a: float, b: float, angle_degrees: float, value: float) -> None:
    """Fill an ellipse of semi-axes a, b (body coordinates) with a value."""
    axes = (max(1, round(a * _CELLS)), max(1, round(b * _CELLS)))
    cv2.ellipse(canvas, _at(u, v), axes, angle_degrees, 0, 360, value, -1)


def _arc(
    canvas: FloatArray, radius: float, first_degrees: float, last_degrees: float, width: float, value: float
) -> None:
    """A piece of a circle around the body's centre."""
    axes = (round(radius * _CELLS), round(radius * _CELLS))
    cv2.ellipse(canvas, _at(0, 0), axes, 0, first_degrees, last_degrees, value, max(1, round(width * _CELLS)))


def _blurred(canvas: FloatArray, sigma_cells: float) -> FloatArray:
    return np.asarray(cv2.GaussianBlur(canvas, (0, 0), sigma_cells), np.float32)


def _parenchyma(rng: np.random.Generator, echo: float, contrast: float) -> FloatArray:
    coarse, fine = smooth_noise(rng, ATLAS_SIDE, ATLAS_SIDE, 36), smooth_noise(rng, ATLAS_SIDE, ATLAS_SIDE, 9)
    return (echo + contrast * (coarse + 0.5 * fine)).clip(0.03, 1).astype(np.float32)


def _add_spine(rng: np.random.Generator, echo: FloatArray, attenuation: FloatArray, turn: float) -> None:
    """A vertebra near the wall: three bright centres, each with a shadow."""
    distance, spread = rng.uniform(0.72, 0.80), rng.uniform(0.13, 0.18)
    for around, outward in ((-spread, 0.02), (spread, 0.02), (0.0, -0.10)):
        angle = turn + around / distance
        u, v = (distance + outward) * math.cos(angle), (distance + outward) * math.sin(angle)
        _spot(echo, u, v, 0.075, 0.055, math.degrees(angle), rng.uniform(0.95, 1.2))
        _spot(attenuation, u, v, 0.06, 0.05, math.degrees(angle), _BONE_ATTENUATION)


@dataclass(frozen=True)
class Body:
    """A body that can pass through the plane."""

    middle: Atlas
    """Its full section."""
    end: Atlas
    """What is seen far from the full section; blended with `middle` on the way."""
    wall_echo: float
    wall_width: float


def draw_abdomen(rng: np.random.Generator) -> Body:
    """Stomach, vein and vertebra in the middle; ribs, kidneys and bowel at the ends."""
    spine = rng.uniform(0, 2 * math.pi)
    side = rng.choice([-1.0, 1.0])
    tissue = rng.uniform(0.26, 0.42)
    echo, attenuation = _parenchyma(rng, tissue, 0.04), np.full((ATLAS_SIDE, ATLAS_SIDE), _SOFT_ATTENUATION, np.float32)
    # The vein enters opposite the spine and curves to the stomach's other side: a dark stripe between bright borders.
    start, bend = rng.uniform(0.62, 0.75), rng.uniform(0.25, 0.5)
    steps = np.linspace(0, 1, 24)
    along, across = start - (start + 0.1) * steps, -side * bend * steps**2
    u = -along * math.cos(spine) - across * math.sin(spine)
    v = -along * math.sin(spine) + across * math.cos(spine)
    line = np.array([_at(x, y) for x, y in zip(u, v, strict=True)], np.int32)
    cv2.polylines(echo, [line], False, min(0.9, tissue + 0.35), round(0.24 * _CELLS))
    cv2.polylines(echo, [line], False, 0.03, round(rng.uniform(0.12, 0.15) * _CELLS))
    turn = spine + side * rng.uniform(1.1, 1.5)
    stomach = (rng.uniform(0.45, 0.55) * math.cos(turn), rng.uniform(0.45, 0.55) * math.sin(turn))
    size, tilt = rng.uniform(0.27, 0.34), float(rng.uniform(0, 180))
    _spot(echo, *stomach, size + 0.03, 0.75 * size + 0.03, tilt, tissue + 0.18)
    _spot(echo, *stomach, size, 0.75 * size, tilt, 0.02)
    _spot(attenuation, *stomach, size, 0.75 * size, tilt, 0.0)
    _spot(echo, 0.5 * math.cos(spine), 0.5 * math.sin(spine), 0.07, 0.07, 0, 0.03)  # the aorta
    _add_spine(rng, echo, attenuation, spine)
    middle = Atlas(_blurred(echo, 1.3), _blurred(attenuation, 1.0))

    echo, attenuation = _parenchyma(rng, tissue, 0.09), np.full((ATLAS_SIDE, ATLAS_SIDE), _SOFT_ATTENUATION, np.float32)
    for angle in rng.uniform(0, 360, int(rng.integers(3, 6))):
        _arc(echo, 0.86, angle, angle + rng.uniform(12, 30), 0.05, 0.9)
        _arc(attenuation, 0.86, angle, angle + 14, 0.05, _BONE_ATTENUATION / 2)
    for around in (-0.55, 0.55):
        angle = spine + around
        kidney = (0.5 * math.cos(angle), 0.5 * math.sin(angle))
        _spot(echo, *kidney, 0.24, 0.15, math.degrees(angle), tissue - 0.12)
        _spot(echo, *kidney, 0.12, 0.05, math.degrees(angle), tissue + 0.15)
    for _ in range(int(rng.integers(2, 6))):
        u, v = rng.uniform(-0.45, 0.45, 2)
        _spot(echo, u, v, rng.uniform(0.05, 0.14), rng.uniform(0.04, 0.08), float(rng.uniform(0, 180)), tissue + 0.12)
    _add_spine(rng, echo, attenuation, spine)
    end = Atlas(_blurred(echo, 2.0), _blurred(attenuation, 1.0))
    return Body(middle, end, wall_echo=rng.uniform(0.6, 0.9), wall_width=rng.uniform(0.04, 0.06))


def draw_head(rng: np.random.Generator) -> Body:
    """A thick skull that casts shadow, a dark brain with a midline and choroid plexus; the ends lack the midline."""
    atlases = []
    turn = rng.uniform(0, 180)
    for has_midline in (True, False):
        echo = _parenchyma(rng, 0.17, 0.03)
        attenuation = np.full((ATLAS_SIDE, ATLAS_SIDE), 0.1, np.float32)
        along = math.radians(turn)
        if has_midline:
            first, last = (
                _at(-0.8 * math.cos(along), -0.8 * math.sin(along)),
                _at(0.8 * math.cos(along), 0.8 * math.sin(along)),
            )
            cv2.line(echo, first, last, 0.65, 2)
            for across in (-0.35, 0.35):
                u, v = (
                    -across * math.sin(along) - 0.2 * math.cos(along),
                    across * math.cos(along) - 0.2 * math.sin(along),
                )
                _spot(echo, u, v, 0.22, 0.10, turn, 0.06)
                _spot(echo, u, v, 0.14, 0.06, turn, 0.5)
        else:
            _spot(echo, 0.3 * math.cos(along), 0.3 * math.sin(along), 0.3, 0.2, turn, 0.35)
        cv2.circle(attenuation, _at(0, 0), round(0.98 * _CELLS), 1.6, round(0.08 * _CELLS))
        cv2.circle(echo, _at(0, 0), round(0.98 * _CELLS), 0.5, round(0.08 * _CELLS))
        atlases.append(Atlas(_blurred(echo, 1.3), _blurred(attenuation, 1.0)))
    return Body(atlases[0], atlases[1], wall_echo=rng.uniform(0.6, 0.9), wall_width=rng.uniform(0.06, 0.09))


def draw_limb(rng: np.random.Generator) -> Body:
    """Soft tissue around one or two bones."""
    echo, attenuation = _parenchyma(rng, 0.4, 0.08), np.full((ATLAS_SIDE, ATLAS_SIDE), _SOFT_ATTENUATION, np.float32)
    bones: tuple[tuple[float, float], ...] = ((0.0, 0.0),) if rng.random() < 0.5 else ((-0.3, 0.0), (0.3, 0.1))
    for u, v in bones:
        _spot(echo, u, v, 0.28, 0.22, 0, 1.1)
        _spot(attenuation, u, v, 0.28, 0.22, 0, 0.6 * _BONE_ATTENUATION)
    atlas = Atlas(_blurred(echo, 2.0), _blurred(attenuation, 1.5))
    return Body(atlas, atlas, wall_echo=0.25, wall_width=0.15)


def draw_fluid() -> Atlas:
    """Amniotic fluid: dark, and nearly without loss."""
    shape = (ATLAS_SIDE, ATLAS_SIDE)
    return Atlas(np.full(shape, 0.04, np.float32), np.full(shape, 0.01, np.float32))
