"""The ellipse of a mask: against the official evaluator's results, and against ellipses drawn here."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from acouslic.ellipse import (
    Ellipse,
    circumference_mm,
    circumference_px,
    draw_ellipse,
    fit_ellipse,
    fit_seen_outline,
    mark_outline,
)
from acouslic.fov import field_of_view
from acouslic.geometry import FRAMES_PER_SWEEP


def _whole(mask: np.ndarray) -> np.ndarray:
    return np.ones(mask.shape, dtype=bool)


def test_golden_circumference_errors_are_reproduced(shared: Path) -> None:
    """The official NAE of every golden case follows from our circumference, to 1e-9."""
    golden = shared / "data/golden"
    cases = json.loads((golden / "official_metrics.json").read_text())["cases"]
    masks = np.load(golden / "cases.npz")
    fov = field_of_view()
    compared = 0
    for case in cases:
        frame_number = case["frame_number"]
        reference_mm = case["circumferences"].get(f"sweep_{frame_number // FRAMES_PER_SWEEP + 1}_ac_mm")
        mask = np.unpackbits(masks[f"{case['case']}_pred"], axis=-1)[:, :744]
        ellipse = fit_ellipse(mask, fov) if frame_number >= 0 else None
        error = 1.0
        if ellipse is not None and reference_mm is not None:
            ours_mm = circumference_mm(ellipse, (0.28, 0.28))
            error = abs(reference_mm - ours_mm) / max(reference_mm, ours_mm)
            compared += 1
        assert error == pytest.approx(case["official"]["nae_circumference"], abs=1e-9), case["case"]
    assert compared >= 20


@pytest.mark.parametrize("angle_degrees", [0, 30, 90, 135])
@pytest.mark.parametrize("semi_axes_px", [(60, 45), (80, 79), (20, 12)])
def test_drawn_ellipse_is_fitted_back(semi_axes_px: tuple[float, float], angle_degrees: float) -> None:
    """Fitting what was drawn gives centre and semi-axes within 0.3 px and the circumference within 0.8 px."""
    drawn = Ellipse((150.3, 120.6), semi_axes_px, angle_degrees)
    mask = draw_ellipse(drawn, 260, 300)

    fitted = fit_ellipse(mask, _whole(mask))

    assert fitted is not None
    assert fitted.centre_px == pytest.approx(drawn.centre_px, abs=0.1)
    assert sorted(fitted.semi_axes_px) == pytest.approx(sorted(semi_axes_px), abs=0.3)
    assert circumference_px(fitted) == pytest.approx(circumference_px(drawn), abs=0.8)


def test_angle_turns_the_first_axis_from_x_towards_y() -> None:
    """A long first axis at 30 degrees reaches down to the right; the fit names the same direction."""
    ellipse = Ellipse((100, 100), (60, 20), 30)
    mask = draw_ellipse(ellipse, 200, 200)
    tip_x, tip_y = 100 + 55 * math.cos(math.radians(30)), 100 + 55 * math.sin(math.radians(30))

    assert mask[round(tip_y), round(tip_x)]
    assert not mask[round(200 - tip_y), round(tip_x)]
    fitted = fit_ellipse(mask, _whole(mask))
    assert fitted is not None
    first_is_long = fitted.semi_axes_px[0] > fitted.semi_axes_px[1]
    long_axis_degrees = fitted.angle_degrees if first_is_long else fitted.angle_degrees - 90
    assert long_axis_degrees % 180 == pytest.approx(30, abs=1)


def test_ellipse_beyond_the_frame_is_cut_off() -> None:
    """Drawing partly or wholly outside fills what lies inside, and nothing else."""
    assert draw_ellipse(Ellipse((0, 0), (10, 10), 0), 20, 20).sum() == pytest.approx(math.pi * 10.5**2 / 4, rel=0.15)
    assert not draw_ellipse(Ellipse((-50, -50), (10, 10), 0), 20, 20).any()


@pytest.mark.parametrize("pixels", [[], [(0, 0)], [(0, 0), (0, 1)], [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]])
def test_mask_with_too_few_pixels_has_no_ellipse(pixels: list[tuple[int, int]]) -> None:
    """An empty mask and masks whose outline has five points or fewer have none."""
    mask = np.zeros((50, 50), dtype=bool)
    for row, column in pixels:
        mask[20 + row, 20 + column] = True

    assert fit_ellipse(mask, _whole(mask)) is None


def test_mask_outside_the_field_has_no_ellipse() -> None:
    """What lies outside the field of view does not count."""
    mask = np.zeros((562, 744), dtype=bool)
    mask[:40, :40] = True

    assert fit_ellipse(mask, field_of_view()) is None


def test_outline_along_the_field_is_left_out() -> None:
    """A disc cut off by the field's edge is fitted by its free outline, so its true size comes back."""
    disc = draw_ellipse(Ellipse((100, 100), (60, 60), 0), 200, 200)
    fov = _whole(disc)
    fov[:, :60] = False

    fitted = fit_ellipse(disc, fov)

    assert fitted is not None
    assert fitted.centre_px == pytest.approx((100, 100), abs=1)
    assert fitted.semi_axes_px == pytest.approx((60, 60), rel=0.02)


def test_closed_outline_has_the_official_ellipse() -> None:
    """Where the field cuts nothing off, all of the outline is what the official fit takes."""
    mask = draw_ellipse(Ellipse((100, 80), (60, 40), 30), 200, 200)
    assert fit_seen_outline(mask, _whole(mask)) == fit_ellipse(mask, _whole(mask))
    assert fit_seen_outline(np.zeros((9, 9), bool), np.ones((9, 9), bool)) is None


def test_outline_in_two_pieces_is_fitted_by_both() -> None:
    """A body that the field cuts on its left and right gets its own ellipse back from the arcs above and below."""
    true = Ellipse((150, 100), (110, 60), 0)
    mask = draw_ellipse(true, 200, 300)
    fov = _whole(mask)
    fov[:, :80] = fov[:, 225:] = False
    fitted = fit_seen_outline(mask, fov)
    assert fitted is not None
    assert circumference_px(fitted) == pytest.approx(circumference_px(true), rel=0.01)


def test_hole_of_a_cut_body_is_not_taken_for_the_body() -> None:
    """Its outline encloses more than those of the arcs above and below do, a third of what is seen of the body: the
    ellipse goes through all of them, far outside the hole."""
    hole = Ellipse((150, 100), (50, 25), 0)
    mask = draw_ellipse(Ellipse((150, 100), (110, 60), 0), 200, 300) & ~draw_ellipse(hole, 200, 300)
    fov = _whole(mask)
    fov[:, :80] = fov[:, 225:] = False
    fitted = fit_seen_outline(mask, fov)
    assert fitted is not None
    assert circumference_px(fitted) > 1.4 * circumference_px(hole)


def test_marked_outline_is_the_one_that_is_fitted() -> None:
    """Bodies cut by the fan: the official fit to the drawn ellipse finds a crumb of outline or nothing for some of
    them, and finds the ellipse for every one with a mark. A mark has few pixels, all of them inside the field."""
    fov = field_of_view()
    lost = 0
    for row in range(230, 400, 10):
        for x in range(np.flatnonzero(fov[row])[0] + 60, np.flatnonzero(fov[row])[0] + 120, 7):
            drawn = Ellipse((x + 0.3, row + 0.6), (120.0, 100.0), 85.0)
            mask = draw_ellipse(drawn, *fov.shape) & fov
            marked = mark_outline(mask, fov)
            assert not (marked & ~fov).any()
            assert np.count_nonzero(marked ^ mask) <= 12
            plain, found = fit_ellipse(mask, fov), fit_ellipse(marked, fov)
            lost += plain is None or abs(circumference_px(plain) / circumference_px(drawn) - 1) > 0.02
            assert found is not None
            assert circumference_px(found) == pytest.approx(circumference_px(drawn), rel=0.02)
    assert lost
    assert not mark_outline(np.zeros_like(fov), fov).any()


def test_contour_of_largest_area_is_measured() -> None:
    """The area decides, not the order nor the length: a long thin bar before and a disc after change nothing."""
    large = Ellipse((60, 60), (40, 30), 0)
    mask = draw_ellipse(large, 200, 200) | draw_ellipse(Ellipse((160, 160), (15, 15), 0), 200, 200)
    mask[12, 12:188] = True

    fitted = fit_ellipse(mask, _whole(mask))

    assert fitted is not None
    assert fitted.centre_px == pytest.approx(large.centre_px, abs=0.5)


def test_place_in_the_frame_does_not_change_the_size() -> None:
    """The same mask elsewhere has the same semi-axes; a uint8 mask of 255 counts like a bool one."""
    mask = np.zeros((300, 300), dtype=np.uint8)
    mask[10:110, 5:85] = draw_ellipse(Ellipse((40, 50), (35, 25), 20), 100, 80) * 255
    moved = np.roll(mask, (150, 190), axis=(0, 1)).astype(bool)

    here, there = fit_ellipse(mask, _whole(mask)), fit_ellipse(moved, _whole(mask))

    assert here is not None
    assert there is not None
    assert there.semi_axes_px == pytest.approx(here.semi_axes_px, rel=1e-4)
    assert np.subtract(there.centre_px, here.centre_px).tolist() == pytest.approx([190, 150], abs=1e-3)


def test_masks_and_fields_of_different_shape_are_a_programming_error() -> None:
    """Mask and field of view must have one shape."""
    with pytest.raises(ValueError, match="same"):
        fit_ellipse(np.ones((5, 5), dtype=bool), np.ones((5, 6), dtype=bool))


def test_circle_has_the_circumference_of_a_circle() -> None:
    """For equal semi-axes Ramanujan's formula is exact."""
    assert circumference_px(Ellipse((0, 0), (50, 50), 0)) == pytest.approx(2 * math.pi * 50, rel=1e-12)


def test_isotropic_spacing_is_the_official_formula() -> None:
    """0.28 mm pixels: the pixel circumference times 0.28, to the last bit."""
    ellipse = Ellipse((3, 4), (123.4, 98.7), 33)

    assert circumference_mm(ellipse, (0.28, 0.28)) == circumference_px(ellipse) * 0.28


def test_anisotropic_spacing_stretches_the_ellipse_exactly() -> None:
    """Worked by hand: a circle of 100 px at (0.2, 0.4) mm is an ellipse of 40 and 20 mm, whatever its angle says."""
    expected_mm = circumference_px(Ellipse((0, 0), (40, 20), 0))

    for angle_degrees in (0, 17, 90):
        circle = Ellipse((0, 0), (100, 100), angle_degrees)
        assert circumference_mm(circle, (0.2, 0.4)) == pytest.approx(expected_mm, rel=1e-12)


def test_anisotropic_spacing_agrees_with_the_length_of_the_stretched_outline() -> None:
    """A tilted ellipse under (0.25, 0.35) mm, against the length of a fine polygon of its points in mm."""
    ellipse = Ellipse((0, 0), (90, 60), 25)
    turn, tilt = np.linspace(0, 2 * np.pi, 20001), math.radians(25)
    x = 90 * np.cos(turn) * math.cos(tilt) - 60 * np.sin(turn) * math.sin(tilt)
    y = 90 * np.cos(turn) * math.sin(tilt) + 60 * np.sin(turn) * math.cos(tilt)
    length_mm = np.hypot(np.diff(x * 0.35), np.diff(y * 0.25)).sum()

    assert circumference_mm(ellipse, (0.25, 0.35)) == pytest.approx(length_mm, rel=1e-5)
