"""Tables as CSV that a spreadsheet shows as what they are: text is never taken for a formula."""

import csv
import io
from collections.abc import Iterable, Sequence

from acouslic.printable import printable

_OPENS_A_FORMULA = ("=", "+", "-", "@")
"""What a spreadsheet calculates instead of showing it (OWASP, CSV injection): `=HYPERLINK(...)` sends what is beside it
elsewhere. A tab or a carriage return before it counts too, but those are escaped."""
_GUARD = "'"
"""The sign that spreadsheets themselves use for "this is text"."""


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """The rows as CSV with `\\n` line ends. None is an empty cell, True and False are written in small letters.

    Numbers stay numbers, also negative ones. Text that a spreadsheet would take for a formula is led by an apostrophe,
    which `plain_cell` takes away again; control characters are escaped.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in rows:
        writer.writerow([_cell(value) for value in row])
    return buffer.getvalue()


def plain_cell(text: str) -> str:
    """A text cell as it was before `csv_text` wrote it, apart from escaped control characters."""
    return text[1:] if text.startswith(_GUARD) and text[1:].startswith((*_OPENS_A_FORMULA, _GUARD)) else text


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return value
    text = printable(value)
    return _GUARD + text if text.startswith((*_OPENS_A_FORMULA, _GUARD)) else text
