"""Single cases as pictures: outlines in the fan of the scanner, and the sweeps as a strip of frames.

The evaluation never sees the ultrasound, so there is none behind the outlines. Here are shapes and words; `parts.html`
draws them.
"""

from functools import lru_cache

import cv2
import numpy as np

from acouslic.fov import field_of_view
from acouslic.frame_labels import OPTIMAL
from acouslic.page.drawing import outline_path
from acouslic.sockets import NO_FRAME
from evaluation.metrics.agreement import ac_error_percent, choice_of
from evaluation.metrics.case_result import CaseResult
from evaluation.report.tables import sweep_number
from evaluation.report.text import number, plural

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
    choice, official, reference_frame = choice_of(result), result.official, result.reference_outline_frame_number
    chosen = CHOICES[choice]
    if result.frame_number != NO_FRAME:
        chosen = f"frame {result.frame_number} of sweep {sweep_number(result)}, {chosen}"
    if choice == "suboptimal" and (result.frame_labels == OPTIMAL).any():
        chosen += " though the case has an optimal one"
    if result.annotated_distance_frames:
        chosen += f", {plural(result.annotated_distance_frames, 'frame')} from the nearest annotated one"
    lines = [f"Chosen: {chosen}."]
    if not result.has_score:
        return [*lines, f"WFSS {number(official['wfss'], 1)}"]
    overlap = f"soft Dice {number(official['DiceCoefficientSoft'])} · WFSS {number(official['wfss'], 1)}"
    lines.append(f"NAE {number(official['nae_circumference'])} · {overlap}")
    if result.frame_number != NO_FRAME:
        measured = [f"{number(mm, 1)} mm" if mm else "none" for mm in (result.reference_ac_mm, result.predicted_ac_mm)]
        error = ac_error_percent(result)
        difference = "" if error is None else f" ({number(error, 1, sign=True)} %)"
        lines.append(f"Circumference: reference {measured[0]}, prediction {measured[1]}{difference}")
    if reference_frame == NO_FRAME:
        lines.append("The reference has no annotated frame.")
    elif reference_frame == official["NearestAnnotatedFrame"] != result.frame_number:
        away = plural(abs(reference_frame - result.frame_number), "frame")
        lines.append(f"Soft Dice borrows the reference of frame {reference_frame}, {away} away, which is drawn.")
    elif reference_frame != result.frame_number:
        lines.append(f"The reference drawn is that of frame {reference_frame}.")
    if result.both_empty:
        lines.append("Reference and prediction are both empty here: every overlap is undefined and counts as 0.")
    elif result.undefined_overlap:
        how = (
            "Nothing is predicted in the field of view"
            if result.predicted_ac_mm is None
            else "The whole field of view is predicted"
        )
        lines.append(f"{how}: some overlap measures are undefined and count as 0.")
    return lines


@lru_cache(maxsize=8)
def fan(rows: int, columns: int) -> str:
    """The outline of the field of view."""
    inside = field_of_view(rows, columns).astype(np.uint8)
    contours, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return outline_path(cv2.approxPolyDP(contour, _FAN_TOLERANCE_PX, True).reshape(-1, 2) for contour in contours)


def runs(frame_labels: np.ndarray, label: int) -> list[tuple[int, int]]:
    """(first frame, length) of each run of frames with this label, in order; `frame_labels` (F,). None: []."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], frame_labels == label, [0]])))
    return [(first, end - first) for first, end in edges.reshape(-1, 2).tolist()]
