"""Foundation weights: the tower against open_clip and transformers, and what is refused by name."""

import importlib.util
import json
import re
import sys
import types
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from acouslic.errors import AcouslicError
from algorithm.model.tower import tower_from_state
from algorithm.model.weight_files import read_tensors
from training.network.open_clip_weights import tower_config_from_open_clip, tower_state_from_open_clip
from training.network.tower_source import load_tower, read_checkpoint, read_weights, rounded_state
from training.network.transformers_weights import model_config_of_transformers, ratio_for
from training.recipe.settings import TowerSource

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


def transformers_layout(visual, *, whole):
    """The state dict that transformers' CLIP has for the weights of open_clip's visual tower, after its source."""
    state = visual.state_dict()
    names = {
        "class_embedding": "embeddings.class_embedding",
        "conv1.weight": "embeddings.patch_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight",
        "ln_pre": "pre_layrnorm",
        "ln_post": "post_layernorm",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    written = {"visual_projection.weight": state.pop("proj").T.contiguous()}
    for name, tensor in state.items():
        layer = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+?)(?:\.|_)(weight|bias)", name)
        if layer and layer[2] == "attn.in_proj":
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                written[f"vision_model.encoder.layers.{layer[1]}.self_attn.{letter}_proj.{layer[3]}"] = part
        elif layer:
            written[f"vision_model.encoder.layers.{layer[1]}.{names[layer[2]]}.{layer[3]}"] = tensor
        elif name in names:
            written[f"vision_model.{names[name]}"] = tensor
        else:
            root, _, kind = name.rpartition(".")
            written[f"vision_model.{names[root]}.{kind}"] = tensor
    if whole:
        written["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
        written |= {"logit_scale": torch.zeros(()), "text_projection.weight": torch.zeros(8, 8)}
        written["text_model.final_layer_norm.weight"] = torch.ones(8)
    return written


@pytest.mark.parametrize("whole", [True, False])
@torch.inference_mode()
def test_transformers_layout_equals_open_clip(whole, tmp_path):
    """A CLIP saved by transformers, whole or its visual half, with its config.json gives open_clip's outputs."""
    visual = random_visual({**TINY, "quick_gelu": True})
    save_file(
        {key: value.clone() for key, value in transformers_layout(visual, whole=whole).items()},
        tmp_path / "model.safetensors",
    )
    sizes = {"hidden_size": 48, "intermediate_size": 192, "num_attention_heads": 4, "num_hidden_layers": 3}
    vision = {**sizes, "image_size": 56, "patch_size": 14, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    content = {"model_type": "clip", "projection_dim": 24, "vision_config": vision}
    if not whole:
        content = {**vision, "model_type": "clip_vision_model", "projection_dim": 24}
    (tmp_path / "config.json").write_text(json.dumps(content))
    source = TowerSource(weights=str(tmp_path / "model.safetensors"), config=str(tmp_path / "config.json"))
    loaded = load_tower(source, (40, 60), False)
    images = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    output = tower_from_state(loaded.config, loaded.state)(images).embedding
    assert output.std() > 0.1
    assert torch.allclose(output, visual(images), atol=1e-4, rtol=0)


def test_other_networks_are_named(tmp_path):
    """A timm trunk inside open_clip, another network of transformers, half a CLIP and a pointer of Git LFS."""
    layout = transformers_layout(random_visual(TINY), whole=True)
    config = tower_config_from_open_clip(TINY)
    key = "vision_model.encoder.layers.1.self_attn.k_proj.weight"
    for state, message in (
        ({"visual.trunk.patch_embed.proj.weight": torch.zeros(1), "logit_scale": torch.zeros(())}, "network of timm"),
        (
            {**layout, "vision_model.head.probe": torch.zeros(1)},
            r"'vision_model\.head\.probe' is in no CLIP of transformers",
        ),
        (
            {name: tensor for name, tensor in layout.items() if name != "visual_projection.weight"},
            "CLIPVisionModelWithProjection",
        ),
        (
            {name: tensor for name, tensor in layout.items() if name != key},
            r"layers\.1\.self_attn\.k_proj\.weight' is missing",
        ),
    ):
        with pytest.raises(AcouslicError, match=f"^CLIP.*{message}"):
            tower_state_from_open_clip(state, config, "CLIP")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1715194041\n"
    for name in ("weights.pt", "model.safetensors"):
        (tmp_path / name).write_text(pointer)
        with pytest.raises(
            AcouslicError, match=rf"{name} is a Git LFS pointer, not the weights: fetch them with `git lfs"
        ):
            read_weights(tmp_path / name)
        with pytest.raises(AcouslicError, match=rf"{name} is a Git LFS pointer"):
            read_tensors(tmp_path / name)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_numbers_are_not_trained_on(value, tmp_path):
    """One NaN or infinity in a file of weights is refused by tensor, also in half precision; large sums are not."""
    state = {"visual.proj": torch.full((300, 300), 6e4).half(), "visual.conv1.weight": torch.ones(3, 3).bfloat16()}
    torch.save(state, tmp_path / "weights.pt")
    assert set(read_weights(tmp_path / "weights.pt")) == set(state)
    state["visual.conv1.weight"][1, 1] = value
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(AcouslicError, match=r"'visual\.conv1\.weight' holds NaN or infinity \(1 of 9 numbers\)"):
        read_weights(tmp_path / "weights.pt")


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


def test_a_weight_that_a_half_type_does_not_hold_is_refused_by_name() -> None:
    """65504 is float16's largest; bfloat16 has float32's range."""
    state = {"conv1.weight": torch.tensor([0.5]), "proj": torch.tensor([-1e5, 65504.0])}
    with pytest.raises(AcouslicError, match=r"'proj' holds 1e\+05, too large for float16: leave it out"):
        rounded_state(state, torch.float16, "leave it out")
    assert rounded_state(state, torch.bfloat16, "")["proj"].dtype == torch.bfloat16
    assert rounded_state({"conv1.weight": state["conv1.weight"]}, torch.float16, "")["conv1.weight"] == 0.5


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80", b"(", b"\x80\x02.", b"hello", b"<!DOCTYPE html>", b"\x80\x02h\x05.", b"PK\x03\x04" + bytes(50)],
)
def test_a_file_that_torch_never_wrote_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    """Whatever torch's unpickler stumbles over, for weights and for a run's checkpoint."""
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    for read in (read_weights, read_checkpoint):
        with pytest.raises(AcouslicError, match=r"last\.ckpt is not a"):
            read(path)


def test_tensors_by_number_are_no_weights(tmp_path: Path) -> None:
    """As in an optimiser's state."""
    torch.save({0: torch.zeros(2)}, tmp_path / "weights.pt")
    with pytest.raises(AcouslicError, match="is not a state dict"):
        read_weights(tmp_path / "weights.pt")


def test_no_width_is_lost_to_a_rounding() -> None:
    """Of the width between a block's two layers open_clip's configuration has the ratio alone."""
    assert int(704 * (2960 / 704)) == 2959
    wrong = [
        (mlp_width, width)
        for width in range(16, 2049, 16)
        for mlp_width in range(16, 6 * width, 16)
        if int(width * ratio_for(mlp_width, width)) != mlp_width
    ]
    assert wrong == []
    content = {
        "model_type": "clip_vision_model",
        "hidden_size": 704,
        "intermediate_size": 2960,
        "num_attention_heads": 11,
    }
    assert tower_config_from_open_clip(model_config_of_transformers(content, "config.json")).mlp_width == 2960
