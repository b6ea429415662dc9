"""The official metrics of a case and of a submission, exactly.

Source: the official evaluation method of ACOUSLIC-AI, commit ebf14b3, as described by the challenge; checked against
its own output on constructed cases. Where it looks at whole stacks, this looks at annotated frames only. Overlaps and
Hausdorff distances are SimpleITK's, as there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import SimpleITK

from acouslic.challenge_score import challenge_score
from acouslic.ellipse import circumference_mm, fit_ellipse
from acouslic.fov import field_of_view
from acouslic.frame_labels import frame_worth
from acouslic.geometry import SPACING_MM, sweep_index, sweep_ranges
from acouslic.sockets import NO_FRAME
from evaluation.inputs.case_truth import CaseTruth

FRAME_TOLERANCE = 15
"""An annotated frame counts up to this far from the chosen one, in frames of the same sweep."""

OVERLAP_METRICS = (
    "FalseNegativeError",
    "FalsePositiveError",
    "MeanOverlap",
    "UnionOverlap",
    "VolumeSimilarity",
    "JaccardCoefficient",
    "DiceCoefficient",
)
"""In the official order; the names are those of SimpleITK's LabelOverlapMeasuresImageFilter, which is used there."""
DICE_VARIANTS = ("DiceCoefficientNearestFrame", "DiceCoefficientSoft")
AGGREGATED_METRICS = (*OVERLAP_METRICS, *DICE_VARIANTS, "HausdorffDistance", "wfss", "nae_circumference")
CASE_METRICS = (
    *OVERLAP_METRICS,
    "DiceCoefficientNearestFrame",
    "NearestAnnotatedFrame",
    "DiceCoefficientSoft",
    "HausdorffDistance",
    "wfss",
    "nae_circumference",
)
"""All metrics of a case in the official order. The nearest frame is an index, so that it is never averaged."""

_UNDEFINED_FROM = 1e300
"""SimpleITK answers 1.797e308 or infinity where a measure divides by an empty image; no real value comes near."""


@dataclass(frozen=True)
class OfficialCase:
    """The official evaluator's numbers of one case, its infinite and 1.797e308 ones included."""

    values: dict[str, float]
    """By official name, in official order (`CASE_METRICS`)."""
    both_empty: bool
    """Neither the reference nor the prediction has a pixel inside the field of view in the chosen frame."""
    reference_ac_mm: float | None
    predicted_ac_mm: float | None

    def undefined(self) -> tuple[str, ...]:
        """Names of the overlap measures that have no finite value."""
        return tuple(name for name, value in self.values.items() if not abs(value) < _UNDEFINED_FROM)

    def finite(self) -> dict[str, float]:
        """The values with 0 for the undefined ones: a prediction of nothing overlaps with nothing."""
        undefined = self.undefined()
        return {name: 0.0 if name in undefined else value for name, value in self.values.items()}


def score_case(truth: CaseTruth, frame_number: int, mask: np.ndarray) -> OfficialCase:
    """The official metrics of a predicted mask, bool (R, C), all False where `frame_number` is -1.

    `frame_number` is -1 or a frame of the stack; anything else raises ValueError. On stacks of other sizes than the
    official 840 x 562 x 744 the same rules hold with the stack's own sweeps (`sweep_ranges`), field of view
    (`field_of_view`) and width.
    """
    if not NO_FRAME <= frame_number < truth.frames:
        raise ValueError(f"frame {frame_number} is outside -1..{truth.frames - 1}")
    if mask.shape != (truth.rows, truth.columns):
        raise ValueError(f"mask {mask.shape} of a case of {truth.rows} x {truth.columns}")
    fov = _field(truth.rows, truth.columns)
    reference_inside = truth.mask(frame_number) & fov
    predicted_inside = mask & fov
    overlap = label_overlap(reference_inside, predicted_inside)
    nearest, dice_nearest, dice_soft = frame_number, overlap["DiceCoefficient"], overlap["DiceCoefficient"]
    hausdorff_px = float(truth.columns * FRAME_TOLERANCE)
    if reference_inside.any() and predicted_inside.any():
        hausdorff_px = hausdorff_distance_px(reference_inside, predicted_inside)
    elif predicted_inside.any():
        found = nearest_annotated_frame(truth, frame_number)
        if found is not None:
            nearest = found
            # The official code leaves this frame's reference unmasked, and its distance signed.
            reference = truth.mask(nearest)
            dice_nearest = label_overlap(reference, predicted_inside)["DiceCoefficient"]
            dice_soft = dice_nearest * (1 - abs(nearest - frame_number) / FRAME_TOLERANCE)
            hausdorff_px = hausdorff_distance_px(reference, predicted_inside) * (nearest - frame_number)
    # OpenCV moves points that lie on a line at random, by numbers that go on from fit to fit. Here they begin as in a
    # new process, so that a case measures the same whatever was scored before it.
    cv2.setRNGSeed(0)
    ellipse = fit_ellipse(mask, fov)
    predicted_ac_mm = None if ellipse is None else circumference_mm(ellipse, (SPACING_MM, SPACING_MM))
    reference_ac_mm = reference_circumference_mm(truth, frame_number)
    values: dict[str, float] = {
        **overlap,
        "DiceCoefficientNearestFrame": dice_nearest,
        "NearestAnnotatedFrame": nearest,
        "DiceCoefficientSoft": dice_soft,
        "HausdorffDistance": hausdorff_px,
        "wfss": weighted_frame_selection_score(truth.frame_labels, frame_number),
        "nae_circumference": normalised_absolute_error(reference_ac_mm, predicted_ac_mm),
    }
    both_empty = not reference_inside.any() and not predicted_inside.any()
    return OfficialCase(values, both_empty, reference_ac_mm, predicted_ac_mm)


def weighted_frame_selection_score(frame_labels: np.ndarray, frame_number: int) -> float:
    """What the chosen frame of a case is worth, as `frame_worth`; 0 also for -1."""
    return 0.0 if frame_number == NO_FRAME else frame_worth(frame_labels, frame_number)


def distance_in_sweep(wanted: np.ndarray, frame_number: int) -> int | None:
    """Frames from the chosen one to the nearest wanted one, bool (F,), of the same sweep; None where there is none."""
    if frame_number == NO_FRAME:
        return None
    sweep = sweep_ranges(len(wanted))[sweep_index(frame_number, len(wanted))]
    found = np.flatnonzero(wanted[sweep.start : sweep.stop]) + sweep.start
    return int(np.abs(found - frame_number).min()) if len(found) else None


def nearest_annotated_frame(truth: CaseTruth, frame_index: int) -> int | None:
    """The annotated frame that stands in for one without annotation, of the same sweep, at most 15 frames away.

    The last one before it, wherever there is one; else the first one after it: not the closer of the two.
    """
    sweep = sweep_ranges(truth.frames)[sweep_index(frame_index, truth.frames)]
    annotated = truth.annotated_frames
    reachable = annotated[
        (annotated >= max(sweep.start, frame_index - FRAME_TOLERANCE))
        & (annotated <= min(sweep.stop - 1, frame_index + FRAME_TOLERANCE))
    ]
    before, after = reachable[reachable < frame_index], reachable[reachable > frame_index]
    if len(before):
        return int(before[-1])
    return int(after[0]) if len(after) else None


def reference_circumference_mm(truth: CaseTruth, frame_number: int) -> float | None:
    """The reference circumference of the chosen frame's sweep; None for -1 or where the sweep has none."""
    if frame_number == NO_FRAME:
        return None
    sweep = sweep_index(frame_number, truth.frames)
    return truth.sweep_ac_mm[sweep] if sweep < len(truth.sweep_ac_mm) else None


def normalised_absolute_error(reference_ac_mm: float | None, predicted_ac_mm: float | None) -> float:
    """`|reference - predicted|` / the larger of the two, in 0..1; 1 where either is missing."""
    if reference_ac_mm is None or predicted_ac_mm is None:
        return 1.0
    return abs(reference_ac_mm - predicted_ac_mm) / max(reference_ac_mm, predicted_ac_mm, 1e-6)


def label_overlap(reference: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """The overlap measures of two bool masks (R, C) by name: SimpleITK's, with the reference as source, its answers to
    empty images (infinity and 1.797e308) included.

    So "false negatives" are the prediction's pixels outside the reference, and "false positives" the other way round.
    Never cropped: the false positive error divides by the pixels of the image that are not predicted.
    """
    measures = SimpleITK.LabelOverlapMeasuresImageFilter()
    measures.Execute(_image(reference), _image(predicted))
    return {name: getattr(measures, f"Get{name}")() for name in OVERLAP_METRICS}


def hausdorff_distance_px(reference: np.ndarray, predicted: np.ndarray) -> float:
    """The Hausdorff distance in pixels of two bool masks (R, C), neither of them empty: SimpleITK's.

    Computed in the box around both masks, in a fifth of the time: the exact Euclidean distances between their pixels do
    not depend on what lies around them.
    """
    rows = np.flatnonzero((reference | predicted).any(axis=1))
    columns = np.flatnonzero((reference | predicted).any(axis=0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    distance = SimpleITK.HausdorffDistanceImageFilter()
    distance.Execute(_image(reference[box]), _image(predicted[box]))
    return float(distance.GetHausdorffDistance())


def _image(mask: np.ndarray) -> SimpleITK.Image:
    """A mask as an image of 0 and 1 with pixels of size 1, whatever the spacing of its file."""
    return SimpleITK.GetImageFromArray(mask.astype(np.uint8))


def aggregate(cases: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and population standard deviation over cases of each official metric, and the official score.

    The score's `std` is the official formula, 0.5 (1 - std NAE) + 0.25 std soft Dice + 0.25 std WFSS, which is no
    standard deviation; it is kept for compatibility. At least one case is needed.
    """
    summary = {
        name: {
            "mean": float(np.mean([case[name] for case in cases])),
            "std": float(np.std([case[name] for case in cases])),
        }
        for name in AGGREGATED_METRICS
    }
    score = {
        statistic: challenge_score(
            summary["nae_circumference"][statistic],
            summary["DiceCoefficientSoft"][statistic],
            summary["wfss"][statistic],
        )
        for statistic in ("mean", "std")
    }
    return {"score": score, **summary}


@lru_cache(maxsize=4)
def _field(rows: int, columns: int) -> np.ndarray:
    fov = field_of_view(rows, columns)
    fov.setflags(write=False)
    return fov
