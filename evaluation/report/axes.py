"""The frame of a plot as inline SVG: scales, grid, ticks, labels. No plotting library, no picture file."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from evaluation.report.markup import number

WIDTH, HEIGHT = 480, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 14, 50


@dataclass(frozen=True)
class Axes:
    """A rectangle of the drawing and the values at its edges. SVG's y grows downwards."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_label: str
    y_label: str
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]
    width: float = WIDTH
    height: float = HEIGHT
    left: float = _LEFT
    bottom: float = _BOTTOM

    @property
    def right_px(self) -> float:
        """Where the plot ends."""
        return self.width - _RIGHT

    @property
    def bottom_px(self) -> float:
        """Where the plot's floor is."""
        return self.height - self.bottom

    def x(self, value: float) -> float:
        """Of a value in the drawing."""
        low, high = self.x_range
        return round(self.left + (value - low) / (high - low) * (self.right_px - self.left), 1)

    def y(self, value: float) -> float:
        """Of a value in the drawing."""
        low, high = self.y_range
        return round(self.bottom_px - (value - low) / (high - low) * (self.bottom_px - _TOP), 1)

    def frame(self) -> str:
        """Grid lines, tick labels and axis labels."""
        parts = []
        digits_x, digits_y = _digits(self.x_ticks), _digits(self.y_ticks)
        for tick in self.y_ticks:
            y = self.y(tick)
            parts.append(f'<line class="grid" x1="{self.left}" x2="{self.right_px}" y1="{y}" y2="{y}"/>')
            parts.append(
                f'<text class="tick end" x="{self.left - 7}" y="{y + 4.5:.1f}">{number(tick, digits_y)}</text>'
            )
        for tick in self.x_ticks:
            x = self.x(tick)
            parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP}" y2="{self.bottom_px}"/>')
            parts.append(f'<text class="tick mid" x="{x}" y="{self.bottom_px + 18}">{number(tick, digits_x)}</text>')
        middle_x, middle_y = (self.left + self.right_px) / 2, (_TOP + self.bottom_px) / 2
        if self.x_label:
            parts.append(f'<text class="label mid" x="{middle_x:.0f}" y="{self.height - 8}">{self.x_label}</text>')
        if self.y_label:
            parts.append(
                f'<text class="label mid" transform="translate(15 {middle_y:.0f}) rotate(-90)">{self.y_label}</text>'
            )
        return "".join(parts)

    def line(self, start: tuple[float, float], end: tuple[float, float], kind: str) -> str:
        """A straight line between two points given as values."""
        return (
            f'<line class="{kind}" x1="{self.x(start[0])}" y1="{self.y(start[1])}" '
            f'x2="{self.x(end[0])}" y2="{self.y(end[1])}"/>'
        )

    def path(self, points: Sequence[tuple[float, float]], kind: str) -> str:
        """A line through points given as values."""
        corners = " ".join(f"{self.x(x)},{self.y(y)}" for x, y in points)
        return f'<polyline class="{kind}" points="{corners}"/>'

    def point(self, x: float, y: float, kind: str, title: str, radius: float = 4) -> str:
        """A dot with a tooltip; `title` is markup."""
        return f'<circle class="{kind}" cx="{self.x(x)}" cy="{self.y(y)}" r="{radius}"><title>{title}</title></circle>'


def drawing(inner: str, description: str, width: float = WIDTH, height: float = HEIGHT, kind: str = "plot") -> str:
    """An SVG element that scales with the page and is read out as `description` (markup)."""
    return f'<svg class="{kind}" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{description}">{inner}</svg>'


def padded_range(values: Sequence[float]) -> tuple[float, float]:
    """The range of values, at least one, with a margin so that no dot sits on the frame."""
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values inside the range, about `count` of them, in steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _digits(ticks: Sequence[float]) -> int:
    """Decimals that tell the ticks apart."""
    steps = [abs(b - a) for a, b in pairwise(ticks)]
    return max(0, math.ceil(-math.log10(min(steps)) - 1e-9)) if steps else 1
