"""Drawn bodies that the fan cuts, and what is counted of them."""

import json

from acouslic.fov import field_of_view
from bench.cut_outlines import draw_bodies, main


def test_bodies_that_the_fan_cuts_are_counted(capsys):
    """Each drawn body lies inside the field and gets an ellipse; the circumferences are those of the whole bodies."""
    fov = field_of_view()
    bodies = list(draw_bodies(fov, 60))
    assert 30 < len(bodies) <= 60
    assert not any((body & ~fov).any() for body, _ in bodies)
    assert main(["--bodies", "60"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["bodies"] == len(bodies)
    assert figures["without_ellipse"] == 0
    assert figures["mean_error"] < 0.05
