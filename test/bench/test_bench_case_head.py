"""The case head's benchmark, on a random model and the tiny cache."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acouslic.errors import AcouslicError
from algorithm.model.artifact import load_artifact, write_artifact
from bench.case_head import main, read_scores
from bench.setting.random_artifact import TOWERS, write_random_artifact


def test_scores_are_kept_and_judged(
    tiny_training: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fourth frame of each case is kept once, with its label; folders of another stride do not mix."""
    monkeypatch.setattr("training.judge.case_head._STEPS", 20)  # nothing here depends on how well a head learns
    write_random_artifact(tmp_path / "model", replace(TOWERS["tiny"], image_size=28), members=2, seed=4)
    artifact = load_artifact(tmp_path / "model")
    antialias = replace(artifact.manifest.preprocessing, antialias=True)
    manifest = replace(artifact.manifest, preprocessing=antialias)
    write_artifact(tmp_path / "model", manifest, dict(artifact.tower_state), artifact.members)
    words = ["score", str(tmp_path / "model"), f"--cache={tiny_training.cache}"]
    assert main([*words, f"--out={tmp_path / 'four'}"]) == 0
    assert main([*words, f"--out={tmp_path / 'six'}", "--stride=6"]) == 0
    cases, stride = read_scores([tmp_path / "four"])
    assert (len(cases), stride) == (7, 4)
    assert cases[0].embedding.shape == (2, 12, 16)
    assert cases[0].sweeps(stride) == [range(12)]
    capsys.readouterr()
    assert main([*words, f"--out={tmp_path / 'four'}"]) == 0
    assert "scored" not in capsys.readouterr().out
    assert main(["judge", str(tmp_path / "four"), "--seeds", "1", "2"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [one["seed"] for one in found] == [1, 2]
    assert found[0]["average_precision_without"] == found[1]["average_precision_without"]
    assert np.isfinite([value for one in found for value in one.values() if not isinstance(value, str)]).all()
    with pytest.raises(AcouslicError, match="is among those that the head learns from"):
        main(["judge", str(tmp_path / "four"), "--on", f"same={tmp_path / 'four'}", "--seeds", "1"])
    (tmp_path / "other").mkdir()
    for path in sorted((tmp_path / "four").iterdir())[:2]:
        path.rename(tmp_path / "other" / path.name)
    assert main(["judge", str(tmp_path / "four"), "--on", f"other={tmp_path / 'other'}", "--seeds", "1"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(one["cases_are"], one["cases"]) for one in found] == [("nested", 5), ("other", 2)]
    with pytest.raises(AcouslicError, match="expected scores of one stride"):
        main(["judge", str(tmp_path / "four"), str(tmp_path / "six")])
    with pytest.raises(AcouslicError, match="not multiples of 5"):
        main([*words, f"--out={tmp_path / 'five'}", "--stride=5"])


def write_scores(folder: Path, subject: str, members: int) -> None:
    """A folder with one case of twelve frames, as `score` keeps it."""
    folder.mkdir()
    presence = np.zeros((members, 12), np.float32)
    kept = {"label": np.eye(1, 12, dtype=np.uint8)[0], "presence": presence, "embedding": presence[..., None]}
    np.savez(folder / f"of-{subject}.npz", subject=subject, stride=4, black=np.zeros(12, bool), **kept)


def test_scores_of_another_ensemble_do_not_mix(tmp_path: Path) -> None:
    """Neither among those that a head learns from nor in a set that it is judged on."""
    write_scores(tmp_path / "two", "a", 2)
    write_scores(tmp_path / "one", "b", 1)
    with pytest.raises(AcouslicError, match="expected scores of one model"):
        read_scores([tmp_path / "two", tmp_path / "one"])
    with pytest.raises(AcouslicError, match="--on: other was scored by another number of members"):
        main(["judge", str(tmp_path / "two"), "--on", f"other={tmp_path / 'one'}"])
    with pytest.raises(AcouslicError, match="--on takes NAME=FOLDER, each name once"):
        main(["judge", str(tmp_path / "two"), "--on", str(tmp_path / "one")])
