"""Single cases as pictures: outlines in the fan of the scanner, and the sweeps as a strip of frames.

The evaluation never sees the ultrasound, so there is none behind the outlines.
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
from evaluation.report.axes import drawing
from evaluation.report.markup import escape, number, plural

_STRIP_WIDTH, _STRIP_HEIGHT = 840.0, 96.0
_STRIP_TOP, _STRIP_FLOOR = 6.0, 74.0
_FRAMES_A_POINT = 4
"""The curve shows the largest probability of so many frames: 210 points a case instead of 840."""
_FAN_TOLERANCE_PX = 0.6

CHOICES = {
    "optimal": "an optimal frame",
    "suboptimal": "a suboptimal frame",
    "unannotated_frame": "a frame without annotation, in a sweep that has some",
    "unannotated_sweep": "a sweep without any annotation",
    "no_frame": "no frame",
}


def case_picture(result: CaseResult, anchor: str) -> str:
    """A figure of one case: outlines, strip, and a caption that says what the score comes from."""
    name = escape(result.case, 60)
    title = f'<span class="case-name">{name}</span> <span class="case-score">{number(result.score)}</span>'
    lines = "".join(f"<p>{line}</p>" for line in _caption(result))
    return (
        f'<figure class="case" id="{anchor}">{_fan(result)}{_strip(result)}'
        f'<figcaption><p class="case-title">{title}</p>{lines}</figcaption></figure>'
    )


def explanation(result: CaseResult) -> str:
    """Why an overlap of this case is undefined, or an empty text."""
    if result.both_empty:
        return "Neither reference nor prediction has a pixel in this frame: every overlap is undefined and counts as 0."
    if result.undefined_overlap:
        return "Nothing is predicted inside the field of view: some overlap measures are undefined and count as 0."
    return ""


def _caption(result: CaseResult) -> list[str]:
    lines = []
    if result.failure is not None:
        lines.append(f"<strong>Could not be scored:</strong> {escape(result.failure)}")
    chosen = CHOICES[choice_of(result)]
    if result.frame_number != NO_FRAME:
        sweep = sweep_index(result.frame_number, len(result.frame_labels)) + 1
        chosen = f"frame {result.frame_number} of sweep {sweep}, {chosen}"
    if choice_of(result) == "suboptimal" and (result.frame_labels == 1).any():
        chosen += " though the case has an optimal one"
    if result.annotated_distance_frames:
        chosen += f", {plural(result.annotated_distance_frames, 'frame')} from the nearest annotated one"
    lines.append(f"Chosen: {chosen}.")
    official = result.official
    lines.append(
        f"NAE {number(official['nae_circumference'])} · soft Dice {number(official['DiceCoefficientSoft'])} · "
        f"WFSS {number(official['wfss'], 1)}"
    )
    if result.frame_number != NO_FRAME:
        lines.append(_circumferences(result))
    reference_frame = result.reference_outline_frame_number
    if reference_frame == NO_FRAME:
        lines.append("The reference has no annotated frame.")
    elif reference_frame != result.frame_number:
        lines.append(f"The reference drawn is that of frame {reference_frame}.")
    return [*lines, explanation(result)] if explanation(result) else lines


def _circumferences(result: CaseResult) -> str:
    reference, predicted = result.reference_ac_mm, result.predicted_ac_mm
    reference_text = "none in this sweep" if reference is None else f"{number(reference, 1)} mm"
    predicted_text = "none measurable" if predicted is None else f"{number(predicted, 1)} mm"
    error = ac_error_percent(result)
    difference = "" if error is None else f" ({number(error, 1, sign=True)} %)"
    return f"Circumference: reference {reference_text}, prediction {predicted_text}{difference}"


def _fan(result: CaseResult) -> str:
    rows, columns = max(result.rows, 1), max(result.columns, 1)
    exact = result.reference_outline_frame_number == result.frame_number
    parts = [f'<path class="fan" d="{_fan_path(rows, columns)}"/>']
    parts += [_outline(result.reference_outline_px, "reference" if exact else "reference elsewhere")]
    parts += [_outline(result.predicted_outline_px, "prediction")]
    described = f"Outlines of reference and prediction of {escape(result.case, 60)}"
    if not result.predicted_outline_px:
        described = f"Outline of the reference of {escape(result.case, 60)}; the prediction is empty"
        parts.append(f'<text class="empty mid" x="{columns / 2:g}" y="{rows * 0.97:g}">empty prediction</text>')
    return drawing("".join(parts), described, columns, rows, "fan-picture")


def _outline(polygons: Sequence[Polygon], kind: str) -> str:
    path = "".join(_path_of(polygon) for polygon in polygons)
    return f'<path class="{kind}" d="{path}"/>' if path else ""


def _path_of(polygon: Polygon) -> str:
    # The middle of a pixel is at half its width in SVG.
    return "M" + "L".join(f"{int(x)}.5 {int(y)}.5" for x, y in polygon) + "Z"


@lru_cache(maxsize=8)
def _fan_path(rows: int, columns: int) -> str:
    fan = field_of_view(rows, columns).astype(np.uint8)
    contours, _ = cv2.findContours(fan, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    simple = [cv2.approxPolyDP(contour, _FAN_TOLERANCE_PX, True).reshape(-1, 2) for contour in contours]
    return "".join(_path_of(polygon) for polygon in simple)


def _strip(result: CaseResult) -> str:
    """All frames from left to right: annotated ones as blocks, the probability as a curve, the choice as a line."""
    frames = len(result.frame_labels)
    scale = _STRIP_WIDTH / frames
    parts = []
    for number_of_sweep, sweep in enumerate(sweep_ranges(frames), start=1):
        left, width = sweep.start * scale, len(sweep) * scale
        kind = "sweep even" if number_of_sweep % 2 == 0 else "sweep"
        height = _STRIP_FLOOR - _STRIP_TOP
        parts.append(
            f'<rect class="{kind}" x="{left:.1f}" y="{_STRIP_TOP}" width="{width:.1f}" height="{height:g}"/>'
            f'<text class="tick mid" x="{left + width / 2:.1f}" y="{_STRIP_HEIGHT - 3}">{number_of_sweep}</text>'
        )
    for label, kind in ((2, "suboptimal"), (1, "optimal")):
        for first, last in _runs(result.frame_labels == label):
            parts.append(
                f'<rect class="{kind}" x="{first * scale:.1f}" y="{_STRIP_TOP}" '
                f'width="{(last - first + 1) * scale:.1f}" height="{_STRIP_FLOOR - _STRIP_TOP:g}"/>'
            )
    if result.presence_probability is not None:
        parts.append(f'<polyline class="presence" points="{_curve(result.presence_probability, scale)}"/>')
    described = "Frames of the case by sweep, annotated ones marked"
    if result.frame_number != NO_FRAME:
        x = (result.frame_number + 0.5) * scale
        parts.append(
            f'<line class="chosen" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{_STRIP_FLOOR + 6:g}"/>'
            f'<path class="chosen-mark" d="M{x - 7:.1f} 0h14l-7 10Z"/>'
        )
        described += f"; chosen is frame {result.frame_number}"
    return drawing("".join(parts), described, _STRIP_WIDTH, _STRIP_HEIGHT, "strip")


def _curve(probability: np.ndarray, scale: float) -> str:
    points = []
    for first in range(0, len(probability), _FRAMES_A_POINT):
        largest = float(probability[first : first + _FRAMES_A_POINT].max())
        x = (first + _FRAMES_A_POINT / 2) * scale
        points.append(f"{x:.0f},{_STRIP_FLOOR - largest * (_STRIP_FLOOR - _STRIP_TOP):.1f}")
    return " ".join(points)


def _runs(wanted: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of each unbroken run of True, bool (F,)."""
    edges = np.diff(np.concatenate([[0], wanted.astype(np.int8), [0]]))
    return list(zip(np.flatnonzero(edges == 1).tolist(), (np.flatnonzero(edges == -1) - 1).tolist(), strict=True))
