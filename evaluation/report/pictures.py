"""Single cases as pictures: outlines in the fan of the scanner, and the sweeps as a strip of frames.

The evaluation never sees the ultrasound, so there is none behind the outlines. Here are shapes and words; `parts.html`
draws them.
"""

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from acouslic.fov import field_of_view
from acouslic.geometry import sweep_index, sweep_ranges
from acouslic.sockets import NO_FRAME
from evaluation.metrics.agreement import ac_error_percent, choice_of
from evaluation.metrics.case_result import CaseResult, Polygon
from evaluation.report.text import number, plural

STRIP_WIDTH, STRIP_HEIGHT = 840, 68
"""Of the frames, without the row of numbers below."""
_FRAMES_A_POINT = 4
"""Each point of the curve is the largest probability of this many frames: 210 points a case instead of 840."""
_FAN_TOLERANCE_PX = 0.6

CHOICES = {
    "optimal": "an optimal frame",
    "suboptimal": "a suboptimal frame",
    "unannotated_frame": "a frame without annotation, in a sweep that has some",
    "unannotated_sweep": "a sweep without any annotation",
    "no_frame": "no frame",
}


def caption(result: CaseResult) -> list[str]:
    """What the score comes from, a sentence a line."""
    choice = choice_of(result)
    chosen = CHOICES[choice]
    if result.frame_number != NO_FRAME:
        sweep = sweep_index(result.frame_number, len(result.frame_labels)) + 1
        chosen = f"frame {result.frame_number} of sweep {sweep}, {chosen}"
    if choice == "suboptimal" and (result.frame_labels == 1).any():
        chosen += " though the case has an optimal one"
    if result.annotated_distance_frames:
        chosen += f", {plural(result.annotated_distance_frames, 'frame')} from the nearest annotated one"
    official = result.official
    lines = [f"Chosen: {chosen}."]
    if not result.has_score:
        return [*lines, f"WFSS {number(official['wfss'], 1)}"]
    overlap = f"soft Dice {number(official['DiceCoefficientSoft'])} · WFSS {number(official['wfss'], 1)}"
    lines.append(f"NAE {number(official['nae_circumference'])} · {overlap}")
    if result.frame_number != NO_FRAME:
        lines.append(_circumferences(result))
    reference_frame = result.reference_outline_frame_number
    if reference_frame == NO_FRAME:
        lines.append("The reference has no annotated frame.")
    elif reference_frame != result.frame_number:
        lines.append(f"The reference drawn is that of frame {reference_frame}.")
    if result.both_empty:
        lines.append("Reference and prediction are both empty here: every overlap is undefined and counts as 0.")
    elif result.undefined_overlap:
        lines.append("Nothing is predicted in the field of view: some overlap measures are undefined and count as 0.")
    return lines


def _circumferences(result: CaseResult) -> str:
    reference, predicted = result.reference_ac_mm, result.predicted_ac_mm
    reference_text = "none in this sweep" if reference is None else f"{number(reference, 1)} mm"
    predicted_text = "none measurable" if predicted is None else f"{number(predicted, 1)} mm"
    error = ac_error_percent(result)
    difference = "" if error is None else f" ({number(error, 1, sign=True)} %)"
    return f"Circumference: reference {reference_text}, prediction {predicted_text}{difference}"


def outline(polygons: Sequence[Polygon]) -> str:
    """Polygons as SVG's path; the middle of a pixel is at half its width there."""
    return "".join("M" + "L".join(f"{int(x)}.5 {int(y)}.5" for x, y in polygon) + "Z" for polygon in polygons)


@lru_cache(maxsize=8)
def fan(rows: int, columns: int) -> str:
    """The outline of the field of view."""
    inside = field_of_view(rows, columns).astype(np.uint8)
    contours, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return outline([cv2.approxPolyDP(contour, _FAN_TOLERANCE_PX, True).reshape(-1, 2) for contour in contours])


def blocks(result: CaseResult) -> list[tuple[str, float, float]]:
    """What lies along the strip: kind (`sweep`, `suboptimal`, `optimal`), left edge and width, in drawing order."""
    frames = len(result.frame_labels)
    found = [("sweep", sweep.start, len(sweep)) for sweep in sweep_ranges(frames)]
    for label, kind in ((2, "suboptimal"), (1, "optimal")):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], result.frame_labels == label, [0]])))
        found += [(kind, first, end - first) for first, end in edges.reshape(-1, 2).tolist()]
    return [(kind, position(start, frames), position(length, frames)) for kind, start, length in found]


def position(frame: float, frames: int) -> float:
    """Where a frame lies along the strip."""
    return round(frame * STRIP_WIDTH / frames, 1)


def curve(probability: np.ndarray) -> str:
    """A probability for each frame as points of a line along the strip."""
    points = []
    for first in range(0, len(probability), _FRAMES_A_POINT):
        x = position(first + _FRAMES_A_POINT / 2, len(probability))
        largest = float(probability[first : first + _FRAMES_A_POINT].max())
        points.append(f"{x:.0f},{STRIP_HEIGHT * (1 - largest):.1f}")
    return " ".join(points)
