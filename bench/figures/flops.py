"""How many floating point operations the arithmetic asks for, by formula: two a multiply-add.

It counts the products: patch embedding, linear layers, attention (queries by keys, weights by values), projection,
heads and the decoders' convolutions. It leaves out norms, softmax, activations and additions: they are where a share of
the matrix peak goes. Equal to `torch.utils.flop_counter` on `tower.Tower` (test_bench_flops.py).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from algorithm.model.lora import ADAPTER_WEIGHTS_FILE, PREFIX
from algorithm.model.manifest import Manifest
from algorithm.model.networks import TowerConfig

Step = tuple[str, int]
"""A layer's name in the tower, or of an operation without weights, and its FLOP for one image."""


def tower_steps(config: TowerConfig, adapted: Collection[str] = (), *, class_token_only: bool = False) -> list[Step]:
    """The tower's products for one image, in the order `stacked_tower.py` runs them for these adapted layers.

    With `class_token_only` the last block computes no more than the class token's output needs, as it does where the
    class token is pooled and no decoder reads that block.
    """
    patches = config.grid_size**2 if config.kept_patches is None else len(config.kept_patches)
    tokens, width = patches + 1, config.width
    steps: list[Step] = [("conv1", 2 * patches * width * 3 * config.patch_size**2)]
    for number in range(1, config.layers + 1):
        root = f"transformer.resblocks.{number - 1}."
        asking = 1 if class_token_only and number == config.layers else tokens
        projections = [
            (f"{root}attn.{part}_proj", 2 * (asking if part == "q" else tokens) * width**2) for part in ("q", "k", "v")
        ]
        # Those without an adapter run first, for all members at once.
        steps += sorted(projections, key=lambda step: step[0] in adapted)
        steps += [
            (f"{root}attn", 2 * 2 * asking * tokens * width),
            (f"{root}attn.out_proj", 2 * asking * width**2),
            (f"{root}mlp.c_fc", 2 * asking * width * config.mlp_width),
            (f"{root}mlp.c_proj", 2 * asking * width * config.mlp_width),
        ]
    return [*steps, ("proj", 2 * width * config.output_dim)]


def tower_flop(config: TowerConfig) -> int:
    """The plain tower on one image."""
    return sum(flop for _, flop in tower_steps(config))


@dataclass(frozen=True)
class SharedFlop:
    """One image through several members that share everything before the first adapted layer."""

    trunk: int
    """Once for all members."""
    tail: int
    """Once a member."""

    def of(self, members: int) -> int:
        """All of it for `members` members."""
        return self.trunk + members * self.tail


def shared_flop(
    config: TowerConfig, adapted: Collection[str], *, class_token_only: bool = True, last_block: int | None = None
) -> SharedFlop:
    """What members that adapt the layers `adapted` cost together; with `last_block` nothing after that block runs."""
    steps = tower_steps(config, adapted, class_token_only=class_token_only)
    if last_block is not None:
        end = f"transformer.resblocks.{last_block - 1}.mlp.c_proj"
        steps = steps[: 1 + [name for name, _ in steps].index(end)]
    parting = next((index for index, (name, _) in enumerate(steps) if name in adapted), len(steps))
    # Without any adapted layer members are one and the same up to their heads.
    return SharedFlop(sum(flop for _, flop in steps[:parting]), sum(flop for _, flop in steps[parting:]))


def trunk_flop(config: TowerConfig, adapted: Collection[str]) -> int:
    """One image through the blocks before the first that any member adapts, never the last one."""
    steps = tower_steps(config, adapted)
    last = f"transformer.resblocks.{config.layers - 1}."
    own = next((name for name, _ in steps if name in adapted), last).split(".")[2]
    parting = next(index for index, (name, _) in enumerate(steps) if name.startswith(f"transformer.resblocks.{own}."))
    return sum(flop for _, flop in steps[:parting])


def adapted_layers(model: Path, manifest: Manifest) -> set[str]:
    """The layers that any member of the artifact in `model` adapts, from the names in its adapter files."""
    layers = set()
    for k, member in enumerate(manifest.members):
        if member.adapter:
            with safe_open(model / "members" / str(k) / ADAPTER_WEIGHTS_FILE, framework="numpy") as file:
                layers |= {name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in file.keys()}  # noqa: SIM118
    return layers


@dataclass(frozen=True)
class CaseFlop:
    """What our side has to compute for a case."""

    gate: int
    refine: int
    segment: int

    @property
    def total(self) -> int:
        """All three."""
        return self.gate + self.refine + self.segment


def case_flop(
    manifest: Manifest,
    adapted: Collection[str],
    *,
    gate_frames: int,
    refined_frames: int,
    reused_frames: int,
    segmented_frames: int,
) -> CaseFlop:
    """The ensemble over a case: the frames that the gate, all members and all decoders see.

    Of the refined ones `reused_frames` go on from the trunk that the gate has run.
    """
    config, members = manifest.tower, manifest.members
    taps = {tap for member in members if not member.presence and member.decoder for tap in member.decoder.taps}
    narrow = config.pool == "tok" and config.layers not in taps
    scoring = shared_flop(config, adapted, class_token_only=narrow)
    heads = 2 * config.output_dim * (len(members) + sum(member.optimality for member in members))
    # Members without a presence head judge by their masks, on every frame.
    judging = sum(decoder_flop(manifest, k) for k, member in enumerate(members) if not member.presence)
    return CaseFlop(
        gate_frames * (_student_flop(manifest) if manifest.scoring.gate == "student" else scoring.of(1)),
        refined_frames * (scoring.of(len(members)) + heads + judging) - reused_frames * trunk_flop(config, adapted),
        segmented_frames * segment_flop(manifest, adapted),
    )


def segment_flop(manifest: Manifest, adapted: Collection[str]) -> int:
    """One image's mask by every decoder, from the image on. One that goes on from what refinement has computed takes
    less."""
    config = manifest.tower
    decoding = [k for k, member in enumerate(manifest.members) if member.decoder]
    taps = {tap for k in decoding for tap in _taps(manifest, k)}
    narrow = config.pool == "tok" and config.layers not in taps
    tower = shared_flop(config, adapted, class_token_only=narrow, last_block=max(taps))
    return tower.of(len(decoding)) + sum(decoder_flop(manifest, k) for k in decoding)


def decoder_flop(manifest: Manifest, k: int) -> int:
    """Member k's decoder on one image, counted by torch on tensors without storage."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from algorithm.model.decoder import Decoder

    config, tower = manifest.members[k].decoder, manifest.tower
    assert config is not None
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        tokens = torch.empty(1, 1 + tower.grid_size**2, tower.width)
        Decoder(config, tower.width).eval()(torch.empty(1, 3, tower.image_size, tower.image_size), [tokens] * 4)
    return counter.get_total_flops()


def _student_flop(manifest: Manifest) -> int:
    from training.network.student import student_flop

    assert manifest.student is not None
    return student_flop(manifest.student, manifest.tower.image_size)


def straightforward_flop(manifest: Manifest, adapted: Collection[str], rank: int, frames: int) -> int:
    """The same frames through every member's whole tower, its adapters beside the layers (side A of `case.py`)."""
    config = manifest.tower
    tokens = (config.grid_size**2 if config.kept_patches is None else len(config.kept_patches)) + 1
    sides = {"c_fc": (config.width, config.mlp_width), "c_proj": (config.mlp_width, config.width)}
    adapters = 0
    for name in adapted:
        inputs, outputs = sides.get(name.rpartition(".")[2], (config.width, config.width))
        adapters += 2 * tokens * rank * (inputs + outputs)
    return frames * len(manifest.members) * (tower_flop(config) + adapters)


def _taps(manifest: Manifest, k: int) -> Sequence[int]:
    decoder = manifest.members[k].decoder
    assert decoder is not None
    return decoder.taps
