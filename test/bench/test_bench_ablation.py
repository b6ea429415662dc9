"""`bench/ablation.py`: runs that differ in one setting, paired by case and seed."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acouslic.errors import AcouslicError
from algorithm.judgement.select_frame import probability_of
from bench import ablation
from bench.figures.judged_sets import Judged, difference
from bench.figures.readings import Called, SaidOfCase
from training.phantom import generate
from training.release import prepare


def judged(misses: int) -> Judged:
    """Four cases of twenty frames, ten of them annotated; of each the first `misses` annotated ones are not called."""
    label = np.repeat([0, 1], 10).astype(np.uint8)
    positive = label > 0
    positive[10 : 10 + misses] = False
    presence = probability_of(np.where(positive, 2.0, -2.0))
    sweeps = [range(20)]
    cases = [SaidOfCase(f"{k}", f"{k}", label, sweeps, presence, presence, None, None) for k in range(4)]
    return Judged(cases, {"plain, 0.5": [Called(positive, 19)] * 4})


def test_differences_are_paired() -> None:
    """One more miss of ten in every case and seed: 2 x 9 / (2 x 9 + 1) against 1, without any spread."""
    interval = difference([judged(0)] * 2, [judged(1)] * 2, "plain, 0.5")
    assert interval is not None
    assert interval.estimate == pytest.approx(18 / 19 - 1)
    assert interval.lower == pytest.approx(interval.upper)


def test_variants_are_trained_on_the_same_folds_and_kept(
    tiny_training: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first row is the common settings, a variant has its own on top; a second call trains nothing."""
    words = tiny_training.fit_arguments(tmp_path / "unused", "--optimiser.epochs=1")
    common = [word for word in words if not word.startswith(("--cache", "--out"))]
    where = [f"--cache={tiny_training.cache}", f"--split={tiny_training.subject_split}", f"--out={tmp_path / 'runs'}"]
    call = [*where, "--folds", "1", "2", "--seeds", "1", "--variant", "soft ends=--loss.soft_ends 2", "--", *common]
    assert ablation.main(call) == 0
    said = capsys.readouterr().out
    sets = json.loads(said.splitlines()[-1])
    assert list(sets) == ["out of fold"]
    found = sets["out of fold"]
    assert list(found) == ["as it is", "soft ends"]
    assert found["as it is"]["difference, plain, 0.5"]["estimate"] == 0
    assert len(found["soft ends"]["average precision"]) == 1
    assert "half-way, as exported" in said
    record = json.loads((tmp_path / "runs" / "soft_ends" / "seed_1" / "fold_2" / "run.json").read_text())
    assert record["seed"] == 1
    assert ablation.main(call) == 0
    again = capsys.readouterr().out
    assert again.count("finished already") == 4
    assert json.loads(again.splitlines()[-1]) == sets
    with pytest.raises(AcouslicError, match="NAME=SETTINGS"):
        ablation.main([*where, "--variant", "nameless", "--", *common])


def test_other_patients_are_judged_by_the_runs_of_a_seed_together(
    tiny_training: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each set has a table, and all together one; a closed set is not opened; patients of the runs are refused."""
    other = tmp_path / "other"
    small = ["--cases=2", "--rows=120", "--sweeps=2", "--frames-per-sweep=24", "--seed=9"]
    assert generate.main([f"--out={tmp_path / 'release'}", *small]) == 0
    assert prepare.main([f"--raw={tmp_path / 'release'}", f"--out={other}", "--image-size=28", "--antialias"]) == 0
    index = json.loads((other / "index.json").read_text())
    parts = {}
    for name, uuid in zip(("first", "second"), index["cases"], strict=True):
        parts[name] = tmp_path / name
        shutil.copytree(other, parts[name])
        (parts[name] / "index.json").write_text(json.dumps(index | {"cases": [uuid]}))
        record = parts[name] / "cases" / uuid / "case.json"
        case = json.loads(record.read_text())
        record.write_text(json.dumps(case | {"subject_id": f"other {case['subject_id']}"}))
    words = tiny_training.fit_arguments(tmp_path / "unused", "--optimiser.epochs=1")
    common = [word for word in words if not word.startswith(("--cache", "--out"))]
    where = [f"--cache={tiny_training.cache}", f"--split={tiny_training.subject_split}", f"--out={tmp_path / 'runs'}"]
    call = [*where, "--folds", "1", "2", "--seeds", "1", "--stride=3"]
    sets = [f"--set=first={parts['first']}", f"--set=second={parts['second']}", "--set=later=nowhere", "--closed=later"]
    assert ablation.main([*call, *sets, "--", *common]) == 0
    said = capsys.readouterr().out
    found = json.loads(said.splitlines()[-1])
    assert list(found) == ["out of fold", "first", "second", "all sets"]
    assert "half-way, as exported" in said
    assert "all sets: 2 cases" in said
    worth = [found[name]["as it is"]["WFSS"][0] for name in ("first", "second", "all sets")]
    assert worth[2] == pytest.approx(sum(worth[:2]) / 2)
    assert ablation.main([*call, *sets, "--", *common]) == 0
    again = capsys.readouterr().out
    assert "scored" not in again, "what the runs said of a set is kept"
    assert json.loads(again.splitlines()[-1]) == found
    with pytest.raises(AcouslicError, match="own: a run has learned from or was chosen on case"):
        ablation.main([*call, f"--set=own={tiny_training.cache}", "--", *common])
    with pytest.raises(AcouslicError, match="--closed names later"):
        ablation.main([*call, "--closed=later", "--", *common])
