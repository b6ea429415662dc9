"""What `bench/training_speed.py` counts, and what a step of training costs by that count."""

from typing import Any

import pytest
import torch

from bench.setting.training_side import CountedOperators, counted_fetches, measure, parse

OLDER_KERNELS = {"ours": 2963, "cls": 825}
"""Operators of one step of commit 3243e6a on the same frames, counted in the same way
(`bench/training_speed.py --against`)."""


@pytest.mark.parametrize("recipe", ["ours", "cls"])
def test_a_step_waits_for_nobody_and_has_half_the_kernels(recipe: str, tiny_training: Any) -> None:
    """Reading, augmentation, forward, backward, optimiser and average: nothing in them fetches a value from the device,
    and a device gets less than half of what it got before."""
    words = [f"--cache={tiny_training.cache}", f"--tower={tiny_training.tower_config}", f"--recipe={recipe}"]
    result = measure(parse(["--side=ours", "--steps=1", "--batch=8", *words]))
    assert result["waits"] == []
    assert result["host_waits_per_step"] == 0
    assert 0 < result["kernels_per_step"] < OLDER_KERNELS[recipe] / 2
    assert result["flop_per_step"] > 0


def test_what_waits_is_counted() -> None:
    """Fetching a value by name, and indexing by a mask, whose length the host has to know; looking costs nothing."""
    values = torch.arange(6.0)
    with counted_fetches() as fetched, CountedOperators() as counted:
        values.view(2, 3)[0].unsqueeze(0)
        assert counted.kernels.total() == 0
        values + 1
        assert counted.kernels.total() == 1
        assert counted.waits == 0
        values[values > 3]
        assert counted.waits == 1
        values[0].item()
        bool(values[0] == 0)
    assert fetched == ["item", "__bool__"]
