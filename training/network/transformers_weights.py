"""CLIP checkpoints in the layout of Hugging Face's transformers, under open_clip's visual names.

Read against transformers 4 (models/clip/modeling_clip.py: CLIPModel, CLIPVisionModelWithProjection), which is not
imported.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from acouslic.errors import AcouslicError
from acouslic.strict_json import shown

TRANSFORMERS_PREFIX = "vision_model."
_NAMES = {
    "vision_model.embeddings.class_embedding": "class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "positional_embedding",
    "vision_model.pre_layrnorm.weight": "ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "ln_pre.bias",
    "vision_model.post_layernorm.weight": "ln_post.weight",
    "vision_model.post_layernorm.bias": "ln_post.bias",
}
"""`pre_layrnorm` is spelt so there."""
_PARTS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_LAYER = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_OF_THE_REST = ("text_model.", "text_projection.", "logit_scale")
_BUFFER = "vision_model.embeddings.position_ids"


def state_from_transformers(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The visual tower under open_clip's names, queries, keys and values packed; the text half is left out.

    Raises AcouslicError, naming the file by `where` and the tensor, for one that no CLIP of transformers has, and
    where the projection or a part of an attention is missing.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        layer = _LAYER.fullmatch(name)
        if name in _NAMES:
            found[_NAMES[name]] = tensor
        elif name == "visual_projection.weight":
            found["proj"] = tensor.T
        elif layer is not None and layer[2] in _PARTS:
            found[f"transformer.resblocks.{layer[1]}.{_PARTS[layer[2]]}.{layer[3]}"] = tensor
        elif layer is not None and layer[2] == "self_attn.q_proj":
            parts = [name.replace("q_proj", f"{letter}_proj") for letter in "qkv"]
            if missing := [part for part in parts if part not in state]:
                raise AcouslicError(f"{where}: tensor {shown(missing[0])} is missing")
            packed = torch.cat([state[part] for part in parts])
            found[f"transformer.resblocks.{layer[1]}.attn.in_proj_{layer[3]}"] = packed
        elif layer is not None and layer[2] in ("self_attn.k_proj", "self_attn.v_proj"):
            continue
        elif name != _BUFFER and not name.startswith(_OF_THE_REST):
            raise AcouslicError(f"{where}: tensor {shown(name)} is in no CLIP of transformers: it is another network")
    if "proj" not in found:
        raise AcouslicError(
            f"{where}: tensor 'visual_projection.weight' is missing: save the whole CLIPModel or "
            "CLIPVisionModelWithProjection"
        )
    return found


def model_config_of_transformers(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """open_clip's model configuration for the `config.json` of a CLIP of transformers (`model_type` clip).

    Numbers that it does not state are transformers' defaults. Raises AcouslicError for an activation that is neither
    of CLIP's two.
    """
    vision = content.get("vision_config", content)
    if not isinstance(vision, Mapping):
        raise AcouslicError(f"{where}: vision_config must be an object")
    activation = vision.get("hidden_act", "quick_gelu")
    if activation not in ("quick_gelu", "gelu"):
        raise AcouslicError(f"{where}: hidden_act={shown(activation)} is not supported, only 'quick_gelu' and 'gelu'")
    numbers = {
        name: vision.get(name, default)
        for name, default in (
            ("hidden_size", 768),
            ("intermediate_size", 3072),
            ("num_attention_heads", 12),
            ("num_hidden_layers", 12),
            ("image_size", 224),
            ("patch_size", 32),
        )
    }
    for name, value in numbers.items():
        if type(value) is not int or value < 1:
            raise AcouslicError(f"{where}: {name} must be an integer of at least 1, not {shown(value)}")
    width = numbers["hidden_size"]
    return {
        "embed_dim": content.get("projection_dim", 512),
        "quick_gelu": activation == "quick_gelu",
        "vision_cfg": {
            "image_size": numbers["image_size"],
            "patch_size": numbers["patch_size"],
            "width": width,
            "layers": numbers["num_hidden_layers"],
            "head_width": max(1, width // numbers["num_attention_heads"]),
            "mlp_ratio": ratio_for(numbers["intermediate_size"], width),
            "norm_kwargs": {"eps": vision.get("layer_norm_eps", 1e-5)},
        },
    }


def ratio_for(mlp_width: int, width: int) -> float:
    """The `mlp_ratio` of which open_clip's `int(width * mlp_ratio)` makes `mlp_width`: the quotient of some pairs, such
    as 2960 and 704, falls short of it by a rounding."""
    ratio = mlp_width / width
    return ratio if int(width * ratio) == mlp_width else math.nextafter(ratio, math.inf)
