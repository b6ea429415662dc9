"""`report.html`: one case to look through, to understand and, where it is wrong, to measure by hand."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from acouslic.geometry import index_of_sweep
from acouslic.page.drawing import curve_path
from acouslic.page.drawing import outline_path as polygons_path
from acouslic.page.render import render
from acouslic.sockets import CIRCUMFERENCE_FILE
from acouslic.write import write_text
from algorithm.page.growth_chart import growth_chart
from algorithm.page.pictures import FramePictures, read_pictures
from algorithm.result.growth import AGE_SOURCE, STANDARD, GestationalAge, centile_words, standard_mm, weeks_words
from algorithm.result.outputs import REPORT_FILE, CaseResult
from algorithm.result.preview import shown_frame
from algorithm.result.segment import Mask

_TEMPLATE = Path(__file__).with_name("case.html")
_SCRIPTS = ("theme.js", "viewer.js", "measure.js")
RUNNERS_UP = 5
_APART_FRAMES = 20
"""Nearer frames of a sweep show the same."""
_FULL_SIZE_FRAMES = 40
"""The best by presence, at most: whoever measures another frame by hand will take one of these."""
_MOST_NAMED_SWEEPS = 8
"""Of more the number alone fits under the curve."""
_MOST_CURVE_POINTS = 3000


def write_case_page(result: CaseResult, case_dir: Path) -> NDArray[np.uint8]:
    """Write `report.html` into `case_dir`, which holds the other files of `result` already.

    The frames are read from the case's stack again; the one that the page opens with is returned, (rows, columns).
    Raises AcouslicError where the stack can no longer be read, or a file cannot be written.
    """
    sha256 = hashlib.sha256((case_dir / CIRCUMFERENCE_FILE).read_bytes()).hexdigest()
    shown = shown_frame(result)
    runners_up = choose_runners_up(result, shown)
    best = np.argsort(-result.presence_probability, kind="stable")[:_FULL_SIZE_FRAMES]
    pictures = read_pictures(result.header, [shown, *runners_up, *best.tolist()])
    write_text(case_dir / REPORT_FILE, case_page(result, pictures, runners_up, sha256))
    assert pictures.most_wanted is not None
    return pictures.most_wanted


def choose_runners_up(result: CaseResult, shown: int) -> list[int]:
    """The frames that come next by presence, best first, apart from each other and from the one shown."""
    presence, sweeps = result.presence_probability, result.header.sweeps
    taken = [shown]
    for index in np.argsort(-presence, kind="stable").tolist():
        sweep = _sweep_number(sweeps, index)
        apart = (abs(index - other) >= _APART_FRAMES or _sweep_number(sweeps, other) != sweep for other in taken)
        if len(taken) > RUNNERS_UP or presence[index] <= 0:
            break
        if all(apart):
            taken.append(index)
    return taken[1:]


def case_page(result: CaseResult, pictures: FramePictures, runners_up: Sequence[int], result_sha256: str) -> str:
    """The page as text.

    `runners_up` are frame indices; `result_sha256` is that of the case's `fetal-abdominal-circumference.json`, by which
    a correction says what it corrects.
    """
    header, shown = result.header, shown_frame(result)
    sweeps = result.header.sweeps
    row_mm, column_mm = header.spacing_mm
    values: dict[str, Any] = {
        "result": result,
        "shown": shown,
        "shown_sweep": _sweep_number(sweeps, shown),
        "sweeps": sweeps,
        "presence": result.presence_probability[shown],
        "presence_alone": result.presence_alone_probability[shown],
        "picture": _data_url(pictures.of(shown)),
        "outline": outline_path(result.mask),
        "axis_ends": axis_ends_px(result),
        "interval": interval_bar(result),
        "curve": curve_path(result.presence_probability, _MOST_CURVE_POINTS),
        "optimality_curve": None
        if result.optimality_probability is None
        else curve_path(result.optimality_probability, _MOST_CURVE_POINTS),
        "runners_up": [
            {
                "frame": index,
                "sweep": _sweep_number(sweeps, index),
                "presence": result.presence_probability[index],
                "picture": _data_url(pictures.of(index)),
            }
            for index in runners_up
        ],
        "notes": [_sentence(note) for note in result.notes],
        "growth": None if result.growth is None else _growth_values(result),
        "state": _state(result, pictures, sweeps, result_sha256),
    }
    rules = f":root {{ --ratio: {header.columns * column_mm / (header.rows * row_mm):.5f}; }}\n"
    rules += "".join(
        f".sweep-labels span:nth-child({number}) {{ flex-grow: {len(sweep)}; }}\n"
        for number, sweep in enumerate(sweeps, start=1)
    )
    if len(sweeps) > _MOST_NAMED_SWEEPS:
        rules += ".sweep-labels i { display: none; }\n"
    styles = ("page.css", "case.css")
    return render(_TEMPLATE, values, styles=styles, scripts=_SCRIPTS, rules=rules, pictures=True)


def outline_path(mask: Mask) -> str:
    """The outline of a mask (rows, columns) as the path of a drawing in pixel coordinates; "" for an empty one."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return polygons_path(contour[:, 0] for contour in contours)


def axis_ends_px(result: CaseResult) -> list[list[tuple[float, float]]] | None:
    """The two ends (x, y) of the ellipse's first axis and those of its second; None without an ellipse."""
    if result.ellipse is None:
        return None
    (x, y), angle = result.ellipse.centre_px, np.deg2rad(result.ellipse.angle_degrees)
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-along[1], along[0]])
    steps = [
        direction * semi_axis for direction, semi_axis in zip((along, across), result.ellipse.semi_axes_px, strict=True)
    ]
    return [[(round(float(x + s * dx), 3), round(float(y + s * dy), 3)) for s in (-1, 1)] for dx, dy in steps]


def interval_bar(result: CaseResult) -> dict[str, float] | None:
    """Where low end, value and high end lie on a scale of 0 to 100 that shows 12 % of the value on either side."""
    if result.circumference_mm is None or result.interval_mm is None:
        return None
    value, (low, high) = result.circumference_mm, result.interval_mm
    reach = max(0.12 * value, 1.1 * (value - low), 1.1 * (high - value))
    return {name: round(50 + 50 * (at - value) / reach, 2) for name, at in (("low", low), ("high", high))}


def _growth_values(result: CaseResult) -> dict[str, Any]:
    growth = result.growth
    assert growth is not None
    interval = growth.centile_interval
    return {
        "age": str(growth.age),
        "centile": None if growth.centile is None else centile_words(growth.centile),
        "interval": None if interval is None else [_at_centile(value) for value in interval],
        "expected_mm": growth.expected_mm,
        "standard": STANDARD,
        "suggested": None
        if growth.age_by_circumference_weeks is None
        else weeks_words(growth.age_by_circumference_weeks),
        "error_weeks": growth.age_error_weeks,
        "age_source": AGE_SOURCE,
        "chart": growth_chart(growth, result.circumference_mm, result.interval_mm),
    }


def _state(result: CaseResult, pictures: FramePictures, sweeps: Sequence[range], result_sha256: str) -> dict[str, Any]:
    """What the page's script knows: everything about the frames, and what a correction refers to."""
    header = result.header
    optimality = result.optimality_probability
    return {
        "case": result.case,
        "resultSha256": result_sha256,
        "frames": header.frames,
        "rows": header.rows,
        "columns": header.columns,
        "spacingMm": list(header.spacing_mm),
        "sweeps": [[sweep[0], sweep[-1]] for sweep in sweeps],
        "chosen": result.frame_index,
        "shown": shown_frame(result),
        "circumferenceMm": result.circumference_mm,
        "axisEndsPx": axis_ends_px(result),
        "presence": [round(value, 3) for value in result.presence_probability.tolist()],
        "optimality": None if optimality is None else [round(value, 3) for value in optimality.tolist()],
        "growth": None if result.growth is None else _growth_state(result.growth.age),
        "reduced": [_base64(picture) for picture in pictures.reduced],
        "reducedBy": pictures.reduced_by,
        "step": pictures.step,
        "full": {str(index): _base64(picture) for index, picture in pictures.full.items()},
    }


def _growth_state(age: GestationalAge) -> dict[str, Any] | None:
    """Mean and deviation at the age, so that a measurement by hand gets its centile too."""
    if not age.has_standard:
        return None
    mean_mm, deviation_mm = standard_mm(age.weeks)
    return {"age": str(age), "meanMm": mean_mm, "deviationMm": deviation_mm}


def _sweep_number(sweeps: Sequence[range], frame_index: int) -> int:
    """Counted from 1."""
    return 1 + index_of_sweep(frame_index, sweeps)


def _at_centile(centile: float) -> str:
    words = centile_words(centile)
    return words if words.startswith(("below", "above")) else f"at the {words}"


def _sentence(note: str) -> str:
    """A note as a sentence of its own."""
    return f"{note[:1].upper()}{note[1:]}{'' if note.endswith('.') else '.'}"


def _base64(picture: bytes) -> str:
    return base64.b64encode(picture).decode("ascii")


def _data_url(picture: bytes) -> str:
    return f"data:image/jpeg;base64,{_base64(picture)}"
