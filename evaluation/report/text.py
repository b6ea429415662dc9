"""Numbers as they stand in the page."""

from collections.abc import Mapping
from typing import Any

MISSING = "–"


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """A number with a true minus sign and no negative zero; a dash for None."""
    if value is None:
        return MISSING
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "−")


def percent(value: float | None, digits: int = 0) -> str:
    """A share of 1 as per cent; a dash for None."""
    return MISSING if value is None else f"{number(100 * value, digits)} %"


def interval(metrics: Mapping[str, Any] | None, digits: int = 3) -> str:
    """`0.712 to 0.803` of an entry of `intervals`; a dash where there is none."""
    return f"{number(metrics['lower'], digits)} to {number(metrics['upper'], digits)}" if metrics else MISSING


def plural(count: int, noun: str) -> str:
    """`1 case`, `2 cases`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
