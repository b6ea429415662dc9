"""LoRA adapters in PEFT's own file format, read without PEFT, and their merge into weights.

LoRA (Hu et al. 2021): an adapted linear layer computes with W + s B A, s = alpha / r (rsLoRA: alpha / sqrt(r)). The
rules by which PEFT's configuration picks modules, ranks and alphas are those of peft 0.21.2; whatever else in a
configuration would change the result is refused, never ignored. Equal to peft, merged and unmerged
(test_model_lora.py).
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta
from safetensors.torch import save_file
from torch import Tensor

from acouslic.errors import AcouslicError
from acouslic.strict_json import shown
from algorithm.model.attention_adapter import doubles_output, is_of_attention, plain_config, split_factors
from algorithm.model.expressions import check_expression
from algorithm.model.typed_json import convert, read_object, read_typed_file
from algorithm.model.weight_files import read_tensors, refuse_damaged

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."

Rank = Annotated[int, Meta(ge=1, le=1 << 16)]
Alpha = Annotated[float, Meta(ge=-1e6, le=1e6)]
Names = str | Annotated[list[str], Meta(max_length=4096)]


@dataclass(frozen=True)
class _Settings:
    """The fields that are read of `adapter_config.json`, with their types."""

    peft_type: str
    r: Rank
    lora_alpha: Alpha
    target_modules: Names
    exclude_modules: Names | None = None
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, Alpha] | None = None
    use_rslora: bool | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: Names | None = None
    peft_version: str | None = None


# Fields that change nothing at inference: origin, initialisation that leaves the base weights alone, training.
_INERT = {"peft_version", "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode"}
_INERT |= {"lora_dropout", "megatron_core", "qalora_group_size", "ensure_weight_tying", "runtime_config"}
_INERT |= {"eva_config"}  # of init_lora_weights="eva"
_READ = {item.name for item in dataclasses.fields(_Settings)}
# Fields of which only these values mean plain LoRA. Any other field must be null, false or empty: every variant that
# PEFT knows or will know is off that way.
_ONLY: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    # pissa, olora, corda, loftq and lora_ga also change the base weights, which an adapter file does not hold.
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal", "mica"),
}


@dataclass(frozen=True)
class LoraFactors:
    """The two factors of one adapted linear layer."""

    a: Tensor
    """(rank, in_features)"""
    b: Tensor
    """(out_features, rank)"""
    scaling: float

    def delta(self, device: torch.device | None = None) -> Tensor:
        """What the adapter adds to the weight: (out_features, in_features), float32."""
        return (self.b.to(device, torch.float32) @ self.a.to(device, torch.float32)) * self.scaling


@dataclass(frozen=True)
class LoraAdapter:
    """One member's adapter."""

    config: dict[str, Any]
    """The content of `adapter_config.json`."""
    factors: dict[str, LoraFactors]
    """Name of the adapted linear layer in the tower to its factors."""


def read_adapter(folder: Path, linear_shapes: Mapping[str, tuple[int, int]]) -> LoraAdapter:
    """The adapter in `folder` (`adapter_config.json`, `adapter_model.safetensors`) for a tower with these layers.

    `linear_shapes` maps the name of every linear layer to (out_features, in_features): `tower.linear_shapes`.
    Raises AcouslicError, naming the file and the field or tensor, for whatever is not plain LoRA on those layers.
    """
    config_path, weights_path = folder / ADAPTER_CONFIG_FILE, folder / ADAPTER_WEIGHTS_FILE
    config = read_object(read_typed_file(config_path), config_path)
    return build_adapter(config, read_tensors(weights_path), linear_shapes, config_path, weights_path)


def build_adapter(
    config: dict[str, Any],
    tensors: Mapping[str, Tensor],
    linear_shapes: Mapping[str, tuple[int, int]],
    config_path: Path = Path(ADAPTER_CONFIG_FILE),
    weights_path: Path = Path(ADAPTER_WEIGHTS_FILE),
) -> LoraAdapter:
    """The adapter of a configuration and of tensors with PEFT's names; the paths are for messages only.

    Raises AcouslicError as `read_adapter`.
    """
    _check_config(config, config_path)
    if is_of_attention(tensors):
        config, tensors = _without_attention(config, tensors, linear_shapes, weights_path)
    targets = [name for name in linear_shapes if _is_target(name, config)]
    if not targets:
        named = shown(config["target_modules"])
        raise AcouslicError(f"{config_path}: target_modules {named} match no layer of the tower")
    names = {f"{PREFIX}{target}.lora_{part}.weight" for target in targets for part in "AB"}
    missing, extra = sorted(names - set(tensors)), sorted(set(tensors) - names)
    if missing or extra:
        problem = f"tensor {missing[0]!r} is missing" if missing else f"unknown tensor {shown(extra[0])}"
        raise AcouslicError(f"{weights_path}: {problem}: {config_path.name} adapts {len(targets)} layers of the tower")
    factors = {}
    for target in targets:
        rank = _pattern_value(config.get("rank_pattern"), target, config["r"])
        alpha = _pattern_value(config.get("alpha_pattern"), target, config["lora_alpha"])
        out_features, in_features = linear_shapes[target]
        pair = {}
        for part, shape in (("A", (rank, in_features)), ("B", (out_features, rank))):
            name = f"{PREFIX}{target}.lora_{part}.weight"
            tensor = pair[part] = tensors[name]
            if tuple(tensor.shape) != shape or not tensor.is_floating_point():
                found = f"{tuple(tensor.shape)} {tensor.dtype}"
                raise AcouslicError(f"{weights_path}: tensor {name!r} is {found}, expected {shape} floating point")
        scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
        factors[target] = LoraFactors(pair["A"], pair["B"], scaling)
    refuse_damaged(tensors, str(weights_path))
    return LoraAdapter(config, factors)


def write_adapter(folder: Path, adapter: LoraAdapter) -> None:
    """Write the adapter's two files into `folder`, as PEFT would."""
    tensors = {}
    for target, factors in adapter.factors.items():
        # Copies: queries, keys and values may share a factor, and the format holds each tensor on its own.
        for part, factor in (("A", factors.a), ("B", factors.b)):
            tensors[f"{PREFIX}{target}.lora_{part}.weight"] = factor.clone(memory_format=torch.contiguous_format)
    content = json.dumps(adapter.config, indent=2, sort_keys=True) + "\n"
    (folder / ADAPTER_CONFIG_FILE).write_text(content, encoding="utf-8")
    save_file(tensors, folder / ADAPTER_WEIGHTS_FILE, metadata={"format": "pt"})


def merge(weight: Tensor, factors: LoraFactors | None) -> Tensor:
    """The float32 weight (out_features, in_features) that acts as layer and adapter together; without factors the
    layer's own."""
    merged = weight.to(torch.float32)
    return merged if factors is None else merged + factors.delta(merged.device)


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    """Raises AcouslicError for a configuration that is not plain LoRA, naming the field."""
    for name in ("peft_type", "r", "lora_alpha", "target_modules"):
        if config.get(name) is None:
            raise AcouslicError(f"{path}: field {name!r} is missing")
    for name, value in config.items():
        if name in _ONLY:
            if value not in _ONLY[name]:
                raise AcouslicError(f"{path}: {name}={shown(value)} is not supported, only {_ONLY[name][0]!r}")
        elif name not in _INERT and name not in _READ and value not in (None, False, {}, []):
            raise AcouslicError(f"{path}: {shown(name)[1:-1]}={shown(value)} is not supported: only plain LoRA is")
    settings = convert(config, _Settings, path)
    patterns = {"rank_pattern": list(settings.rank_pattern or {}), "alpha_pattern": list(settings.alpha_pattern or {})}
    for name in ("target_modules", "exclude_modules"):
        value = getattr(settings, name)
        patterns[name] = [value] if isinstance(value, str) else []
    layers = settings.layers_pattern or []
    patterns["layers_pattern"] = [layers] if isinstance(layers, str) else layers
    for name, expressions in patterns.items():
        for expression in expressions:
            check_expression(expression, f"{path}: {name}")


def _without_attention(
    config: dict[str, Any], tensors: Mapping[str, Tensor], layers: Iterable[str], path: Path
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An adapter on `nn.MultiheadAttention` as plain LoRA on the tower's `layers`, configuration and tensors."""
    layers = list(layers)
    attentions = {layer.rpartition(".")[0] for layer in layers if layer.endswith(".attn.out_proj")}
    targets = {name for name in attentions if _is_target(name, config)}
    split, modules = split_factors(tensors, path)
    for name in sorted(modules ^ targets):
        problem = "is adapted, but not a target" if name in modules else "is a target, but not adapted"
        raise AcouslicError(f"{path}: the attention {shown(name)} {problem} of {ADAPTER_CONFIG_FILE}")
    output_share = 2 if doubles_output(config.get("peft_version")) else 1
    plain: dict[str, tuple[int, float]] = {}
    for name in sorted(targets):
        rank = _pattern_value(config.get("rank_pattern"), name, config["r"])
        alpha = _pattern_value(config.get("alpha_pattern"), name, config["lora_alpha"])
        plain |= {f"{name}.{letter}_proj": (rank, alpha) for letter in "qkv"}
        plain[f"{name}.out_proj"] = (rank, alpha * output_share)
    others = [name for name in layers if name.rpartition(".")[0] not in attentions and _is_target(name, config)]
    return plain_config(config, plain, others), split


def _is_target(name: str, config: Mapping[str, Any]) -> bool:
    """Whether PEFT would adapt the layer `name` (peft 0.21.2, tuners_utils.check_target_module_exists)."""
    targets, excluded = config["target_modules"], config.get("exclude_modules")
    if excluded and _matches(name, excluded):
        return False
    if targets == "all-linear":
        return True
    if isinstance(targets, str) or name in targets or not _matches(name, targets):
        return _matches(name, targets)
    layers = config.get("layers_to_transform")
    if layers is None or layers == []:
        return True
    patterns = config.get("layers_pattern") or r"[^.]*"
    patterns = [patterns] if isinstance(patterns, str) else patterns
    for pattern in patterns:
        found = re.match(rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\.", name)
        if found:
            return int(found["index"]) in ([layers] if isinstance(layers, int) else layers)
    return False


def _matches(name: str, wanted: str | list[str]) -> bool:
    """A string is a regular expression for the whole name; a list holds names or their last parts."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(name == item or name.endswith(f".{item}") for item in wanted)


def _pattern_value(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of `name` (peft 0.21.2, get_pattern_key)."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default
