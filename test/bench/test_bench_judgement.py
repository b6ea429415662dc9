"""`bench/judgement.py`: every reading on cases that neither the runs nor the readings were fitted on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acouslic.errors import AcouslicError
from acouslic.geometry import sweep_ranges
from algorithm.judgement.select_frame import probability_of
from bench import judgement
from bench.figures.compared_readings import compare, draw_differences, measure
from bench.figures.readings import READINGS, SaidOfCase, half_way, own_threshold, plain, read_out_of_fold_cases
from training.fit import main as fit
from training.release.split import read_split


def draw_case(top: float, number: int, offset: float = 0.0) -> SaidOfCase:
    """One sweep of 140 frames: a bump of logits whose frames within 3 of its top are annotated."""
    logit = top - 12.0 * np.abs(np.linspace(-1, 1, 140)) + offset
    label = (logit >= logit.max() - 3.0).astype(np.uint8)
    presence = probability_of(logit)
    return SaidOfCase(
        f"case {number}", f"patient {number}", label, sweep_ranges(len(label)), presence, presence, None, None
    )


def draw_cases(seed: int, count: int = 12) -> list[SaidOfCase]:
    """Cases whose tops differ so much that no one threshold serves them all."""
    rng = np.random.default_rng(seed)
    return [draw_case(top, number) for number, top in enumerate(rng.uniform(0.0, 6.0, count))]


def test_half_way_beats_plain_where_cases_differ_and_nobody_beats_their_own_threshold() -> None:
    """On drawn cases the order of readings is known: plain, half-way, each case's best threshold."""
    fit_cases, test_cases = draw_cases(1), draw_cases(2)
    f1 = []
    for reading in (plain, half_way, own_threshold):
        fitted = reading(fit_cases)
        called = [fitted(case) for case in test_cases]
        figures = measure(test_cases, called, [plain([])(case) for case in test_cases])
        assert figures.f1 is not None
        f1.append(figures.f1.estimate)
    assert f1[0] + 0.03 < f1[1] < f1[2]
    assert figures.wfss is not None
    assert figures.wfss.estimate == 1.0


def test_the_decoder_alone_needs_masks_of_all_frames() -> None:
    """Without them the row is left out; with them 1 % of the pixels is the border and the largest mask is chosen."""
    cases = draw_cases(3, 4)
    assert "the mask alone" not in judgement.usable_readings(cases)
    drawn = [replace(case, mask_area=np.where(case.label > 0, 0.0101, 0.0099)) for case in cases]
    assert "the mask alone" in judgement.usable_readings(drawn)
    called = READINGS["the mask alone"](drawn)(drawn[0])
    assert np.array_equal(called.positive, drawn[0].label > 0)
    assert drawn[0].label[called.chosen] > 0


def test_a_fold_is_never_read_by_what_was_fitted_on_it() -> None:
    """A reading that remembers its cases sees, for each fold, all the others and none of the fold."""
    cases = {case.uuid: case for case in draw_cases(4, 6)}
    folds = [list(cases)[:2], list(cases)[2:5], list(cases)[5:]]
    seen = []

    def reading(fitted_on):
        seen.append([case.uuid for case in fitted_on])
        return plain(fitted_on)

    called = read_out_of_fold_cases(cases, folds, reading)
    assert len(called) == 6
    for fold, used in zip(folds, seen, strict=True):
        assert sorted(used) == sorted(set(cases) - set(fold))


def test_draws_say_how_much_ten_cases_decide() -> None:
    """Plain is fitted on nothing and differs from itself by nothing; half-way varies, the same each time."""
    fit_cases, test_cases = draw_cases(5, 30), draw_cases(6)
    assert draw_differences(fit_cases, test_cases, plain, 3) == [0.0, 0.0, 0.0]
    once, twice = (draw_differences(fit_cases, test_cases, half_way, 5) for _ in range(2))
    assert once == twice
    assert min(once) > 0


def test_the_table_has_every_reading_and_the_intervals() -> None:
    """As text and as numbers."""
    cases = draw_cases(7)
    called = {
        name: [reading(cases)(case) for case in cases] for name, reading in judgement.usable_readings(cases).items()
    }
    comparison = compare("run 1", "drawn", cases, called, {"half-way, as exported": [0.1, 0.2]})
    assert comparison.text().startswith("run 1, drawn: 12 cases")
    numbers = json.loads(json.dumps(comparison.metrics()))
    assert numbers["readings"]["plain, 0.5"]["f1_difference"]["estimate"] == 0
    assert numbers["readings"]["half-way, as exported"]["f1_difference"]["estimate"] > 0.03


def test_runs_are_judged_on_cases_that_they_have_not_seen(
    tiny_training: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run's own patients are refused as a set; others are scored once and read from disk; closed sets stay closed."""
    run, unseen, scores = tmp_path / "run", tmp_path / "unseen", tmp_path / "scores"
    assert fit(tiny_training.fit_arguments(run, f"--split={tiny_training.paper_split}")) == 0
    words = [f"--runs={run}", f"--scores={scores}", "--stride=3", "--masks", "--draws=2"]
    with pytest.raises(AcouslicError, match="own: a run has learned from or was chosen on case"):
        judgement.main([*words, f"--set=own={tiny_training.cache}"])

    shutil.copytree(tiny_training.cache, unseen)
    index = json.loads((unseen / "index.json").read_text())
    split = read_split(tiny_training.paper_split)
    (unseen / "index.json").write_text(json.dumps(index | {"cases": list(split.test_cases())}))
    capsys.readouterr()
    assert judgement.main([*words, f"--set=unseen={unseen}", f"--set=later={unseen}", "--closed", "later"]) == 0
    said = capsys.readouterr().out
    assert "later: left closed" in said
    found = json.loads(said.splitlines()[-1])
    assert "out of fold: left out" in said, "one run has no other folds"
    assert [(one["system"], one["set"]) for one in found] == [("all runs together", "unseen")]
    # The out-of-fold scores that readings are fitted on have no masks of all frames.
    assert "the mask alone" in found[0]["readings"]
    assert len(list(scores.iterdir())) == len(split.test_cases())
    assert judgement.main([*words, f"--set=unseen={unseen}"]) == 0
    again = capsys.readouterr().out
    assert "scored" not in again
    assert json.loads(again.splitlines()[-1]) == found
