"""Numbers and foreign text as they stand in the page."""

from collections.abc import Mapping
from typing import Any

_LONGEST_TEXT = 300
MISSING = "–"


def visible(text: object, longest: int = _LONGEST_TEXT) -> str:
    """Text of one line: characters that do not print (also those that turn the direction of writing) shown as escapes,
    cut after `longest` characters. No markup is escaped: the templates do that."""
    plain = str(text)
    if len(plain) > longest:
        plain = plain[: longest - 1] + "…"
    return "".join(
        char if char.isprintable() or char == "\u00a0" else char.encode("unicode_escape").decode() for char in plain
    )


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """A number with a true minus sign and no negative zero; a dash for None."""
    if value is None:
        return MISSING
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if float(text) == 0:
        text = f"{0:.{digits}f}"
    return text.replace("-", "−")


def percent(value: float | None, digits: int = 0) -> str:
    """A share of 1 as per cent; a dash for None."""
    return MISSING if value is None else f"{number(100 * value, digits)}\u00a0%"


def interval(metrics: Mapping[str, Any] | None, digits: int = 3) -> str:
    """`0.712 to 0.803` of an entry of `intervals`; a dash where there is none."""
    if not metrics:
        return MISSING
    return f"{number(metrics['lower'], digits)} to {number(metrics['upper'], digits)}"


def plural(count: int, noun: str) -> str:
    """`1 case`, `2 cases`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
