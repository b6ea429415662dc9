"""The mask decoder: UNETR's (Hatamizadeh et al. 2022) in two dimensions with depthwise separable convolutions.

Structure and parameter names are those of FetalCLIP-IQA's segmentation model (commit fbcbdd2), so its checkpoints load
by renaming alone: it reads the outputs of four blocks, z3, z6, z9, z12 from shallow to deep, and the image itself.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from algorithm.model.networks import DecoderConfig


class _Plain(nn.Module):
    """One convolution in a module of its own: the published names have a `block` at this level too."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class _Unit(nn.Module):
    """A few layers in sequence, named `block`."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


def _doubling(channels: int) -> _Plain:
    """Depthwise transposed convolution that doubles the side."""
    return _Plain(nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2, groups=channels))


def _pointwise(channels: int, out: int) -> _Plain:
    return _Plain(nn.Conv2d(channels, out, kernel_size=1))


def _separable(channels: int, out: int) -> list[nn.Module]:
    """Depthwise 3 x 3 and pointwise convolution, each with batch normalisation and ReLU."""
    depthwise = _Plain(nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels))
    normalised = [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    return [depthwise, *normalised, _pointwise(channels, out), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]


def _conv(channels: int, out: int) -> _Unit:
    return _Unit(*_separable(channels, out))


def _deconv(channels: int, out: int) -> _Unit:
    return _Unit(_doubling(channels), *_separable(channels, out))


class _Up(_Unit):
    """Doubles the side, then mixes the channels. Nothing lies between the two, so it is one product with four outputs a
    position, which leaves out the doubled map of all channels (bench/LOG.md, 48)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(_doubling(channels), _pointwise(channels, out))

    def forward(self, x: Tensor) -> Tensor:
        layers: list[Any] = list(self.block)
        doubling, pointwise = (layer.block for layer in layers)
        mixing = pointwise.weight[:, :, 0, 0]
        weight = (mixing[:, None, None] * doubling.weight[:, 0].permute(1, 2, 0)).flatten(0, 2)
        bias = pointwise.bias + (mixing * doubling.bias).sum(1)
        return F.pixel_shuffle(F.conv2d(x, weight[:, :, None, None], bias.repeat_interleave(4)), 2)


class Decoder(nn.Module):
    """Mask logits from an image and the tokens of four blocks of a tower of width `width`."""

    def __init__(self, config: DecoderConfig, width: int) -> None:
        super().__init__()
        self.config = config
        f = config.filters
        self.decoder0 = nn.Sequential(_conv(3, f), _conv(f, f))
        self.decoder3 = nn.Sequential(_deconv(width, 8 * f), _deconv(8 * f, 4 * f), _deconv(4 * f, 2 * f))
        self.decoder6 = nn.Sequential(_deconv(width, 8 * f), _deconv(8 * f, 4 * f))
        self.decoder9 = _deconv(width, 8 * f)
        self.decoder12_upsampler = _Up(width, 8 * f)
        self.decoder9_upsampler = nn.Sequential(
            _conv(16 * f, 8 * f), _conv(8 * f, 8 * f), _conv(8 * f, 8 * f), _Up(8 * f, 4 * f)
        )
        self.decoder6_upsampler = nn.Sequential(_conv(8 * f, 4 * f), _conv(4 * f, 4 * f), _Up(4 * f, 2 * f))
        self.decoder3_upsampler = nn.Sequential(_conv(4 * f, 2 * f), _conv(2 * f, 2 * f), _Up(2 * f, f))
        self.decoder0_header = nn.Sequential(_conv(2 * f, f), _conv(f, f), _pointwise(f, 1))

    def forward(self, images: Tensor, taps: Sequence[Tensor]) -> Tensor:
        """Mask logits (batch, side, side) with side = 16 x `config.grid_size`, the square frame's corners aligned.

        `images` are the tower's normalised inputs (batch, 3, S, S), resized bilinearly where S is not that side;
        `taps` the outputs (batch, 1 + grid x grid, width) of the blocks of `config.taps`, class token first.
        """
        side = 16 * self.config.grid_size
        if images.shape[-1] != side:
            images = F.interpolate(images, (side, side), mode="bilinear", align_corners=False)
        images = images.contiguous(memory_format=_memory_format(images.device))
        z3, z6, z9, z12 = (self._to_grid(tokens) for tokens in taps)
        x = self.decoder9_upsampler(torch.cat([self.decoder9(z9), self.decoder12_upsampler(z12)], dim=1))
        x = self.decoder6_upsampler(torch.cat([self.decoder6(z6), x], dim=1))
        x = self.decoder3_upsampler(torch.cat([self.decoder3(z3), x], dim=1))
        return self.decoder0_header(torch.cat([self.decoder0(images), x], dim=1))[:, 0]

    def _to_grid(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, 1 + g x g, width) as a map (batch, width, grid_size, grid_size), class token dropped."""
        grid = round((tokens.shape[1] - 1) ** 0.5)
        feature_map = tokens[:, 1:].transpose(1, 2).unflatten(2, (grid, grid))
        feature_map = feature_map.contiguous(memory_format=_memory_format(tokens.device))
        size = self.config.grid_size
        if grid == size:
            return feature_map
        return F.interpolate(feature_map, (size, size), mode="bilinear", align_corners=False)


def fold_normalisation(decoder: Decoder) -> None:
    """Put each batch normalisation into the convolution before it, for good: the same function at inference, without
    a pass over memory each."""
    for layers in [module for module in decoder.modules() if isinstance(module, nn.Sequential)]:
        for number, (layer, normalisation) in enumerate(itertools.pairwise(list(layers)), start=1):
            if isinstance(normalisation, nn.BatchNorm2d):
                convolution = layer.block
                assert isinstance(convolution, nn.Conv2d)
                layer.block = fuse_conv_bn_eval(convolution, normalisation)
                layers[number] = nn.Identity()


def _memory_format(device: torch.device) -> torch.memory_format:
    """Channels last on a CPU, where depthwise convolutions are twice as fast so; a GPU was not measured."""
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format
