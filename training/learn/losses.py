"""The losses, each per frame, so that several processes can share one mean over all their frames."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from training.recipe.settings import LossSettings

_FOCAL_GAMMA = 2.0
_DICE_SMOOTHING = 1.0


def presence_loss(logit: Tensor, target: Tensor, settings: LossSettings) -> Tensor:
    """Binary cross-entropy, or its focal form, of (B,) logits against (B,) bool or shares in 0..1; (B,) float32."""
    target = target.float()
    loss = F.binary_cross_entropy_with_logits(logit.float(), target, reduction="none")
    if settings.presence == "focal":
        right = torch.exp(-loss)
        loss = (1 - right) ** _FOCAL_GAMMA * loss
    return loss * (1.0 + (settings.positive_weight - 1.0) * target)


def ranking_loss(logit: Tensor, positive: Tensor, case: Tensor) -> Tensor:
    """How far frames of the same case stand in the wrong order: the mean of log(1 + exp(other - annotated)) over all
    pairs of an annotated frame and another, of (B,) logits, (B,) bool and (B,) numbers of cases; scalar, 0 without a
    pair. Each process has its own pairs."""
    pair = positive[:, None] & ~positive[None, :] & (case[:, None] == case[None, :])
    loss = F.softplus(logit.float()[None, :] - logit.float()[:, None])
    return (loss * pair).sum() / pair.sum().clamp(min=1)


def optimality_loss(logit: Tensor, optimal: Tensor) -> Tensor:
    """Binary cross-entropy of (B,) logits against (B,) bool; meant for annotated frames only; (B,) float32."""
    return F.binary_cross_entropy_with_logits(logit.float(), optimal.float(), reduction="none")


def mask_loss(logit: Tensor, target: Tensor, settings: LossSettings) -> Tensor:
    """Dice, or Dice and cross-entropy, of (B, G, G) logits against (B, G, G) coverage in 0..1; (B,) float32.

    `dice_pooled` counts the pixels of all frames together, as the published code does, and gives every frame the
    same value; in `dice_bce` frames with an empty mask have no Dice.
    """
    logit = logit.float()
    probability = logit.sigmoid()
    dimensions = (0, 1, 2) if settings.mask == "dice_pooled" else (1, 2)
    overlap = (probability * target).sum(dimensions)
    size = probability.sum(dimensions) + target.sum(dimensions)
    dice = 1 - (2 * overlap + _DICE_SMOOTHING) / (size + _DICE_SMOOTHING)
    if settings.mask == "dice_pooled":
        return dice.expand(len(logit))
    if settings.mask == "dice":
        return dice
    # Dice of an empty target is 1 for whatever is drawn: it would only teach to draw nothing, also where there is one.
    return dice * (target.amax((1, 2)) > 0) + F.binary_cross_entropy_with_logits(logit, target, reduction="none").mean(
        (1, 2)
    )


MASK_FIGURES = ("mask", "overlap", "size", "background")
"""What `mask_figures` says of a frame."""


def mask_figures(logit: Tensor, target: Tensor, settings: LossSettings) -> dict[str, Tensor]:
    """Of (B, G, G) logits and coverage, for each frame (B,) float32: `mask`, its loss; `overlap` and `size`, the sums
    over its pixels that a Dice is made of; `background`, the mean probability where there is no mask."""
    probability = logit.float().sigmoid()
    outside = target <= 0
    return {
        "mask": mask_loss(logit, target, settings),
        "overlap": (probability * target).sum((1, 2)),
        "size": probability.sum((1, 2)) + target.sum((1, 2)),
        "background": (probability * outside).sum((1, 2)) / outside.sum((1, 2)).clamp(min=1),
    }


def summarise_masks(figures: Mapping[str, NDArray[np.float32]], settings: LossSettings) -> dict[str, float]:
    """`mask`, the loss over frames with these figures, `mask_dice` pooled over all their pixels, and
    `mask_background`, the mean probability outside the masks of frames that have one.

    `dice_pooled` is one Dice over the pixels of all validation frames, as the published code has it: averaged over
    batches, of which half hold no annotation, near-perfect masks would be told from none by 0.03.
    """
    overlap, size = (float(figures[name].sum(dtype=np.float64)) for name in ("overlap", "size"))
    loss = (
        1 - (2 * overlap + _DICE_SMOOTHING) / (size + _DICE_SMOOTHING)
        if settings.mask == "dice_pooled"
        else float(figures["mask"].mean())
    )
    return {
        "mask": loss,
        "mask_dice": 2 * overlap / size if size else 0.0,
        "mask_background": float(figures["background"].mean()),
    }


def shared_mean(loss: Tensor, included: Tensor) -> Tensor:
    """The mean of (B,) losses over the frames `included` (B,) bool, of all processes together.

    Each process returns its sum over the average count of a process, so that the usual averaging of gradients over
    processes gives what one process with the whole batch would get. No frame at all: zero.
    """
    count = included.sum().float()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    return (loss * included).sum() / count.clamp(min=1e-6)
