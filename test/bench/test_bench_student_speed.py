"""`bench/student_speed.py` on a tower of no size."""

import json

from bench import student_speed


def test_both_sides_of_the_ratio(capsys):
    """One JSON line at the end, with the time and the cost of a frame by either, and their ratio."""
    words = ["--config", "tiny", "--frames", "2", "--tower-frames", "2", "--repeats", "1"]
    assert student_speed.main(words) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["times_a_frame"] == found["tower_s_a_frame"] / found["student_s_a_frame"]
    assert found["student_s_a_frame"] > 0
    assert found["student_flop_a_frame"] > found["tower_flop_a_frame"], "the tiny tower is smaller than the student"
