"""Every setting of a training run, as frozen dataclasses whose defaults are our recipe.

`FAITHFUL_CLS` and `FAITHFUL_SEG` (`--faithful cls`, `--faithful seg`) are the published recipes (docs of
FetalCLIP-IQA, commit fbcbdd2), spelled as differences from ours, so that each difference can be ablated alone: start
from one preset and name one setting.
"""

from dataclasses import dataclass, field
from typing import Literal

ATTENTION_AND_MLP = ("q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj")


@dataclass(frozen=True)
class TowerSource:
    """Which visual tower a run starts from.

    Args:
        weights: a file (`.pt`, `.bin`, `.safetensors`; a whole CLIP or its visual part) or an open_clip hub id such
            as `hf-hub:owner/name`. Never a pickle with code in it.
        config: open_clip's model configuration (JSON file); null means FetalCLIP's ViT-L/14.
        random_init: start from random weights on purpose; without it, missing weights are an error.
        random_seed: decides the random weights; apart from the run's seed, so that members share one tower.
        kept_patches: `fan` drops the patches that hold no pixel of the field of view, in training and inference.
        train_all: train every weight of the tower instead of adapters.
    """

    weights: str | None = None
    config: str | None = None
    random_init: bool = False
    random_seed: int = 1
    kept_patches: Literal["all", "fan"] = "all"
    train_all: bool = False


@dataclass(frozen=True)
class AdapterSettings:
    """LoRA on the tower, made by peft.

    Args:
        rank: rank of the factors; 0 is no adapter (the tower stays frozen).
        alpha: the product is scaled by alpha / rank.
        dropout: on the adapter's input, in training only.
        targets: names of the linear layers that are adapted.
        last_blocks: adapt only this many blocks at the end of the tower; null means all of them.
        dead_out_proj: as in the published code, an adapter named on `out_proj` is never applied and never learns.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.1
    targets: tuple[str, ...] = ATTENTION_AND_MLP
    last_blocks: int | None = 6
    dead_out_proj: bool = False

    def live_targets(self) -> tuple[str, ...]:
        """The layers whose adapters have an effect: a dead one is not built, which changes no output."""
        return tuple(
            name for name in self.targets if not (self.dead_out_proj and name.rpartition(".")[2] == "out_proj")
        )


@dataclass(frozen=True)
class HeadSettings:
    """What is learned, together or apart.

    Args:
        presence: a linear head for "this frame shows the abdomen plane" (label 1 or 2).
        optimality: a linear head for "optimal rather than suboptimal", learned on annotated frames only.
        decoder: the mask decoder.
        taps: `even` spreads the decoder's four taps evenly; `published` takes blocks n//4, n//3, n//2 and n (6, 8, 12
            and 24 of 24) as the published code does.
        decoder_grid: side of the token grid the decoder works on; nothing is the tower's own, 14 the published one.
        filters: width of the decoder's last stage.
        detach_decoder: no gradient from the mask reaches the tower (the published decoder sits on a frozen tower).
        mask_prior: a fresh decoder starts by giving every pixel the mean share of a frame that the abdomen takes up;
            without it, one half (published).
        weights: a `heads.safetensors` of another run to start from, for the heads that both have.
    """

    presence: bool = True
    optimality: bool = True
    decoder: bool = True
    taps: Literal["even", "published"] = "even"
    decoder_grid: int | None = None
    filters: int = 32
    detach_decoder: bool = False
    mask_prior: bool = True
    weights: str | None = None


@dataclass(frozen=True)
class SamplingSettings:
    """Which frames an epoch shows.

    Args:
        sweeps: `all` six, or only `annotated` ones, those with a circumference (the published code).
        negatives_per_positive: frames without a label for each annotated one; null means all there are.
        hard_share: of these negatives, the share drawn from the hardest: first the neighbours of annotated runs,
            later those with the highest probability when last seen.
        near_frames: how far from an annotated frame a neighbour may be.
        min_positive_pixels: annotated frames with a smaller mask (in pixels of the training image) are left out;
            1 keeps every one.
        order: `spread` gives every batch its share of annotated frames; `shuffled` leaves it to chance (published).
        validation_stride: validation during training sees every annotated frame and every n-th of the others,
            weighted accordingly.
    """

    sweeps: Literal["all", "annotated"] = "all"
    negatives_per_positive: float | None = 4.0
    hard_share: float = 0.5
    near_frames: int = 12
    min_positive_pixels: int = 16
    order: Literal["spread", "shuffled"] = "spread"
    validation_stride: int = 4


@dataclass(frozen=True)
class AugmentSettings:
    """Random changes of a training batch, image and mask together. Probabilities are for each frame.

    Args:
        recipe: `sweep` for ours, drawn anew at each showing; `published` for fixed copies with colour jitter, CLAHE,
            +-20 degrees and +-20 % shift (`frames.augment.published_copy`), to which none of the following but
            `copies` applies; `none`.
        copies: an epoch of the published recipe shows each frame as it is and so many changed copies of it, the same
            ones in every epoch.
        flip: left to right.
        affine: rotation, shift and scale.
        degrees: largest rotation.
        shift: largest shift, as a share of the side.
        scale: smallest and largest scale.
        gain: brightness, contrast and gamma.
        attenuation: a gain that changes with depth.
        speckle: multiplicative noise.
        shadow: dark wedges along the beam.
        clahe: contrast-limited adaptive histogram equalisation.
        blur: a Gaussian of up to 0.5 % of the side, as of a softer scanner.
        noise: added grain, with a deviation of up to 8 % of the range.
    """

    recipe: Literal["sweep", "published", "none"] = "sweep"
    copies: int = 2
    flip: float = 0.5
    affine: float = 0.8
    degrees: float = 15.0
    shift: float = 0.08
    scale: tuple[float, float] = (0.85, 1.15)
    gain: float = 0.7
    attenuation: float = 0.5
    speckle: float = 0.5
    shadow: float = 0.3
    clahe: float = 0.1
    blur: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True)
class LossSettings:
    """What is minimised: a weighted sum over the heads a run has.

    Args:
        presence: `bce` or `focal` (Lin et al. 2017, gamma 2).
        positive_weight: factor on positive frames in the presence loss.
        soft_ends: how far, in frames, the ends of annotated runs are in doubt: there presence is taught as a share
            between 0 and 1; 0 takes the annotation as it is.
        ranking: weight of a loss that wants each annotated frame above every other frame of its case in the batch.
        mask: `dice_bce` or `dice` for each frame; `dice_pooled` over the pixels of all frames, as published.
        mask_frames: the decoder learns from `annotated` frames or from `all` of a batch.
        presence_factor: weight of the presence loss.
        optimality_factor: weight of the optimality loss.
        mask_factor: weight of the mask loss.
    """

    presence: Literal["bce", "focal"] = "bce"
    positive_weight: float = 1.0
    soft_ends: float = 0.0
    ranking: float = 0.0
    mask: Literal["dice_bce", "dice", "dice_pooled"] = "dice_bce"
    mask_frames: Literal["annotated", "all"] = "annotated"
    presence_factor: float = 1.0
    optimality_factor: float = 0.5
    mask_factor: float = 1.0


@dataclass(frozen=True)
class OptimiserSettings:
    """AdamW and its schedule.

    Args:
        learning_rate: for adapters and heads.
        decoder_learning_rate: for the decoder; null means the same.
        weight_decay: on weights with two or more dimensions.
        schedule: `cosine` falls to zero after the warm-up, `constant` stays.
        warmup_share: share of all steps over which the rate rises.
        epochs: passes over the sampled frames.
        batch_size: frames a step over all processes together.
        clip_norm: largest gradient norm; 0 is no clipping.
        ema_decay: exponential moving average of what is trained, used for validation and kept; 0 is none.
        keep: the epoch that is kept: highest validation F1, lowest validation loss, or the last.
        patience_epochs: stop when the kept quantity has not improved for this many epochs; null means never.
    """

    learning_rate: float = 3e-4
    decoder_learning_rate: float | None = 5e-3
    weight_decay: float = 0.05
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_share: float = 0.05
    epochs: int = 12
    batch_size: int = 32
    clip_norm: float = 1.0
    ema_decay: float = 0.998
    keep: Literal["f1", "loss", "last"] = "f1"
    patience_epochs: int | None = 4


@dataclass(frozen=True)
class MachineSettings:
    """Where and how it runs; passed to Lightning's Trainer.

    Args:
        accelerator: `auto`, `cpu`, `gpu`.
        devices: how many on each node, or `auto`.
        nodes: how many machines.
        strategy: `auto`, `ddp`, ...
        precision: `auto` is autocast to bfloat16 where the device is fast in it, or to float16, else float32.
        workers: processes that read frames and change what is changed by OpenCV; null means two beside a GPU, none
            beside a CPU.
        checkpoint_blocks: recompute adapted blocks in the backward pass instead of keeping them (less memory).
        threads: CPU threads of torch; null means what the machine allows.
    """

    accelerator: str = "auto"
    devices: int | Literal["auto"] = "auto"
    nodes: int = 1
    strategy: str = "auto"
    precision: Literal["auto", "bf16-mixed", "16-mixed", "32-true"] = "auto"
    workers: int | None = None
    checkpoint_blocks: bool = False
    threads: int | None = None


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides what one run learns. Defaults are our recipe."""

    tower: TowerSource = field(default_factory=TowerSource)
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    heads: HeadSettings = field(default_factory=HeadSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    machine: MachineSettings = field(default_factory=MachineSettings)
    seed: int = 1


_FAITHFUL_OPTIMISER = OptimiserSettings(
    learning_rate=3e-4,
    decoder_learning_rate=None,
    weight_decay=0.01,
    schedule="constant",
    warmup_share=0.0,
    epochs=5,
    batch_size=32,
    clip_norm=0.0,
    ema_decay=0.0,
    keep="loss",
    patience_epochs=None,
)
_FAITHFUL_SAMPLING = SamplingSettings(
    sweeps="annotated",
    negatives_per_positive=None,
    hard_share=0.0,
    min_positive_pixels=1,
    order="shuffled",
    validation_stride=1,
)

FAITHFUL_CLS = TrainSettings(
    adapter=AdapterSettings(
        rank=8, alpha=16, dropout=0.1, targets=("c_fc", "c_proj", "out_proj"), last_blocks=None, dead_out_proj=True
    ),
    heads=HeadSettings(presence=True, optimality=False, decoder=False),
    sampling=_FAITHFUL_SAMPLING,
    augment=AugmentSettings(recipe="published"),
    loss=LossSettings(presence="bce"),
    optimiser=_FAITHFUL_OPTIMISER,
)
"""The paper's FetalCLIP_CLS."""

FAITHFUL_SEG = TrainSettings(
    adapter=AdapterSettings(rank=0),
    heads=HeadSettings(
        presence=False,
        optimality=False,
        decoder=True,
        taps="published",
        decoder_grid=14,
        detach_decoder=True,
        mask_prior=False,
    ),
    sampling=_FAITHFUL_SAMPLING,
    augment=AugmentSettings(recipe="published"),
    loss=LossSettings(mask="dice_pooled", mask_frames="all"),
    optimiser=_FAITHFUL_OPTIMISER,
)
"""The paper's FetalCLIP_SEG: its encoder ran without gradients, so its adapters never learned."""

PRESETS = {"cls": FAITHFUL_CLS, "seg": FAITHFUL_SEG}
