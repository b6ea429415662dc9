"""Random changes of a training batch on its device: geometry on image and mask together, looks on the image alone.

Geometry, flips, jitter and CLAHE are kornia's, drawn anew for each frame. Depth attenuation, speckle and shadows have
no counterpart there that follows the beams, so they are drawn here.
"""

import math

import kornia.augmentation as kornia
import torch
from torch import Tensor

from training.recipe.settings import AugmentSettings

# The probe's virtual apex and reach in the square frame, as shares of its side: beams fan out from here
# (docs of the challenge: 744 px side, apex 185 px above the first row, which lies 91 px below the square's top).
_APEX_X, _APEX_Y = 0.5, (91 - 185) / 744
_FIRST_RADIUS, _LAST_RADIUS = 213 / 744, 748 / 744
_HALF_ANGLE = math.atan(0.5747)


class BatchAugmentation:
    """Augments batches as `settings` says; torch's random state decides how."""

    def __init__(self, settings: AugmentSettings) -> None:
        self.settings = settings
        self._together: kornia.AugmentationSequential | None = None
        if settings.recipe == "sweep":
            self._together = _sweep_recipe(settings)
        elif settings.recipe == "published":
            self._together = _published_recipe()

    def __call__(self, frames: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Frames and masks uint8 (B, S, S), masks 0/1, to the same form.

        Padding and the outside of the fan stay black, since nothing here adds light; CLAHE alone lifts them by a few
        grey levels.
        """
        if self._together is None or len(frames) == 0:
            return frames, masks
        # A grid of positions in half precision is off by half a pixel, in steps.
        with torch.autocast(frames.device.type, enabled=False):
            return self._change(self._together, frames, masks)

    def _change(self, together: kornia.AugmentationSequential, frames: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        grey = frames[:, None].float() / 255
        if self.settings.recipe == "sweep":
            changed = together(self._change_beams(grey), masks[:, None].float())
            return _to_bytes(changed[0]), (changed[1][:, 0] > 0.5).to(torch.uint8)
        copies = self.settings.copies
        chosen = torch.rand(len(frames), device=frames.device) < copies / (copies + 1)
        if not chosen.any():
            return frames, masks
        changed = together(grey[chosen], masks[chosen][:, None].float())
        frames, masks = frames.clone(), masks.clone()
        frames[chosen] = _to_bytes(changed[0])
        masks[chosen] = (changed[1][:, 0] > 0.5).to(torch.uint8)
        return frames, masks

    def _change_beams(self, grey: Tensor) -> Tensor:
        """Depth attenuation, shadows and speckle on grey levels (B, 1, S, S) in 0..1."""
        count, size, device = len(grey), grey.shape[-1], grey.device
        depth, angle = _beam_coordinates(size, device)
        settings = self.settings
        slope = _some(count, settings.attenuation, device) * _uniform(count, -0.6, 0.6, device)
        factor = 1 + slope * (depth - 0.5)
        strength = _some(count, settings.shadow, device) * _uniform(count, 0.2, 0.9, device)
        centre, width = _uniform(count, -0.9, 0.9, device), _uniform(count, 0.04, 0.16, device)
        start = _uniform(count, 0.0, 0.6, device)
        below = ((depth - start) / 0.1).clamp(0, 1)
        factor = factor * (1 - strength * torch.exp(-(((angle - centre) / width) ** 2)) * below)
        amount = _some(count, settings.speckle, device) * _uniform(count, 0.05, 0.3, device)
        grain = torch.randn(count, 1, size, size, device=device)
        grain = torch.nn.functional.avg_pool2d(grain, (1, 3), stride=1, padding=(0, 1)) * math.sqrt(3)
        return (grey * factor * (1 + amount * grain)).clamp(0, 1)


def _sweep_recipe(settings: AugmentSettings) -> kornia.AugmentationSequential:
    return kornia.AugmentationSequential(
        kornia.RandomHorizontalFlip(p=settings.flip),
        kornia.RandomAffine(
            settings.degrees, translate=(settings.shift, settings.shift), scale=settings.scale, p=settings.affine
        ),
        # Contrast multiplies and gamma bends: both keep black black, as the display's gain does.
        kornia.RandomGamma(gamma=(0.7, 1.4), gain=(0.75, 1.3), p=settings.gain),
        kornia.RandomClahe(clip_limit=(1.0, 3.0), p=settings.clahe),
        data_keys=["input", "mask"],
    )


def _published_recipe() -> kornia.AugmentationSequential:
    """Colour jitter, CLAHE, affine +-20 degrees and +-20 % shift (FetalCLIP-IQA, commit fbcbdd2)."""
    return kornia.AugmentationSequential(
        kornia.RandomGamma(gamma=(0.8, 1.2), gain=(0.8, 1.2), p=1.0),
        kornia.RandomClahe(clip_limit=(1.0, 4.0), p=0.5),
        kornia.RandomAffine(20.0, translate=(0.2, 0.2), p=1.0),
        data_keys=["input", "mask"],
    )


def _beam_coordinates(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Depth 0..1 along the beam and angle -1..1 across the fan, each (1, 1, S, S)."""
    at = (torch.arange(size, device=device) + 0.5) / size
    dx, dy = at[None, :] - _APEX_X, at[:, None] - _APEX_Y
    depth = (torch.hypot(dx, dy) - _FIRST_RADIUS) / (_LAST_RADIUS - _FIRST_RADIUS)
    return depth.clamp(0, 1)[None, None], (torch.atan2(dx, dy) / _HALF_ANGLE)[None, None]


def _uniform(count: int, low: float, high: float, device: torch.device) -> Tensor:
    return torch.rand(count, 1, 1, 1, device=device) * (high - low) + low


def _some(count: int, probability: float, device: torch.device) -> Tensor:
    """1 for about `probability` of the frames, else 0."""
    return (torch.rand(count, 1, 1, 1, device=device) < probability).float()


def _to_bytes(grey: Tensor) -> Tensor:
    return (grey[:, 0] * 255).round().clamp(0, 255).to(torch.uint8)
