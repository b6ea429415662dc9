"""Manifests that no training has made: of random members, and of networks whose answers a test draws itself."""

import dataclasses
from collections.abc import Sequence

from algorithm.model.manifest import Manifest, Provenance, SelectionConfig, untuned_manifest
from algorithm.model.networks import DecoderConfig, MemberConfig, PreprocessingConfig, TowerConfig


def plain_manifest(config: TowerConfig, members: Sequence[MemberConfig]) -> Manifest:
    """The manifest of random members, every setting at its default."""
    name = f"random, {config.layers} blocks of width {config.width}, {len(members)} members"
    source = Provenance("random numbers", "none needed", "none", "none needed", "bench/setting/random_artifact.py")
    return untuned_manifest(name, config, members, source)


def drawn_manifest(name: str, image_size: int) -> Manifest:
    """Two members with all heads on a tower of four narrow blocks; grey levels stay as they are, no smoothing."""
    member = MemberConfig(adapter=False, presence=True, optimality=True, decoder=DecoderConfig((1, 2, 3, 4), 2, 2))
    tower = TowerConfig(image_size, patch_size=14, width=8, layers=4, heads=2, mlp_width=16, output_dim=4)
    return dataclasses.replace(
        plain_manifest(tower, [member, member]),
        name=name,
        preprocessing=PreprocessingConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        selection=SelectionConfig(smoothing_sigma_frames=0.0, choice_sigma_frames=0.0),
    )
