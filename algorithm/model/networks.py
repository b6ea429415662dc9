"""What an artifact's networks are: tower, preprocessing, decoder, members, student and case head.

One frozen dataclass each, with the bounds of its numbers in their types. They are sections of `manifest.json`.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

# Bounds: far above any tower that is known, and low enough that nothing absurd is ever built.
Count = Annotated[int, Meta(ge=1, le=1 << 16)]
Layers = Annotated[int, Meta(ge=1, le=256)]
Side = Annotated[int, Meta(ge=1, le=4096)]
Share = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[float, Meta(gt=0, le=1e6)]
Finite = Annotated[float, Meta(ge=-1e6, le=1e6)]


@dataclass(frozen=True)
class TowerConfig:
    """A CLIP visual transformer, in open_clip's terms. `tower.py` builds it."""

    image_size: Side
    patch_size: Side
    width: Count
    layers: Layers
    heads: Count
    mlp_width: Count
    output_dim: Count
    """Length of the embedding after the projection."""
    pre_norm: bool = True
    """LayerNorm before the first block (open_clip: not `no_ln_pre`)."""
    layer_scale: bool = False
    norm_eps: Annotated[float, Meta(gt=0, le=1)] = 1e-5
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    pool: Literal["tok", "avg"] = "tok"
    norm_after_pool: bool = False
    """`ln_post` on the pooled vector instead of on all tokens (open_clip: `final_ln_after_pool`)."""
    kept_patches: Annotated[tuple[int, ...], Meta(min_length=1)] | None = None
    """Row-major indices of the patches the tower sees, ascending; None is all of them. An artifact may only declare
    fewer where it was trained so: padding and the outside of the fan carry nothing."""

    @property
    def grid_size(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    def __post_init__(self) -> None:
        """Raises ValueError where the numbers do not fit together."""
        if min(self.patch_size, self.heads) < 1:
            raise ValueError("patch_size and heads must be at least 1")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.kept_patches is not None:
            kept = self.kept_patches
            if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= self.grid_size**2:
                raise ValueError(f"kept_patches must be ascending indices in 0..{self.grid_size**2 - 1}, at least one")


@dataclass(frozen=True)
class PreprocessingConfig:
    """How a frame becomes the tower's input: pad to a centred square, resize, normalise. `preprocess.py` does it."""

    mean: tuple[Finite, Finite, Finite] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[Positive, Positive, Positive] = (0.26862954, 0.26130258, 0.27577711)
    antialias: bool = False
    """Cubic resize with (True) or without (False, as OpenCV's INTER_CUBIC and the published code) antialiasing."""


@dataclass(frozen=True)
class DecoderConfig:
    """A UNETR-style mask decoder. `decoder.py` builds it."""

    taps: tuple[Layers, Layers, Layers, Layers]
    """Blocks whose outputs it reads, counted from 1, in ascending order."""
    grid_size: Annotated[int, Meta(ge=1, le=256)]
    """Side of the token grid it works on; 14 shrinks a 16 x 16 grid bilinearly as the published code does. The
    mask logits have 16 times this side."""
    filters: Annotated[int, Meta(ge=1, le=512)] = 32

    def __post_init__(self) -> None:
        """Raises ValueError for taps out of order."""
        if list(self.taps) != sorted(set(self.taps)):
            raise ValueError(f"taps must be ascending block numbers from 1, not {self.taps}")


@dataclass(frozen=True)
class MemberConfig:
    """One member of the ensemble: an optional adapter on the shared tower, and any of the heads.

    Its files lie in `members/<k>/`, k its position in the manifest: `adapter_config.json` and
    `adapter_model.safetensors` in PEFT's format where `adapter` is true, `heads.safetensors` with the tensors
    `presence.{weight,bias}`, `optimality.{weight,bias}` and `decoder.*` of the heads it has.
    """

    adapter: bool
    presence: bool
    optimality: bool
    decoder: DecoderConfig | None = None
    presence_temperature: Positive = 1.0
    """Calibration: probabilities are sigmoid(logit / temperature)."""
    optimality_temperature: Positive = 1.0
    presence_mask_fraction: Annotated[float, Meta(gt=0, lt=1)] = 0.01
    """For a member without a presence head, whose decoder then judges presence: probability 0.5 is reached where
    this fraction of the mask's pixels exceeds 0.5 (the published FETALCLIP_SEG rule)."""

    def __post_init__(self) -> None:
        """Raises ValueError for a member that cannot judge a frame."""
        if not self.presence and self.decoder is None:
            raise ValueError("a member needs a presence head or a decoder")


@dataclass(frozen=True)
class FrameChanges:
    """Two answers to the same cases, against each other."""

    cases: Annotated[int, Meta(ge=1)]
    other_frames: Annotated[int, Meta(ge=0)]
    """In so many cases another frame was chosen."""
    positive_frames: Annotated[int, Meta(ge=0)]
    """Frames of all cases called positive, those of the two answers together."""
    changed_frames: Annotated[int, Meta(ge=0)]
    """Frames of all cases called positive by one of the two alone."""

    @property
    def frame_f1(self) -> float:
        """Of one answer's positive frames against the other's; 1 where neither has any."""
        return 1.0 - self.changed_frames / self.positive_frames if self.positive_frames else 1.0


@dataclass(frozen=True)
class Agreement(FrameChanges):
    """How far gated scoring kept the answers of exhaustive scoring, on cases that neither side had learned from."""

    refined_share: Share
    """Of all frames."""


@dataclass(frozen=True)
class StudentConfig:
    """A small convolutional network that judges frames nearly as the ensemble does. `student.py` builds it,
    `training distil` makes it."""

    width: Annotated[int, Meta(ge=1, le=128)] = 32
    """Channels of the first stage; each further stage has twice as many, on half the side."""
    blocks: Annotated[tuple[Annotated[int, Meta(ge=0, le=16)], ...], Meta(min_length=1, max_length=6)] = (1, 2, 2, 2)
    """Residual blocks of each stage."""
    optimality: bool = True
    """It judges optimality too."""
    agreement: Agreement | None = None
    """As gate, on the cases that its settings were chosen on; None where it was not measured."""


@dataclass(frozen=True)
class HeadGain:
    """F1 over all frames without and with a case head, on cases that it had not learned from, each read by a reading
    that was fitted without its patient."""

    cases: Annotated[int, Meta(ge=2)]
    f1_without: Share
    f1_with: Share
    lower: Annotated[float, Meta(ge=-1, le=1)]
    """Ends of the 95 % interval of the difference, by subject."""
    upper: Annotated[float, Meta(ge=-1, le=1)]


@dataclass(frozen=True)
class CaseHeadConfig:
    """A small network that judges a frame's presence again, with all frames of its case in view. `heads.py` builds it,
    `training head` makes it."""

    components: Annotated[int, Meta(ge=1, le=1024)] = 32
    """Of the embeddings, less the mean of their case."""
    hidden: Annotated[int, Meta(ge=1, le=1024)] = 80
    neighbour_sigma_frames: Annotated[float, Meta(gt=0, le=100)] = 4.0
    """Gaussian mean of the neighbours' embeddings along a sweep."""
    gain: HeadGain | None = None
    """None where it was not measured."""
