"""A circumference on the chart of the INTERGROWTH-21st standard, as lines and points of a drawing."""

from dataclasses import dataclass

from algorithm.result.growth import STANDARD_DAYS, Growth, standard_mm

WIDTH, HEIGHT = 340, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 300, 10, 182
_FIRST_WEEK, _LAST_WEEK = (days // 7 for days in STANDARD_DAYS)
_LOWEST_MM, _HIGHEST_MM = 50, 400
_CENTILES = ((3, -1.8808), (10, -1.2816), (50, 0.0), (90, 1.2816), (97, 1.8808))
"""(centile, standard deviations)."""
_NAMED = (3, 50, 97)


@dataclass(frozen=True)
class CentileLine:
    """One centile over all ages."""

    centile: int
    path: str
    end_y: float
    """Where the line's name stands, at the right."""
    named: bool
    """Its neighbours lie too near for a name each."""


@dataclass(frozen=True)
class GrowthChart:
    """A drawing of WIDTH x HEIGHT; y counts downwards."""

    lines: tuple[CentileLine, ...]
    x: float
    y: float
    low_y: float
    high_y: float
    """The ends of the circumference's interval."""
    week_ticks: tuple[tuple[float, int], ...]
    """(x, week)."""
    mm_ticks: tuple[tuple[float, int], ...]
    """(y, mm)."""
    bottom: float = _BOTTOM
    left: float = _LEFT
    right: float = _RIGHT
    width: float = WIDTH
    height: float = HEIGHT


def growth_chart(
    growth: Growth, circumference_mm: float | None, interval_mm: tuple[float, float] | None
) -> GrowthChart | None:
    """The chart; None where the age is outside the standard or nothing was measured."""
    if growth.centile is None or circumference_mm is None:
        return None
    low_mm, high_mm = interval_mm or (circumference_mm, circumference_mm)
    return GrowthChart(
        lines=tuple(_line(centile, deviations) for centile, deviations in _CENTILES),
        x=_x(growth.age.weeks),
        y=_y(circumference_mm),
        low_y=_y(low_mm),
        high_y=_y(high_mm),
        week_ticks=tuple((_x(week), week) for week in (14, 20, 26, 32, 40)),
        mm_ticks=tuple((_y(mm), mm) for mm in (100, 200, 300, 400)),
    )


def _line(centile: int, deviations: float) -> CentileLine:
    points = []
    for week in range(_FIRST_WEEK, _LAST_WEEK + 1):
        mean_mm, deviation_mm = standard_mm(week)
        points.append((_x(week), _y(mean_mm + deviations * deviation_mm)))
    return CentileLine(centile, "M" + "L".join(f"{x:g} {y:g}" for x, y in points), points[-1][1], centile in _NAMED)


def _x(weeks: float) -> float:
    return round(_LEFT + (_RIGHT - _LEFT) * (weeks - _FIRST_WEEK) / (_LAST_WEEK - _FIRST_WEEK), 1)


def _y(circumference_mm: float) -> float:
    """What lies outside the chart is shown at its edge."""
    inside = min(max(circumference_mm, _LOWEST_MM), _HIGHEST_MM)
    return round(_BOTTOM - (_BOTTOM - _TOP) * (inside - _LOWEST_MM) / (_HIGHEST_MM - _LOWEST_MM), 1)
