"""What is in a Lightning checkpoint of the published FetalCLIP-IQA code (commit fbcbdd2), in this project's names.

Keys of a classification checkpoint: `encoder.base_model.model.<open_clip's visual name>`, adapted layers split into
`base_layer`, `lora_A.default` and `lora_B.default`, and `classifier.{weight,bias}`. Of a segmentation checkpoint:
the same with a wrapper's name before the visual ones, with or without `base_model.model.`, and `decoder.<part>...`. The
tower is found by its class embedding, whatever lies around it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from acouslic.errors import AcouslicError
from algorithm.model.attention_adapter import LAST_DOUBLING_VERSION
from algorithm.model.lora import PREFIX, LoraAdapter, build_adapter
from algorithm.model.networks import DecoderConfig, MemberConfig, TowerConfig
from algorithm.model.tower import linear_shapes
from training.network.tower_source import read_weights

LORA_ALPHA = 16
"""Of the published recipe; a checkpoint's tensors do not tell."""
DEAD_TARGET = "attn.out_proj"
"""open_clip up to 3.3.0 reads this layer's weight past its adapter, whose factor B then stays zero."""
_OF_ATTENTION = ".attn.base_layer.out_proj."
_ANCHOR = "class_embedding"
_LORA_NAME = re.compile(r"(?P<target>.+)\.lora_(?P<part>[AB])\.(?P<adapter>[^.]+)\.weight")
_NOT_PLAIN = re.compile(r"\.(lora_[^.]+|modules_to_save|original_module)(?:\.|$)")
_HEAD_WIDTH = 64


@dataclass(frozen=True)
class PublishedCheckpoint:
    """One checkpoint, taken apart."""

    path: Path
    base: dict[str, Tensor]
    """Frozen weights of the tower, open_clip's visual names; empty where the checkpoint holds none."""
    lora: dict[str, Tensor]
    """`<layer>.lora_A.weight` and `.lora_B.weight` by the tower's layer names; empty without an adapter."""
    heads: dict[str, Tensor]
    """Named as in an artifact's `heads.safetensors`."""
    ignored: tuple[str, ...]
    """Keys outside encoder, classifier and decoder."""


def read_published(path: Path) -> PublishedCheckpoint:
    """Take a checkpoint apart. Nothing but tensors and plain values is ever loaded from it.

    Raises AcouslicError where it holds more (code), is damaged, or has neither classifier nor decoder.
    """
    state = read_weights(path)
    encoder = {name: tensor for name, tensor in state.items() if name.startswith("encoder.")}
    heads = {name: tensor for name, tensor in state.items() if name.startswith("decoder.")}
    classifier = {name: tensor for name, tensor in state.items() if name.startswith("classifier.")}
    for name, tensor in classifier.items():
        heads[f"presence.{name.removeprefix('classifier.')}"] = tensor
    if not heads:
        raise AcouslicError(f"{path} has no classifier.* and no decoder.* tensors: it is no published checkpoint")
    ignored = tuple(sorted(set(state) - set(encoder) - set(classifier) - set(heads)))
    base: dict[str, Tensor] = {}
    lora: dict[str, Tensor] = {}
    for name, tensor in _strip_prefix(encoder, path).items():
        found = _LORA_NAME.fullmatch(name)
        if found is None and (other := _NOT_PLAIN.search(name)):
            raise AcouslicError(
                f"{path}: tensor {name!r} is of an adapter that cannot be imported ({other[1]}): only plain LoRA can, "
                "without DoRA, biases and modules_to_save"
            )
        if found is None:
            base[name.replace(".base_layer.", ".")] = tensor
        elif found["adapter"] != "default":
            raise AcouslicError(f"{path}: tensor {name!r} is of adapter {found['adapter']!r}, expected only 'default'")
        else:
            lora[f"{found['target']}.lora_{found['part']}.weight"] = tensor
    return PublishedCheckpoint(path, base, lora, heads, ignored)


def _strip_prefix(encoder: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The encoder's tensors by visual names. A module that is held under two names must hold the same values."""
    prefixes = sorted((name.removesuffix(_ANCHOR) for name in encoder if name.endswith(f".{_ANCHOR}")), key=len)
    if not prefixes:
        # Adapters alone: everything before the blocks is the prefix.
        roots = {found[1] for name in encoder if (found := re.match(r"(.*?)transformer\.resblocks\.\d+\.", name))}
        if len(roots) != 1 and encoder:
            raise AcouslicError(f"{path}: no visual tower is found among its encoder.* tensors")
        prefixes = sorted(roots)
    result: dict[str, Tensor] = {}
    for name, tensor in encoder.items():
        # The longest fitting prefix: one wrapper's name may be the start of another's.
        prefix = next((prefix for prefix in reversed(prefixes) if name.startswith(prefix)), None)
        if prefix is None:
            raise AcouslicError(f"{path}: tensor {name!r} does not belong to the visual tower at {prefixes[0]!r}")
        short = name.removeprefix(prefix)
        if short in result and not torch.equal(result[short], tensor):
            raise AcouslicError(f"{path}: two towers with different {short!r} are in the encoder; expected one")
        result[short] = tensor
    return result


def config_of_weights(base: Mapping[str, Tensor], where: str) -> TowerConfig:
    """The tower that has these weights (open_clip's visual names), as open_clip builds it by default: heads of 64,
    GELU, the class token's embedding. FetalCLIP is one. Raises AcouslicError where a size cannot be told."""
    try:
        width, _, patch_size, _ = base["conv1.weight"].shape
        grid_size = round((base["positional_embedding"].shape[0] - 1) ** 0.5)
        mlp_width = base["transformer.resblocks.0.mlp.c_fc.weight"].shape[0]
        output_dim = base["proj"].shape[1]
    except (KeyError, ValueError) as error:
        raise AcouslicError(
            f"{where}: the tower's size cannot be told without {error}; give the base weights with --weights"
        ) from None
    blocks = [int(found[1]) for name in base if (found := re.match(r"transformer\.resblocks\.(\d+)\.", name))]
    if width % _HEAD_WIDTH:
        raise AcouslicError(f"{where}: width {width} is no multiple of {_HEAD_WIDTH}; give --config")
    return TowerConfig(
        image_size=grid_size * patch_size,
        patch_size=patch_size,
        width=width,
        layers=1 + max(blocks),
        heads=width // _HEAD_WIDTH,
        mlp_width=mlp_width,
        output_dim=output_dim,
        pre_norm="ln_pre.weight" in base,
        layer_scale="transformer.resblocks.0.ls_1.gamma" in base,
    )


def merge_bases(first: dict[str, Tensor], second: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """All tensors of two sources of the same tower. Raises AcouslicError, naming the tensor, where they differ."""
    for name in sorted(first.keys() & second.keys()):
        if first[name].shape != second[name].shape or not torch.equal(first[name].float(), second[name].float()):
            raise AcouslicError(
                f"{where}: tensor {name!r} of its frozen tower is another than in the sources before it; all members "
                "of an artifact share one tower"
            )
    return second | first


@dataclass(frozen=True)
class ImportedAdapter:
    """A checkpoint's adapter, and what was left out of it."""

    adapter: LoraAdapter | None
    """None where no live factor changes anything."""
    notes: tuple[str, ...]


def import_adapter(
    checkpoint: PublishedCheckpoint, config: TowerConfig, alpha: float, *, drop_out_proj: bool = False
) -> ImportedAdapter:
    """The live part of a checkpoint's adapter in PEFT's format.

    An out_proj adapter whose factors B are all zero was never applied, and is left out. Where one is not, a later
    open_clip trained it, and it is used, unless `drop_out_proj`. An adapter on whole `nn.MultiheadAttention` modules
    has another out_proj, which is always used, twice over: so the peft that it was most likely trained with does.
    Raises AcouslicError where the tensors are no plain LoRA on linear layers of the tower, and for `drop_out_proj` with
    such an adapter.
    """
    whole_attention = any(_OF_ATTENTION in name for name in checkpoint.lora)
    if whole_attention and drop_out_proj:
        raise AcouslicError(
            f"{checkpoint.path} adapts whole attention modules, which no open_clip runs without their out_proj: leave "
            "--drop-out-proj out"
        )
    of_out_proj = {name: tensor for name, tensor in checkpoint.lora.items() if f".{DEAD_TARGET}." in name}
    moved = sum(bool(tensor.any()) for name, tensor in of_out_proj.items() if ".lora_B." in name)
    is_used = moved > 0 and not drop_out_proj
    live = dict(checkpoint.lora) if is_used else {k: v for k, v in checkpoint.lora.items() if k not in of_out_proj}
    notes = []
    if whole_attention:
        last = ".".join(map(str, LAST_DOUBLING_VERSION))
        notes.append(f"counted out_proj's update twice, as peft up to {last} does where it adapts whole attentions")
    layers_of_out_proj = f"the factors of {len(of_out_proj) // 2} out_proj layers ({moved} of them not zero)"
    if of_out_proj and is_used:
        notes.append(f"used {layers_of_out_proj}: open_clip up to 3.3.0 cannot train them, so a later one did")
    elif of_out_proj:
        notes.append(f"dropped {layers_of_out_proj}: open_clip up to 3.3.0 never applies them")
    if live and not any(tensor.any() for name, tensor in live.items() if ".lora_B." in name):
        notes.append("dropped the adapter: all its B factors are zero, it was never trained")
        live = {}
    if not live:
        return ImportedAdapter(None, tuple(notes))
    layers = sorted({name.partition(".lora_")[0] for name in live})
    ranks = {tensor.shape[0] for name, tensor in live.items() if ".lora_A." in name}
    if len(ranks) != 1:
        raise AcouslicError(f"{checkpoint.path}: expected LoRA factors of one rank, got ranks {sorted(ranks)}")
    shapes = linear_shapes(config)
    ends = sorted({layer.rpartition(".")[2] for layer in layers})
    by_end = [layer for layer in shapes if layer.rpartition(".")[2] in ends]
    adapter_config = {
        "peft_type": "LORA",
        "r": ranks.pop(),
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ends if sorted(by_end) == layers else layers,
        "inference_mode": True,
    }
    tensors = {f"{PREFIX}{name}": tensor for name, tensor in live.items()}
    return ImportedAdapter(
        build_adapter(adapter_config, tensors, shapes, checkpoint.path, checkpoint.path), tuple(notes)
    )


def member_config(checkpoint: PublishedCheckpoint, config: TowerConfig, has_adapter: bool) -> MemberConfig:
    """The manifest's description of a checkpoint: presence by the classifier, or by 1 % of the mask's pixels."""
    heads = checkpoint.heads
    decoder = None
    if any(name.startswith("decoder.") for name in heads):
        header = heads.get("decoder.decoder0_header.2.block.weight")
        if header is None or header.ndim != 4:
            raise AcouslicError(f"{checkpoint.path}: tensor 'decoder.decoder0_header.2.block.weight' is missing")
        taps = (config.layers // 4, config.layers // 3, config.layers // 2, config.layers)
        if taps[0] < 1 or len(set(taps)) < 4 or config.image_size % 16:
            raise AcouslicError(
                f"{checkpoint.path}: its decoder cannot be attached to {config.layers} blocks and images of "
                f"{config.image_size}: it reads blocks {taps} on a grid of a 16th of the image"
            )
        decoder = DecoderConfig(taps=taps, grid_size=config.image_size // 16, filters=header.shape[1])
    return MemberConfig(adapter=has_adapter, presence="presence.weight" in heads, optimality=False, decoder=decoder)
