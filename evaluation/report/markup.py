"""Text and numbers as HTML. Everything a report shows passes through here: case names come from strangers."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_LONGEST_TEXT = 300
MISSING = "–"


def escape(text: object, longest: int = _LONGEST_TEXT) -> str:
    """Text for element content and quoted attributes: characters that do not print (also those that turn the
    direction of writing) shown as escapes, cut after `longest` characters."""
    plain = str(text)
    if len(plain) > longest:
        plain = plain[: longest - 1] + "…"
    visible = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in plain)
    return html.escape(visible, quote=True)


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


def table(caption: str, headers: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1) -> str:
    """A table of cells that are markup already. The first `text_columns` columns are text, the others numbers; a row of
    one cell is a heading over the rows below it."""
    head = "".join(
        f'<th scope="col"{"" if index < text_columns else " class=number"}>{header}</th>'
        for index, header in enumerate(headers)
    )
    body = "\n".join(_row(row, len(headers), text_columns) for row in rows)
    return (
        f'<div class="captioned"><h3>{caption}</h3>'
        f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0">'
        f'<table aria-label="{caption}"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div></div>'
    )


def _row(row: Sequence[str], columns: int, text_columns: int) -> str:
    first, *rest = row
    if not rest:
        return f'<tr class="group"><th scope="rowgroup" colspan="{columns}">{first}</th></tr>'
    cells = "".join(
        f"<td{'' if index < text_columns else ' class=number'}>{cell}</td>" for index, cell in enumerate(rest, start=1)
    )
    return f'<tr><th scope="row">{first}</th>{cells}</tr>'


def section(anchor: str, title: str, *parts: str) -> str:
    """A section with a heading; empty parts are left out."""
    inner = "\n".join(part for part in parts if part)
    heading = f'<h2 id="{anchor}-title">{title}</h2>'
    return f'<section id="{anchor}" aria-labelledby="{anchor}-title">{heading}\n{inner}\n</section>'


def figure(drawing: str, caption: str) -> str:
    """A drawing with its caption, both markup."""
    return f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of markup; `kind` is its class."""
    return f'<p class="{kind}">{text}</p>' if kind else f"<p>{text}</p>"
