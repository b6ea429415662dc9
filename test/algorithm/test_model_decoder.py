"""The mask decoder's shape, names and reading of tokens, and presence judged by a mask."""

import math

import pytest
import torch

from algorithm.model.decoder import Decoder, fold_normalisation
from algorithm.model.heads import Heads, presence_from_mask
from algorithm.model.networks import DecoderConfig, MemberConfig, TowerConfig


def test_published_size_and_names():
    """At FetalCLIP's width the decoder has the published 1.59 M parameters and names."""
    with torch.device("meta"):
        decoder = Decoder(DecoderConfig((6, 8, 12, 24), 14), 1024)
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 1_591_941
    shapes = {name: tuple(tensor.shape) for name, tensor in decoder.state_dict().items()}
    assert shapes["decoder0.0.block.0.block.weight"] == (3, 1, 3, 3)  # depthwise, on the image
    assert shapes["decoder3.2.block.4.block.weight"] == (64, 128, 1, 1)  # deconv 128-64's pointwise convolution
    assert shapes["decoder9.block.0.block.weight"] == (1024, 1, 2, 2)
    assert shapes["decoder12_upsampler.block.1.block.weight"] == (256, 1024, 1, 1)
    assert shapes["decoder9_upsampler.3.block.1.block.bias"] == (128,)
    assert shapes["decoder0_header.2.block.weight"] == (1, 32, 1, 1)


@pytest.mark.parametrize(("image_size", "grid", "size"), [(224, 16, 14), (56, 4, 4), (56, 4, 3)])
def test_mask_side(image_size, grid, size):
    """The mask has 16 pixels a cell of the decoder's grid, whatever the image's and the tower's grid are."""
    decoder = Decoder(DecoderConfig((1, 2, 3, 4), size, filters=2), 8).eval()
    taps = [torch.randn(2, 1 + grid**2, 8) for _ in range(4)]
    assert decoder(torch.randn(2, 3, image_size, image_size), taps).shape == (2, 16 * size, 16 * size)


def live_decoder():
    """A small random decoder whose normalisations keep the signal's size, and inputs for it."""
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig((1, 2, 3, 4), 4, filters=8), 8).eval()
    for module in decoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.fill_(0.05)
    return decoder, torch.randn(1, 3, 64, 64), [torch.randn(1, 17, 8) for _ in range(4)]


@torch.inference_mode()
def test_doubling_and_mixing_are_one_product():
    """The same as the published two layers, one after the other, in either memory format."""
    decoder, _, _ = live_decoder()
    x = torch.randn(2, 8, 5, 5)
    for layout in (torch.contiguous_format, torch.channels_last):
        found = decoder.decoder12_upsampler(x.contiguous(memory_format=layout))
        torch.testing.assert_close(found, decoder.decoder12_upsampler.block(x), rtol=1e-5, atol=1e-6)


@torch.inference_mode()
def test_folded_normalisation_is_the_same_function():
    """No batch normalisation is left, and the logits are the same."""
    decoder, images, taps = live_decoder()
    for module in decoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.weight.normal_(1, 0.2)
            module.bias.normal_(0, 0.1)
    before = decoder(images, taps)
    assert before.std() > 0.01
    fold_normalisation(decoder)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in decoder.modules())
    torch.testing.assert_close(decoder(images, taps), before, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_tokens_land_where_their_patch_is():
    """A change in one patch's tokens changes the mask around that patch, and the class token changes nothing."""
    decoder, images, taps = live_decoder()
    before = decoder(images, taps)
    moved = [tap.clone() for tap in taps]
    for tap in moved:
        tap[:, 1 + 1 * 4 + 3] += 5  # second row, last column
    change = (decoder(images, moved) - before).abs()[0]
    row, column = divmod(int(change.argmax()), 64)
    assert 10 <= row < 38
    assert column >= 42
    for tap in taps:
        tap[:, 0] += 5
    assert torch.equal(decoder(images, taps), before)


@torch.inference_mode()
def test_every_tap_and_the_image_matter():
    """Each of the four taps and the image changes the mask."""
    decoder, images, taps = live_decoder()
    before = decoder(images, taps)
    for index in range(4):
        other = [tap + (position == index) for position, tap in enumerate(taps)]
        assert not torch.allclose(decoder(images, other), before)
    assert not torch.allclose(decoder(images + 1, taps), before)


def test_heads_have_the_declared_parts_only():
    """The heads' names are those of heads.safetensors, and only what the member declares is there."""
    tower = TowerConfig(56, 14, 8, 4, 2, 16, 6)
    names = set(Heads(MemberConfig(adapter=False, presence=True, optimality=False), tower).state_dict())
    assert names == {"presence.weight", "presence.bias"}
    decoder = DecoderConfig((1, 2, 3, 4), 4, filters=2)
    state = Heads(MemberConfig(adapter=False, presence=False, optimality=True, decoder=decoder), tower).state_dict()
    assert {name.partition(".")[0] for name in state} == {"optimality", "decoder"}
    assert state["optimality.weight"].shape == (1, 6)


def test_presence_from_mask_by_hand():
    """One pixel of a hundred above 0.5 is even odds at a fraction of 1 %; none is never; all is always."""
    mask = torch.zeros(3, 10, 10)
    mask[0, 4, 4] = 0.51
    mask[1] = 1
    mask[2] = 0.5  # not above
    logit = presence_from_mask(mask, 0.01)
    assert logit[0] == pytest.approx(0, abs=1e-5)
    assert logit[1] == 30
    assert logit[2] < -20
    mask[0, 5] = 0.9  # eleven pixels: odds 11/89 against 1/99
    assert presence_from_mask(mask, 0.01)[0] == pytest.approx(math.log(11 / 89 * 99), abs=1e-5)
