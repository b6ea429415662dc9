"""open_clip's configurations and visual weights in this project's terms. open_clip itself is not imported.

Read against open_clip 3.3.0 (model.py: CLIPVisionCfg and _build_vision_tower; transformer.py: VisionTransformer).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from acouslic.errors import AcouslicError
from algorithm.model.manifest import TowerConfig

PREFIX = "visual."

# The options the tower reads, with open_clip's defaults.
READ: dict[str, Any] = {
    "layers": 12,
    "width": 768,
    "head_width": 64,
    "mlp_ratio": 4.0,
    "patch_size": 16,
    "image_size": 224,
    "ls_init_value": None,
    "no_ln_pre": False,
    "final_ln_after_pool": False,
    "pool_type": "tok",
    "norm_kwargs": None,
    "act_kwargs": None,
}
# Options that change nothing here: training only, or of a pooler or a timm model that is refused anyway.
INERT = {
    "patch_dropout",
    "output_tokens",
    "attn_pooler_queries",
    "attn_pooler_heads",
    "timm_model_pretrained",
    "timm_pool",
    "timm_proj",
    "timm_proj_bias",
    "timm_drop",
    "timm_drop_path",
}
# Options of which only these values are supported.
ONLY: dict[str, tuple[Any, ...]] = {
    "attentional_pool": (False,),
    "pos_embed_type": ("learnable", "sin_cos_2d"),  # either way the state dict holds the table
    "pool_type": ("tok", "avg"),
    "block_type": (None, "default"),
    "qk_norm": (False,),
    "scaled_cosine_attn": (False,),
    "scale_heads": (False,),
    "scale_attn_inner": (False,),
    "scale_attn": (False,),
    "scale_fc": (False,),
    "timm_model_name": (None, ""),
    "act_kwargs": (None, {}, {"approximate": "none"}),
}


def tower_config_from_open_clip(model_cfg: Mapping[str, Any]) -> TowerConfig:
    """The tower of an open_clip model configuration (the JSON with `embed_dim` and `vision_cfg`).

    Raises AcouslicError naming the option that is unknown or that this tower cannot express.
    """
    if "vision_cfg" not in model_cfg or "embed_dim" not in model_cfg:
        raise AcouslicError("an open_clip model configuration needs embed_dim and vision_cfg")
    vision = dict(model_cfg["vision_cfg"])
    for name, value in vision.items():
        if name in ONLY and value not in ONLY[name]:
            supported = ", ".join(repr(item) for item in ONLY[name])
            raise AcouslicError(f"open_clip option vision_cfg.{name}={value!r} is not supported, only {supported}")
        if name not in READ and name not in INERT and name not in ONLY:
            raise AcouslicError(f"open_clip option vision_cfg.{name} is not known to this program")
    value = {name: vision.get(name, default) for name, default in READ.items()}
    if not isinstance(value["layers"], int):
        raise AcouslicError(f"open_clip option vision_cfg.layers={value['layers']!r}: a ResNet is not supported")
    config = TowerConfig(
        image_size=_side(value["image_size"], "image_size"),
        patch_size=_side(value["patch_size"], "patch_size"),
        width=value["width"],
        layers=value["layers"],
        heads=value["width"] // value["head_width"],
        mlp_width=int(value["width"] * value["mlp_ratio"]),
        output_dim=model_cfg["embed_dim"],
        pre_norm=not value["no_ln_pre"],
        layer_scale=value["ls_init_value"] is not None,
        norm_eps=_norm_eps(value["norm_kwargs"]),
        activation="quick_gelu" if model_cfg.get("quick_gelu") else "gelu",
        pool=value["pool_type"],
        norm_after_pool=bool(value["final_ln_after_pool"]),
    )
    try:
        config.check()
    except ValueError as error:
        raise AcouslicError(f"open_clip's vision_cfg cannot be built here: {error}") from None
    return config


def tower_state_from_open_clip(state: Mapping[str, Tensor], config: TowerConfig) -> dict[str, Tensor]:
    """The tower's state dict out of open_clip's: a whole CLIP's (`visual.` keys; the rest is left out) or the visual
    tower's own.

    Packed attention weights are split into views of the same storage. Whether the result fits `config` is checked by
    `tower.tower_from_state`; here only what the split needs.
    """
    if any(name.startswith(PREFIX) for name in state):
        visual = {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}
    else:
        visual = dict(state)
    split: dict[str, Tensor] = {}
    for name, tensor in visual.items():
        root, packed, kind = name.partition("attn.in_proj_")
        if not packed:
            split[name] = tensor
            continue
        if tensor.shape[0] != 3 * config.width:
            raise AcouslicError(f"tensor {name!r} has {tensor.shape[0]} rows, expected {3 * config.width}")
        for part, third in zip("qkv", tensor.chunk(3), strict=True):
            split[f"{root}attn.{part}_proj.{kind}"] = third
    return split


def _side(value: Any, name: str) -> int:
    """A side length that open_clip may give as one number or as two equal ones."""
    if isinstance(value, (list, tuple)) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if not isinstance(value, int):
        raise AcouslicError(f"open_clip option vision_cfg.{name}={value!r} is not supported, only squares are")
    return value


def _norm_eps(norm_kwargs: Mapping[str, Any] | None) -> float:
    """The LayerNorm epsilon out of open_clip's norm_kwargs."""
    unknown = sorted(set(norm_kwargs or {}) - {"eps"})
    if unknown:
        raise AcouslicError(f"open_clip option vision_cfg.norm_kwargs.{unknown[0]} is not supported, only eps is")
    return float((norm_kwargs or {}).get("eps", 1e-5))
