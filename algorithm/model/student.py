"""The student: a small convolutional network that has learned what the ensemble would say of each frame.

It reads what the tower reads, at half its size, so that nothing is decoded or resized twice, and is plain 3 x 3
convolutions, which a CPU multiplies at nearly its peak. It has no normalisation: training's is folded into the weights
(`training.network.student`).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from algorithm.model.networks import StudentConfig
from algorithm.model.tower import without_weights


class ResidualBlock(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, rows, columns) to the same shape."""
        return F.relu(x + self.second(F.relu(self.first(x))))


class Stage(nn.Module):
    """A convolution that halves the side, and residual blocks."""

    def __init__(self, inputs: int, channels: int, blocks: int) -> None:
        super().__init__()
        self.halve = nn.Conv2d(inputs, channels, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, rows, columns) to (batch, channels, rows / 2, columns / 2), halves rounded up."""
        return self.blocks(F.relu(self.halve(x)))


class Student(nn.Module):
    """The network of `config`; its state dict has the names of `student.safetensors`."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        channels = [1, *(config.width << number for number in range(len(config.blocks)))]
        self.stages = nn.Sequential(
            *(
                Stage(inputs, outputs, blocks)
                for inputs, outputs, blocks in zip(channels[:-1], channels[1:], config.blocks, strict=True)
            )
        )
        self.presence = nn.Linear(channels[-1], 1)
        self.optimality = nn.Linear(channels[-1], 1) if config.optimality else None

    @property
    def dtype(self) -> torch.dtype:
        """Of the images that it takes."""
        return next(self.stages.parameters()).dtype

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits (batch,) of presence, and of optimality where it has the head, float32 in any precision, for the
        tower's normalised images (batch, 3, S, S), S at least 2. Frames are grey: the first channel says all. An odd
        last row or column is left out."""
        half = F.avg_pool2d(images[:, :1], 2)
        pooled = self.stages(half).float().mean((2, 3))
        optimality = None if self.optimality is None else self.optimality(pooled)[:, 0]
        return self.presence(pooled)[:, 0], optimality


def student_from_state(
    config: StudentConfig, state: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
) -> Student:
    """The student of `config` with the tensors of `state`, which fit it, ready to judge in `dtype` on `device`."""
    with without_weights():
        student = Student(config)
    student.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    student.stages.to(device, dtype).to(memory_format=torch.channels_last)
    for head in (student.presence, student.optimality):
        if head is not None:
            head.to(device, torch.float32)
    return student.eval().requires_grad_(False)
