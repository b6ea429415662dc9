"""Checkpoints of the published FetalCLIP-IQA code become an artifact that the container runs.

    python -m training import --checkpoint CLS.ckpt SEG.ckpt ... --out model/ [--weights FetalCLIP_weights.pt]

Each checkpoint becomes a member: a classifier judges presence, a decoder draws the mask (and, without a classifier,
judges presence by 1 % of its pixels, as published). The frozen tower is the checkpoints' own, or that of `--weights`
where they hold adapters alone; all must agree on it. What the published model never used (adapters that were never
trained, as those on out_proj) is left out; an out_proj adapter that is not zero was trained by a later open_clip, and
is used unless `--drop-out-proj`; log and manifest say so. Preprocessing is the published one: CLIP's mean and
deviation, unless `--config` states others, cubic resize without antialiasing, a decoder on blocks n/4, n/3, n/2 and n
on a 14 x 14 grid.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from acouslic.errors import AcouslicError
from algorithm.model.artifact import MemberState, refuse_target, write_artifact
from algorithm.model.heads import Heads
from algorithm.model.manifest import Manifest, Provenance, untuned_manifest
from algorithm.model.networks import MemberConfig, PreprocessingConfig, TowerConfig
from algorithm.model.tower import check_state, without_weights
from training.export.model_card import write_card_beside
from training.export.published_checkpoint import (
    LORA_ALPHA,
    config_of_weights,
    import_adapter,
    member_config,
    merge_bases,
    read_published,
)
from training.learn.run_folder import made_with
from training.network.open_clip_weights import (
    tower_config_from_open_clip,
    tower_state_from_open_clip,
    visual_state,
)
from training.network.tower_source import preprocessing_of, read_open_clip_config, read_weights, rounded_state


def import_published(
    checkpoints: Sequence[Path],
    out: Path,
    *,
    weights: Path | None = None,
    config_path: Path | None = None,
    alpha: float = LORA_ALPHA,
    half: bool = False,
    drop_out_proj: bool = False,
    name: str = "fetalclip-iqa",
) -> Manifest:
    """Write the artifact of `checkpoints`, one member each in their order, and return its manifest.

    `weights` is an open_clip file of the tower, `config_path` its open_clip configuration (by default told from the
    weights), `alpha` LoRA's, above 0. With `half` the tower is stored in float16; with `drop_out_proj` adapters of
    out_proj are left out even where they were trained. Raises AcouslicError, naming file and tensor, for a checkpoint
    that holds code, is of another kind or tower, or where no member could draw a mask.
    """
    refuse_target(out)
    if not (alpha > 0 and math.isfinite(alpha)):
        raise AcouslicError(f"--lora-alpha must be above 0, not {alpha:g}: give alpha as the checkpoints were trained")
    base: dict[str, Tensor] = {}
    if weights is not None:
        base = visual_state(read_weights(weights), str(weights))
    read = []
    for path in checkpoints:
        checkpoint = read_published(path)
        base = merge_bases(base, checkpoint.base, str(path))
        checkpoint.base.clear()  # one copy of the tower at a time
        read.append(checkpoint)
        if checkpoint.ignored:
            print(f"{path.name}: left out {', '.join(checkpoint.ignored)}")
    config, preprocessing = _tower_and_input(base, config_path, str(checkpoints[0]))
    members: list[MemberConfig] = []
    states: list[MemberState] = []
    notes: list[str] = []
    for checkpoint in read:
        imported = import_adapter(checkpoint, config, alpha, drop_out_proj=drop_out_proj)
        notes += [f"{checkpoint.path.name}: {note}" for note in imported.notes]
        members.append(member_config(checkpoint, config, imported.adapter is not None))
        with without_weights():
            expected = Heads(members[-1], config).state_dict()
        check_state(checkpoint.heads, expected, str(checkpoint.path))
        states.append(MemberState(imported.adapter, checkpoint.heads))
    for note in notes:
        print(note)
    if not any(member.decoder for member in members):
        raise AcouslicError("none of the checkpoints has a decoder, so no mask could be drawn: add a segmentation one")
    provenance = _provenance(checkpoints, weights, notes)
    manifest = untuned_manifest(name, config, members, provenance, preprocessing)
    tower = rounded_state(
        tower_state_from_open_clip(base, config), torch.float16 if half else torch.float32, "leave --half out"
    )
    return write_artifact(out, manifest, tower, states)


def _tower_and_input(
    base: dict[str, Tensor], config_path: Path | None, where: str
) -> tuple[TowerConfig, PreprocessingConfig]:
    """The tower's sizes and what it takes."""
    if not base:
        raise AcouslicError(f"{where} holds no tower, only what was trained: give the base weights with --weights")
    if config_path is None:
        return config_of_weights(base, where), PreprocessingConfig(antialias=False)
    stated = read_open_clip_config(config_path)
    config = tower_config_from_open_clip(stated, str(config_path))
    return config, preprocessing_of(stated, config_path, antialias=False)


def _provenance(checkpoints: Sequence[Path], weights: Path | None, notes: list[str]) -> Provenance:
    source = weights.name if weights else "the frozen tower in the checkpoints"
    return Provenance(
        tower=f"FetalCLIP (arXiv 2502.14807), from {source}",
        tower_licence="CC BY-NC 4.0",
        training_data="ACOUSLIC-AI (Zenodo 12697994), as the published FetalCLIP-IQA code used it",
        training_data_licence="CC BY-NC-SA 4.0",
        made_by=made_with("python -m training import"),
        notes="; ".join([f"imported {', '.join(path.name for path in checkpoints)}", *notes]),
    )


def main(arguments: list[str]) -> int:
    """The command `python -m training import`."""
    parser = argparse.ArgumentParser(prog="acouslic train import", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, nargs="+", action="extend", required=True, help="one or more files")
    parser.add_argument("--out", type=Path, required=True, help="folder of the artifact")
    parser.add_argument("--weights", type=Path, help="FetalCLIP_weights.pt, where the checkpoints hold adapters alone")
    parser.add_argument("--config", type=Path, help="open_clip configuration of the tower (default: from the weights)")
    parser.add_argument(
        "--lora-alpha", type=float, default=LORA_ALPHA, help="alpha of LoRA in training (%(default)g, as published)"
    )
    parser.add_argument("--half", action="store_true", help="store the tower in float16")
    parser.add_argument(
        "--drop-out-proj",
        action="store_true",
        help="leave out trained out_proj adapters too, as open_clip up to 3.3.0 would run the checkpoint",
    )
    parser.add_argument("--name", default="fetalclip-iqa", help="the artifact's name")
    options = parser.parse_args(arguments)
    manifest = import_published(
        options.checkpoint,
        options.out,
        weights=options.weights,
        config_path=options.config,
        alpha=options.lora_alpha,
        half=options.half,
        drop_out_proj=options.drop_out_proj,
        name=options.name,
    )
    print(f"{options.out}: {len(manifest.members)} members")
    write_card_beside(options.out)
    return 0
