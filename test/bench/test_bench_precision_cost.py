"""`bench/precision_cost.py` on a tiny artifact with a student, whatever types this machine is fast in."""

import json

import pytest
import torch

from acouslic.errors import AcouslicError
from algorithm.model.manifest import ScoringConfig
from algorithm.model.networks import StudentConfig
from bench import precision_cost
from bench.setting.random_artifact import TOWERS, write_random_artifact

RECHECKED = "bfloat16, decisions in float32"


@pytest.fixture
def model(tmp_path):
    """Two members and a student; bfloat16 is recorded to move a probability by 0.02."""
    folder = tmp_path / "random"
    gated = ScoringConfig(mode="gated", gate="student", stride=1, max_refined_fraction=0.5)
    write_random_artifact(folder, TOWERS["tiny"], members=2, scoring=gated, student=StudentConfig(4, (1, 1)))
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["half_precision"] |= {"frames": 64, "float16": 0.001, "bfloat16": 0.02}
    path.write_text(json.dumps(manifest))
    return folder


def test_seconds_and_differences_of_each_type(model, platform_case, speckle, monkeypatch, capsys):
    """Float32, bfloat16 and bfloat16 with decisions in float32, each timed on each case and compared with float32."""
    monkeypatch.setattr(precision_cost, "half_types", lambda _: ((torch.bfloat16,), "asked for"))
    sweeps = [str(platform_case.write_sweep(speckle(24, seed=seed), name=f"{seed}.mha")) for seed in (1, 2)]
    assert precision_cost.main([str(model), *sweeps, "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["cases"] == 2
    assert {name: len(taken) for name, taken in found["seconds"].items()} == {"float32": 2, "bfloat16": 2, RECHECKED: 2}
    ratios = sorted(a / b for a, b in zip(found["seconds"][RECHECKED], found["seconds"]["bfloat16"], strict=True))
    assert found["times"] == {RECHECKED: pytest.approx(sum(ratios) / 2)}
    assert set(found["consequence"]) == {"bfloat16", RECHECKED}
    assert found["consequence"][RECHECKED]["cases"] == 2


def test_a_machine_without_a_half_type_is_told_so(model, platform_case, speckle, monkeypatch):
    """There is nothing to compare: one sentence says why."""
    monkeypatch.setattr(precision_cost, "half_types", lambda _: ((), "it has none"))
    sweep = platform_case.write_sweep(speckle(4), name="one.mha")
    with pytest.raises(AcouslicError, match="fast in no half type"):
        precision_cost.main([str(model), str(sweep), "--device", "cpu"])
