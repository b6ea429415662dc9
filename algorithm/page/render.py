"""Templates to pages: everything from outside is escaped, and the page may run its own script and load nothing."""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent


def render(
    template: str, values: Mapping[str, Any], *, styles: tuple[str, ...], scripts: tuple[str, ...], rules: str = ""
) -> str:
    """The page of a `template` beside this module, with its style sheets and scripts inside.

    `rules` are style rules of this page alone; they must hold nothing from outside. The page's content security policy
    names style and script by their hashes and forbids everything else but pictures that are part of the page.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = "".join(_part(name) for name in styles) + rules
    # One function around all parts: nothing of theirs gets in the way of the browser's own names.
    program = '(() => {\n"use strict";\n' + "\n".join(map(_part, scripts)) + "})();\n"
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{_content_hash(style)}'; "
        f"script-src 'sha256-{_content_hash(program)}'; base-uri 'none'; form-action 'none'"
    )
    # Our own files: nothing in them needs escaping, and inside these elements nothing may be escaped.
    own = {"style": Markup(style), "script": Markup(program), "policy": policy}
    return environment.get_template(template).render(**values, **own)


def _part(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _content_hash(text: str) -> str:
    """What a content security policy knows a script or style by."""
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
