"""Augmentation: image and mask move together, black stays black, each change does what it is named after."""

import pytest
import torch

from training.frames.augment import BatchAugmentation
from training.recipe.settings import AugmentSettings

NOTHING = {
    "flip": 0.0,
    "affine": 0.0,
    "gain": 0.0,
    "attenuation": 0.0,
    "speckle": 0.0,
    "shadow": 0.0,
    "clahe": 0.0,
}


def draw_batch(count: int = 16, size: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """Grey squares on a dim fan; the mask is the square."""
    frames = torch.zeros(count, size, size, dtype=torch.uint8)
    frames[:, 6:-6] = 60
    masks = torch.zeros_like(frames)
    masks[:, 14:30, 10:26] = 1
    frames[masks > 0] = 200
    return frames, masks


def augment(seed: int = 0, **changed: object) -> tuple[torch.Tensor, torch.Tensor]:
    """A drawn batch, augmented by the named changes alone."""
    torch.manual_seed(seed)
    return BatchAugmentation(AugmentSettings(**(NOTHING | changed)))(*draw_batch())  # type: ignore[arg-type]


def test_nothing_asked_for_changes_nothing() -> None:
    """With every probability at 0, and with the recipe `none`, the batch comes back as it was."""
    frames, masks = draw_batch()
    for changed in ({}, {"recipe": "none"}):
        result = augment(**changed)
        assert torch.equal(result[0], frames)
        assert torch.equal(result[1], masks)


@pytest.mark.parametrize("change", [{"flip": 1.0}, {"affine": 1.0}, {"flip": 0.5, "affine": 0.8}])
def test_image_and_mask_move_together(change: dict[str, float]) -> None:
    """After any geometry the bright square is where the mask is."""
    frames, masks = augment(**change)
    assert not torch.equal(masks, draw_batch()[1])
    for frame, mask in zip(frames, masks, strict=True):
        bright = frame > 130
        union = (bright | (mask > 0)).sum()
        assert (bright & (mask > 0)).sum() / union > 0.85


def test_each_frame_gets_its_own_change() -> None:
    """Rotation and shift are drawn frame by frame, not once for the batch."""
    frames, _ = augment(affine=1.0)
    assert len({frame.numpy().tobytes() for frame in frames}) == len(frames)


@pytest.mark.parametrize("name", ["gain", "attenuation", "speckle", "shadow", "clahe"])
def test_looks_leave_the_mask_and_the_black(name: str) -> None:
    """What changes brightness changes it somewhere, leaves masks alone, and lights no black pixel."""
    frames, masks = augment(**{name: 1.0})
    before, before_masks = draw_batch()
    assert torch.equal(masks, before_masks)
    assert not torch.equal(frames, before)
    if name != "clahe":  # equalisation may lift black next to bright pixels
        assert (frames[before == 0] == 0).all()


def test_a_shadow_only_darkens() -> None:
    """A shadow takes light away and adds none."""
    frames, _ = augment(shadow=1.0)
    assert (frames <= draw_batch()[0]).all()


def test_attenuation_follows_depth() -> None:
    """Within a column the change is monotone from the probe down."""
    frames, _ = augment(attenuation=1.0)
    column = frames[:, 8:40, 40].float()
    steps = column.diff(dim=1)
    assert ((steps >= 0).all(dim=1) | (steps <= 0).all(dim=1)).all()
    assert (column[:, 0] != column[:, -1]).float().mean() > 0.8


def test_one_seed_gives_one_result() -> None:
    """The torch random state alone decides."""
    everything = dict.fromkeys(NOTHING, 0.7)
    first, again, other = augment(3, **everything), augment(3, **everything), augment(4, **everything)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_the_published_recipe_keeps_a_plain_showing() -> None:
    """About one of three showings is the frame itself; the others are changed, with their masks."""
    torch.manual_seed(0)
    frames, masks = draw_batch(90, 32)
    result, moved = BatchAugmentation(AugmentSettings(recipe="published"))(frames, masks)
    same = torch.tensor([torch.equal(a, b) for a, b in zip(result, frames, strict=True)])
    assert 0.2 < same.float().mean() < 0.5
    assert torch.equal(moved[same], masks[same])
    assert not torch.equal(moved[~same], masks[~same])
    assert set(moved.unique().tolist()) <= {0, 1}


def test_an_empty_batch_stays_empty() -> None:
    """No frames in, no frames out."""
    empty = torch.zeros(0, 8, 8, dtype=torch.uint8)
    frames, masks = BatchAugmentation(AugmentSettings())(empty, empty)
    assert frames.shape == masks.shape == (0, 8, 8)


@pytest.mark.parametrize("recipe", ["sweep", "published"])
def test_half_precision_of_training_does_not_reach_it(recipe: str) -> None:
    """Inside autocast, which surrounds a training step, frames and masks are the same to the bit."""
    changed = {"recipe": recipe, "affine": 1.0, "flip": 0.5, "gain": 1.0, "speckle": 1.0, "shadow": 1.0}
    plain = augment(**changed)
    with torch.autocast("cpu", torch.bfloat16):
        inside = augment(**changed)
    assert torch.equal(inside[0], plain[0])
    assert torch.equal(inside[1], plain[1])
