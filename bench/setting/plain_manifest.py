"""A manifest without weights, for networks whose answers a test or a measurement draws itself."""

from algorithm.model.manifest import (
    SCHEMA_VERSION,
    DecoderConfig,
    Manifest,
    MemberConfig,
    PreprocessingConfig,
    Provenance,
    ScoringConfig,
    SelectionConfig,
    Thresholds,
    TowerConfig,
)


def plain_manifest(name: str, image_size: int) -> Manifest:
    """Two members with all heads on a tower of four narrow blocks; grey levels stay as they are, no smoothing."""
    member = MemberConfig(adapter=False, presence=True, optimality=True, decoder=DecoderConfig((1, 2, 3, 4), 2, 2))
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=name,
        tower=TowerConfig(image_size, patch_size=14, width=8, layers=4, heads=2, mlp_width=16, output_dim=4),
        preprocessing=PreprocessingConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        members=(member, member),
        thresholds=Thresholds(),
        scoring=ScoringConfig(),
        selection=SelectionConfig(smoothing_sigma_frames=0.0, choice_sigma_frames=0.0),
        provenance=Provenance("", "", "", "", ""),
    )
