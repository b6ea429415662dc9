"""What `bench/training_speed.py` counts, and what a step of training costs by that count."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import training_layers
from bench.setting.training_side import CountedOperators, counted_fetches, measure, parse
from bench.training_flops import EpochFlop
from bench.training_speed import sides_of

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


def test_members_share_the_prefix_of_frames_that_several_show() -> None:
    """Of 10 parts 6 are the prefix. Five members: a frame is in four folds, so the prefix of what is alike costs a
    quarter: 10 / (1.5 + 4); of half alike 10 / (3 + 0.75 + 4). Nothing alike, or one member: nothing gained."""
    epoch = EpochFlop(prefix=6, rest=3, validation=1)
    assert epoch.shared(5, 1.0) == pytest.approx(10 / 5.5)
    assert epoch.shared(5, 0.5) == pytest.approx(10 / 7.75)
    assert epoch.shared(5, 0.0) == epoch.shared(1, 1.0) == 1


def test_every_side_has_its_column(tmp_path: Path) -> None:
    """The straightforward script knows the published recipe alone; an older version is asked for the same as ours."""
    assert list(sides_of("cls", None)) == ["straightforward", "ours"]
    assert list(sides_of("ours", tmp_path)) == ["ours", "older"]
    both = sides_of("both", tmp_path)
    assert {name: recipe for name, (_, recipe, _) in both.items()} == {
        "straightforward": "cls",
        "ours": "cls",
        "older": "cls",
        "our recipe": "ours",
        "older, our recipe": "ours",
    }
    assert {name: tree for name, (_, _, tree) in both.items() if tree == tmp_path}.keys() == {
        "older",
        "older, our recipe",
    }


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


def test_layers_are_measured_beside_torchs(capsys: pytest.CaptureFixture[str]) -> None:
    """Every line has a figure of either side, and neither side's gradients are far from float64's."""
    training_layers.main(["--repeats=1"])
    layers = json.loads(capsys.readouterr().out.splitlines()[-1])["layers"]
    assert len(layers) == 8
    assert all(side > 0 for sides in layers.values() for side in sides.values())
    errors = [side for name, sides in layers.items() if "error" in name for side in sides.values()]
    assert len(errors) == 4
    assert max(errors) < 0.01
