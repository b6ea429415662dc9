"""What all pages share: policy, escaping, parts from two folders, drawings."""

import base64
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from acouslic.page.drawing import curve_path, outline_path
from acouslic.page.render import render


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A page of its own with a style sheet and a script beside it."""
    (tmp_path / "own.html").write_text(
        '{% extends "base.html" %}{% block main %}<p title="{{ text }}">{{ text }}</p>{% endblock %}'
    )
    (tmp_path / "own.css").write_text("p { color: red; }\n")
    (tmp_path / "own.js").write_text("byId('main');\n")
    return tmp_path / "own.html"


def test_the_policy_lets_in_just_the_page_s_own_style_and_script(template: Path) -> None:
    """Both are named by the hash of what stands in the page; pictures only where asked for."""
    styles, scripts = ("page.css", "own.css"), ("theme.js", "own.js")
    page = render(template, {"text": ""}, styles=styles, scripts=scripts, rules="b { color: blue; }")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    for element in ("style", "script"):
        found = re.search(rf"<{element}>(.*)</{element}>", page, re.DOTALL)
        assert found is not None
        digest = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
        assert f"{element}-src &#39;sha256-{digest}&#39;" in policy[1].replace("'", "&#39;")
    assert "default-src &#39;none&#39;" in policy[1].replace("'", "&#39;")
    assert "img-src" not in page
    assert "p { color: red; }\nb { color: blue; }" in page
    assert "img-src data:;" in render(template, {"text": ""}, styles=styles, scripts=scripts, pictures=True)


def test_text_from_outside_is_neither_markup_nor_control(template: Path) -> None:
    """Markup is escaped; what recolours a terminal or turns the direction of writing is shown as an escape."""
    page = render(template, {"text": '"><b>\u202e\x1bŽofie 胎儿'}, styles=(), scripts=())
    assert "<b>" not in page
    assert page.count("\\u202e\\x1bŽofie 胎儿") == 2


def test_a_value_that_is_missing_is_an_error(template: Path) -> None:
    """A page never has a gap where a figure should stand."""
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError, match="text"):
        render(template, {}, styles=(), scripts=())


def test_outlines_are_closed_paths_of_whole_pixels() -> None:
    """One path of all polygons; none is empty."""
    square = np.array([[0, 0], [3, 0], [3, 2], [0, 2]])
    assert outline_path([square, square[:1]]) == "M0 0L3 0L3 2L0 2ZM0 0Z"
    assert outline_path([]) == ""


def test_a_long_curve_shows_the_highest_of_each_few_frames() -> None:
    """Frames lie at their middle, 1 is at the top; a single peak is never lost, and the rest of a last step counts.

    frame   0   1   2   3   4
    value   0  .5   0   1  .25    in steps of 2: .5 at 1, 1 at 3, .25 at 4.5
    """
    probability = np.array([0, 0.5, 0, 1, 0.25])
    assert curve_path(probability, 3) == "M1 50.00L3 0.00L4.5 75.00"
    assert curve_path(probability, 5) == "M0.5 100.00L1.5 50.00L2.5 100.00L3.5 0.00L4.5 75.00"
