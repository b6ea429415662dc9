"""Damaged artifacts by the hundred; thousands by `python -m bench.artifact_fuzz`."""

import pytest

from bench import artifact_fuzz


def test_damaged_artifacts_are_refused_or_run():
    """No error that is not for the user, no long sentence, no control character, bounded time and memory."""
    counts, faults = artifact_fuzz.fuzz(60, seed=1)
    assert faults == []
    assert counts["refused"] > 40
    assert counts["refused"] + counts["accepted"] == 60


def test_the_fuzz_finds_faults(monkeypatch: pytest.MonkeyPatch):
    """An error that is not for the user is counted as a fault, with how to make it again."""

    def explode(_):
        raise ValueError("not for the user")

    monkeypatch.setattr(artifact_fuzz, "load_artifact", explode)
    _, faults = artifact_fuzz.fuzz(1, seed=1)
    assert len(faults) == 1
    assert faults[0].startswith("seed 1, number 0, damage_")
    assert faults[0].endswith("ValueError: 'not for the user'")
