"""What the optimiser is given: which parameters at which rate, and how the rate changes."""

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from training.recipe.settings import TrainSettings


def parameter_groups(network: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
    """Trained parameters by learning rate and by whether they decay: matrices do, biases and norms do not."""
    optimiser = settings.optimiser
    decoder_rate = optimiser.decoder_learning_rate
    if decoder_rate is None:
        decoder_rate = optimiser.learning_rate
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((".decoder." in name, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": decoder_rate if decoder else optimiser.learning_rate,
            "weight_decay": optimiser.weight_decay if decays else 0.0,
        }
        for (decoder, decays), parameters in groups.items()
    ]


def rate_factor(schedule: str, warmup_steps: int, steps: int) -> Callable[[int], float]:
    """Factor on the learning rate at a step: a linear rise, then constant or half a cosine down to zero."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        if schedule == "constant":
            return 1.0
        share = (step - warmup_steps) / max(1, steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    return factor
