"""`bench/two_recipes.py`: the first side read plainly, the second as exported, paired by case and run."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acouslic.errors import AcouslicError
from algorithm.judgement.select_frame import probability_of
from bench import two_recipes
from bench.figures.judged_sets import BEST, EXPORTED, PLAIN, Judged
from bench.figures.readings import Called, SaidOfCase
from training.fit import main as fit
from training.release.split import read_split


def judged(plain_misses: int, exported_misses: int) -> Judged:
    """Four cases of twenty frames, ten of them annotated, each reading missing some; the last frame is chosen, plainly
    the first."""
    label = np.repeat([0, 1], 10).astype(np.uint8)
    presence = probability_of(np.where(label > 0, 2.0, -2.0))
    cases = [SaidOfCase(f"{k}", f"{k}", label, [range(20)], presence, presence, None, None) for k in range(4)]

    def called(misses: int, chosen: int) -> list[Called]:
        positive = label > 0
        positive[10 : 10 + misses] = False
        return [Called(positive, chosen)] * 4

    return Judged(cases, {PLAIN: called(plain_misses, 0), EXPORTED: called(exported_misses, 19), BEST: called(0, 19)})


def test_each_side_has_its_reading_and_runs_are_paired() -> None:
    """Two runs beside one: figures of all, differences of one pair."""
    compared = two_recipes.compare_recipes([judged(2, 0), judged(5, 0)], [judged(0, 1)])
    assert compared.pairs == 1
    assert compared.figures["first"]["F1, plain, 0.5"] == pytest.approx([16 / 18, 10 / 15])
    found = {name: one.estimate for name, one in compared.differences.items() if one is not None}
    assert found["F1, second as exported minus first plain"] == pytest.approx(18 / 19 - 16 / 18)
    assert found["F1, both plain"] == pytest.approx(1 - 16 / 18)
    assert found["F1, both as exported"] == pytest.approx(18 / 19 - 1)
    assert found["F1, both at each case's best threshold"] == 0
    assert found["WFSS, second as exported minus first plain"] == pytest.approx(1.0), (
        "a wrong frame against a right one"
    )
    assert "1 pairs of runs: +0.058" in compared.text()
    json.dumps(compared.metrics())


def test_the_command_judges_runs_on_other_patients(
    tiny_training: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run against itself differs by its reading alone."""
    run, unseen = tmp_path / "run", tmp_path / "unseen"
    assert fit(tiny_training.fit_arguments(run, f"--split={tiny_training.paper_split}")) == 0
    shutil.copytree(tiny_training.cache, unseen)
    index = json.loads((unseen / "index.json").read_text())
    split = read_split(tiny_training.paper_split)
    (unseen / "index.json").write_text(json.dumps(index | {"cases": list(split.test_cases())}))
    words = [f"--first={run}", f"--second={run}", f"--scores={tmp_path / 'scores'}", "--stride=3"]
    assert two_recipes.main([*words, f"--set=unseen={unseen}"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(found) == ["unseen"]
    assert found["unseen"]["figures"]["first"] == found["unseen"]["figures"]["second"]
    assert found["unseen"]["differences"]["F1, both plain"]["estimate"] == 0
    with pytest.raises(AcouslicError, match="give one --set or more"):
        two_recipes.main(words)
