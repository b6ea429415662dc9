"""The field of view: the official fan, scaled ones, and frames of another shape."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from acouslic.fov import field_of_view, found_field_of_view


def test_official_mask_is_reproduced_to_the_pixel(shared: Path) -> None:
    """The rule draws the official evaluator's own mask, all 562 x 744 pixels of it."""
    official = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(shared / "data/acouslic/fov_mask.mha")))

    assert np.array_equal(field_of_view(), np.squeeze(official) > 0)


def test_official_size_has_its_known_area_and_shape() -> None:
    """Without any file: 267,936 pixels, dark upper corners, the cut-off last row."""
    fov = field_of_view()

    assert fov.shape == (562, 744)
    assert fov.dtype == bool
    assert fov.sum() == 267_936
    assert not fov[0, 0]
    assert not fov[0, -1]
    assert np.flatnonzero(fov[-1]).tolist() == list(range(315, 431))


@pytest.mark.parametrize("scale", [0.5, 2])
def test_frame_of_the_same_aspect_ratio_gets_the_scaled_fan(scale: float) -> None:
    """Half and double size have the same share of pixels inside, to a thousandth."""
    fov = field_of_view(int(562 * scale), int(744 * scale))

    assert fov.shape == (int(562 * scale), int(744 * scale))
    assert fov.mean() == pytest.approx(field_of_view().mean(), abs=1e-3)


def test_double_size_repeats_every_pixel() -> None:
    """At twice the size each official pixel covers two by two."""
    assert np.array_equal(field_of_view(1124, 1488), field_of_view().repeat(2, axis=0).repeat(2, axis=1))


@pytest.mark.parametrize(("rows", "columns"), [(744, 562), (40, 60), (1, 1)])
def test_frame_of_another_shape_counts_whole(rows: int, columns: int) -> None:
    """Nothing is known of the fan in a frame of another aspect ratio, so nothing is cut off."""
    assert field_of_view(rows, columns).all()


def _sector(rows: int, columns: int, apex_row: int, half_angle: float, depth: int) -> np.ndarray:
    """Another scanner's fan: a sector that opens downwards from (apex_row, the middle)."""
    y, x = np.mgrid[:rows, :columns].astype(float)
    y, x = y - apex_row, x - columns / 2
    return (np.hypot(x, y) <= depth) & (np.abs(np.arctan2(x, y)) <= half_angle)


def _lit(fov: np.ndarray, seed: int = 0) -> np.ndarray:
    """The brightest of many frames of speckle inside a field of view."""
    speckle = np.random.default_rng(seed).integers(60, 256, fov.shape).astype(np.uint8)
    return np.where(fov, speckle, 0).astype(np.uint8)


def test_the_challenges_own_fan_is_not_found_anew() -> None:
    """Lit in full, with a shadow, fading with depth, a body in the dark, or not at all: the assumed fan stays."""
    fov = field_of_view()
    whole = _lit(fov)
    shadow, fading, dark = whole.copy(), whole.copy(), np.zeros_like(whole)
    shadow[:, 300:420] //= 8
    fading[150:] = (fading[150:] * np.linspace(0.5, 0, 412)[:, None]).astype(np.uint8)
    y, x = np.mgrid[:562, :744]
    body = np.where(np.hypot(x - 372, y - 280) < 120, whole, 0).astype(np.uint8)
    for brightest in (whole, shadow, fading, dark, body):
        assert found_field_of_view(brightest, fov) is None
    spots = np.where(np.random.default_rng(1).random(fov.shape) < 0.001, whole, 0)
    assert found_field_of_view(spots.astype(np.uint8), fov) is None


def test_text_and_a_colour_bar_beside_the_fan_are_no_field_of_view() -> None:
    """What lies apart from the picture does not belong to it."""
    brightest = _lit(field_of_view())
    brightest[20:300, 700:715] = 200
    brightest[10:20, 10:90] = 255
    assert found_field_of_view(brightest, field_of_view()) is None


@pytest.mark.parametrize(
    "fov",
    [
        _sector(562, 744, -40, 0.9, 590),
        _sector(562, 744, 10, 0.35, 540),
        np.pad(np.ones((480, 700), bool), ((40, 42), (22, 22))),
        _sector(600, 600, 20, 0.6, 560),
        np.pad(np.ones((300, 500), bool), ((50, 50), (70, 70))),
    ],
    ids=["wider", "narrower", "linear probe", "another shape", "region in a frame"],
)
def test_another_scanners_fan_is_found(fov: np.ndarray) -> None:
    """Wider than the assumed one or narrower with a sharp edge, and in frames of which nothing is known."""
    found = found_field_of_view(_lit(fov), field_of_view(*fov.shape))
    assert found is not None
    assert np.count_nonzero(found & fov) / np.count_nonzero(found | fov) > 0.98


def _in_corner(rows: int, columns: int, level: int = 200) -> np.ndarray:
    """A lit rectangle in the upper left corner of the challenge's frame, of which the fan has little."""
    brightest = np.zeros((562, 744), np.uint8)
    brightest[:rows, :columns] = level
    return brightest


@pytest.mark.parametrize(("level", "found"), [(12, False), (24, True)])
def test_a_dim_picture_is_one_and_a_codecs_traces_are_none(level: int, found: bool) -> None:
    """Beside the fan: grey level 24 is a picture, 12 is what compression leaves."""
    brightest = np.where(field_of_view(), 200, level).astype(np.uint8)
    assert (found_field_of_view(brightest, field_of_view()) is not None) is found


@pytest.mark.parametrize(("rows", "columns", "found"), [(110, 115, False), (160, 260, True)])
def test_nothing_is_concluded_from_little_light(rows: int, columns: int, found: bool) -> None:
    """3 % of the frame is lit beside the fan, where a few per cent of its size would do; 10 % are another field."""
    assert (found_field_of_view(_in_corner(rows, columns), field_of_view()) is not None) is found


@pytest.mark.parametrize(("beside", "found"), [(0.01, False), (0.05, True)])
def test_what_belongs_to_no_fan_of_the_challenge_makes_another(beside: float, found: bool) -> None:
    """The lit fan and beside it, in one piece, pixels of a hundredth or of a twentieth of its size."""
    fov = field_of_view()
    others = np.argwhere(~fov[:, :372])
    # Those nearest to the fan: they touch it.
    nearest = others[np.argsort(-others[:, 1] - 0.57 * others[:, 0], kind="stable")[: round(beside * fov.sum())]]
    brightest = np.where(fov, 200, 0).astype(np.uint8)
    brightest[tuple(nearest.T)] = 200
    assert (found_field_of_view(brightest, fov) is not None) is found


@pytest.mark.parametrize(("notch", "level", "found"), [(0, 200, True), (150, 200, False), (0, 45, False)])
def test_a_smaller_field_fills_its_hull_and_ends_abruptly(notch: int, level: int, found: bool) -> None:
    """A rectangle inside the fan is another scanner's field. With a large notch it is a body or a shadow, and where it
    is dim at its edge it fades."""
    brightest = np.zeros((562, 744), np.uint8)
    brightest[110:500, 222:522] = level
    brightest[500 - notch : 500, 372 - notch // 2 : 372 + notch // 2] = 0
    assert (found_field_of_view(brightest, field_of_view()) is not None) is found


def test_a_thin_dark_line_does_not_cut_a_field() -> None:
    """A reticle of six rows, a hundredth of the frame, across another scanner's picture belongs to it."""
    fov = _sector(562, 744, -40, 0.9, 590)
    brightest = _lit(fov)
    brightest[250:256] = 0
    found = found_field_of_view(brightest, field_of_view())
    assert found is not None
    assert np.count_nonzero(found & fov) / np.count_nonzero(found | fov) > 0.98


def test_frames_of_another_shape_that_light_up_in_full_are_as_assumed() -> None:
    """All of them counts as inside, and it is."""
    assert found_field_of_view(_lit(np.ones((400, 400), bool)), field_of_view(400, 400)) is None
    with pytest.raises(ValueError, match="must be the same"):
        found_field_of_view(np.zeros((4, 5), np.uint8), np.ones((5, 4), bool))
