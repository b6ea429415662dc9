"""Write an artifact with random weights, for benchmarks and tests: the right shapes, no meaning.

    python bench/setting/random_artifact.py --config vit-l-14 --members 5 --adapted-blocks 6 --out /tmp/random

Weights are scaled so that activations stay sane through all blocks, outputs vary between frames, and probabilities
are not saturated: heads are set to a standard deviation of about one logit on random speckle.
"""

import argparse
import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from algorithm.model.artifact import MemberState, write_artifact
from algorithm.model.heads import CaseHead, Heads
from algorithm.model.lora import LoraAdapter, build_adapter
from algorithm.model.manifest import Manifest, ScoringConfig
from algorithm.model.networks import CaseHeadConfig, DecoderConfig, MemberConfig, StudentConfig, TowerConfig
from algorithm.model.student import Student
from algorithm.model.tower import Tower, linear_shapes, without_weights
from bench.setting.command import add_keep_share, add_seed, add_sizes, at_least, exit_with
from bench.setting.plain_manifest import plain_manifest

TOWERS = {
    # FetalCLIP's own configuration.
    "vit-l-14": TowerConfig(224, 14, 1024, 24, 16, 4096, 768),
    # The DINOv2-S of the stand-in experiments.
    "vit-s-14": TowerConfig(224, 14, 384, 12, 6, 1536, 384, pre_norm=False, layer_scale=True, norm_eps=1e-6),
    "tiny": TowerConfig(56, 14, 32, 4, 2, 64, 16),
}
Where = tuple[Sequence[int], Sequence[str]]
"""Where an adapter acts: blocks, counted from 0, and the last parts of the names of layers."""
# The published decoder's taps on 24 blocks; evenly spaced on any other tower.
TAPS = {24: (6, 8, 12, 24)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write the artifact."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_sizes(parser, TOWERS)
    parser.add_argument(
        "--targets", default="c_fc,c_proj", help="comma-separated layers that carry adapters (default: %(default)s)"
    )
    parser.add_argument("--rank", type=at_least(1), default=8, help="of the adapters (default: %(default)s)")
    parser.add_argument(
        "--scoring", choices=["exhaustive", "gated"], default="exhaustive", help="mode (default: %(default)s)"
    )
    parser.add_argument("--student", action="store_true", help="add a student of the default size")
    add_keep_share(parser)
    parser.add_argument(
        "--precision",
        choices=["float16", "bfloat16", "float32"],
        default="float16",
        help="of the tower in its file (default: %(default)s)",
    )
    add_seed(parser, 0)
    parser.add_argument("--out", type=Path, required=True, help="folder of the artifact")
    args = parser.parse_args(arguments)
    config = TOWERS[args.config]
    if args.keep_share < 1:
        config = dataclasses.replace(config, kept_patches=central_patches(config.grid_size, args.keep_share))
    blocks = config.layers if args.adapted_blocks == "all" else int(args.adapted_blocks)
    write_random_artifact(
        args.out,
        config,
        alike_members(config, args.members, adapted_blocks=blocks, targets=args.targets.split(",")),
        rank=args.rank,
        scoring=ScoringConfig(mode=args.scoring),
        dtype=getattr(torch, args.precision),
        seed=args.seed,
        student=StudentConfig() if args.student else None,
    )
    size_bytes = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"wrote {args.out}: {args.config}, {args.members} members, {size_bytes / 1e6:.0f} MB")


def write_random_artifact(
    folder: Path,
    config: TowerConfig,
    members: int | Sequence[tuple[MemberConfig, Where | None]] = 3,
    *,
    rank: int = 4,
    scoring: ScoringConfig | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    student: StudentConfig | None = None,
    case_head: CaseHeadConfig | None = None,
) -> Manifest:
    """Write an artifact to `folder` with these members, each with the place of its adapter, if it has one; a number is
    that many of `alike_members`."""
    if isinstance(members, int):
        members = alike_members(config, members)
    generator = torch.Generator().manual_seed(seed)
    tower = random_tower(config, generator, dtype)
    embedding = speckle_embedding(tower, generator)
    states = []
    for member, where in members:
        adapter = None if where is None else random_adapter(config, *where, rank, generator)
        states.append(MemberState(adapter, random_heads(member, config, embedding, generator)))
    manifest = plain_manifest(config, [member for member, _ in members])
    manifest = dataclasses.replace(manifest, scoring=scoring or ScoringConfig(), student=student, case_head=case_head)
    student_state = None if student is None else random_student(student, config.image_size, generator)
    head_state = None if case_head is None else random_case_head(case_head, config.output_dim, generator)
    return write_artifact(folder, manifest, tower.state_dict(), states, student_state, head_state)


def alike_members(
    config: TowerConfig, count: int, *, adapted_blocks: int = 2, targets: Sequence[str] = ("c_fc", "c_proj")
) -> list[tuple[MemberConfig, Where | None]]:
    """Members with all heads, and adapters on `targets` of the last `adapted_blocks` blocks."""
    quarter = max(1, config.layers // 4)
    taps = TAPS.get(config.layers, (quarter, 2 * quarter, 3 * quarter, config.layers))
    member = MemberConfig(
        adapter=adapted_blocks > 0,
        presence=True,
        optimality=True,
        decoder=DecoderConfig(taps, max(1, config.image_size // 16)),
    )
    where = (range(max(0, config.layers - adapted_blocks), config.layers), targets) if adapted_blocks > 0 else None
    return [(member, where)] * count


def central_patches(grid_size: int, share: float) -> tuple[int, ...]:
    """Row-major indices of the patches nearest the centre, `share` of them: about what a fan in a square leaves."""
    middle = (grid_size - 1) / 2
    order = sorted(
        range(grid_size**2), key=lambda i: ((i // grid_size - middle) ** 2 + (i % grid_size - middle) ** 2, i)
    )
    return tuple(sorted(order[: max(1, round(share * grid_size**2))]))


def random_tower(config: TowerConfig, generator: torch.Generator, dtype: torch.dtype) -> Tower:
    """A tower in which every parameter is random and no two are alike, and activations stay near one."""
    with without_weights():
        tower = Tower(config)
    state = {}
    for name, parameter in tower.state_dict().items():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("gamma"):
            value = 0.5 + 0.1 * noise
        elif parameter.ndim == 1:
            value = 0.02 * noise + (1.0 if ".ln_" in f".{name}" and name.endswith("weight") else 0.0)
        else:
            inputs = parameter[0].numel() if name == "conv1.weight" else parameter.shape[-1]
            value = noise * inputs**-0.5
        state[name] = value.to(dtype)
    state["positional_embedding"] = (state["positional_embedding"].float() * 0.3 * config.width**0.5).to(dtype)
    state["proj"] = (torch.randn(config.width, config.output_dim, generator=generator) * config.width**-0.5).to(dtype)
    tower.load_state_dict(state, assign=True)
    return tower.eval().requires_grad_(False)


def random_adapter(
    config: TowerConfig, blocks: Sequence[int], targets: Sequence[str], rank: int, generator: torch.Generator
) -> LoraAdapter:
    """An adapter on `targets` in `blocks` (from 0) whose deltas are about a tenth of the weights."""
    shapes = linear_shapes(config)
    content = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(targets),
        "layers_to_transform": list(blocks),
        "layers_pattern": "resblocks",
        "bias": "none",
    }
    tensors = {}
    for name, (out_features, in_features) in shapes.items():
        if int(name.split(".")[2]) in blocks and name.split(".")[-1] in targets:
            root = f"base_model.model.{name}.lora_"
            tensors[f"{root}A.weight"] = torch.randn(rank, in_features, generator=generator) * in_features**-0.5
            tensors[f"{root}B.weight"] = torch.randn(out_features, rank, generator=generator) * 0.05 * rank**-0.5
    return build_adapter(content, tensors, shapes)


@torch.no_grad()
def speckle_embedding(tower: Tower, generator: torch.Generator) -> Tensor:
    """Float32 embeddings of a few images of blobs and speckle, (images, output_dim)."""
    size = tower.config.image_size
    coarse = torch.randn(4, 1, size // 8, size // 8, generator=generator)
    speckle = torch.randn(4, 3, size, size, generator=generator)
    images = 0.5 * speckle + nn.functional.interpolate(coarse, (size, size))
    return copy.deepcopy(tower).float()(images).embedding


@torch.no_grad()
def random_heads(
    member: MemberConfig, tower: TowerConfig, embedding: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Heads with logits of about unit spread over `embedding`, and a decoder with live batch statistics."""
    torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
    heads = Heads(member, tower)
    for head in (heads.presence, heads.optimality):
        if head is not None:
            direction = torch.randn(embedding.shape[1], generator=generator)
            spread = (embedding @ direction).std().clamp(min=1e-3)
            head.weight.copy_(direction[None] / spread)
            head.bias.copy_(-(embedding @ head.weight[0]).mean()[None])
    if heads.decoder is not None:
        for module in heads.decoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.05, generator=generator)  # type: ignore[union-attr]
                module.running_var.uniform_(0.1, 0.3, generator=generator)  # type: ignore[union-attr]
                module.weight.normal_(1, 0.1, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
    return {name: tensor.detach() for name, tensor in heads.state_dict().items()}


@torch.no_grad()
def random_student(config: StudentConfig, image_size: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A student whose activations stay near one, and whose logits have about unit spread over images of blobs."""
    student = Student(config)
    for module in student.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.normal_(0, (2 / module.weight[0].numel()) ** 0.5, generator=generator)
            assert module.bias is not None
            module.bias.normal_(0, 0.05, generator=generator)
    coarse = torch.randn(8, 1, max(2, image_size // 8), max(2, image_size // 8), generator=generator)
    pooled = student.stages(nn.functional.interpolate(coarse, (image_size // 2,) * 2)).mean((2, 3))
    for head in (student.presence, student.optimality):
        if head is not None:
            direction = torch.randn(pooled.shape[1], generator=generator)
            head.weight.copy_(direction[None] / (pooled @ direction).std().clamp(min=1e-3))
            head.bias.copy_(-(pooled @ head.weight[0]).mean()[None])
    return {name: tensor.detach() for name, tensor in student.state_dict().items()}


def random_case_head(config: CaseHeadConfig, output_dim: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A case head that changes logits by about one."""
    head = CaseHead(config, output_dim)
    for layer in (head.projection, head.hidden, head.change):
        layer.weight.data.normal_(0, layer.in_features**-0.5, generator=generator)
    return dict(head.state_dict())


if __name__ == "__main__":
    exit_with(main)
