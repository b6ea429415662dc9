"""Who passes through the plane of a generated sweep, when, where and how far: the motion behind `generate.py`."""

import math
from dataclasses import dataclass

import numpy as np

from acouslic.geometry import COLUMNS, FRAMES_PER_SWEEP, ROWS, SPACING_MM
from training.phantom.anatomy import Body, draw_abdomen, draw_head, draw_limb

OPTIMAL_SECTION, SUBOPTIMAL_SECTION = 0.95, 0.83
"""A section is optimal or suboptimal from this share of the abdomen's largest section (of its axes) upwards."""


@dataclass(frozen=True)
class Passage:
    """A body on its way through the plane."""

    body: Body
    middle_frame: float
    frames_before: float
    """From nothing to the largest section; after it, `frames_after`."""
    frames_after: float
    largest: float
    """The largest section reached, as a share of the body's own largest (of its axes)."""
    centre_px: tuple[float, float]
    drift_px: tuple[float, float]
    """Shift of the centre with each frame."""
    semi_axes_px: tuple[float, float]
    angle_degrees: float
    is_abdomen: bool = False
    halo: tuple[float, float, float] | None = None
    """A pocket of fluid around the body: how much larger it is, and its shift in x and y, in mean semi-axes."""

    def section(self, frame: float) -> float:
        """Share of the body's own largest section in this frame, 0 where the body is not cut."""
        offset = frame - self.middle_frame
        z = offset / (self.frames_before if offset < 0 else self.frames_after)
        return self.largest * math.sqrt(1 - z * z) if abs(z) < 1 else 0.0

    def centre_at(self, frame: float) -> tuple[float, float]:
        """Centre of the section in this frame, px."""
        offset = frame - self.middle_frame
        return self.centre_px[0] + self.drift_px[0] * offset, self.centre_px[1] + self.drift_px[1] * offset

    def label(self, frame: float) -> int:
        """0, 1 (optimal) or 2 (suboptimal)."""
        size = self.section(frame) if self.is_abdomen else 0.0
        return 1 if size >= OPTIMAL_SECTION else 2 if size >= SUBOPTIMAL_SECTION else 0


@dataclass(frozen=True)
class Subject:
    """What stays the same in all cases of a subject."""

    abdomen: Body
    head: Body
    limb: Body
    semi_axes_px: tuple[float, float]


def draw_subject(rng: np.random.Generator) -> Subject:
    """A fetus with an abdominal circumference of 172 to 345 mm at the full section."""
    mean_radius_px = float(np.clip(rng.normal(232, 46), 172, 345)) / SPACING_MM / (2 * math.pi)
    ratio = rng.uniform(0.80, 0.98)
    semi_axes_px = (mean_radius_px / math.sqrt(ratio), mean_radius_px * math.sqrt(ratio))
    return Subject(draw_abdomen(rng), draw_head(rng), draw_limb(rng), semi_axes_px)


def _place(rng: np.random.Generator, semi_axis_px: float) -> tuple[float, float]:
    """A centre for a body of this size, nearly all of it inside the fan."""
    angle = np.linspace(0, 2 * math.pi, 48)
    best, best_share = (COLUMNS / 2, ROWS / 2), -1.0
    for _ in range(12):
        centre = (rng.normal(372, 70), rng.uniform(50 + 0.85 * semi_axis_px, ROWS - 0.9 * semi_axis_px))
        dx, dy = centre[0] - 372 + semi_axis_px * np.cos(angle), centre[1] + 185 + semi_axis_px * np.sin(angle)
        radius = np.hypot(dx, dy)
        share = float(np.mean((np.abs(dx) < 0.57 * dy) & (radius > 225) & (radius < 746)))
        if share > best_share:
            best, best_share = centre, share
        if share > 0.97:
            break
    return best


def plan_sweep(rng: np.random.Generator, subject: Subject, has_target: bool, frame_count: int) -> list[Passage]:
    """The bodies that pass through the plane in one sweep, in the order in which they are drawn."""
    passages = [_limb_passage(rng, subject, frame_count) for _ in range(rng.poisson(1.3))]
    grazes = not has_target and rng.random() < 0.5
    abdomen = None
    if has_target or grazes:
        kind = rng.random()
        largest = (
            rng.uniform(0.40, 0.74) if grazes else rng.uniform(0.96, 1.0) if kind < 0.6 else rng.uniform(0.88, 0.945)
        )
        scale, ratio = rng.normal(1, 0.03), rng.normal(1, 0.03)
        axes = (subject.semi_axes_px[0] * scale * ratio, subject.semi_axes_px[1] * scale / ratio)
        half_pass = float(np.clip(rng.gamma(6.0, 1.9), 4.5, 26)) * frame_count / FRAMES_PER_SWEEP
        abdomen = Passage(
            body=subject.abdomen,
            middle_frame=float(np.clip(rng.normal(54, 20), 12, 126)) * frame_count / FRAMES_PER_SWEEP,
            frames_before=half_pass * rng.uniform(0.8, 1.25),
            frames_after=half_pass * rng.uniform(0.8, 1.25),
            largest=largest,
            centre_px=_place(rng, max(axes)),
            drift_px=(rng.normal(0, 1.0), rng.normal(0, 0.8)),
            semi_axes_px=axes,
            angle_degrees=float(rng.uniform(0, 180)),
            is_abdomen=True,
            halo=_draw_halo(rng, 0.08, 0.25),
        )
    if rng.random() < 0.45:
        head = _head_passage(rng, subject, frame_count)
        if abdomen is None or not _meet(head, abdomen):
            passages.append(head)
    return passages + ([abdomen] if abdomen else [])


def _meet(one: Passage, other: Passage) -> bool:
    """Whether two bodies are in the plane at the same time."""
    first, second = sorted((one, other), key=lambda passage: passage.middle_frame)
    return second.middle_frame - first.middle_frame < first.frames_after + second.frames_before


def _head_passage(rng: np.random.Generator, subject: Subject, frame_count: int) -> Passage:
    radius = math.sqrt(subject.semi_axes_px[0] * subject.semi_axes_px[1]) * rng.uniform(0.8, 1.05)
    half_pass = rng.uniform(7, 24) * frame_count / FRAMES_PER_SWEEP
    return Passage(
        body=subject.head,
        middle_frame=rng.uniform(0.05, 0.95) * frame_count,
        frames_before=half_pass,
        frames_after=half_pass,
        largest=rng.uniform(0.6, 1.0),
        centre_px=_place(rng, radius),
        drift_px=(rng.normal(0, 1.0), rng.normal(0, 0.8)),
        semi_axes_px=(radius * 1.13, radius / 1.13),
        angle_degrees=float(rng.uniform(0, 180)),
        halo=_draw_halo(rng, 0.08, 0.25),
    )


def _limb_passage(rng: np.random.Generator, subject: Subject, frame_count: int) -> Passage:
    radius = rng.uniform(22, 48)
    half_pass = rng.uniform(5, 30) * frame_count / FRAMES_PER_SWEEP
    return Passage(
        body=subject.limb,
        middle_frame=rng.uniform(0, 1) * frame_count,
        frames_before=half_pass,
        frames_after=half_pass,
        largest=1.0,
        centre_px=_place(rng, radius),
        drift_px=(rng.normal(0, 2.0), rng.normal(0, 1.2)),
        semi_axes_px=(radius * rng.uniform(1.0, 2.2), radius),
        angle_degrees=float(rng.uniform(0, 180)),
        halo=_draw_halo(rng, 0.2, 0.7),
    )


def _draw_halo(rng: np.random.Generator, smallest: float, largest: float) -> tuple[float, float, float] | None:
    """In six of ten bodies a pocket of fluid that leaves them near one side and reaches further on the other."""
    if rng.random() < 0.4:
        return None
    excess, direction = rng.uniform(smallest, largest), rng.uniform(0, 2 * math.pi)
    return excess, 0.9 * excess * math.cos(direction), 0.9 * excess * math.sin(direction)
