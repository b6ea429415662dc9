"""What `bench/augmentation_order.py` measures."""

import json

import numpy as np
import pytest

from bench.augmentation_order import CHANGES, main, measure


def test_the_order_matters_little_beside_the_augmentation_itself(capsys: pytest.CaptureFixture[str]) -> None:
    """On drawn frames: copies made before and after shrinking differ by a few grey levels, two copies by many."""
    assert main(["--draws", "2"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["frames"] == 10
    for name in CHANGES:
        assert 1 < figures[name]["order_levels"] < 8
        assert figures[name]["spread_levels"] > 3 * figures[name]["order_levels"]


def test_frames_of_the_training_size_do_not_differ() -> None:
    """Where nothing is shrunk, there is no order, and both copies are made from the same random numbers."""
    frame = np.random.default_rng(0).integers(0, 256, (48, 64), dtype=np.uint8)
    for answers in CHANGES.values():
        assert measure([frame], answers, 64, 2)["order_levels"] == 0
