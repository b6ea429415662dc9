"""The field of view: the official fan, scaled ones, and frames of another shape."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from acouslic.fov import field_of_view


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
