"""Damaged submissions by the hundred; thousands by `python -m bench.submission_fuzz`."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import submission_fuzz
from bench.submission_fuzz import KINDS, Phase, outcome


def test_the_sound_submission_is_scored(tmp_path: Path) -> None:
    """Otherwise every damaged one would be refused for nothing; so is the one with its mask in TIFF."""
    phase = Phase(tmp_path / "phase")
    phase.write()
    assert outcome(phase) == "scored"
    phase.write()
    phase.write_tiff()
    assert outcome(phase) == "scored"


def test_damaged_submissions_are_refused_or_scored() -> None:
    """No error that is not for the user, no long sentence, nothing read outside, bounded time."""
    counts, faults = submission_fuzz.fuzz(100, seed=1)
    assert faults == []
    assert counts["refused"] > 50
    assert counts["scored"] > 5
    assert counts["refused"] + counts["scored"] == 100


@pytest.mark.parametrize("damage", KINDS, ids=lambda damage: damage.__name__)
def test_each_kind_of_damage_is_refused_somewhere(
    damage: Callable[[random.Random, Phase], None], tmp_path: Path
) -> None:
    """Twelve of each: some are refused, so that the damage reaches what it is meant for."""
    phase, found = Phase(tmp_path / "phase"), []
    for number in range(12):
        phase.write()
        damage(random.Random(number), phase)
        found.append(outcome(phase))
    assert "refused" in found


def test_the_fuzz_finds_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is not for the user is a fault, with how to make it again; so is a file opened outside."""

    def explode(*_: object) -> None:
        raise ValueError("not for the user")

    def look_outside(*_: object) -> None:
        Path("/etc/hostname").exists() and Path("/etc/hostname").read_text()

    for wrong, sign in ((explode, "ValueError: not for the user"), (look_outside, "opened ['/etc/hostname']")):
        monkeypatch.setattr(submission_fuzz, "evaluate_case", lambda *_, wrong=wrong: wrong())
        monkeypatch.setattr(submission_fuzz, "_check_result", lambda _: None)
        monkeypatch.setattr(submission_fuzz, "KINDS", {lambda *_: None: 1})
        _, faults = submission_fuzz.fuzz(1, seed=1)
        assert len(faults) == 1
        assert faults[0].startswith("seed 1, number 0, ")
        assert faults[0].endswith(sign)
