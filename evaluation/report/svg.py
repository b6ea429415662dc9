"""Matplotlib's drawings as inline SVG: nothing to load, the page's own fonts and colours, tooltips.

The page's policy allows no `style` attribute, so styles become attributes of their own. matplotlib is imported by
whoever writes a report, and by nobody else.
"""

import io
import re
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from acouslic.printable import printable

_COLOURS = {"ink": "#16222e", "soft": "#52606d", "line": "#dde3ea", "card": "#ffffff"}
_COLOURS |= {"blue": "#1d5fa8", "teal": "#0b7a6b", "amber": "#b06f0c", "orange": "#c2410c"}
"""By the names of the page's style sheets, where each has another value in the dark."""
INK, SOFT, LINE, CARD, BLUE, TEAL, AMBER, ORANGE = _COLOURS.values()
_VARIABLES = {colour: f"var(--{name})" for name, colour in _COLOURS.items()}
_TOP, _RIGHT = 14, 14
_NUMBER = re.compile(r"-?\d+\.\d+")
_STYLE = re.compile(r' style="([^"]*)"')
_UNUSED = re.compile(
    r'<defs>\s*<(style|clipPath).*?</defs>|<g id="[^"]*"/>| ((clip-path|xmlns(:xlink)?)="|transform="rotate\(-0)[^"]*"',
    re.DOTALL,
)
"""What the page has no use for: style sheets, empty groups, clipping, namespaces, rotations by nothing."""


def new_plot(width: int = 480, height: int = 340, left: int = 58, bottom: int = 50) -> tuple[Figure, Axes]:
    """A figure of this size in pixels with one plot: a light grid, no frame. Nothing drawn in it is clipped."""
    figure = Figure(figsize=(width / 72, height / 72), frameon=False)
    place = (left / width, bottom / height, (width - left - _RIGHT) / width, (height - _TOP - bottom) / height)
    with rc_context({"axes.labelsize": 13.5, "axes.labelcolor": INK, "axes.labelpad": 6, "axes.axisbelow": True}):
        axes = figure.add_axes(place, frame_on=False)
    axes.grid(color=LINE, linewidth=1)
    axes.tick_params(length=0, labelsize=12.5, labelcolor=SOFT, pad=6)
    axes.locator_params(nbins=6)
    return figure, axes


def inline_svg(figure: Figure, name: str, description: str, tooltips: Mapping[str, Sequence[str]] | None = None) -> str:
    """The figure as markup that is read out as `description`. `name` is its class, and keeps its ids apart.

    `tooltips` are texts for each mark, in their order, of the artists with that gid.
    """
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = _STYLE.sub(_attributes, _UNUSED.sub("", buffer.getvalue())).replace("xlink:href", "href")
    # The parser reads what matplotlib wrote a line before, never a stranger's file.
    root = ElementTree.fromstring(" ".join(text.split()))
    for gid, texts in (tooltips or {}).items():
        group = f".//g[@id='{gid}']"
        for mark, tooltip in zip(root.findall(f"{group}//use") or root.findall(f"{group}//path"), texts, strict=True):
            ElementTree.SubElement(mark, "title").text = printable(tooltip)
    for element in root.iter():
        if element.tag == "g":
            element.attrib.pop("id", None)
        for key in element.attrib.keys() & {"d", "x", "y", "transform"}:
            element.set(key, _NUMBER.sub(_one_decimal, element.attrib[key]))
    inner = "".join(ElementTree.tostring(child, encoding="unicode") for child in root)
    label = escape(printable(description))
    return Markup(
        f'<svg class="plot {name}" viewBox="{root.get("viewBox")}" role="img" aria-label="{label}">{inner}</svg>'
    )


def _attributes(style: re.Match[str]) -> str:
    """`fill: none; stroke: #e6ebf0` as attributes. Fonts and colours are those of the page."""
    pairs = (part.split(": ", 1) for part in style[1].split("; "))
    return "".join(f' {key}="{_VARIABLES.get(value, value)}"' for key, value in pairs if key != "font-family")


def _one_decimal(found: re.Match[str]) -> str:
    return f"{float(found[0]):.1f}".removesuffix(".0")
