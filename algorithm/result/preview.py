"""A picture of a result for people: the frame with its outline, and where in the sweeps it was found."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from acouslic.errors import AcouslicError
from acouslic.stack import open_stack
from acouslic.write import write_bytes
from algorithm.result.outputs import CaseResult

Picture = NDArray[np.uint8]
"""(rows, columns, 3), blue, green, red as OpenCV has it."""

WIDTH_PX = 1000
_MARGIN_PX = 28
_TITLE_PX = 118
_CHART_PX = 210
_MAX_FRAME_ROWS_PX = 900

BACKGROUND = (26, 22, 20)
TEXT = (235, 235, 235)
_FAINT = (150, 145, 140)
_GRID = (70, 64, 60)
_STRIPE = (38, 33, 30)
_CURVE = (214, 170, 86)
_CURVE_FILL = (104, 80, 44)
MASK = (120, 220, 120)
ELLIPSE = (80, 190, 255)
_WARNING = (90, 120, 255)


def write_preview(result: CaseResult, path: Path, frame: NDArray[np.uint8] | None = None) -> None:
    """Draw `result` and write it as PNG; `frame` is its shown frame, which else is read from the case's stack again.

    Raises AcouslicError where the stack can no longer be read or the file cannot be written.
    """
    shown = shown_frame(result)
    picture = draw_preview(result, _read_frame(result.header.path, shown) if frame is None else frame, shown)
    encoded, content = cv2.imencode(".png", picture)
    assert encoded
    write_bytes(path, content.tobytes())


def shown_frame(result: CaseResult) -> int:
    """The chosen frame, or the one that came nearest where none was chosen."""
    return int(np.argmax(result.presence_probability)) if result.frame_index is None else result.frame_index


def draw_preview(result: CaseResult, frame: NDArray[np.uint8], shown: int) -> Picture:
    """The picture for a frame, uint8 (rows, columns), which is number `shown` of the stack."""
    inner = WIDTH_PX - 2 * _MARGIN_PX
    rows, columns = frame.shape
    scale = min(inner / columns, _MAX_FRAME_ROWS_PX / rows)
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    image = _draw_frame(result, frame, size)
    height = _TITLE_PX + size[1] + _CHART_PX
    picture = np.full((height, WIDTH_PX, 3), BACKGROUND, dtype=np.uint8)
    left = (WIDTH_PX - size[0]) // 2
    picture[_TITLE_PX : _TITLE_PX + size[1], left : left + size[0]] = image
    _draw_title(picture, result, shown)
    _draw_chart(picture, result, shown, top=_TITLE_PX + size[1])
    return picture


def crop_frame(picture: Picture) -> Picture:
    """Of a picture that `write_preview` wrote, the part with the frame and its outlines."""
    return picture[_TITLE_PX:-_CHART_PX]


def _read_frame(path: Path, frame_index: int) -> NDArray[np.uint8]:
    for indices, frames in open_stack(path).iter_chunks():
        if frame_index in indices:
            return np.array(frames[frame_index - indices.start])
    raise AcouslicError(f"{path} no longer holds frame {frame_index}: it was changed while it was analysed")


def _draw_frame(result: CaseResult, frame: NDArray[np.uint8], size: tuple[int, int]) -> Picture:
    """The frame at its shown size, with the mask's outline and the ellipse."""
    enlarged = cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC if size[0] >= frame.shape[1] else cv2.INTER_AREA)
    image: Picture = np.asarray(cv2.cvtColor(enlarged, cv2.COLOR_GRAY2BGR), dtype=np.uint8)
    if result.mask.any():
        mask = cv2.resize(result.mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_LINEAR) > 127
        tinted = image.astype(np.float32) * 0.9 + np.array(MASK, np.float32) * 0.1
        image = np.where(mask[:, :, None], tinted.astype(np.uint8), image)
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(image, contours, -1, MASK, 2, cv2.LINE_AA)
    if result.ellipse is not None:
        scale = np.array(size) / np.array(frame.shape[::-1])
        centre = (np.array(result.ellipse.centre_px) + 0.5) * scale - 0.5
        semi_axes = np.array(result.ellipse.semi_axes_px) * scale
        _draw_dashed_ellipse(image, centre, semi_axes, result.ellipse.angle_degrees)
    return image


def _draw_dashed_ellipse(image: Picture, centre: NDArray, semi_axes: NDArray, angle_degrees: float) -> None:
    """Dashes, so that the mask's outline shows where the two agree."""
    turn = np.deg2rad(angle_degrees)
    along = np.linspace(0, 2 * np.pi, 721)
    x = centre[0] + semi_axes[0] * np.cos(along) * np.cos(turn) - semi_axes[1] * np.sin(along) * np.sin(turn)
    y = centre[1] + semi_axes[0] * np.cos(along) * np.sin(turn) + semi_axes[1] * np.sin(along) * np.cos(turn)
    points = np.stack([x, y], axis=1)
    for start in range(0, 720, 12):
        dash = np.round(points[start : start + 7] * 16).astype(np.int32)
        cv2.polylines(image, [dash], False, ELLIPSE, 2, cv2.LINE_AA, shift=4)


def _draw_title(picture: Picture, result: CaseResult, shown: int) -> None:
    _write(picture, _shorten(result.case, 46), (_MARGIN_PX, 44), 0.95, TEXT, 2)
    verdict, colour = ("suitable", MASK) if result.suitable else ("not suitable", _WARNING)
    width = cv2.getTextSize(verdict, cv2.FONT_HERSHEY_SIMPLEX, 0.7, 2)[0][0]
    _write(picture, verdict, (WIDTH_PX - _MARGIN_PX - width, 42), 0.7, colour, 2)
    sweeps = result.header.sweeps
    sweep = next(number for number, frames in enumerate(sweeps, start=1) if shown in frames)
    parts = [f"frame {shown}", f"sweep {sweep} of {len(sweeps)}"]
    parts.append(
        f"presence {result.presence_probability[shown]:.2f} ({result.presence_alone_probability[shown]:.2f} by itself)"
    )
    if result.frame_index is None:
        parts.append("no frame was chosen; this one came nearest")
    elif result.circumference_mm is None:
        parts.append("no circumference")
    else:
        parts.append(f"circumference {result.circumference_mm:.1f} mm")
        if result.interval_mm is not None:
            parts[-1] += f" ({result.interval_mm[0]:.1f} to {result.interval_mm[1]:.1f})"
    _write(picture, "  |  ".join(parts), (_MARGIN_PX, 82), 0.55, TEXT, 1)
    if result.notes:
        _write(picture, _shorten("; ".join(result.notes), 118), (_MARGIN_PX, 106), 0.45, _WARNING, 1)


def _draw_chart(picture: Picture, result: CaseResult, shown: int, top: int) -> None:
    """Presence probability over all frames, sweeps side by side, the frame that is shown marked."""
    left, right = _MARGIN_PX + 34, WIDTH_PX - _MARGIN_PX
    upper, lower = top + 62, top + _CHART_PX - 44
    count = result.header.frames

    def x_of(position: float) -> int:
        return round(left + (right - left) * position / count)

    def y_of(probability: float) -> int:
        return round(lower - (lower - upper) * probability)

    _write(picture, "presence probability of every frame", (left, top + 28), 0.5, _FAINT, 1)
    if result.mask.any():
        _write(picture, "mask", (right - 190, top + 28), 0.5, MASK, 1)
    if result.ellipse is not None:
        _write(picture, "measured ellipse", (right - 130, top + 28), 0.5, ELLIPSE, 1)
    for number, sweep in enumerate(result.header.sweeps, start=1):
        if number % 2:
            cv2.rectangle(picture, (x_of(sweep.start), upper), (x_of(sweep.stop), lower), _STRIPE, -1)
        _write(picture, f"sweep {number}", (x_of(sweep.start) + 4, lower + 18), 0.45, _FAINT, 1)
    for probability in (0.0, 0.5, 1.0):
        cv2.line(picture, (left, y_of(probability)), (right, y_of(probability)), _GRID, 1)
        _write(picture, f"{probability:g}", (_MARGIN_PX, y_of(probability) + 5), 0.45, _FAINT, 1)
    curve = np.array([(x_of(i + 0.5), y_of(p)) for i, p in enumerate(result.presence_probability)], dtype=np.int32)
    area = np.concatenate([[[curve[0][0], lower]], curve, [[curve[-1][0], lower]]]).astype(np.int32)
    cv2.fillPoly(picture, [area], _CURVE_FILL)
    cv2.polylines(picture, [curve], False, _CURVE, 1, cv2.LINE_AA)
    threshold = y_of(result.thresholds.presence)
    _write(picture, "- - threshold", (left + 290, top + 28), 0.5, _FAINT, 1)
    for start in range(left, right, 12):
        cv2.line(picture, (start, threshold), (min(start + 5, right), threshold), _FAINT, 1)
    x = x_of(shown + 0.5)
    cv2.line(picture, (x, upper - 4), (x, lower + 4), ELLIPSE, 2, cv2.LINE_AA)
    label = f"frame {shown}"
    width = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)[0][0]
    _write(picture, label, (min(max(x - width // 2, left), right - width), upper - 10), 0.45, ELLIPSE, 1)


def _write(
    picture: Picture, text: str, at: tuple[int, int], size: float, colour: tuple[int, int, int], weight: int
) -> None:
    """A line of text whose baseline starts at `at`. OpenCV's font has ASCII only."""
    plain = text.encode("ascii", errors="replace").decode("ascii")
    cv2.putText(picture, plain, at, cv2.FONT_HERSHEY_SIMPLEX, size, colour, weight, cv2.LINE_AA)


def _shorten(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[: characters - 3]}..."
