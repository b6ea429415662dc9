"""Runs frames through a network in batches that fit the memory, and keeps the gate's work for frames seen again."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acouslic.errors import AcouslicError
from algorithm.engine.ensemble import GateScores, MemberScores
from algorithm.engine.outline_start import OutlineStart
from algorithm.engine.side_by_side import parts_for_cores, run_side_by_side
from algorithm.frames.preprocess import normalise
from algorithm.model.manifest import Manifest
from algorithm.model.networks import TowerConfig
from algorithm.process.memory import is_out_of_memory

CPU_BATCH_FRAMES = 8
"""On a CPU with two cores or one."""
_FRAMES_A_CORE = 4
_MOST_CPU_FRAMES = 64
"""On any number of cores, for the memory's sake."""
FIRST_BATCH_FRAMES = 2
"""A run's first batch is small: a person who waits soon sees that it works, and how fast."""
MAX_BATCH_FRAMES = 128
"""Larger ones are 3 % faster at best (bench/LOG.md, 33)."""
_MEMORY_SHARE = 0.4
"""Of a GPU's free memory: the estimate of a frame's activations is rough, and running out costs a repeated batch."""

TRUNK_BYTES = 256 << 20
"""For what the gate leaves behind: a case of 840 frames at a stride of 4 takes 220 MB with ViT-L. Frames beyond it are
run again, so that memory does not grow with the stack."""


class BatchScores(NamedTuple):
    """What was said of N frames."""

    presence: NDArray[np.float32]
    """(members, N)"""
    optimality: NDArray[np.float32]
    """(members with the head, N)"""
    embedding: NDArray[np.float32] | None
    """(members, N, output_dim); None where no case head wants it."""


log = logging.getLogger(__name__)


class NotNumbersError(AcouslicError):
    """Probabilities are NaN or infinite in the type that is computed in; another type may do."""


class Scorer(Protocol):
    """What scoring needs of `ensemble.Ensemble`."""

    @property
    def manifest(self) -> Manifest:
        """Of the artifact."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the images that members and gate take."""

    def trunk(self, images: Tensor) -> Tensor | None:
        """What `score` and `gate` begin with on (batch, 3, S, S), a tensor (batch, ...); None: nothing."""

    def score(self, images: Tensor, trunk: Tensor | None = None, *, keep: bool = False) -> MemberScores:
        """All members on (batch, 3, S, S), from their trunk on where it is given; `keep` what an outline needs too."""

    def gate(self, images: Tensor, trunk: Tensor | None = None) -> GateScores:
        """The gate of the manifest's scoring section, likewise."""


def choose_batch_frames(tower: TowerConfig, members: int, device: torch.device, dtype: torch.dtype) -> int:
    """Frames a batch: a power of two that a GPU's free memory holds with room to spare; on a CPU 4 for each core, at
    least 8 and at most 64.

    A power of two, so that small changes of free memory do not change a result in its last digits.
    """
    if device.type != "cuda":
        return max(CPU_BATCH_FRAMES, min(_MOST_CPU_FRAMES, _FRAMES_A_CORE * torch.get_num_threads()))
    tokens = 1 + tower.grid_size**2
    per_token = 8 * tower.width + 2 * tower.mlp_width
    frame_bytes = members * tokens * per_token * dtype.itemsize + 12 * tower.image_size**2
    # What torch has cached is free too.
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    fitting = int(_MEMORY_SHARE * (torch.cuda.mem_get_info(device)[0] + cached)) // frame_bytes
    return min(MAX_BATCH_FRAMES, 1 << max(0, fitting.bit_length() - 1))


class KeptTrunks:
    """What the gate has computed of some frames that all members share: the refined ones among them need it again."""

    def __init__(self) -> None:
        self._of_frame: dict[int, Tensor] = {}
        self._bytes = 0

    def keep(self, indices: Sequence[int], trunk: Tensor) -> None:
        """Remember the frames `indices` of a batch (batch, ...); no more than TRUNK_BYTES in all."""
        for index, of_frame in zip(indices, trunk, strict=True):
            if self._bytes + of_frame.nbytes > TRUNK_BYTES:
                return
            # A copy, for a view would hold on to the whole batch.
            self._of_frame[index] = of_frame.clone()
            self._bytes += of_frame.nbytes

    def keep_only(self, indices: Collection[int]) -> None:
        """Forget all frames but `indices`."""
        self.drop([index for index in self._of_frame if index not in indices])

    def drop(self, indices: Sequence[int]) -> int:
        """Forget the frames `indices`; returns how many of them were known."""
        dropped = [self._of_frame.pop(index) for index in indices if index in self._of_frame]
        self._bytes -= sum(of_frame.nbytes for of_frame in dropped)
        return len(dropped)

    def of(self, indices: Sequence[int], images: Tensor, run: Callable[[Tensor], Tensor | None]) -> Tensor | None:
        """The trunk (batch, ...) of a batch, `run` for those of its `images` only that are not known; None where
        nothing is known."""
        missing = [k for k, index in enumerate(indices) if index not in self._of_frame]
        if len(missing) == len(indices):
            return None
        found = {index: self._of_frame[index] for index in indices if index in self._of_frame}
        if missing:
            # Stacked, not indexed with the list: that would be copied to a GPU, which makes the host wait.
            fresh = run(torch.stack([images[k] for k in missing]))
            assert fresh is not None
            found |= {indices[k]: of_frame for k, of_frame in zip(missing, fresh, strict=True)}
        return torch.stack([found[index] for index in indices])


class Batches:
    """Runs frames through the gate and the ensemble batch by batch, in smaller ones from when memory runs out."""

    def __init__(self, ensemble: Scorer, frames: Tensor, batch_frames: int, wait_for: Callable[[int], None]) -> None:
        self.ensemble = ensemble
        self.frames = frames
        self.first_batch_at = 0.0
        self.reused = 0
        """How many frames were scored from the trunk that the gate had run."""
        self.starts: dict[int, OutlineStart] = {}
        """Of some frames, by index: what their outlines begin with."""
        self._outlined: Collection[int] = ()
        self._one_at_a_time = threading.Lock()
        """For what parts of a batch, which run side by side, note down."""
        self._trunks = KeptTrunks()
        self._clock = _DeviceClock(frames.device)
        self._first_batch: float | torch.cuda.Event | None = None
        self._batch_frames = batch_frames
        self._wait_for = wait_for

    def gate(
        self,
        indices: NDArray[np.int64],
        progress: Callable[[float], None],
        *,
        on_trunk: bool = True,
    ) -> BatchScores:
        """The gate as an ensemble of one; see `score`. One that works `on_trunk` leaves the frames' trunks behind."""
        network = self._gate_and_keep if on_trunk else self._gate_alone
        return self._run(network, indices, progress)

    def score(
        self, indices: NDArray[np.int64], progress: Callable[[float], None], *, outlined: Collection[int] = ()
    ) -> BatchScores:
        """All members on the frames at `indices`. `starts` gets what is known of the batches that hold one of those in
        `outlined`, for whom the gate has left no trunk."""
        self._outlined = outlined
        self._trunks.keep_only(set(indices.tolist()))
        return self._run(self._score_from_trunks, indices, progress)

    def _gate_and_keep(self, indices: Sequence[int], images: Tensor) -> MemberScores:
        trunk = self.ensemble.trunk(images)
        scores = self.ensemble.gate(images, trunk)
        if trunk is not None:
            with self._one_at_a_time:
                self._trunks.keep(indices, trunk)
        return _as_one_member(scores)

    def _gate_alone(self, _: Sequence[int], images: Tensor) -> MemberScores:
        return _as_one_member(self.ensemble.gate(images))

    def _score_from_trunks(self, indices: Sequence[int], images: Tensor) -> MemberScores:
        if not set(indices).isdisjoint(self._outlined):
            return self._score_and_keep(indices, images)
        scores = self.ensemble.score(images, self._trunks.of(indices, images, self.ensemble.trunk))
        with self._one_at_a_time:
            self.reused += self._trunks.drop(indices)
        return scores

    def _score_and_keep(self, indices: Sequence[int], images: Tensor) -> MemberScores:
        scores = self.ensemble.score(images, keep=True)
        if scores.start is not None:
            self.starts |= {index: scores.start.of_frame(number) for number, index in enumerate(indices)}
        return replace(scores, start=None)

    def _run(
        self,
        network: Callable[[Sequence[int], Tensor], MemberScores],
        indices: NDArray[np.int64],
        progress: Callable[[float], None],
    ) -> BatchScores:
        at = torch.from_numpy(indices).to(self.frames.device)
        presence, optimality, embedding = [], [], []
        start = 0
        while start < len(indices):
            count = self._batch_frames if self._first_batch else min(self._batch_frames, FIRST_BATCH_FRAMES)
            stop = min(start + count, len(indices))
            scores = self._try(network, indices[start:stop].tolist(), at[start:stop])
            if scores is None:
                self._halve()
                continue
            # Kept on the device: a copy to the host here would make it wait for every batch.
            presence.append(scores.presence_probability)
            optimality.append(scores.optimality_probability)
            if scores.embedding is not None:
                embedding.append(scores.embedding)
            start = stop
            if self._first_batch is None:
                self._first_batch = self._clock.mark()
            progress(start / len(indices))
        found = [torch.cat(parts, 1).float().cpu().numpy() for parts in (presence, optimality, embedding) if parts]
        if not self.first_batch_at and self._first_batch is not None:
            self.first_batch_at = self._clock.passed_at(self._first_batch)
        if not all(np.isfinite(values).all() for values in found):
            raise NotNumbersError(
                f"the model gives probabilities that are not numbers in {self.ensemble.dtype}: its weights are damaged "
                "or overflow; if they overflow, `acouslic train precision` makes the algorithm use another type"
            )
        return BatchScores(found[0], found[1], found[2] if embedding else None)

    def _try(
        self,
        network: Callable[[Sequence[int], Tensor], MemberScores],
        indices: Sequence[int],
        at: Tensor,
    ) -> MemberScores | None:
        """One batch, or None where memory ran out. The failed batch's tensors are free once this has returned."""

        def judge(part: slice) -> MemberScores:
            with torch.inference_mode():
                frames = self.frames.index_select(0, at[part])
                images = normalise(frames, self.ensemble.manifest.preprocessing, self.ensemble.dtype)
                return network(indices[part], images)

        try:
            self._wait_for(max(indices) + 1)
            return _together(run_side_by_side(judge, parts_for_cores(len(indices), self.frames.device)))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _halve(self) -> None:
        if self._batch_frames == 1:
            otherwise = ", or use the CPU" if self.frames.device.type == "cuda" else ""
            raise AcouslicError(f"{self.frames.device} has no memory for the model and one frame: free some{otherwise}")
        self._batch_frames //= 2
        self._trunks = KeptTrunks()
        # Computed again where an outline wants them, as trunks are.
        self.starts.clear()
        log.info("out of memory on %s: going on with batches of %d", self.frames.device, self._batch_frames)
        if self.frames.device.type == "cuda":
            torch.cuda.empty_cache()


def _together(parts: Sequence[MemberScores]) -> MemberScores:
    """The parts of a batch as one."""
    if len(parts) == 1:
        return parts[0]
    with torch.inference_mode():
        presence = torch.cat([part.presence_probability for part in parts], 1)
        optimality = torch.cat([part.optimality_probability for part in parts], 1)
        embeddings = [part.embedding for part in parts if part.embedding is not None]
        return MemberScores(presence, optimality, torch.cat(embeddings, 1) if embeddings else None)


def _as_one_member(scores: GateScores) -> MemberScores:
    presence, optimality = scores.presence_probability, scores.optimality_probability
    return MemberScores(
        presence[None], presence.new_empty(0, len(presence)) if optimality is None else optimality[None]
    )


class _DeviceClock:
    """Says when queued work was done, once it is known to be, so that nobody has to wait to look at a clock."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._started_at = time.monotonic()
        # Nothing is queued yet, so the GPU passes this mark at once.
        self._start = self.mark()

    def mark(self) -> float | torch.cuda.Event:
        """A mark behind everything that is queued by now."""
        if not self._on_gpu:
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def passed_at(self, mark: float | torch.cuda.Event) -> float:
        """When `mark` was passed, in terms of `time.monotonic()`; the work behind it must be done."""
        if isinstance(mark, float):
            return mark
        assert isinstance(self._start, torch.cuda.Event)
        return self._started_at + self._start.elapsed_time(mark) / 1000
