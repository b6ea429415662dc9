"""What the tower promises of itself. Against open_clip: test_training_tower_source.py."""

import pytest
import torch

from acouslic.errors import AcouslicError
from algorithm.model.networks import TowerConfig
from algorithm.model.tower import Tower, linear_shapes, tower_from_state


def test_kept_patches_is_attention_over_the_subset():
    """With kept patches the tower equals one run by hand on those tokens, and taps put them back in their places."""
    config = TowerConfig(56, 14, 32, 2, 4, 64, 16, kept_patches=(1, 5, 6, 9, 15))
    torch.manual_seed(0)
    tower = Tower(config).eval()
    images = torch.randn(2, 3, 56, 56)
    with torch.inference_mode():
        output = tower(images, taps=(2,))
        tokens = tower.conv1(images).flatten(2).transpose(1, 2) + tower.positional_embedding[1:]
        tokens = torch.stack([tokens[:, index] for index in config.kept_patches], dim=1)
        first = (tower.class_embedding + tower.positional_embedding[0]).expand(2, 1, 32)
        x = tower.ln_pre(torch.cat([first, tokens], dim=1))
        for block in tower.transformer.resblocks:
            x = block(x)
        assert torch.allclose(output.embedding, tower.ln_post(x[:, 0]) @ tower.proj, atol=1e-6)
    (tap,) = output.taps
    assert tap.shape == (2, 17, 32)
    for place, index in enumerate(config.kept_patches):
        assert torch.equal(tap[:, 1 + index], x[:, 1 + place])
    dropped = [1 + index for index in range(16) if index not in config.kept_patches]
    assert not tap[:, dropped].any()


@pytest.mark.parametrize("pool", ["tok", "avg"])
def test_the_last_block_computes_what_is_asked_for(pool):
    """Embeddings are the same whether the last block's output is tapped, of some images or of all, or not at all, and
    so are the taps; where one token is pooled, its queries are those of that token and of the tapped images alone."""
    tower = Tower(TowerConfig(28, 14, 16, 2, 2, 32, 8, pool=pool)).eval()
    images, rows = torch.randn(4, 3, 28, 28), torch.tensor([2, 0])
    asked = []
    last = tower.transformer.resblocks[1].attn.q_proj
    last.register_forward_hook(lambda _module, given, _output: asked.append(given[0].shape[0] * given[0].shape[1]))
    with torch.inference_mode():
        whole = tower(images, taps=(1, 2))
        for tapped in (tower(images, (1, 2), rows), tower(images), tower(images, (1,), rows)):
            torch.testing.assert_close(tapped.embedding, whole.embedding, rtol=0, atol=1e-6)
            for tap, expected in zip(tapped.taps, whole.taps, strict=False):
                torch.testing.assert_close(tap, expected[rows], rtol=0, atol=1e-6)
    patches_and_class = 5
    expected = [4 * patches_and_class, 2 * patches_and_class, 4, 4, 4] if pool == "tok" else [20, 20, 20, 20]
    assert asked == expected


def test_dropped_pixels_do_not_matter():
    """Pixels of patches that are not kept change nothing; pixels of kept ones do."""
    tower = Tower(TowerConfig(56, 14, 32, 2, 4, 64, 16, kept_patches=(5, 6, 9, 10))).eval()
    images = torch.randn(1, 3, 56, 56)
    outside, inside = images.clone(), images.clone()
    outside[..., :14, :] += 1
    inside[..., 14:28, 14:28] += 1
    with torch.inference_mode():
        embedding = tower(images).embedding
        assert torch.equal(tower(outside).embedding, embedding)
        assert not torch.allclose(tower(inside).embedding, embedding)


def test_every_attention_layer_is_alive():
    """Every linear layer, the four of attention among them, gets a gradient: an adapter on any of them can learn."""
    tower = Tower(TowerConfig(28, 14, 16, 2, 2, 32, 8))
    # The embedding's own sum would have no gradient through a normalised vector's mean.
    (tower(torch.randn(3, 3, 28, 28)).embedding ** 2).sum().backward()
    for name, module in tower.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert module.weight.grad.abs().max() > 0, name
    assert len(linear_shapes(tower.config)) == 12


def test_tower_from_state_takes_the_tensors_themselves():
    """Loading neither copies nor initialises: the parameters are the given tensors."""
    config = TowerConfig(28, 14, 16, 1, 2, 32, 8)
    state = {name: tensor.half() for name, tensor in Tower(config).state_dict().items()}
    tower = tower_from_state(config, state)
    for name, parameter in tower.named_parameters():
        assert parameter.data_ptr() == state[name].data_ptr()
        assert parameter.dtype == torch.float16


def test_tower_from_state_refuses_other_tensors():
    """A missing, an unknown and a misshapen tensor are each refused by name."""
    config = TowerConfig(28, 14, 16, 1, 2, 32, 8)
    state = Tower(config).state_dict()
    missing = {name: tensor for name, tensor in state.items() if name != "ln_post.bias"}
    with pytest.raises(AcouslicError, match=r"'ln_post\.bias' is missing"):
        tower_from_state(config, missing)
    with pytest.raises(AcouslicError, match="unknown tensor 'stray'"):
        tower_from_state(config, {**state, "stray": torch.zeros(1)})
    with pytest.raises(AcouslicError, match=r"'proj' has shape \(16, 9\), expected \(16, 8\)"):
        tower_from_state(config, {**state, "proj": torch.zeros(16, 9)})


def test_wrong_image_shape_refused():
    """Images of another size are refused with both shapes in the message."""
    with pytest.raises(AcouslicError, match=r"\(batch, 3, 28, 28\), not \(1, 3, 56, 56\)"):
        Tower(TowerConfig(28, 14, 16, 1, 2, 32, 8))(torch.zeros(1, 3, 56, 56))
