"""The tower against open_clip, and its own promises."""

import importlib.util
import sys
import types
from pathlib import Path

import open_clip
import pytest
import torch

from acouslic.errors import AcouslicError
from algorithm.model.manifest import TowerConfig
from algorithm.model.open_clip_weights import tower_config_from_open_clip, tower_state_from_open_clip
from algorithm.model.tower import Tower, linear_shapes, tower_from_state

# method.md section 1: the visual half of FetalCLIP's configuration.
FETALCLIP = {"embed_dim": 768, "vision_cfg": {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14}}
TINY = {"embed_dim": 24, "vision_cfg": {"image_size": 56, "layers": 3, "width": 48, "head_width": 12, "patch_size": 14}}
VARIANTS = {
    "tiny": TINY,
    "avg_quick_gelu": {**TINY, "quick_gelu": True, "vision_cfg": {**TINY["vision_cfg"], "pool_type": "avg"}},
    "layer_scale_no_ln_pre": {
        **TINY,
        "vision_cfg": {
            **TINY["vision_cfg"],
            "ls_init_value": 0.1,
            "no_ln_pre": True,
            "norm_kwargs": {"eps": 1e-3},
            "mlp_ratio": 2.5,
            "patch_size": 8,
        },
    },
    "norm_after_avg_sin_cos": {
        **TINY,
        "vision_cfg": {
            **TINY["vision_cfg"],
            "pool_type": "avg",
            "final_ln_after_pool": True,
            "pos_embed_type": "sin_cos_2d",
        },
    },
}


def random_visual(config):
    """open_clip's visual tower with every parameter random, none at its neutral initial value, activations near 1."""
    with torch.device("meta"):
        visual = open_clip.model._build_vision_tower(
            config["embed_dim"], config["vision_cfg"], config.get("quick_gelu", False)
        )
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, parameter in visual.state_dict().items():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("gamma"):
            state[name] = 0.5 + 0.2 * noise
        elif parameter.ndim == 1:
            state[name] = 0.2 * noise + (1.0 if "ln_" in name and name.endswith("weight") else 0.0)
        else:
            state[name] = noise.mul_(parameter[0].numel() ** -0.5)
    visual.load_state_dict(state, assign=True)
    return visual.eval()


def assert_equal_to_open_clip(config, images):
    """Whole outputs: the embedding and every token of every block, within 1e-4."""
    visual = random_visual(config)
    state = {f"visual.{name}": tensor for name, tensor in visual.state_dict().items()}
    state |= {"logit_scale": torch.zeros(()), "positional_embedding": torch.zeros(77, 8)}  # of the text half
    tower_config = tower_config_from_open_clip(config)
    tower = tower_from_state(tower_config, tower_state_from_open_clip(state, tower_config))
    blocks = range(1, tower_config.layers + 1)
    with torch.inference_mode():
        expected = visual.forward_intermediates(images, output_fmt="NLC", output_extra_tokens=True)
        output = tower(images, taps=blocks)
        assert torch.allclose(output.embedding, visual(images), atol=1e-4, rtol=0)
    assert output.embedding.std() > 0.1
    assert torch.allclose(output.embedding, expected["image_features"], atol=1e-4, rtol=0)
    pairs = zip(expected["image_intermediates_prefix"], expected["image_intermediates"], strict=True)
    for tap, (prefix, patches) in zip(output.taps, pairs, strict=True):
        assert torch.allclose(tap, torch.cat([prefix, patches], dim=1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_tower_equals_open_clip_small(name):
    """Every variant of normalisation, pooling, activation and LayerScale gives open_clip's outputs."""
    assert_equal_to_open_clip(VARIANTS[name], torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(1)))


def test_tower_equals_open_clip_fetalclip():
    """FetalCLIP's ViT-L/14 at full size gives open_clip's outputs."""
    assert_equal_to_open_clip(FETALCLIP, torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1)))


def test_tower_equals_open_clip_dinov2(shared: Path, monkeypatch: pytest.MonkeyPatch):
    """The DINOv2-S configuration of the stand-in tower, as its own script states it, gives open_clip's outputs."""
    # The script needs onnx only to convert weights, which are random here.
    onnx = types.ModuleType("onnx")
    onnx.numpy_helper = None
    monkeypatch.setitem(sys.modules, "onnx", onnx)
    spec = importlib.util.spec_from_file_location("dinov2_tower", shared / "tools" / "dinov2_tower.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    config = {name: script.CONFIG[name] for name in ("embed_dim", "vision_cfg")}
    assert_equal_to_open_clip(config, torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("attentional_pool", True),
        ("block_type", "custom"),
        ("qk_norm", True),
        ("scaled_cosine_attn", True),
        ("scale_heads", True),
        ("scale_fc", True),
        ("pool_type", "none"),
        ("timm_model_name", "vit_base_patch16_224"),
        ("act_kwargs", {"approximate": "tanh"}),
        ("layers", [3, 4, 6, 3]),
        ("image_size", [56, 112]),
        ("norm_kwargs", {"elementwise_affine": False}),
        ("new_option_of_a_later_version", 1),
    ],
)
def test_open_clip_option_refused(option, value):
    """An option that the tower cannot express is refused by name."""
    config = {**TINY, "vision_cfg": {**TINY["vision_cfg"], option: value}}
    with pytest.raises(AcouslicError, match=option):
        tower_config_from_open_clip(config)


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
