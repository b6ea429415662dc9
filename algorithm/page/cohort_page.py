"""`index.html`: the cases of a run as a table that sorts, filters and leads to each case's own page."""

import base64
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np

from acouslic.page.render import render
from acouslic.write import write_text
from algorithm.result.growth import STANDARD
from algorithm.result.outputs import PREVIEW_FILE, REPORT_FILE
from algorithm.result.preview import crop_frame
from algorithm.result.table import RESULTS_FILE, ResultRow

_TEMPLATE = Path(__file__).with_name("cohort.html")
MOST_ROWS = 5000
"""A browser sorts this many at once; a larger cohort is for `results.csv`."""
_MOST_THUMBNAILS = 300
_THUMBNAIL_PX = 192
"""Twice its size on the page, for dense screens."""
_VERDICTS = {
    "suitable": ("good", "Suitable"),
    "unsuitable": ("bad", "Not suitable"),
    "failed": ("bad", "Failed"),
}


def write_index(path: Path, rows: Sequence[ResultRow], table_name: str = RESULTS_FILE) -> None:
    """Write the page of these cases, whose complete folders lie beside it, as does the table `table_name`.

    A case is linked where it has a `report.html`. Raises AcouslicError where the file cannot be written.
    """
    write_text(path, cohort_page(path.parent, rows, table_name))


def cohort_page(output_dir: Path, rows: Sequence[ResultRow], table_name: str = RESULTS_FILE) -> str:
    """The page as text; the first MOST_ROWS cases, in the order given."""
    shown = rows[:MOST_ROWS]
    thumbnails = len(shown) <= _MOST_THUMBNAILS
    with_age = any(row.gestational_age for row in shown)
    counts = Counter(_state(row) for row in shown)
    columns = [("case", "Case", False), ("state", "Verdict", False), ("circumference", "Circumference, mm", True)]
    if with_age:
        columns += [("age", "Age", True), ("centile", "Centile", True)]
    columns += [("frame", "Frame", True), ("presence", "Presence", True), ("notes", "Notes", False)]
    values: dict[str, Any] = {
        "rows": [_row_values(row, output_dir, thumbnails) for row in shown],
        "left_out": len(rows) - len(shown),
        "table_name": table_name,
        "thumbnails": thumbnails,
        "with_age": with_age,
        "standard": STANDARD,
        "headings": [{"column": column, "words": words, "number": number} for column, words, number in columns],
        "states": [
            ("all", "All", len(shown)),
            *((state, words, counts[state]) for state, (_, words) in _VERDICTS.items() if counts[state]),
        ],
    }
    styles, scripts = ("page.css", "cohort.css"), ("theme.js", "table.js", "cohort.js")
    return render(_TEMPLATE, values, styles=styles, scripts=scripts, pictures=True)


def _state(row: ResultRow) -> str:
    if row.error:
        return "failed"
    return "suitable" if row.suitable else "unsuitable"


def _row_values(row: ResultRow, output_dir: Path, thumbnails: bool) -> dict[str, Any]:
    state = _state(row)
    mark, verdict = _VERDICTS[state]
    interval = ""
    if row.interval_low_mm is not None and row.interval_high_mm is not None:
        interval = f"{row.interval_low_mm:.1f} to {row.interval_high_mm:.1f}"
    has_page = not row.error and (output_dir / row.case / REPORT_FILE).is_file()
    return {
        "case": row.case,
        "state": state,
        "mark": mark,
        "verdict": verdict,
        "link": f"{quote(row.case, safe='')}/{REPORT_FILE}" if has_page else None,
        "thumbnail": _thumbnail(output_dir / row.case / PREVIEW_FILE) if thumbnails and not row.error else None,
        "circumference_mm": row.circumference_mm,
        "interval": interval,
        "gestational_age": row.gestational_age,
        "centile": row.centile,
        "centile_text": "" if row.centile is None else _short_centile(row.centile),
        "frame_number": row.frame_number,
        "sweep": row.sweep,
        "presence": row.presence_probability,
        "words": row.error or row.notes,
    }


def _short_centile(centile: float) -> str:
    return "< 1" if centile < 1 else "> 99" if centile > 99 else f"{centile:.0f}"


def _thumbnail(preview: Path) -> str | None:
    """The frame of a case's preview, small; None where there is no readable one."""
    # Not cv2.imread: a name that is not UTF-8 ends the process there.
    try:
        content = preview.read_bytes()
    except OSError:
        return None
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    if picture is None:
        return None
    frame = crop_frame(np.asarray(picture, dtype=np.uint8))
    rows = max(1, round(frame.shape[0] * _THUMBNAIL_PX / frame.shape[1]))
    small = cv2.resize(frame, (_THUMBNAIL_PX, rows), interpolation=cv2.INTER_AREA)
    encoded, jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 72])
    assert encoded
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.tobytes()).decode('ascii')}"
