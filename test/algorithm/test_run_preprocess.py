"""The geometry that training and inference share."""

import cv2
import numpy as np
import pytest
import torch

from algorithm.frames.preprocess import (
    labels_to_square,
    mask_to_frame,
    normalise,
    resize_by_torch,
    resize_frames,
    square_offsets,
)
from algorithm.model.networks import PreprocessingConfig

CONFIG = PreprocessingConfig()


def pad(frame, side, top, left):
    """The frame in the middle of a black square."""
    padded = np.zeros((side, side), np.uint8)
    padded[top : top + frame.shape[0], left : left + frame.shape[1]] = frame
    return padded


@pytest.mark.parametrize(
    ("rows", "columns", "size"),
    [(562, 744, 224), (744, 562, 224), (61, 40, 28), (50, 50, 28), (20, 30, 56), (1, 1, 14), (224, 224, 224)],
)
def test_resize_equals_opencv_cubic_on_the_padded_frame(rows, columns, size):
    """On a CPU the same pixels, and torch's own resize, which a GPU takes, within one grey level: for noise (the
    hardest case: overshoot is clamped) of any shape."""
    frames = np.random.default_rng(3).integers(0, 256, (3, rows, columns), dtype=np.uint8)
    offsets = square_offsets(rows, columns)
    expected = np.stack(
        [cv2.resize(pad(frame, *offsets), (size, size), interpolation=cv2.INTER_CUBIC) for frame in frames]
    )
    resized = resize_frames(torch.from_numpy(frames), size, CONFIG)
    assert resized.dtype == torch.uint8
    assert resized.shape == (3, size, size)
    assert np.array_equal(resized.numpy(), expected)
    difference = np.abs(resize_by_torch(torch.from_numpy(frames), size, CONFIG).numpy().astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.05


def test_frames_do_not_depend_on_their_neighbours():
    """A frame resized alone equals the same frame resized in a batch that spans several chunks."""
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (37, 30, 44), dtype=np.uint8))
    together = resize_frames(frames, 28, CONFIG)
    alone = torch.cat([resize_frames(frame[None], 28, CONFIG) for frame in frames])
    assert torch.equal(together, alone)
    assert resize_frames(frames[:0], 28, CONFIG).shape == (0, 28, 28)


def test_antialias_is_another_resize():
    """With antialiasing a one-pixel checkerboard becomes flat grey; without, it does not."""
    board = torch.from_numpy((np.indices((224, 224)).sum(0) % 2 * 255).astype(np.uint8))[None]
    smooth = resize_frames(board, 56, PreprocessingConfig(antialias=True))[0, 4:-4, 4:-4].float()
    assert (smooth - 127.5).abs().max() <= 2
    sparse = torch.zeros(1, 224, 224, dtype=torch.uint8)
    sparse[:, ::4, ::4] = 255
    plain = resize_frames(sparse, 56, CONFIG)
    assert not torch.equal(plain, resize_frames(sparse, 56, PreprocessingConfig(antialias=True)))


def test_normalise_takes_mean_and_deviation_of_each_channel():
    """Worked by hand: grey 255 is 1.0, grey 0 is 0.0, before (x - mean) / std."""
    config = PreprocessingConfig(mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    frames = torch.tensor([[[0, 255]]], dtype=torch.uint8)
    result = normalise(frames, config, torch.float32)
    assert result.shape == (1, 3, 1, 2)
    assert torch.allclose(result[0, :, 0], torch.tensor([[-1.0, 1.0], [-1.0, 3.0], [0.0, 0.5]]))
    assert normalise(frames, config, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(("rows", "columns"), [(562, 744), (744, 562), (100, 100), (97, 64)])
def test_a_mask_comes_back_where_it_was(rows, columns):
    """A disc drawn on the frame, brought to the square and back, overlaps itself (Dice above 0.97), unshifted."""
    y, x = np.ogrid[:rows, :columns]
    radius = min(rows, columns) / 4
    disc = (np.hypot(x - columns * 0.6, y - rows * 0.4) < radius).astype(np.uint8)
    square = labels_to_square(torch.from_numpy(disc * 2)[None], 224)
    assert set(square.unique().tolist()) == {0, 2}
    back = mask_to_frame((square > 0).float(), rows, columns)[0].numpy() > 0.5
    assert 2 * (back & (disc > 0)).sum() / (back.sum() + disc.sum()) > 0.97
    for axis_values in (
        np.nonzero(back)[0].mean() - np.nonzero(disc)[0].mean(),
        np.nonzero(back)[1].mean() - np.nonzero(disc)[1].mean(),
    ):
        assert abs(axis_values) < 0.5


def test_a_ramp_comes_back_as_the_same_ramp():
    """A ramp over the square's width is the same ramp over the padded frame's, pixel centre for pixel centre."""
    ramp = ((torch.arange(14) + 0.5) / 14).expand(1, 14, 14)
    back = mask_to_frame(ramp, 70, 50)[0]
    expected = (torch.arange(50) + 10 + 0.5) / 70
    assert torch.allclose(back, expected.expand(70, 50), atol=1e-6)


def test_padding_is_centred_and_odd_remainder_goes_last():
    """3 x 6: one row of the three missing lies above, two below."""
    assert square_offsets(3, 6) == (6, 1, 0)
    labels = torch.ones(1, 3, 6, dtype=torch.uint8)
    assert labels_to_square(labels, 6)[0, :, 0].tolist() == [0, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("frames", [torch.zeros(2, 3, 3), torch.zeros(3, 3, dtype=torch.uint8)])
def test_a_wrong_type_or_shape_is_our_own_mistake(frames):
    """Floats or a missing frame axis raise at once."""
    with pytest.raises(ValueError, match="expected uint8"):
        resize_frames(frames, 14, CONFIG)
