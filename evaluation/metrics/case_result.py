"""What became of a case: plain data, small enough to be sent between processes; outlines are polygons."""

from dataclasses import dataclass, field

import numpy as np

from acouslic.challenge_score import challenge_score

Polygon = np.ndarray
"""Corners of a closed outline, int32 (n, 2), each (x, y) = (column, row) in pixels, n at least 1."""


@dataclass(frozen=True, eq=False)
class CaseResult:
    """Everything measured on one case. Nothing of it is infinite or NaN."""

    case: str
    """Name of the sweep stack without its suffix: the folder's name in the ground truth."""
    subject_id: str | None
    """None where the ground truth does not say whose case it is."""
    frame_number: int
    """The submitted frame; -1 none (also for a failed case)."""
    official: dict[str, float]
    """The official metrics of the case by their official names, in the official order; infinite values made 0."""
    undefined_overlap: bool
    """An official overlap measure was infinite or 1.797e308, and is 0 here: nothing was predicted (inside the field
    of view), all of it was, or both images are empty."""
    both_empty: bool
    """Neither the reference nor the prediction has a pixel in the chosen frame, so that Dice itself is undefined."""
    reference_ac_mm: float | None
    """Reference circumference of the chosen frame's sweep; None where it has none or no frame was chosen."""
    predicted_ac_mm: float | None
    """Of the ellipse fitted to the predicted mask with 0.28 mm pixels; None where none can be fitted."""
    frame_labels: np.ndarray = field(repr=False)
    """uint8 (F,) as in CaseTruth."""
    annotated_sweeps: tuple[bool, ...]
    """For each sweep of the stack (`acouslic.geometry.sweep_ranges`), whether it has a reference circumference."""
    presence_probability: np.ndarray | None = field(repr=False, default=None)
    """float64 (F,) in 0..1 from the submission's score file; None where it has no such file, or the case failed."""
    optimality_probability: np.ndarray | None = field(repr=False, default=None)
    """float64 (F,) in 0..1; None where the score file gives none."""
    presence_threshold: float | None = None
    """The submission's own thresholds, from the same file."""
    optimality_threshold: float | None = None
    annotated_distance_frames: int | None = None
    """Frames from the chosen one to the nearest annotated one of the same sweep, 0 where it is annotated itself;
    None where its sweep has none or no frame was chosen."""
    optimal_distance_frames: int | None = None
    """Likewise to the nearest optimal frame of the same sweep."""
    rows: int = 0
    columns: int = 0
    """Size of a frame, for drawing."""
    other_pixel_size: bool = False
    """The reference states another pixel size than the 0.28 mm that every circumference is measured with."""
    reference_outline_frame_number: int = -1
    """The frame of the reference outlines: the chosen one where it is annotated, else the nearest annotated one of
    the same sweep, else of the whole case; -1 where nothing is annotated."""
    reference_outline_px: tuple[Polygon, ...] = field(repr=False, default=())
    predicted_outline_px: tuple[Polygon, ...] = field(repr=False, default=())
    """Of the predicted mask as submitted; empty where it is."""
    set_name: str | None = None
    """The set that the user put the case in; None where there are no sets."""
    suitable: bool | None = None
    """What the submission itself says of its result; None where it says nothing."""
    interval_mm: tuple[float, float] | None = None
    """Where it says that the circumference lies."""
    confidence: float | None = None
    """0..1: what it thinks of the chosen frame by itself, 0 for no frame; None where it does not say."""
    failure: str | None = None
    """With --lenient: why the case could not be scored. It then has the scores of "no frame", the worst there are."""
    exec_duration_s: float | None = None
    """What the platform says the job took; None where it does not."""

    @property
    def has_score(self) -> bool:
        """False for a case of which only frames were judged: of the official metrics it has WFSS alone."""
        return "nae_circumference" in self.official

    @property
    def score(self) -> float:
        """The official score of this case alone: 0.5 (1 - NAE) + 0.25 soft Dice + 0.25 WFSS, in 0..1."""
        official = self.official
        return challenge_score(official["nae_circumference"], official["DiceCoefficientSoft"], official["wfss"])
