"""Holds a written artifact against the networks that were trained, before anyone gets to see it.

It does so twice. On the tower as it is stored, rounded or not, both must say the same, apart from the order of sums:
this shows a wrong bias, a lost adapter or masks that are too large. What rounding the tower costs has a bound of its
own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from acouslic.errors import AcouslicError
from algorithm.engine.ensemble import Ensemble
from algorithm.frames.preprocess import normalise
from algorithm.model.artifact import load_artifact
from training.export.trained_member import TrainedMember, rebuild_network
from training.frames.dataset import FrameTable
from training.network.model import all_rows
from training.network.tower_source import LoadedTower

PARITY_FRAMES = 16
SAME_WEIGHTS = 1e-3
"""Largest difference of a probability, of a frame or of a pixel, where both sides have the same weights."""
ROUNDED_TOWER = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.02}
"""Largest difference of a frame's probability that the tower's rounding may make."""


@dataclass(frozen=True)
class Difference:
    """The largest differences between artifact and networks; not a number where one of them says none."""

    probability: float
    """Of presence and optimality."""
    mask: float
    """Of any pixel of any frame; 0 without a decoder."""

    def refuse_above(self, probability: float, mask: float, what: str) -> None:
        """Raises AcouslicError above a tolerance, and for what is no number."""
        for name, found, tolerance in (
            ("probabilities", self.probability, probability),
            ("masks", self.mask, mask),
        ):
            if not found <= tolerance:  # true for NaN as well
                says = (
                    "are not all numbers" if math.isnan(found) else f"differ by {found:.2g}, more than {tolerance:g},"
                )
                raise AcouslicError(f"not exported: the artifact's {name} {says} from the trained networks' {what}")


def refuse_unless_equal(
    folder: Path, members: Sequence[TrainedMember], loaded: LoadedTower, table: FrameTable, tower_dtype: str
) -> None:
    """Hold the artifact, read by algorithm's loader, against the networks of `members`, on frames of `table`.

    `loaded` is the tower that they were trained on. Raises AcouslicError where they differ.
    """
    artifact = load_artifact(folder)
    images = normalise(_spread_frames(table), loaded.preprocessing, torch.float32)
    ensemble = Ensemble.from_artifact(artifact, torch.device("cpu"), torch.float32)
    stored = {name: tensor.float() for name, tensor in artifact.tower_state.items()}
    same = _compare(ensemble, members, LoadedTower(loaded.config, loaded.preprocessing, stored, ""), images)
    same.refuse_above(SAME_WEIGHTS, SAME_WEIGHTS, "on the same tower")
    print(
        f"read back: probabilities within {same.probability:.2g} and masks within {same.mask:.2g} of the trained "
        "networks' on the same tower",
        flush=True,
    )
    if tower_dtype == "float32":
        return
    rounded = _compare(ensemble, members, loaded, images)
    rounded.refuse_above(ROUNDED_TOWER[tower_dtype], 1.0, f"on the tower before it was rounded to {tower_dtype}")
    print(f"the tower in {tower_dtype} moves a probability by up to {rounded.probability:.2g}", flush=True)


def _compare(ensemble: Ensemble, members: Sequence[TrainedMember], loaded: LoadedTower, images: Tensor) -> Difference:
    scores, masks = ensemble.score(images), ensemble.segment(images)
    probability, mask = [torch.zeros(())], [torch.zeros(())]
    decoder_row, optimality_row = 0, 0
    for k, member in enumerate(members):
        network = rebuild_network(member, loaded)
        with torch.inference_mode():
            output = network(images, all_rows(images) if member.config.decoder else None)
            presence = network.presence_of(output)
        calibration = member.calibration
        expected = (presence / calibration.presence_temperature).sigmoid()
        if member.config.presence:  # a judgement by the mask jumps with single pixels: the mask itself is compared
            probability.append((scores.presence_probability[k] - expected).abs().max())
        if output.optimality is not None:
            expected = output.optimality / calibration.optimality_temperature
            probability.append((scores.optimality_probability[optimality_row] - expected.sigmoid()).abs().max())
            optimality_row += 1
        if output.mask is not None:
            size = masks.shape[-2:]
            expected = torch.nn.functional.interpolate(output.mask.sigmoid()[:, None], size, mode="bilinear")[:, 0]
            mask.append((masks[decoder_row] - expected).abs().max())
            decoder_row += 1
    # torch's max keeps a NaN, Python's would drop it.
    return Difference(float(torch.stack(probability).max()), float(torch.stack(mask).max()))


def _spread_frames(table: FrameTable) -> Tensor:
    """Half of them annotated, each half spread evenly over the table; uint8 (PARITY_FRAMES, S, S)."""
    half = PARITY_FRAMES // 2
    parts = (np.flatnonzero(table.label > 0), np.flatnonzero(table.label == 0))
    rows = [part[np.linspace(0, len(part) - 1, half).astype(np.int64)] for part in parts if len(part)]
    return table.read(np.concatenate(rows)).frames
