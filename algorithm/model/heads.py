"""A member's heads: presence and optimality on the embedding, the decoder on tokens; and the head of a whole case."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from algorithm.model.decoder import Decoder
from algorithm.model.networks import CaseHeadConfig, MemberConfig, TowerConfig

_TOP_FRAMES = 8
_KERNEL_SIGMAS = 4.0
_LOGIT_SCALE = 3.0
"""Brings logits to about the range of the projected embeddings."""
_STATISTICS = 6


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


class CaseHead(nn.Module):
    """Judges presence again, frame by frame, with all frames of the case in view.

    It looks at a frame's embedding less the mean of its case, projected to a few components; at the same smoothed along
    the sweep; at its distance from the case's likeliest frames; and at its logit beside those of its sweep and case.
    The order of the sweeps does not matter, and nothing of another case comes in. A new head changes nothing.
    """

    def __init__(self, config: CaseHeadConfig, output_dim: int) -> None:
        super().__init__()
        self.neighbour_sigma_frames = config.neighbour_sigma_frames
        self.projection = nn.Linear(output_dim, config.components, bias=False)
        self.hidden = nn.Linear(2 * config.components + _STATISTICS, config.hidden)
        self.change = nn.Linear(config.hidden, 1)
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)

    def forward(self, embedding: Tensor, logit: Tensor, seen: Tensor, sweeps: Sequence[range]) -> Tensor:
        """One member's calibrated logits (F,) of a case, as they are with the case in view, float32.

        `embedding` is (F, output_dim), `seen` bool (F,): the frames that are not black, which say nothing about
        the case. `sweeps` hold each frame once. Of a case of black frames the logits come back as they are.
        """
        if not bool(seen.any()):
            return logit
        features = self.features(embedding, logit, seen, sweeps)
        changed: Tensor = logit + self.change(F.gelu(self.hidden(features)))[:, 0]
        return changed

    def features(self, embedding: Tensor, logit: Tensor, seen: Tensor, sweeps: Sequence[range]) -> Tensor:
        """What the head looks at, (F, 2 components + 6); at least one frame is seen."""
        centred = self.projection(embedding - embedding[seen].mean(0))
        likeliest = logit[seen].softmax(0) @ centred[seen]
        top, median = _top(logit[seen]), logit[seen].median()
        smoothed, sweep_top = torch.zeros_like(centred), torch.zeros_like(logit)
        for sweep in sweeps:
            part = slice(sweep.start, sweep.stop)
            smoothed[part] = _smooth(centred[part], seen[part], self.neighbour_sigma_frames)
            of_seen = logit[part][seen[part]]
            sweep_top[part] = _top(of_seen) if len(of_seen) else median
        logits = torch.stack([logit, logit - top, logit - median, sweep_top - top], 1) / _LOGIT_SCALE
        nearness = centred @ likeliest / math.sqrt(centred.shape[1])
        distance = (centred - likeliest).square().mean(1)
        return torch.cat([logits, nearness[:, None], distance[:, None], centred, smoothed], 1)


def _top(logit: Tensor) -> Tensor:
    """The mean of the highest of (n,) logits, n at least 1."""
    return logit.topk(min(_TOP_FRAMES, len(logit))).values.mean()


def _smooth(values: Tensor, seen: Tensor, sigma_frames: float) -> Tensor:
    """Gaussian mean of (n, channels) along a sweep over its seen frames alone; 0 where none is near."""
    reach = math.ceil(_KERNEL_SIGMAS * sigma_frames)
    steps = torch.arange(-reach, reach + 1, dtype=values.dtype, device=values.device)
    kernel = torch.exp(-0.5 * (steps / sigma_frames).square())[None, None]
    weight = seen.to(values.dtype)
    total = F.conv1d((values * weight[:, None]).T[:, None], kernel, padding=reach)[:, 0].T
    weights = F.conv1d(weight[None, None], kernel, padding=reach)[0, 0, :, None]
    return torch.where(weights > 0, total / weights.clamp_min(torch.finfo(values.dtype).tiny), 0.0)
