"""One geometry for training and inference: a frame becomes the tower's square image, a square mask the frame's mask.

A frame is padded with zeros to a centred square (an odd remainder goes to the bottom or right), resized with cubic
interpolation, rounded and clamped to whole grey levels, as OpenCV's INTER_CUBIC on 8-bit images does. Pixel centres
lie at half-integers (`align_corners` off) in both directions, so that masks come back without a shift.
"""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from algorithm.model.networks import PreprocessingConfig

_CPU_FRAMES, _GPU_FRAMES = 4, 16
"""Frames that are in float32 at a time: 9 MB and 35 MB for frames of 562 x 744. glibc gives what is larger than 32 MB
back to the system at once, which clears every page of it the next time (bench/LOG.md, 64)."""


def square_offsets(rows: int, columns: int) -> tuple[int, int, int]:
    """(side, top, left) of the centred square that a frame is padded to, in pixels of the frame."""
    side = max(rows, columns)
    return side, (side - rows) // 2, (side - columns) // 2


def resize_frames(frames: Tensor, image_size: int, config: PreprocessingConfig) -> Tensor:
    """Frames as square images: uint8 (B, rows, columns) to uint8 (B, image_size, image_size), on the frames' device.

    Any shape, portrait, landscape or square, larger or smaller than the result. Each frame's result depends on that
    frame alone. Unless `config.antialias`, it is `cv2.resize(padded, interpolation=cv2.INTER_CUBIC)`: on a CPU that
    itself, eight times as fast as torch there (bench/LOG.md, 61), on a GPU to within one grey level.
    No frames: an empty tensor.
    """
    _check_stack(frames)
    if frames.device.type == "cpu" and not config.antialias:
        return torch.from_numpy(_resize_by_opencv(frames.numpy(), image_size))
    return resize_by_torch(frames, image_size, config)


def resize_by_torch(frames: Tensor, image_size: int, config: PreprocessingConfig) -> Tensor:
    """As `resize_frames`, uint8 (F, rows, columns) to uint8 (F, S, S), computed by torch in float32 on any device, and
    with antialiasing."""
    result = torch.empty((len(frames), image_size, image_size), dtype=torch.uint8, device=frames.device)
    together = _CPU_FRAMES if frames.device.type == "cpu" else _GPU_FRAMES
    for start in range(0, len(frames), together):
        chunk = _pad_to_square(frames[start : start + together])[:, None].to(torch.float32)
        size = (image_size, image_size)
        resized = F.interpolate(chunk, size=size, mode="bicubic", align_corners=False, antialias=config.antialias)
        result[start : start + together] = resized[:, 0].round_().clamp_(0, 255)
    return result


def normalise(frames: Tensor, config: PreprocessingConfig, dtype: torch.dtype) -> Tensor:
    """The tower's input: grey levels uint8 (B, S, S) to (B, 3, S, S) of `dtype`, mean and deviation of each channel
    taken away in float32 on a scale of 0..1."""
    _check_stack(frames)
    grey = frames.to(torch.float32) / 255
    result = torch.empty((len(frames), 3, *frames.shape[1:]), dtype=dtype, device=frames.device)
    # Channel by channel with Python numbers: a tensor of means would be copied to the device and make it wait.
    for channel, (mean, std) in enumerate(zip(config.mean, config.std, strict=True)):
        result[:, channel] = (grey - mean) / std
    return result


def mask_to_frame(probability: Tensor, rows: int, columns: int) -> Tensor:
    """The way back: values on the square (B, G, G), any float type, to float32 (B, rows, columns), bilinearly, with
    the padding cut off."""
    side, top, left = square_offsets(rows, columns)
    square = F.interpolate(probability[:, None].float(), size=(side, side), mode="bilinear", align_corners=False)
    return square[:, 0, top : top + rows, left : left + columns]


def labels_to_square(labels: Tensor, size: int) -> Tensor:
    """Reference masks for training: uint8 labels (B, rows, columns) to uint8 (B, size, size), nearest neighbour, on
    the grid of `resize_frames`; the padding is label 0."""
    _check_stack(labels)
    square = _pad_to_square(labels)[:, None]
    return F.interpolate(square, size=(size, size), mode="nearest-exact")[:, 0]


def _resize_by_opencv(frames: NDArray[np.uint8], image_size: int) -> NDArray[np.uint8]:
    rows, columns = frames.shape[1:]
    side, top, left = square_offsets(rows, columns)
    square = np.zeros((side, side), np.uint8)
    result = np.empty((len(frames), image_size, image_size), np.uint8)
    for frame, resized in zip(frames, result, strict=True):
        square[top : top + rows, left : left + columns] = frame
        cv2.resize(square, (image_size, image_size), dst=resized, interpolation=cv2.INTER_CUBIC)
    return result


def _pad_to_square(frames: Tensor) -> Tensor:
    """(B, rows, columns) to (B, side, side), the frame in the middle of zeros."""
    rows, columns = frames.shape[1:]
    side, top, left = square_offsets(rows, columns)
    return F.pad(frames, (left, side - columns - left, top, side - rows - top))


def _check_stack(frames: Tensor) -> None:
    if frames.dtype != torch.uint8 or frames.ndim != 3:
        raise ValueError(f"expected uint8 (frames, rows, columns), not {frames.dtype} {tuple(frames.shape)}")
