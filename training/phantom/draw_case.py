"""Draws one generated case: tissue, the bodies that pass through its sweeps, labels and circumferences."""

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from acouslic.geometry import COLUMNS, FRAMES_PER_SWEEP, ROWS, SPACING_MM, SWEEPS_PER_CASE
from training.phantom.anatomy import draw_fluid
from training.phantom.motion import Passage, draw_subject, plan_sweep
from training.phantom.tissue import (
    TISSUE_MARGIN_PX,
    Atlas,
    BeamGrid,
    Cut,
    FloatArray,
    Tissue,
    draw_speckle,
    draw_tissue,
    finish_frame,
    make_beam_grid,
    paint_cut,
)

# The share of cases whose sweep has annotated frames, by sweep: 237, 135, 90, 31, 47 and 13 of 300.
SWEEP_HAS_TARGET = (0.79, 0.45, 0.30, 0.10, 0.16, 0.04)
PADDED_SWEEP_SHARE = 0.08
"""The share of sweeps that are shorter than the rest of the stack; black or repeated frames fill them up."""


@dataclass(frozen=True)
class GeneratedCase:
    """One case, as arrays."""

    uuid: str
    subject_id: str
    frames: NDArray[np.uint8]
    """(frame, row, column), black outside the fan."""
    labels: NDArray[np.uint8]
    """(frame, row, column): 0 nothing, 1 optimal plane, 2 suboptimal plane; the section within the fan, filled."""
    sweep_ac_mm: tuple[float | None, ...]
    """Circumference of the largest labelled section of each of the six sweeps; None where none is labelled."""
    spacing_mm: float
    """Of a pixel, in both directions: 0.28 at 562 rows, more in smaller frames."""


@dataclass(frozen=True)
class Look:
    """How the scanner renders one sweep."""

    gain: float
    noise: float
    loss: float
    """Attenuation of the mother's tissue over the whole depth, after time gain compensation."""
    contact: FloatArray
    """(lines, 1), 1 where the probe touches the skin well, down to 0 where it does not."""


def generate_case(
    seed: Sequence[int],
    *,
    subject_seed: Sequence[int] | None = None,
    subject_id: str = "000",
    sweeps: int = SWEEPS_PER_CASE,
    frames_per_sweep: int = FRAMES_PER_SWEEP,
    rows: int = ROWS,
    columns: int = COLUMNS,
) -> GeneratedCase:
    """One case, the same for the same arguments.

    `subject_seed` (by default `seed`) decides the anatomy, `seed` everything else. With fewer than six sweeps the rest
    have no circumference. Smaller frames of the fan's shape (rows x columns near 562 : 744) show the same scene in
    larger pixels; the time axis is compressed likewise into fewer frames a sweep. At least one sweep has labelled
    frames where it has 60 frames or more; in fewer the abdomen may pass between two of them.
    """
    # Three sources, so that what is drawn in a frame's own resolution does not change what the frame shows.
    rng, scene, grain = (np.random.default_rng([*seed, stream]) for stream in range(3))
    subject = draw_subject(np.random.default_rng([*(subject_seed or seed), 3]))
    grid = make_beam_grid(rows, columns)
    tissue, speckle = draw_tissue(scene, grid), draw_speckle(grain, grid)
    present = rng.random(SWEEPS_PER_CASE) < SWEEP_HAS_TARGET
    present[0] |= not present[:sweeps].any()
    frames = np.zeros((sweeps * frames_per_sweep, rows, columns), np.uint8)
    labels = np.zeros(frames.shape, np.uint8)
    gain, noise = scene.uniform(0.45, 0.95), scene.uniform(1, 7)
    sweep_ac_mm: list[float | None] = [None] * SWEEPS_PER_CASE
    for sweep in range(sweeps):
        part = slice(sweep * frames_per_sweep, (sweep + 1) * frames_per_sweep)
        passages = plan_sweep(rng, subject, bool(present[sweep]), frames_per_sweep)
        look = Look(gain, noise, scene.uniform(0.3, 1.1), _probe_contact(scene, grid))
        _draw_sweep(scene, grain, grid, tissue, speckle, look, passages, frames[part])
        sweep_ac_mm[sweep] = _label_sweep(grid, passages, labels[part])
        if rng.random() < PADDED_SWEEP_SHARE:
            _pad_sweep(rng, frames[part], labels[part])
    return GeneratedCase(
        uuid=str(uuid.UUID(bytes=rng.bytes(16), version=4)),
        subject_id=subject_id,
        frames=frames,
        labels=labels,
        sweep_ac_mm=tuple(sweep_ac_mm),
        spacing_mm=SPACING_MM * ROWS / rows,
    )


def _probe_contact(rng: np.random.Generator, grid: BeamGrid) -> FloatArray:
    """Up to two sectors that stay dark, as under a rib or where the probe lifts off."""
    at = np.linspace(0, 1, grid.x_px.shape[0], dtype=np.float32)[:, None]
    contact = np.ones_like(at)
    for _ in range(int(rng.integers(0, 3))):
        loss, width = rng.uniform(0.2, 0.9), rng.uniform(0.02, 0.10)
        contact *= 1 - np.float32(loss) * np.exp(-(((at - rng.uniform(-0.02, 1.02)) / width) ** 2))
    return contact.astype(np.float32)


def _draw_sweep(
    scene: np.random.Generator,
    grain: np.random.Generator,
    grid: BeamGrid,
    tissue: Tissue,
    speckle: FloatArray,
    look: Look,
    passages: list[Passage],
    frames: NDArray[np.uint8],
) -> None:
    """Fill the frames (frame, row, column) of one sweep."""
    count = len(frames)
    lines, samples = grid.x_px.shape
    start, end = scene.uniform(-0.9, 0.9, (2, 2)) * TISSUE_MARGIN_PX
    phase = scene.uniform(0, math.pi)
    fluid = draw_fluid()
    base_loss = np.float32(look.loss / samples)
    for index in range(count):
        along = index / max(count - 1, 1)
        pan = start + (end - start) * along + scene.normal(0, 0.6, 2)
        at_x = (grid.x_px + np.float32(TISSUE_MARGIN_PX + pan[0])) * np.float32(0.5)
        at_y = (grid.y_px + np.float32(TISSUE_MARGIN_PX + pan[1])) * np.float32(0.5)
        first, second = (
            cv2.remap(echo, at_x, at_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT) for echo in tissue.echo
        )
        share = np.float32(0.5 - 0.5 * math.cos(phase + math.pi * along))
        echo = first + share * (second - first)
        attenuation = np.full((lines, samples), base_loss, np.float32)
        for passage in passages:
            _paint_passage(grid, echo, attenuation, passage, index, fluid)
        echo += tissue.layers
        echo *= look.contact
        line, sample = (int(grain.integers(size)) for size in (lines, samples))
        window = speckle[line : line + lines, sample : sample + samples]
        frames[index] = finish_frame(grid, echo, attenuation, window, look.gain, look.noise)


def _paint_passage(
    grid: BeamGrid, echo: FloatArray, attenuation: FloatArray, passage: Passage, index: int, fluid: Atlas
) -> None:
    size = passage.section(index)
    if size < 0.12:
        return
    # The inside changes from that of the ends to that of the middle while the section is labelled.
    middle = np.float32(np.clip((size - 0.78) / 0.15, 0, 1))
    body = passage.body
    atlas = Atlas(
        body.end.echo + middle * (body.middle.echo - body.end.echo),
        body.end.attenuation + middle * (body.middle.attenuation - body.end.attenuation),
    )
    a, b = passage.semi_axes_px
    cut = Cut(
        centre_px=passage.centre_at(index),
        semi_axes_px=(a * size, b * size),
        angle_degrees=passage.angle_degrees,
        atlas=atlas,
        wall_echo=body.wall_echo * (0.6 + 0.4 * float(middle)),
        wall_width=body.wall_width * (1.6 - 0.6 * float(middle)),
        blur=2.0 * (1 - float(middle)),
    )
    if passage.halo:
        excess, shift_x, shift_y = passage.halo
        radius = math.sqrt(a * b) * size
        pocket = replace(
            cut,
            centre_px=(cut.centre_px[0] + shift_x * radius, cut.centre_px[1] + shift_y * radius),
            semi_axes_px=(a * size * (1 + excess), b * size * (1 + excess)),
            atlas=fluid,
            wall_echo=0.1,
            blur=0.0,
        )
        paint_cut(grid, echo, attenuation, pocket)
    paint_cut(grid, echo, attenuation, cut)


def _label_sweep(grid: BeamGrid, passages: list[Passage], labels: NDArray[np.uint8]) -> float | None:
    """Draw the abdomen's labelled sections into `labels`; the circumference of the largest in mm, None without one."""
    largest_mm = None
    to_rows, to_columns = grid.rows / ROWS, grid.columns / COLUMNS
    for passage in passages:
        for index in range(len(labels)):
            label = passage.label(index)
            if not label:
                continue
            size = passage.section(index)
            a, b = (size * axis for axis in passage.semi_axes_px)
            x, y = passage.centre_at(index)
            u_x, u_y = math.cos(math.radians(passage.angle_degrees)), math.sin(math.radians(passage.angle_degrees))
            column, row = np.meshgrid(np.arange(grid.columns), np.arange(grid.rows))
            dx, dy = (column + 0.5) / to_columns - 0.5 - x, (row + 0.5) / to_rows - 0.5 - y
            inside = ((dx * u_x + dy * u_y) / a) ** 2 + ((dy * u_x - dx * u_y) / b) ** 2 <= 1
            labels[index] = np.where(inside & grid.fov, label, 0)
            circumference_mm = SPACING_MM * math.pi * (3 * (a + b) - math.sqrt((3 * a + b) * (a + 3 * b)))
            largest_mm = max(circumference_mm, largest_mm or 0.0)
    return largest_mm


def _pad_sweep(rng: np.random.Generator, frames: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    """End the sweep early, but after its last labelled frame; the rest is black or repeats the last frame."""
    labelled = np.flatnonzero(labels.any(axis=(1, 2)))
    first = max(int(rng.uniform(0.7, 0.98) * len(frames)), int(labelled[-1]) + 2 if labelled.size else 1)
    if first < len(frames):
        frames[first:] = frames[first - 1] if rng.random() < 0.5 else 0
