"""Templates to pages: everything from outside is escaped, and the page may run its own script and load nothing."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from acouslic.printable import printable

_SHARED = Path(__file__).parent


def render(
    path: Path,
    values: Mapping[str, Any],
    *,
    styles: tuple[str, ...],
    scripts: tuple[str, ...],
    rules: str = "",
    pictures: bool = False,
    filters: Mapping[str, Callable[..., Any]] | None = None,
) -> str:
    """The page of the template at `path`, with its style sheets and scripts inside.

    Parts are looked up beside the template, then beside this module, which has `base.html`, `page.css`, `theme.js` and
    `table.js`. `rules` are style rules of this page alone; they must hold nothing from outside. The page's content
    security policy names style and script by their hashes and forbids everything else; with `pictures` it lets in those
    that are part of the page. Text is escaped, and characters that do not print are shown as escapes.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    loader = FileSystemLoader((path.parent, _SHARED))
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.do"],
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters.update(filters or {})

    def part(name: str) -> str:
        return loader.get_source(environment, name)[0]

    style = "".join(map(part, styles)) + rules
    # One function around all parts: nothing of theirs gets in the way of the browser's own names.
    program = '(() => {\n"use strict";\n' + "\n".join(map(part, scripts)) + "})();\n"
    policy = (
        f"default-src 'none'; {'img-src data:; ' if pictures else ''}style-src 'sha256-{_content_hash(style)}'; "
        f"script-src 'sha256-{_content_hash(program)}'; base-uri 'none'; form-action 'none'"
    )
    # Our own files: nothing in them needs escaping, and inside these elements nothing may be escaped.
    own = {"style": Markup(style), "script": Markup(program), "policy": policy}
    return environment.get_template(path.name).render(**values, **own)


def _content_hash(text: str) -> str:
    """What a content security policy knows a script or style by."""
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
