"""Matplotlib's drawings as inline SVG: nothing to load, the page's own fonts, tooltips, no style attributes.

The page's policy allows no `style` attribute, so styles become attributes of their own; ids get the plot's name in
front, so that two plots of a page share none. matplotlib is imported by whoever writes a report, and by nobody else.
"""

import io
import re
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evaluation.report.text import visible

INK, SOFT, GRID = "#16222e", "#52606d", "#e6ebf0"
BLUE, TEAL, AMBER, ORANGE = "#1d5fa8", "#0b7a6b", "#b06f0c", "#c2410c"
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 14, 50
_KEPT_STYLES = {"fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-opacity", "opacity"}
_KEPT_STYLES |= {"text-anchor", "font-size", "font-weight", "stroke-linecap"}
_NUMBER = re.compile(r"-?\d+\.\d+")


def new_plot(
    width: int = 480, height: int = 340, left: int = _LEFT, bottom: int = _BOTTOM, right: int = _RIGHT
) -> tuple[Figure, Axes]:
    """A figure of this size in pixels with one plot: a light grid, no frame. Nothing drawn in it is clipped."""
    figure = Figure(figsize=(width / 72, height / 72))
    spans = (width - left - right, height - _TOP - bottom)
    with rc_context({"axes.labelsize": 13.5, "axes.labelcolor": INK, "axes.labelpad": 6}):
        axes = figure.add_axes((left / width, bottom / height, spans[0] / width, spans[1] / height))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6))
    axes.spines[:].set_visible(False)
    axes.grid(color=GRID, linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=12.5, labelcolor=SOFT, pad=6)
    return figure, axes


def inline_svg(figure: Figure, name: str, description: str, tooltips: Mapping[str, Sequence[str]] | None = None) -> str:
    """The figure as markup that is read out as `description`. `name` is its class and begins its ids.

    `tooltips` are texts for each mark, in their order, of the artists with that gid.
    """
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    # The parser reads what matplotlib wrote a line before, never a stranger's file.
    root = ElementTree.fromstring(buffer.getvalue())
    for element in root.iter():
        _make_plain(element, name)
    _drop_unused(root)
    for gid, texts in (tooltips or {}).items():
        _add_tooltips(root, gid, texts)
    for element in root.iter():
        if element.tag == "g":
            element.attrib.pop("id", None)
    inner = "".join(ElementTree.tostring(child, encoding="unicode").strip() for child in root)
    box = root.attrib["viewBox"]
    label = escape(visible(description, 2000))
    return Markup(f'<svg class="plot {name}" viewBox="{box}" role="img" aria-label="{label}">{inner}</svg>')


def _make_plain(element: ElementTree.Element, name: str) -> None:
    """Names without namespace, styles as attributes, one decimal, ids of this plot alone."""
    element.tag = element.tag.rpartition("}")[2]
    element.text, element.tail = (element.text or "").strip(), ""
    styles = dict(part.strip().split(": ", 1) for part in element.attrib.pop("style", "").split(";") if ": " in part)
    attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items() if "clip-path" not in key}
    attributes |= {key: value for key, value in styles.items() if key in _KEPT_STYLES}
    for key, value in attributes.items():
        if key in ("d", "x", "y", "transform"):
            value = _NUMBER.sub(lambda match: f"{float(match[0]):.1f}".removesuffix(".0"), " ".join(value.split()))
        if key == "href":
            value = f"#{name}-{value[1:]}"
        if key == "id" and element.tag == "path":
            value = f"{name}-{value}"
        attributes[key] = value
    if attributes.get("transform", "").startswith("rotate(-0"):
        del attributes["transform"]
    element.attrib.clear()
    element.attrib.update(attributes)


def _drop_unused(parent: ElementTree.Element) -> None:
    """Take out what draws nothing: metadata, style sheets, empty groups."""
    for child in list(parent):
        _drop_unused(child)
        empty = child.tag in ("g", "defs") and len(child) == 0
        invisible = child.attrib.get("fill") == "none" and "stroke" not in child.attrib and "id" not in child.attrib
        if empty or invisible or child.tag in ("metadata", "style"):
            parent.remove(child)


def _add_tooltips(root: ElementTree.Element, gid: str, texts: Sequence[str]) -> None:
    groups = [group for group in root.iter("g") if group.attrib.get("id") == gid]
    marks = [mark for group in groups for mark in group.iter() if mark.tag == "use"]
    marks = marks or [mark for group in groups for mark in group.iter("path")]
    for mark, text in zip(marks, texts, strict=True):
        ElementTree.SubElement(mark, "title").text = visible(text)
