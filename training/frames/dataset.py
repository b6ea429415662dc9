"""The frames of some cases as one table, and batches of them read from the memory-mapped cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from acouslic.errors import AcouslicError
from training.frames.augment import draw_changes, equalise_some, published_copy
from training.recipe.settings import AugmentSettings
from training.release.cache import REPEATED, Cache, CachedCase


class FrameBatch(NamedTuple):
    """Frames as they lie in the cache, before augmentation and normalisation."""

    frames: Tensor
    """uint8 (B, S, S), grey levels."""
    masks: Tensor
    """uint8 (B, S, S), 1 where the frame's annotation is."""
    label: Tensor
    """int64 (B,): 0 nothing, 1 optimal, 2 suboptimal."""
    rows: Tensor
    """int64 (B,): where the frames stand in their table."""
    annotated: Tensor
    """int64 (annotated frames,): which of the batch have a label. Known here, a device need not be asked for it."""
    changes: Tensor
    """float32 (B, columns of `augment.Change`): how `apply_changes` changes them; (B, 0) is not at all."""


@dataclass(frozen=True)
class PlannedBatch:
    """Which frames a batch shows, and how their changes are drawn."""

    rows: NDArray[np.int64]
    """(B,): rows of the table."""
    copies: NDArray[np.int64]
    """(B,): which of its showings in an epoch each is, from 0."""
    seed: tuple[int, ...]
    """Of this batch alone."""


class FrameTable:
    """All frames of `cases`, one row each, in the cases' order. Holds small arrays; frames stay on the disk."""

    def __init__(self, cases: Sequence[CachedCase]) -> None:
        if not cases:
            raise AcouslicError("a frame table needs at least one case: check the split and the fold")
        self.cases = tuple(cases)
        counts = [case.frame_count for case in cases]
        self.first_row = np.concatenate([[0], np.cumsum(counts)])
        self.case = np.repeat(np.arange(len(cases)), counts)
        self.frame_index = np.concatenate([np.arange(count) for count in counts])
        self.label = np.concatenate([case.labels for case in cases])
        self.sweep = np.concatenate([case.sweep_of_frame for case in cases])
        self.repeated = np.concatenate([case.padding == REPEATED for case in cases])
        self.in_annotated_sweep = np.concatenate([_in_annotated_sweep(case) for case in cases])

    def __len__(self) -> int:
        return len(self.label)

    @cached_property
    def mask_pixels(self) -> NDArray[np.int64]:
        """(N,): pixels of each frame's mask at training size; 0 where there is none."""
        pixels = np.zeros(len(self), np.int64)
        for case, first in zip(self.cases, self.first_row[:-1], strict=True):
            if len(case.mask_frames):
                pixels[first + case.mask_frames] = np.count_nonzero(case.masks, axis=(1, 2))
        return pixels

    @property
    def mask_share(self) -> float:
        """Mean share of an annotated frame that its mask covers; 0.5 where no mask covers a pixel."""
        covered = self.mask_pixels[self.mask_pixels > 0]
        side = self.cases[0].frames.shape[-1]
        return float(covered.mean()) / side**2 if len(covered) else 0.5

    @cached_property
    def distance_to_annotated(self) -> NDArray[np.int64]:
        """(N,): frames to the nearest annotated one of the same sweep; a large number where the sweep has none."""
        return self._distance_to(self.label > 0)

    def _distance_to(self, wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
        """(N,): frames to the nearest one of `wanted` (N,) in the same sweep; a large number where it has none."""
        distance = np.full(len(self), np.iinfo(np.int32).max, np.int64)
        for case, first in zip(self.cases, self.first_row[:-1].tolist(), strict=True):
            for sweep in case.sweeps:
                frames = np.arange(first + sweep.start, first + sweep.stop)
                found = frames[wanted[frames]]
                if len(found):
                    distance[frames] = np.abs(frames[:, None] - found[None, :]).min(axis=1)
        return distance

    def presence_target(self, soft_ends: float) -> NDArray[np.float32]:
        """(N,): 1 for annotated frames and 0 for others; with `soft_ends` frames of doubt about where a run ends, the
        share of such ends, normally distributed, that would take the frame in."""
        annotated = self.label > 0
        if soft_ends == 0:
            return annotated.astype(np.float32)
        # An end lies half-way between two frames.
        inside = np.where(annotated, self._distance_to(~annotated), -self.distance_to_annotated)
        depth = inside - np.copysign(0.5, inside)
        return ndtr(depth / soft_ends).astype(np.float32)

    def read(self, rows: NDArray[np.int64]) -> FrameBatch:
        """The frames of the table at `rows`, int64 (B,), in their order and not changed yet; at least one."""
        cases = [self.cases[index] for index in self.case[rows]]
        frames = [case.frames[frame] for case, frame in zip(cases, self.frame_index[rows], strict=True)]
        masks = [case.mask(int(frame)) > 0 for case, frame in zip(cases, self.frame_index[rows], strict=True)]
        return FrameBatch(
            torch.from_numpy(np.stack(frames)),
            torch.from_numpy(np.stack(masks).view(np.uint8)),
            torch.from_numpy(self.label[rows].astype(np.int64)),
            torch.from_numpy(np.asarray(rows, np.int64)),
            torch.from_numpy(np.flatnonzero(self.label[rows])),
            torch.zeros(len(rows), 0),
        )


class FrameDataset(Dataset[FrameBatch]):
    """A table for torch's DataLoader, read and changed a whole batch at a time. Processes reopen the memory maps for
    themselves."""

    def __init__(self, table: FrameTable, augment: AugmentSettings, seed: int = 0) -> None:
        self.table = table
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> FrameBatch:
        return self.table.read(np.array([row]))

    def __getitems__(self, planned: PlannedBatch) -> FrameBatch:
        """One batch; the DataLoader calls this where it is there. What changes it is drawn from the batch's seed, what
        makes a published copy from the frame's: neither depends on who reads it, or when."""
        batch = self.table.read(planned.rows)
        rng = np.random.default_rng(planned.seed)
        if self.augment.recipe == "published":
            return self._published(batch, planned)
        equalise_some(batch.frames.numpy(), self.augment, rng)
        return batch._replace(changes=draw_changes(self.augment, len(planned.rows), rng))

    def _published(self, batch: FrameBatch, planned: PlannedBatch) -> FrameBatch:
        frames, masks = batch.frames.numpy(), batch.masks.numpy()
        for at, (row, copy) in enumerate(zip(planned.rows, planned.copies, strict=True)):
            rng = np.random.default_rng((self.seed, int(row), int(copy)))
            frames[at], masks[at] = published_copy(frames[at], masks[at], int(copy), rng)
        return batch


def table_of(cache: Cache, uuids: Sequence[str]) -> FrameTable:
    """The table of some of a cache's cases. Raises AcouslicError where the cache lacks one or `uuids` is empty."""
    return FrameTable([cache.case(uuid) for uuid in uuids])


def soft_masks(masks: Tensor, size: int) -> Tensor:
    """Masks uint8 (B, S, S) 0/1 as coverage float32 (B, size, size) in 0..1, by area or bilinearly."""
    squares = masks[:, None].float()
    if masks.shape[-1] >= size:
        return F.interpolate(squares, (size, size), mode="area")[:, 0]
    return F.interpolate(squares, (size, size), mode="bilinear", align_corners=False)[:, 0]


def _in_annotated_sweep(case: CachedCase) -> NDArray[np.bool_]:
    """(F,): the frame's sweep has a circumference in the csv, which is how the published code picks sweeps."""
    annotated = [value is not None for value in case.sweep_ac_mm]
    annotated += [False] * (len(case.sweeps) - len(annotated))
    return np.array(annotated)[case.sweep_of_frame]
