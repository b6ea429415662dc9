"""`bench/stand_in.py`: runs judged on cases that none of them has seen, in all readings."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from acouslic.errors import AcouslicError
from bench import stand_in
from training.fit import main as fit
from training.release.split import read_split


def test_runs_are_judged_on_cases_that_they_have_not_seen(
    tiny_training: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run, and the mean of it with itself, which must be the same; a cache it has learned from is refused."""
    run, unseen = tmp_path / "run", tmp_path / "cache"
    assert fit(tiny_training.fit_arguments(run, f"--split={tiny_training.paper_split}")) == 0
    system = [f"--system=one={run}", f"--system=twice={run},{run}"]
    with pytest.raises(AcouslicError, match="one has learned from or was chosen on a case"):
        stand_in.main([f"--cache={tiny_training.cache}", *system])

    shutil.copytree(tiny_training.cache, unseen)
    index = json.loads((unseen / "index.json").read_text())
    test_cases = list(read_split(tiny_training.paper_split).test_cases())
    (unseen / "index.json").write_text(json.dumps(index | {"cases": test_cases}))
    capsys.readouterr()
    assert stand_in.main([f"--cache={unseen}", *system, f"--scores={tmp_path / 'scores'}"]) == 0

    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    ways = ("plain", "half-way")
    assert set(figures) == {f"{name}, {way}" for name in ("one", "twice") for way in ways}
    assert figures["one, plain"] == figures["twice, plain"]
    assert figures["one, plain"]["threshold"] == 0.5
    assert 0 <= figures["one, half-way"]["wfss"]["estimate"] <= 1
    assert len(list((tmp_path / "scores").iterdir())) == 1
