"""Which frames an epoch shows, in which order, in which batch: a function of settings, seed and epoch alone."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acouslic.errors import AcouslicError
from training.frames.dataset import FrameTable
from training.recipe.settings import SamplingSettings

Rows = NDArray[np.int64]

_UNSEEN = -1.0


class HardNegatives:
    """The presence probability each row of a table had when it was last seen in training; -1 where it never was.

    What an epoch says is noted where it is computed, and counts from the next epoch on: a plan follows from what was
    known at its start.
    """

    def __init__(self, rows: int) -> None:
        self.last_seen = np.full(rows, _UNSEEN, np.float32)
        self.noted = torch.full((rows,), _UNSEEN)
        """In this epoch so far, on the device that trains."""

    def note(self, rows: Tensor, probability: Tensor) -> None:
        """Remember what the model said about some rows, int64 and float32 (B,). Nobody waits for it."""
        self.noted[rows] = probability

    def learn(self, noted: Tensor) -> None:
        """Let what all processes noted, in the form of `noted`, count; an epoch has ended."""
        values = noted.cpu().numpy()
        self.last_seen = np.where(values >= 0, values, self.last_seen)
        self.noted.fill_(_UNSEEN)


def plan_epoch(
    table: FrameTable, settings: SamplingSettings, hard: HardNegatives, seed: int, epoch: int, showings: int = 1
) -> Rows:
    """What an epoch shows, in its order: rows, or with several `showings` of each row numbers `row * showings + k`.
    With `sweeps` of the settings only those of sweeps with a circumference, annotated frames too, as the published code
    picks them. `order` says whether annotated frames are spread evenly among the others, or all are shuffled.

    Frames without label: all of them, or `negatives_per_positive` for each annotated one, of which `hard_share` come
    from the hard ones (neighbours of annotated runs that were not seen yet, and what scored highest when last seen).
    Raises AcouslicError where there is no annotated frame.
    """
    rng = np.random.default_rng((seed, epoch))
    usable = table.in_annotated_sweep if settings.sweeps == "annotated" else np.ones(len(table), bool)
    positive = np.flatnonzero((table.label > 0) & usable & (table.mask_pixels >= settings.min_positive_pixels))
    negative = np.flatnonzero((table.label == 0) & usable & ~table.repeated)
    if len(positive) == 0:
        raise AcouslicError(
            "no annotated frame to train on: check the split, sampling.min_positive_pixels and sampling.sweeps"
        )
    if settings.negatives_per_positive is not None:
        wanted = min(len(negative), round(settings.negatives_per_positive * len(positive)))
        negative = _choose_negatives(table, negative, wanted, settings, hard, rng)
    positive, negative = ((rows[:, None] * showings + np.arange(showings)).flatten() for rows in (positive, negative))
    if settings.order == "shuffled":
        return rng.permutation(np.concatenate([positive, negative]))
    return _mix(rng.permutation(positive), rng.permutation(negative), rng)


def batches_of(rows: Rows, batch_size: int, rank: int, world_size: int) -> list[Rows]:
    """Full batches of `batch_size` rows over all processes; this process's share of each, in order.

    The last rows that fill no batch are left out, unless they are all there is.
    """
    if batch_size % world_size:
        raise AcouslicError(f"optimiser.batch_size {batch_size} is not a multiple of {world_size} processes")
    full = len(rows) // batch_size
    if full == 0:
        return [rows[rank::world_size]]
    return [rows[start * batch_size : (start + 1) * batch_size][rank::world_size] for start in range(full)]


def validation_rows(table: FrameTable, stride: int, *, annotated_sweeps_only: bool) -> tuple[Rows, NDArray[np.float32]]:
    """Every annotated frame and every `stride`-th of the others: their rows (R,), ascending, and their weights (R,).

    An annotated frame weighs 1; the others share the weight of all frames without a label, skipped ones included.
    Raises AcouslicError where there are others and none is one of them: every network would be right.
    """
    usable = table.in_annotated_sweep if annotated_sweeps_only else np.ones(len(table), bool)
    rows = np.flatnonzero(usable & ((table.label > 0) | (table.frame_index % stride == 0)))
    others = table.label[rows] == 0
    if not others.any() and (usable & (table.label == 0)).any():
        raise AcouslicError(
            f"sampling.validation_stride {stride} shows no frame without a label in validation: give a smaller one"
        )
    skipped = int(np.count_nonzero(usable & (table.label == 0))) / max(1, int(np.count_nonzero(others)))
    return rows, np.where(others, skipped, 1.0).astype(np.float32)


def _choose_negatives(
    table: FrameTable,
    negative: Rows,
    wanted: int,
    settings: SamplingSettings,
    hard: HardNegatives,
    rng: np.random.Generator,
) -> Rows:
    """`wanted` different rows of `negative`: the hard share first, the rest at random."""
    near = table.distance_to_annotated[negative] <= settings.near_frames
    last = hard.last_seen[negative]
    # What was never seen ranks by place alone: neighbours of annotated runs count as if they had scored 0.5.
    difficulty = np.where(last >= 0, last, np.where(near, 0.5, 0.0)) + 0.05 * rng.random(len(negative))
    pool = np.argsort(-difficulty, kind="stable")[: 2 * round(wanted * settings.hard_share)]
    picked = rng.permutation(pool)[: round(wanted * settings.hard_share)]
    rest = np.setdiff1d(np.arange(len(negative)), picked)
    return negative[np.concatenate([picked, rng.permutation(rest)[: wanted - len(picked)]])]


def _mix(first: Rows, second: Rows, rng: np.random.Generator) -> Rows:
    """Both, each spread evenly over the whole, so that every batch holds nearly the same share of each."""
    rows = np.concatenate([first, second])
    places = [(np.arange(len(part)) + rng.random(len(part))) / max(1, len(part)) for part in (first, second)]
    return rows[np.argsort(np.concatenate(places), kind="stable")]
