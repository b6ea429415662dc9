"""What is trained: algorithm's tower with peft's adapters, and algorithm's heads on it."""

import abc
import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from acouslic.errors import AcouslicError
from algorithm.model.decoder import Decoder
from algorithm.model.heads import Heads, presence_from_mask
from algorithm.model.networks import DecoderConfig, MemberConfig, TowerConfig
from algorithm.model.tower import Tower, check_state, linear_shapes, tower_from_state
from training.network.fast_layers import speed_up
from training.network.tower_source import LoadedTower, read_weights
from training.recipe.settings import AdapterSettings, HeadSettings


@dataclass(frozen=True)
class NetworkOutput:
    """Logits of a batch; None for a head that is not there or was not asked for."""

    presence: Tensor | None
    """(B,)."""
    optimality: Tensor | None
    """(B,)."""
    mask: Tensor | None
    """(frames asked for, G, G)."""


class Network(nn.Module, abc.ABC):
    """What a run trains: anything that judges frames. `FrameNetwork` is ours, `baselines.TimmNetwork` the paper's."""

    has_decoder = False
    """Whether it draws masks."""
    has_optimality = False
    """Whether it tells optimal from suboptimal."""
    is_repeatable = False
    """Whether every operator of its backward pass has an implementation on a GPU that sums in the same order each time
    (the list of `torch.use_deterministic_algorithms`)."""
    judges_by_mask = False
    """True where presence can only be read from the mask (the published FETALCLIP_SEG)."""

    @abc.abstractmethod
    def forward(self, images: Tensor, mask_rows: Tensor | None = None) -> NetworkOutput:
        """Logits for normalised images (B, 3, S, S); masks only for the rows `mask_rows` (indices), None is none."""

    def presence_of(self, output: NetworkOutput) -> Tensor:
        """Presence logits (B,)."""
        if output.presence is None:
            raise ValueError("this network judges a frame by its mask: ask for the masks of all frames")
        return output.presence.float()

    def trained_state(self, *, counters: bool = False) -> dict[str, Tensor]:
        """What training changes: parameters that take a gradient, and the batch statistics of modules that have one;
        with `counters` also the whole numbers among these."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        modules = {name.rpartition(".")[0] for name in trained}
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if name in trained or (name.rpartition(".")[0] in modules and (counters or tensor.is_floating_point()))
        }


class FrameNetwork(Network):
    """Tower, adapter and heads of one member.

    The blocks before the first trained one hold no gradient and keep no activations: nothing in them asks for any.
    """

    is_repeatable = True

    def __init__(self, tower: nn.Module, member: MemberConfig, heads: Heads, detach_decoder: bool) -> None:
        super().__init__()
        self.tower = tower
        self.member = member
        self.heads = heads
        self.detach_decoder = detach_decoder
        self.has_decoder = heads.decoder is not None
        self.has_optimality = heads.optimality is not None
        self.judges_by_mask = heads.presence is None

    def forward(self, images: Tensor, mask_rows: Tensor | None = None) -> NetworkOutput:
        """Logits, as in `Network`."""
        taps = self.member.decoder.taps if self.member.decoder and mask_rows is not None else ()
        output = self.tower(images, taps=taps, tap_rows=mask_rows if taps else None)
        presence, optimality, mask = None, None, None
        if self.heads.presence is not None:
            presence = self.heads.presence(output.embedding)[:, 0]
        if self.heads.optimality is not None:
            optimality = self.heads.optimality(output.embedding)[:, 0]
        if self.heads.decoder is not None and mask_rows is not None:
            tokens = [tap.detach() for tap in output.taps] if self.detach_decoder else output.taps
            mask = self.heads.decoder(images[mask_rows], tokens)
        return NetworkOutput(presence, optimality, mask)

    def presence_of(self, output: NetworkOutput) -> Tensor:
        """Presence logits (B,), from the head or from the share of mask pixels."""
        if self.judges_by_mask and output.mask is not None:
            return presence_from_mask(output.mask.float().sigmoid(), self.member.presence_mask_fraction)
        return super().presence_of(output)


def build_network(
    loaded: LoadedTower,
    adapter: AdapterSettings,
    heads: HeadSettings,
    *,
    train_all: bool,
    checkpoint_blocks: bool,
    mask_share: float | None = None,
) -> FrameNetwork:
    """A network with fresh adapters and heads; torch's random state decides their start.

    The tower's weights are copied, so that no trial can change another's. With `mask_share`, in 0..1, a fresh decoder
    starts near that probability for every pixel: else it spends its first hundreds of steps on making most of a frame
    dark, before it learns where the abdomen is.
    """
    tower = tower_from_state(loaded.config, {name: tensor.clone() for name, tensor in loaded.state.items()})
    tower.requires_grad_(train_all)
    if not heads.presence and not heads.decoder:
        raise AcouslicError("heads.presence and heads.decoder are both false: nothing would judge a frame")
    member = member_config(loaded.config, adapter, heads)
    if checkpoint_blocks:
        _checkpoint_blocks(tower, 0 if train_all else first_adapted_block(loaded.config, adapter))
    adapted = attach_adapter(tower, adapter) if member.adapter else tower
    own_heads = Heads(member, loaded.config)
    if own_heads.decoder is not None and mask_share is not None:
        _start_masks_at(own_heads.decoder, mask_share)
    if heads.weights is not None:
        load_heads(own_heads, Path(heads.weights))
    speed_up(adapted)
    return FrameNetwork(adapted, member, own_heads, heads.detach_decoder).train()


@torch.no_grad()
def _start_masks_at(decoder: Decoder, share: float) -> None:
    last_bias = decoder.get_parameter("decoder0_header.2.block.bias")
    last_bias.fill_(math.log(share / (1 - share)) if 0 < share < 1 else 0.0)


def load_heads(heads: Heads, path: Path) -> None:
    """Start from the heads of another run, those that both have. Raises AcouslicError where none fits."""
    state = read_weights(path)
    fitting = 0
    for name, head in heads.named_children():
        part = {key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(f"{name}.")}
        if part:
            check_state(part, head.state_dict(), f"{path}, {name}")
            head.load_state_dict(part)
            fitting += 1
    if not fitting:
        raise AcouslicError(
            f"{path} holds none of the heads that are trained: {', '.join(dict(heads.named_children()))}"
        )


def member_config(tower: TowerConfig, adapter: AdapterSettings, heads: HeadSettings) -> MemberConfig:
    """The manifest's description of what these settings train."""
    decoder = None
    if heads.decoder:
        grid = heads.decoder_grid or tower.grid_size
        decoder = DecoderConfig(taps=decoder_taps(tower.layers, heads.taps), grid_size=grid, filters=heads.filters)
    has_adapter = adapter.rank > 0 and bool(adapter.live_targets())
    return MemberConfig(adapter=has_adapter, presence=heads.presence, optimality=heads.optimality, decoder=decoder)


def member_of_json(path: Path) -> MemberConfig:
    """A run's `member.json`. Raises AcouslicError where it is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        decoder = content.pop("decoder")
        if decoder is not None:
            decoder = DecoderConfig(**(decoder | {"taps": tuple(decoder["taps"])}))
        return MemberConfig(**content, decoder=decoder)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise AcouslicError(f"{path} does not describe a trained member: {error}") from None


def decoder_taps(layers: int, spacing: str) -> tuple[int, int, int, int]:
    """Blocks, counted from 1, that the decoder reads: evenly spaced, or the published n//4, n//3, n//2, n."""
    if layers < 4:
        raise AcouslicError(f"a decoder reads four blocks, the tower has {layers}")
    if spacing == "published":
        taps = (layers // 4, layers // 3, layers // 2, layers)
        if len(set(taps)) < 4:
            raise AcouslicError(f"heads.taps=published needs four different blocks, {layers} blocks give {taps}")
        return taps
    first, second, third, last = (round(layers * share / 4) for share in (1, 2, 3, 4))
    return first, second, third, last


def first_adapted_block(tower: TowerConfig, adapter: AdapterSettings) -> int:
    """Index of the first block with an adapter; the number of blocks where there is none."""
    if adapter.rank == 0:
        return tower.layers
    return 0 if adapter.last_blocks is None else max(0, tower.layers - adapter.last_blocks)


def attach_adapter(tower: Tower, adapter: AdapterSettings) -> peft.PeftModel:
    """The tower with peft's LoRA on the live targets of the adapted blocks; everything else of it stays frozen. Raises
    AcouslicError for a target that is no layer: peft passes over one beside another that is."""
    first = first_adapted_block(tower.config, adapter)
    layers = list(linear_shapes(tower.config))
    for target in adapter.targets:
        if not any(f".{layer}".endswith(f".{target}") for layer in layers):
            known = ", ".join(sorted({layer.rpartition(".")[2] for layer in layers}))
            raise AcouslicError(f"adapter.targets: the tower has no layer {target!r}, but {known}")
    settings = peft.LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=list(adapter.live_targets()),
        layers_to_transform=list(range(first, tower.config.layers)),
        layers_pattern="resblocks",
        bias="none",
    )
    try:
        return peft.get_peft_model(tower, settings)
    except ValueError as error:
        raise AcouslicError(f"adapter.targets {list(adapter.targets)} cannot be adapted: {error}") from None


def _checkpoint_blocks(tower: Tower, first: int) -> None:
    """Recompute the blocks from `first` on in the backward pass instead of keeping their activations."""
    for block in list(tower.transformer.resblocks)[first:]:
        # A plain attribute before the class's method: no parameter gets another name.
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def count_trained(network: nn.Module) -> int:
    """Number of parameters that training changes."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def all_rows(images: Tensor) -> Tensor:
    """Row numbers (batch,) of a whole batch, for masks of every frame."""
    return torch.arange(len(images), device=images.device)
