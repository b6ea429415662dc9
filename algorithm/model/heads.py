"""A member's heads: presence and optimality on the embedding, the decoder on tokens."""

import math

import torch
from torch import Tensor, nn

from algorithm.model.decoder import Decoder
from algorithm.model.manifest import MemberConfig, TowerConfig


class Heads(nn.Module):
    """The heads that `member` declares; its state dict has the names of `heads.safetensors`.

    `presence` and `optimality` are linear layers from the embedding (batch, output_dim) to one logit (batch, 1):
    presence is "there is an abdomen plane" (label 1 or 2), optimality "it is an optimal one" (1 against 2).
    """

    def __init__(self, member: MemberConfig, tower: TowerConfig) -> None:
        super().__init__()
        self.presence = nn.Linear(tower.output_dim, 1) if member.presence else None
        self.optimality = nn.Linear(tower.output_dim, 1) if member.optimality else None
        self.decoder = Decoder(member.decoder, tower.width) if member.decoder else None


def presence_from_mask(mask_probability: Tensor, fraction: float) -> Tensor:
    """Presence logits (...,) of masks (..., rows, columns) in 0..1: the odds of the share of pixels above 0.5, against
    `fraction`.

    Probability 0.5 is reached exactly where that share is `fraction` (FETALCLIP_SEG's rule, 1 % of the pixels), 0 where
    no pixel is above 0.5; the logit is the log of the ratio of the two odds, so it grows with the share.
    """
    share = (mask_probability > 0.5).float().mean(dim=(-2, -1))
    # A logit of +-30 is a probability of 0 or 1 to float32, and stays finite under a temperature.
    return (torch.logit(share, eps=1e-12) - math.log(fraction / (1 - fraction))).clamp(-30, 30)
