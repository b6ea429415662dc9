"""The kills at random moments, a few of each way to run the program; `bench/kills.py` alone does hundreds."""

import json

import pytest

from bench.kills import Ended, check_exec, check_served, check_words, main


def test_a_few_kills_leave_no_fault(tiny_model, capfd):
    """exec, serve and predict, stopped at random moments: whole results or none, and one sentence."""
    code = main(["--count", "3", "--modes", "exec,serve,predict", "--model", str(tiny_model)])
    said = capfd.readouterr().out
    assert code == 0, said
    report = json.loads(said.splitlines()[-1])
    assert report["faults"] == 0
    assert all(sum(report[mode]["endings"].values()) == 3 for mode in ("exec", "serve", "predict"))


@pytest.mark.parametrize(
    ("code", "stderr", "fault"),
    [
        (0, "", None),
        (0, "Traceback", "on stderr"),
        (143, "stopped by a signal before the result was complete", None),
        (143, "Traceback\nstopped by a signal", "expected one sentence"),
        (-6, "terminate called", "exit code -6"),
        (-15, "", None),
    ],
)
def test_words_are_judged(code, stderr, fault, tmp_path):
    """The check can fail: an abort, a traceback, a word too many."""
    found = check_words(Ended(15, code, 0.1, stderr, tmp_path))
    assert bool(found) == bool(fault)
    assert not fault or fault in found[0]


def test_a_result_in_part_is_found(tmp_path):
    """One file of four, after a signal that let the program clean up, and after one that did not."""
    (tmp_path / "fetal-abdomen-frame-number.json").write_text("3")
    assert "left behind" in check_exec(Ended(15, 143, 0.1, "stopped by a signal", tmp_path))[0]
    assert "without the rest" in check_exec(Ended(9, -9, 0.1, "", tmp_path))[0]
    assert "not complete" in check_served(Ended(15, 0, 0.1, "", tmp_path), 201)[0]
