"""Settings that no run can have, refused before one starts."""

from acouslic.errors import AcouslicError
from training.recipe.settings import TrainSettings

_ANY = float("inf")
_LARGEST_SEED = 2**32 - 1
"""NumPy and scikit-learn take no larger one."""

_LIMITS: dict[str, tuple[float, float]] = {
    "adapter.rank": (0, _ANY),
    "adapter.alpha": (1, _ANY),
    "adapter.dropout": (0, 0.99),
    "adapter.last_blocks": (1, _ANY),
    "heads.decoder_grid": (1, _ANY),
    "heads.filters": (1, _ANY),
    "sampling.negatives_per_positive": (0, _ANY),
    "sampling.hard_share": (0, 1),
    "sampling.near_frames": (0, _ANY),
    "sampling.min_positive_pixels": (1, _ANY),
    "sampling.validation_stride": (1, _ANY),
    "augment.copies": (0, _ANY),
    "augment.degrees": (0, 180),
    "augment.shift": (0, 1),
    "loss.positive_weight": (0, _ANY),
    "loss.soft_ends": (0, _ANY),
    "loss.ranking": (0, _ANY),
    "loss.presence_factor": (0, _ANY),
    "loss.optimality_factor": (0, _ANY),
    "loss.mask_factor": (0, _ANY),
    "optimiser.learning_rate": (0, _ANY),
    "optimiser.decoder_learning_rate": (0, _ANY),
    "optimiser.weight_decay": (0, _ANY),
    "optimiser.warmup_share": (0, 1),
    "optimiser.epochs": (1, _ANY),
    "optimiser.batch_size": (1, _ANY),
    "optimiser.clip_norm": (0, _ANY),
    "optimiser.ema_decay": (0, 0.999999),
    "optimiser.patience_epochs": (1, _ANY),
    "machine.nodes": (1, _ANY),
    "machine.workers": (0, _ANY),
    "machine.threads": (1, _ANY),
}
_LIMITS.update(
    {
        f"augment.{name}": (0, 1)
        for name in ("flip", "affine", "gain", "attenuation", "speckle", "shadow", "clahe", "blur", "noise")
    }
)
"""Smallest and largest value of each number, none of which may be infinite; None passes where a setting allows it."""


def check_seed(name: str, seed: int) -> int:
    """The seed itself. Raises AcouslicError, naming the option, where it is no seed for NumPy: 0 to 2**32 - 1."""
    if not 0 <= seed <= _LARGEST_SEED:
        raise AcouslicError(f"{name} must be between 0 and {_LARGEST_SEED}, not {seed}")
    return seed


def check_settings(settings: TrainSettings) -> TrainSettings:
    """The settings themselves. Raises AcouslicError, naming the setting, for values that no run can have."""
    check_seed("seed", settings.seed)
    for name, (low, high) in _LIMITS.items():
        section, _, field = name.partition(".")
        value = getattr(getattr(settings, section), field)
        if value is not None and not (low <= value <= high and value < _ANY):
            limit = f"at least {low:g}" if high == _ANY else f"between {low:g} and {high:g}"
            raise AcouslicError(f"{name} must be {limit}, not {value}")
    low, high = settings.augment.scale
    if not 0 < low <= high < _ANY:
        raise AcouslicError(f"augment.scale must be two ascending positive factors, not {low:g} and {high:g}")
    if not settings.adapter.targets:
        raise AcouslicError("adapter.targets is empty: for no adapter set adapter.rank to 0")
    if settings.tower.train_all and settings.adapter.rank:
        raise AcouslicError("tower.train_all trains every weight: set adapter.rank to 0 with it")
    if settings.loss.mask_frames == "annotated" and not settings.heads.presence:
        raise AcouslicError(
            "without heads.presence the mask judges every frame: set loss.mask_frames to all, or it never learns to be "
            "empty"
        )
    return settings
