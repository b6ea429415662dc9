"""Augmentation: image and mask move together, black stays black, each change does what it is named after."""

import numpy as np
import pytest
import torch

from acouslic.fov import field_of_view
from training.frames.augment import (
    Change,
    _beam_coordinates,
    _jitter,
    apply_changes,
    draw_changes,
    equalise_some,
    published_copy,
)
from training.recipe.settings import AugmentSettings

NOTHING = {
    "flip": 0.0,
    "affine": 0.0,
    "gain": 0.0,
    "attenuation": 0.0,
    "speckle": 0.0,
    "shadow": 0.0,
    "clahe": 0.0,
    "blur": 0.0,
    "noise": 0.0,
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
    return show(AugmentSettings(**(NOTHING | changed)), *draw_batch(), seed)  # type: ignore[arg-type]


def show(
    settings: AugmentSettings, frames: torch.Tensor, masks: torch.Tensor, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """What training makes of a batch: on the host what is done there, then the rest."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    frames = torch.from_numpy(equalise_some(frames.numpy().copy(), settings, rng))
    return apply_changes(frames, masks, draw_changes(settings, len(frames), rng), settings)


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


def test_a_shadow_is_seen_and_leaves_something() -> None:
    """Every shadow takes a fifth of the light where it is darkest, and none more than nine tenths, which some nearly
    take."""
    frames = torch.full((120, 48, 48), 200, dtype=torch.uint8)
    shown, _ = show(AugmentSettings(**(NOTHING | {"shadow": 1.0})), frames, torch.zeros_like(frames))  # type: ignore[arg-type]
    left = shown.amin((1, 2)) / 200
    assert left.max() < 0.82
    assert 0.09 < left.min() < 0.15


def test_attenuation_follows_depth() -> None:
    """Within a column the change is monotone from the probe down."""
    frames, _ = augment(attenuation=1.0)
    column = frames[:, 8:40, 40].float()
    steps = column.diff(dim=1)
    assert ((steps >= 0).all(dim=1) | (steps <= 0).all(dim=1)).all()
    assert (column[:, 0] != column[:, -1]).float().mean() > 0.8


def test_one_seed_gives_one_result() -> None:
    """The seeds of the batch and of the step alone decide."""
    everything = dict.fromkeys(NOTHING, 0.7)
    first, again, other = augment(3, **everything), augment(3, **everything), augment(4, **everything)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_a_published_copy_is_fixed_and_changed() -> None:
    """Copy 0 is the frame; each other copy is changed with its mask, and always in the same way: half of them get
    colour jitter, half CLAHE, all are turned and shifted. Light alone can make black grey, where contrast falls."""
    frame, mask = (part[0].numpy() for part in draw_batch(1, 96))
    same, same_mask = published_copy(frame, mask, 0, np.random.default_rng(1))
    assert (same == frame).all()
    assert (same_mask == mask).all()
    masks = set()
    for number in range(1, 40):
        shown, moved = published_copy(frame, mask, 1, np.random.default_rng(number))
        again, _ = published_copy(frame, mask, 1, np.random.default_rng(number))
        assert (shown == again).all()
        assert shown.dtype == np.uint8
        assert set(np.unique(moved)) <= {0, 1}
        masks.add(moved.tobytes())
        if moved.sum() > 100:
            assert shown[moved > 0].mean() > shown[moved == 0].mean()
    assert len(masks) == 39


def test_half_of_the_published_copies_keep_their_light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jitter and CLAHE each come to half of the copies, as with albumentations' defaults; they are told apart here by
    being called."""
    import training.frames.augment as module

    called = {"jitter": 0, "clahe": 0}

    def jitter(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        called["jitter"] += 1
        return right(frame, rng)

    right, create = module._jitter, module.cv2.createCLAHE
    monkeypatch.setattr(module, "_jitter", jitter)

    def count_clahe(clip: float, tiles: tuple[int, int]) -> object:
        called["clahe"] += 1
        assert 1 <= clip <= 4
        assert tiles == (8, 8)
        return create(clip, tiles)

    monkeypatch.setattr(module.cv2, "createCLAHE", count_clahe)
    frame, mask = (part[0].numpy() for part in draw_batch(1, 64))
    for number in range(400):
        published_copy(frame, mask, 2, np.random.default_rng(number))
    assert 160 < called["jitter"] < 240
    assert 160 < called["clahe"] < 240


def test_published_copies_are_turned_by_twenty_degrees_and_shifted_by_a_fifth() -> None:
    """Over 150 copies a mark in the middle and one beside it go as far as the recipe says, either way, and no
    further."""
    size, middle, side = 120, 60, 22
    frame = np.zeros((size, size), np.uint8)
    angles, shifts = [], []
    for number in range(150):
        places = []
        for column in (middle, middle + side):
            mask = np.zeros_like(frame)
            mask[middle - 2 : middle + 3, column - 2 : column + 3] = 1
            _, moved = published_copy(frame, mask, 1, np.random.default_rng(number))
            places.append(np.argwhere(moved).mean(0))
        rows, columns = places[1] - places[0]
        angles.append(np.degrees(np.arctan2(rows, columns)))
        shifts.append((places[0] - middle) / size)
    for values, most, slack in ((np.array(angles), 20, 2.0), (np.array(shifts), 0.2, 0.01)):
        assert most * 0.9 < values.max() < most + slack
        assert most * 0.9 < -values.min() < most + slack


def test_published_copies_are_brighter_or_flatter_by_a_fifth_at_most() -> None:
    """The mean of two grey levels says the brightness and their difference the contrast: within 20 %, which some
    nearly reach."""
    frame = np.full((8, 8), 75, np.uint8)
    frame[:, 4:] = 125
    shown = np.array([_jitter(frame, np.random.default_rng(number))[0, [0, 4]] for number in range(300)], float)
    brightness = shown.mean(1) / 100
    contrast = (shown[:, 1] - shown[:, 0]) / 50 / brightness
    for factor in (brightness, contrast):
        assert 0.78 < factor.min() < 0.83
        assert 1.17 < factor.max() < 1.22


def test_published_copies_keep_what_is_small_in_a_mask() -> None:
    """Single pixels go to the nearest place: on average each stays one, as none does where neighbours are mixed."""
    frame, mask = np.zeros((96, 96), np.uint8), np.zeros((96, 96), np.uint8)
    mask[36:61:6, 36:61:6] = 1
    areas = [published_copy(frame, mask, 1, np.random.default_rng(number))[1].sum() for number in range(60)]
    assert np.mean(areas) == pytest.approx(mask.sum(), rel=0.05)


def test_beams_fan_out_as_the_scanners_do() -> None:
    """In the challenge's field of view, in the middle of its square, angles go from edge to edge and depth from the
    probe to the bottom: none lies outside, and no beam is left over."""
    depth, angle = (part[0, 0].numpy() for part in _beam_coordinates(744, torch.device("cpu")))
    fov = np.zeros((744, 744), bool)
    fov[91 : 91 + 562] = field_of_view()
    assert (angle[fov].min(), angle[fov].max()) == pytest.approx((-1, 1), abs=0.01)
    assert depth[fov].min() < 0.01
    assert depth[fov].max() > 0.99
    # Above the first arc and below the last depth says no more.
    assert np.mean((depth[fov] == 0) | (depth[fov] == 1)) < 0.005


def test_changes_undo_what_they_say() -> None:
    """A mark at a known place goes where flip, rotation and shift by hand would take it."""
    settings = AugmentSettings(**(NOTHING | {"affine": 1.0, "flip": 1.0, "degrees": 90.0, "scale": (1.0, 1.0)}))
    changes = draw_changes(settings, 1, np.random.default_rng(0))
    column = dict(zip(Change._fields, changes[0].tolist(), strict=True))
    frames = torch.zeros(1, 101, 101, dtype=torch.uint8)
    frames[0, 28:33, 68:73] = 255  # about (x, y) = (0.4, -0.4)
    shown, _ = apply_changes(frames, torch.zeros_like(frames), changes, settings)
    rows, columns = torch.nonzero(shown[0] > 128).float().mean(0).tolist()
    x, y = (columns - 50) / 50.5, (rows - 50) / 50.5
    assert column["xx"] * x + column["xy"] * y + column["x0"] == pytest.approx(20 / 50.5, abs=0.02)
    assert column["yx"] * x + column["yy"] * y + column["y0"] == pytest.approx(-20 / 50.5, abs=0.02)


def test_blur_is_a_gaussian_of_the_deviation_that_was_drawn() -> None:
    """A line spreads with the variance that the changes say; what is black outside the fan stays black."""
    settings = AugmentSettings(**(NOTHING | {"blur": 1.0}))
    changes = draw_changes(settings, 8, np.random.default_rng(0))
    deviations = changes[:, Change._fields.index("blur")] * 400
    frames = torch.full((8, 400, 400), 40, dtype=torch.uint8)
    frames[:, :, :50] = 0
    frames[:, :, 200] = 240
    shown, _ = apply_changes(frames, torch.zeros_like(frames), changes, settings)
    assert not shown[:, :, :50].any()
    profile = (shown[:, 200, 190:211].double() - 40).clamp_min(0)
    at = torch.arange(-10, 11, dtype=torch.float64)
    spread = ((profile * at**2).sum(1) / profile.sum(1)).sqrt()
    # Less than half a pixel falls between the samples of the kernel.
    wide = deviations > 0.5
    assert wide.sum() >= 4
    assert spread[wide].tolist() == pytest.approx(deviations[wide].tolist(), abs=0.1)
    assert (spread[~wide] < 0.5).all()


def test_noise_is_added_where_the_frame_is_not_black() -> None:
    """Its deviation is the one that was drawn, on bright pixels and on dim ones alike, unlike that of speckle."""
    settings = AugmentSettings(**(NOTHING | {"noise": 1.0}))
    changes = draw_changes(settings, 4, np.random.default_rng(0))
    deviations = changes[:, Change._fields.index("noise")] * 255
    frames = torch.full((4, 96, 96), 90, dtype=torch.uint8)
    frames[:, 48:], frames[:, :, :8] = 160, 0
    shown, _ = apply_changes(frames, torch.zeros_like(frames), changes, settings)
    assert not shown[:, :, :8].any()
    for half in (shown[:, :48, 8:], shown[:, 48:, 8:]):
        assert half.double().std((1, 2)).tolist() == pytest.approx(deviations.tolist(), rel=0.1, abs=0.3)


def test_changes_that_are_not_asked_for_draw_no_numbers() -> None:
    """A recipe without blur and noise has the other changes that it had before there were any."""
    plain, both = (
        draw_changes(AugmentSettings(**more), 16, np.random.default_rng(3))
        for more in ({}, {"blur": 0.5, "noise": 0.5})
    )
    old = len(Change._fields) - 2
    assert torch.equal(plain[:, :old], both[:, :old])
    assert not plain[:, old:].any()
    assert both[:, old:].any()


def test_an_empty_batch_stays_empty() -> None:
    """No frames in, no frames out."""
    empty = torch.zeros(0, 8, 8, dtype=torch.uint8)
    frames, masks = show(AugmentSettings(), empty, empty)
    assert frames.shape == masks.shape == (0, 8, 8)


def test_half_precision_of_training_does_not_reach_it() -> None:
    """Inside autocast, which surrounds a training step, frames and masks are the same to the bit."""
    changed = {"affine": 1.0, "flip": 0.5, "gain": 1.0, "speckle": 1.0, "shadow": 1.0}
    plain = augment(**changed)
    with torch.autocast("cpu", torch.bfloat16):
        inside = augment(**changed)
    assert torch.equal(inside[0], plain[0])
    assert torch.equal(inside[1], plain[1])
