"""The kills at random moments, a few of each way to run the program; `bench/kills.py` alone does hundreds."""

import json

import numpy as np
import pytest

from bench.kills import check_exec, check_served, main
from bench.setting.stopped_run import Ended, check_words
from bench.setting.stopped_training import check_fit, compare_runs


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


@pytest.mark.parametrize(
    ("number", "code", "stderr", "fault"),
    [
        (15, 143, "stopped by SIGTERM in epoch 1, step 3: all is kept, and the same command goes on from there", None),
        (15, 143, "stopped by SIGTERM: all is kept", "does not say what is kept"),
        (2, 130, "", "does not say what is kept"),
        (2, 130, "Traceback (most recent call last)", "a traceback"),
        (15, 0, "", None),
        (2, 1, "no such file", "exit code 1"),
        (9, -9, "", None),
    ],
)
def test_the_words_of_a_training_are_judged(number, code, stderr, fault, tmp_path):
    """The last line says what is kept and how it goes on."""
    found = check_fit(Ended(number, code, 0.1, stderr, tmp_path))
    assert bool(found) == bool(fault)
    assert not fault or fault in found[0]


def test_trainings_are_compared_to_the_bit(tmp_path):
    """A weight, a score, a figure or a file that is not what it was undisturbed."""

    def write(name, weight=b"1", score=0.5, epochs=2):
        run = tmp_path / name
        (run / "member").mkdir(parents=True)
        (run / "member" / "heads.safetensors").write_bytes(weight)
        np.savez(run / "out_of_fold.npz", presence=np.array([score]))
        (run / "run.json").write_text(json.dumps({"kept": {"epoch": 1}, "epochs": epochs}))
        return run

    whole = write("whole")
    assert compare_runs(write("same"), whole) == []
    assert compare_runs(write("weight", weight=b"2"), whole) == [
        "member/heads.safetensors is not what it is undisturbed"
    ]
    assert compare_runs(write("score", score=0.6), whole) == ["out_of_fold.npz is not what it is undisturbed"]
    assert compare_runs(write("epochs", epochs=3), whole) == ["run.json has another `epochs`"]
    (whole / "more").touch()
    assert compare_runs(tmp_path / "same", whole) == ["other files than undisturbed: ['more']"]
