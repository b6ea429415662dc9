"""Draws ultrasound-like frames: layered tissue, bodies cut by the plane, shadows and speckle along the beams.

A frame is built in beam coordinates, an array (line, depth sample), because that is where ultrasound's looks come
from: what attenuates darkens everything behind it on the same line, fluid leaves the tissue behind it brighter,
walls are bright where the beam meets them squarely, and speckle widens with depth once the lines are fanned out.
The last step converts the lines to the fan. Positions and sizes are pixels of the official 562 x 744 geometry
(0.28 mm), x the column, y the row, whatever the size of the frame that is drawn in the end.
"""

import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from acouslic.fov import field_of_view
from acouslic.geometry import COLUMNS, ROWS

FloatArray = NDArray[np.float32]

_APEX_X_PX, _APEX_Y_PX = 372.0, -185.0
_FIRST_RADIUS_PX, _LAST_RADIUS_PX = 211.0, 750.0
_HALF_ANGLE = math.atan(0.5786)
_LINES, _SAMPLES = 176, 448

ATLAS_SIDE = 192
"""Side of a body's atlas in cells; its middle is the body's centre."""
ATLAS_REACH = 1.25
"""The atlas covers -1.25 .. 1.25 semi-axes in both directions."""


@dataclass(frozen=True)
class BeamGrid:
    """The beams of one frame size, and how they become its pixels."""

    rows: int
    columns: int
    x_px: FloatArray
    """(lines, samples), column of each sample."""
    y_px: FloatArray
    """(lines, samples), row of each sample."""
    beam: FloatArray
    """(2, lines, 1), unit vector (x, y) of each line."""
    depth: FloatArray
    """(1, samples), 0 at the probe to 1 at the bottom."""
    maps: tuple[NDArray[np.int16], NDArray[np.uint16]]
    """cv2.remap's fixed-point maps from (lines, samples) to (rows, columns)."""
    fov: NDArray[np.bool_]
    """(rows, columns), the fan."""

    def window(self, centre_px: tuple[float, float], reach_px: float) -> tuple[slice, slice]:
        """The lines and samples within `reach_px` of a point, rounded outwards; may be empty."""
        lines, samples = self.x_px.shape
        dx, dy = centre_px[0] - _APEX_X_PX, centre_px[1] - _APEX_Y_PX
        distance = math.hypot(dx, dy)
        per_sample = (_LAST_RADIUS_PX - _FIRST_RADIUS_PX) / (samples - 1)
        first = math.floor((distance - reach_px - _FIRST_RADIUS_PX) / per_sample)
        last = math.ceil((distance + reach_px - _FIRST_RADIUS_PX) / per_sample)
        depths = slice(min(max(first, 0), samples), min(max(last + 1, 0), samples))
        if reach_px >= distance:
            return slice(0, lines), depths
        angle, spread = math.atan2(dx, dy), math.asin(reach_px / distance)
        per_line = 2 * _HALF_ANGLE / (lines - 1)
        left = math.floor((angle - spread + _HALF_ANGLE) / per_line)
        right = math.ceil((angle + spread + _HALF_ANGLE) / per_line)
        return slice(min(max(left, 0), lines), min(max(right + 1, 0), lines)), depths


@functools.lru_cache(maxsize=4)
def make_beam_grid(rows: int = ROWS, columns: int = COLUMNS) -> BeamGrid:
    """The beams for frames of `rows` x `columns`; smaller frames get fewer lines and samples."""
    share = min(1.0, rows / ROWS)
    lines, samples = max(48, round(_LINES * share)), max(96, round(_SAMPLES * share))
    angle = np.linspace(-_HALF_ANGLE, _HALF_ANGLE, lines, dtype=np.float32)[:, None]
    radius = np.linspace(_FIRST_RADIUS_PX, _LAST_RADIUS_PX, samples, dtype=np.float32)[None, :]
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    dx = (x + 0.5) * (COLUMNS / columns) - 0.5 - _APEX_X_PX
    dy = (y + 0.5) * (ROWS / rows) - 0.5 - _APEX_Y_PX
    line_at = (np.arctan2(dx, dy) + _HALF_ANGLE) * ((lines - 1) / (2 * _HALF_ANGLE))
    sample_at = (np.hypot(dx, dy) - _FIRST_RADIUS_PX) * ((samples - 1) / (_LAST_RADIUS_PX - _FIRST_RADIUS_PX))
    maps = cv2.convertMaps(sample_at.astype(np.float32), line_at.astype(np.float32), cv2.CV_16SC2)
    return BeamGrid(
        rows=rows,
        columns=columns,
        x_px=_APEX_X_PX + radius * np.sin(angle),
        y_px=_APEX_Y_PX + radius * np.cos(angle),
        beam=np.stack([np.sin(angle), np.cos(angle)]),
        depth=np.linspace(0, 1, samples, dtype=np.float32)[None, :],
        maps=maps,
        fov=field_of_view(rows, columns),
    )


def smooth_noise(rng: np.random.Generator, rows: int, columns: int, cell: int) -> FloatArray:
    """(rows, columns) of standard normal noise whose structures are about `cell` wide."""
    coarse = rng.standard_normal((rows // cell + 4, columns // cell + 4)).astype(np.float32)
    fine = cv2.resize(coarse, (columns + 3 * cell, rows + 3 * cell), interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(fine[cell : cell + rows, cell : cell + columns])


def draw_speckle(rng: np.random.Generator, grid: BeamGrid) -> FloatArray:
    """A field twice as long as a frame in both directions, mean 1: windows of it are the frames' speckle.

    The magnitude of a correlated complex Gaussian (fully developed speckle is Rayleigh), compressed as the
    display does.
    """
    shape = (2 * grid.x_px.shape[0], 2 * grid.x_px.shape[1])
    parts = [
        cv2.GaussianBlur(rng.standard_normal(shape, dtype=np.float32), (0, 0), sigmaX=0.9, sigmaY=1.1) for _ in range(2)
    ]
    compressed = np.hypot(parts[0], parts[1]) ** 0.7
    return (compressed / compressed.mean()).astype(np.float32)


@dataclass(frozen=True)
class Tissue:
    """The mother's side of a case: two backgrounds that blend into each other along a sweep, at half resolution."""

    echo: tuple[FloatArray, FloatArray]
    """Brightness 0..1, covering the frame and 150 px around it."""
    layers: FloatArray
    """(lines, samples), brightness that stays with the probe: skin, fat and muscle."""


TISSUE_MARGIN_PX = 150


def draw_tissue(rng: np.random.Generator, grid: BeamGrid) -> Tissue:
    """Layers near the probe, and behind them tissue with pockets of fluid and bright interfaces."""
    rows, columns = (ROWS + 2 * TISSUE_MARGIN_PX) // 2, (COLUMNS + 2 * TISSUE_MARGIN_PX) // 2
    echoes = []
    for _ in range(2):
        coarse, middle = smooth_noise(rng, rows, columns, 60), smooth_noise(rng, rows, columns, 20)
        fine = smooth_noise(rng, rows, columns, 6)
        echo = 0.34 + 0.15 * coarse + 0.08 * middle + 0.04 * fine
        pockets = smooth_noise(rng, rows, columns, 55) + middle * 0.3
        level = rng.uniform(0.7, 2.0)
        fluid = 1 / (1 + np.exp(np.clip(14 * (level - pockets), -30, 30)))
        interfaces = np.exp(-(((smooth_noise(rng, rows, columns, 45)) / 0.07) ** 2)) * (0.2 + 0.25 * middle).clip(0)
        echoes.append(((echo + interfaces) * (1 - 0.85 * fluid)).clip(0.02, 1).astype(np.float32))
    lines, samples = grid.x_px.shape
    layers = np.zeros((lines, samples), np.float32)
    at = 0.01
    for _ in range(int(rng.integers(3, 6))):
        at += rng.uniform(0.012, 0.035)
        knots = rng.standard_normal(9)
        wave = at + 0.004 * np.interp(np.linspace(0, 8, lines), np.arange(9), knots)[:, None]
        layers += np.float32(rng.uniform(0.1, 0.45)) * np.exp(
            -(((grid.depth - wave) / rng.uniform(0.003, 0.008)) ** 2)
        ).astype(np.float32)
    return Tissue((echoes[0], echoes[1]), layers)


@dataclass(frozen=True)
class Atlas:
    """The inside of a body in its own coordinates: rows and columns run -1.25 .. 1.25 semi-axes."""

    echo: FloatArray
    """Brightness 0..1."""
    attenuation: FloatArray
    """Loss on the way through, per semi-axis: soft tissue about 0.5, bone several."""


@dataclass(frozen=True)
class Cut:
    """The cross-section of a body with the plane: an ellipse, and what is in it."""

    centre_px: tuple[float, float]
    semi_axes_px: tuple[float, float]
    angle_degrees: float
    """Direction of the first semi-axis, from x towards y."""
    atlas: Atlas
    wall_echo: float
    wall_width: float
    """Thickness of the wall in semi-axes."""
    blur: float = 0.0
    """An oblique cut's loss of sharpness, in atlas cells."""


def paint_cut(grid: BeamGrid, echo: FloatArray, attenuation: FloatArray, cut: Cut) -> None:
    """Draw a body into brightness and attenuation, both (lines, samples), in place."""
    lines, depths = grid.window(cut.centre_px, ATLAS_REACH * max(cut.semi_axes_px))
    dx = grid.x_px[lines, depths] - np.float32(cut.centre_px[0])
    dy = grid.y_px[lines, depths] - np.float32(cut.centre_px[1])
    if dx.size == 0:
        return
    cosine, sine = math.cos(math.radians(cut.angle_degrees)), math.sin(math.radians(cut.angle_degrees))
    a, b = cut.semi_axes_px
    u, v = (dx * cosine + dy * sine) / np.float32(a), (dy * cosine - dx * sine) / np.float32(b)
    rho = np.hypot(u, v)
    scale = np.float32((ATLAS_SIDE - 1) / (2 * ATLAS_REACH))
    at = ((u + ATLAS_REACH) * scale, (v + ATLAS_REACH) * scale)
    source = cut.atlas.echo if cut.blur < 0.3 else cv2.GaussianBlur(cut.atlas.echo, (0, 0), cut.blur)
    inside = cv2.remap(source, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    loss = cv2.remap(cut.atlas.attenuation, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    # The normal of an ellipse in its own coordinates is (u / a, v / b).
    normal_u, normal_v = u / np.float32(a), v / np.float32(b)
    beam_x, beam_y = grid.beam[0, lines], grid.beam[1, lines]
    along = normal_u * (beam_x * cosine + beam_y * sine) + normal_v * (beam_y * cosine - beam_x * sine)
    squareness = along * along / (normal_u * normal_u + normal_v * normal_v + np.float32(1e-12))
    wall = np.exp(-(((rho - 1) / np.float32(cut.wall_width)) ** 2)) * (0.3 + 0.7 * squareness)
    alpha = ((1.03 - rho) / 0.06).clip(0, 1)
    target = echo[lines, depths]
    target += alpha * (inside - target) + np.float32(cut.wall_echo) * wall
    per_sample = np.float32((_LAST_RADIUS_PX - _FIRST_RADIUS_PX) / (grid.depth.shape[1] - 1) / math.sqrt(a * b))
    target = attenuation[lines, depths]
    target += alpha * (loss * per_sample - target)


def finish_frame(
    grid: BeamGrid, echo: FloatArray, attenuation: FloatArray, speckle: FloatArray, gain: float, noise: float
) -> NDArray[np.uint8]:
    """Brightness (lines, samples) through attenuation and speckle to a frame uint8 (rows, columns), black outside."""
    through = np.exp(-np.cumsum(attenuation, axis=1, dtype=np.float32))
    lines = echo * through * speckle
    lines *= np.float32(255 * gain)
    lines += np.float32(noise) * (0.3 + grid.depth) * speckle[::-1, ::-1]
    levels = lines.clip(0, 255).astype(np.uint8)
    picture = cv2.remap(levels, *grid.maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(picture * grid.fov, np.uint8)
