"""`bench/ablation.py`: runs that differ in one setting, paired by case and seed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acouslic.errors import AcouslicError
from algorithm.judgement.select_frame import probability_of
from bench import ablation
from bench.ablation import Judged, difference
from bench.figures.readings import Called, SaidOfCase


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
    found = json.loads(said.splitlines()[-1])
    assert list(found) == ["as it is", "soft ends"]
    assert found["as it is"]["difference, plain, 0.5"]["estimate"] == 0
    assert len(found["soft ends"]["average precision"]) == 1
    assert "half-way, as exported" in said
    record = json.loads((tmp_path / "runs" / "soft_ends" / "seed_1" / "fold_2" / "run.json").read_text())
    assert record["seed"] == 1
    assert ablation.main(call) == 0
    again = capsys.readouterr().out
    assert again.count("finished already") == 4
    assert json.loads(again.splitlines()[-1]) == found
    with pytest.raises(AcouslicError, match="NAME=SETTINGS"):
        ablation.main([*where, "--variant", "nameless", "--", *common])
