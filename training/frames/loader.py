"""The batches of an epoch on their way to the device, read ahead of it where that is worth a process."""

from collections.abc import Iterator, Sequence

import cv2
import torch
from torch.utils.data import DataLoader

from algorithm.process.cores import usable_cores
from training.frames.dataset import FrameBatch, FrameDataset, PlannedBatch

_READERS_OF_A_GPU = 2
"""One takes 16 ms for 32 frames of the published recipe and 4 ms of ours at 224 pixels, on a core of a Xeon. More would
need more than the 64 MB of shared memory that containers have."""


def make_loader(
    dataset: FrameDataset, batches: Sequence[PlannedBatch], done: int, device: torch.device, processes: int | None
) -> DataLoader[FrameBatch]:
    """The batches from number `done` on, read by `processes` processes; None chooses what suits the device.
    Their number changes nothing in a batch."""
    if processes is None:
        processes = min(_READERS_OF_A_GPU, usable_cores()[0] - 1) if device.type == "cuda" else 0
    return DataLoader(
        dataset,
        batch_sampler=RemainingBatches(batches, done),  # type: ignore[arg-type]  # whole batches, not rows
        num_workers=processes,
        pin_memory=device.type == "cuda",
        collate_fn=_whole_batch,  # type: ignore[arg-type]  # the dataset gives whole batches
        worker_init_fn=_begin_reading if processes else None,
    )


class RemainingBatches:
    """The batches of an epoch for a DataLoader, from the one on that comes next; its length counts all of them, as
    Lightning's progress does."""

    def __init__(self, batches: Sequence[PlannedBatch], done: int) -> None:
        self._batches = batches
        self._done = done

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[PlannedBatch]:
        return iter(self._batches[self._done :])


def _begin_reading(_: int) -> None:
    """OpenCV's threads do not survive a fork, and one core a process is enough."""
    cv2.setNumThreads(0)


def _whole_batch(batch: FrameBatch) -> FrameBatch:
    return batch
