"""open_clip's configurations and visual weights in this project's terms. open_clip itself is not imported.

Read against open_clip 3.3.0 (model.py: CLIPVisionCfg and _build_vision_tower; transformer.py: VisionTransformer).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta
from torch import Tensor

from acouslic.errors import AcouslicError
from acouslic.strict_json import shown
from algorithm.model.networks import Count, Layers, Side, TowerConfig
from algorithm.model.typed_json import check_bounds, convert
from training.network.transformers_weights import TRANSFORMERS_PREFIX, state_from_transformers

PREFIX = "visual."

Square = Side | Annotated[list[Side], Meta(min_length=2, max_length=2)]
"""A list: msgspec 0.22 crashes in the garbage collector where a bounded number and a fixed tuple make a union."""


@dataclass(frozen=True)
class VisionOptions:
    """The options of `vision_cfg` that the tower reads, with open_clip's defaults."""

    layers: Layers = 12
    width: Count = 768
    head_width: Count = 64
    mlp_ratio: Annotated[float, Meta(gt=0, le=64)] = 4.0
    patch_size: Square = 16
    image_size: Square = 224
    ls_init_value: float | None = None
    no_ln_pre: bool = False
    final_ln_after_pool: bool = False
    pool_type: Literal["tok", "avg"] = "tok"
    norm_kwargs: dict[str, float] | None = None


@dataclass(frozen=True)
class ModelOptions:
    """What is read of a model configuration."""

    embed_dim: Count
    vision_cfg: VisionOptions
    quick_gelu: bool | None = False


READ = {item.name for item in dataclasses.fields(VisionOptions)}
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


def tower_config_from_open_clip(model_cfg: Mapping[str, Any], where: str = "open_clip's configuration") -> TowerConfig:
    """The tower of an open_clip model configuration (the JSON with `embed_dim` and `vision_cfg`); `where` names its
    source in messages.

    Raises AcouslicError naming the option that is unknown, of a wrong type or that this tower cannot express.
    """
    if "vision_cfg" not in model_cfg or "embed_dim" not in model_cfg:
        raise AcouslicError("an open_clip model configuration needs embed_dim and vision_cfg")
    if isinstance(model_cfg["vision_cfg"], Mapping):
        _check_options(model_cfg["vision_cfg"])
    options = convert(model_cfg, ModelOptions, Path(where))
    vision = options.vision_cfg
    try:
        config = TowerConfig(
            image_size=_side(vision.image_size, "image_size"),
            patch_size=_side(vision.patch_size, "patch_size"),
            width=vision.width,
            layers=vision.layers,
            heads=vision.width // vision.head_width,
            mlp_width=int(vision.width * vision.mlp_ratio),
            output_dim=options.embed_dim,
            pre_norm=not vision.no_ln_pre,
            layer_scale=vision.ls_init_value is not None,
            norm_eps=_norm_eps(vision.norm_kwargs),
            activation="quick_gelu" if options.quick_gelu else "gelu",
            pool=vision.pool_type,
            norm_after_pool=vision.final_ln_after_pool,
        )
        check_bounds(config)
    except ValueError as error:
        raise AcouslicError(f"open_clip's vision_cfg cannot be built here: {error}") from None
    return config


def _check_options(vision: Mapping[str, Any]) -> None:
    """Raises AcouslicError for an option that is unknown or has a value that this tower cannot express."""
    for name, value in vision.items():
        if name in ONLY and value not in ONLY[name]:
            supported = ", ".join(repr(item) for item in ONLY[name])
            raise AcouslicError(f"open_clip option vision_cfg.{name}={shown(value)} is not supported, only {supported}")
        if name not in READ and name not in INERT and name not in ONLY:
            raise AcouslicError(f"open_clip option vision_cfg.{shown(name)[1:-1]} is not known to this program")
    if isinstance(vision.get("layers"), (list, tuple)):
        raise AcouslicError(f"open_clip option vision_cfg.layers={shown(vision['layers'])}: a ResNet is not supported")


def visual_state(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The visual tower's tensors under open_clip's visual names, out of open_clip's state dict or transformers'.

    A whole CLIP's (`visual.` or `vision_model.` keys; the text half is left out) or the visual tower's own. Raises
    AcouslicError, naming the file by `where`, for a tower of timm inside open_clip.
    """
    if any(name.startswith((f"{PREFIX}trunk.", "trunk.")) for name in state):
        raise AcouslicError(
            f"{where} holds a network of timm inside open_clip (tensors {PREFIX}trunk.*), which is not supported: "
            "expected open_clip's own vision transformer"
        )
    if any(name.startswith(TRANSFORMERS_PREFIX) for name in state):
        return state_from_transformers(state, where)
    if any(name.startswith(PREFIX) for name in state):
        return {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}
    return dict(state)


def tower_state_from_open_clip(
    state: Mapping[str, Tensor], config: TowerConfig, where: str = "the tower's weights"
) -> dict[str, Tensor]:
    """The tower's state dict out of what `visual_state` reads.

    Packed attention weights are split into views of the same storage. Whether the result fits `config` is checked by
    `tower.tower_from_state`; here only what the split needs.
    """
    visual = visual_state(state, where)
    split: dict[str, Tensor] = {}
    for name, tensor in visual.items():
        root, packed, kind = name.partition("attn.in_proj_")
        if not packed:
            split[name] = tensor
            continue
        if tensor.ndim == 0 or tensor.shape[0] != 3 * config.width:
            rows = tensor.shape[0] if tensor.ndim else 0
            raise AcouslicError(f"{where}: tensor {shown(name)} has {rows} rows, expected {3 * config.width}")
        for part, third in zip("qkv", tensor.chunk(3), strict=True):
            split[f"{root}attn.{part}_proj.{kind}"] = third
    return split


def _side(value: int | list[int], name: str) -> int:
    """A side length that open_clip may give as one number or as two equal ones."""
    if isinstance(value, int):
        return value
    if value[0] != value[1]:
        raise AcouslicError(f"open_clip option vision_cfg.{name}={value!r} is not supported, only squares are")
    return value[0]


def _norm_eps(norm_kwargs: Mapping[str, Any] | None) -> float:
    """The LayerNorm epsilon out of open_clip's norm_kwargs."""
    unknown = sorted(set(norm_kwargs or {}) - {"eps"})
    if unknown:
        raise AcouslicError(f"open_clip option vision_cfg.norm_kwargs.{unknown[0]} is not supported, only eps is")
    return float((norm_kwargs or {}).get("eps", 1e-5))
