"""The type that training computes in."""

import torch

from algorithm.engine.device import half_types


def autocast_type(device: torch.device) -> tuple[torch.dtype, str]:
    """What training's autocast computes in on `device`, with the reason.

    bfloat16 where it is fast: gradients need range, which float16 lacks, more than digits.
    """
    types, reason = half_types(device)
    if torch.bfloat16 in types:
        return torch.bfloat16, reason
    return types[0] if types else torch.float32, reason
