"""The field of view of a case, and what of it a model sees that leaves out patches."""

from dataclasses import replace

import numpy as np
import pytest

from acouslic.fov import field_of_view
from algorithm.frames.seen_field import see_field, unseen_share
from algorithm.model.networks import TowerConfig
from training.network.tower_source import fan_patches

TOWER = TowerConfig(image_size=224, patch_size=14, width=32, layers=2, heads=2, mlp_width=64, output_dim=16)


def test_the_challenges_case_is_seen_as_before() -> None:
    """Its fan, no note, nothing unseen, whether the model leaves out patches or not."""
    fov = field_of_view()
    brightest = np.where(fov, 200, 0).astype(np.uint8)
    for tower in (TOWER, replace(TOWER, kept_patches=fan_patches(TOWER, 562, 744))):
        seen = see_field(brightest, tower)
        assert np.array_equal(seen.fov, fov)
        assert (seen.unseen, seen.notes) == (0.0, ())
    assert unseen_share(fov, replace(TOWER, kept_patches=fan_patches(TOWER, 562, 744))) == 0


def test_another_fan_is_used_and_said() -> None:
    """With a second sentence where the model leaves out patches that it covers."""
    fov = np.zeros((562, 744), bool)
    fov[40:520, 22:722] = True
    brightest = np.where(fov, 200, 0).astype(np.uint8)

    seen = see_field(brightest, TOWER)
    assert np.array_equal(seen.fov, fov)
    assert seen.unseen == 0
    assert seen.notes == (
        "the frames show another field of view than the challenge's scanner has, 80% of the frame; the one found is "
        "used",
    )

    inside_fan = see_field(brightest, replace(TOWER, kept_patches=fan_patches(TOWER, 562, 744)))
    assert inside_fan.unseen == pytest.approx(0.177, abs=0.01)
    assert "does not see" in inside_fan.notes[1]
    assert "of this field of view; use one that sees the whole frame" in inside_fan.notes[1]
