"""Every frame gets a probability: from the whole ensemble, or from a gate and the ensemble where it matters."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acouslic.errors import AcouslicError
from acouslic.geometry import sweep_ranges
from algorithm.ensemble import GateScores, MemberScores
from algorithm.manifest import Manifest, ScoringConfig, TowerConfig
from algorithm.preprocess import normalise
from algorithm.select_frame import Values, frame_quality, in_context, judge_frames

CPU_BATCH_FRAMES = 8
FIRST_BATCH_FRAMES = 2
"""A run's first batch: what a person who waits sees first is that it works, and how fast."""
MAX_BATCH_FRAMES = 128
"""A GPU is busy from about 16,000 tokens on; a larger batch only takes memory."""
_MEMORY_SHARE = 0.4
"""Of a GPU's free memory: the estimate of a frame's activations is rough, and running out costs a repeated batch."""

_OUT_OF_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""What torch's CPU allocator and the GPU's libraries say, for want of a class of their own."""

log = logging.getLogger(__name__)


class Scorer(Protocol):
    """What scoring needs of `ensemble.Ensemble`."""

    @property
    def manifest(self) -> Manifest:
        """Of the artifact."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the images it takes."""

    def score(self, images: Tensor) -> MemberScores:
        """All members on (batch, 3, S, S)."""

    def gate(self, images: Tensor) -> GateScores:
        """The gate of the manifest's scoring section on (batch, 3, S, S)."""


def _nothing(_: float) -> None:
    """Nobody waits, nobody watches."""


@dataclass(frozen=True)
class FrameScores:
    """What is known of each frame of a case, not yet smoothed."""

    presence_probability: Values
    """(F,): mean of the members' calibrated probabilities; the gate's, interpolated, where not refined."""
    optimality_probability: Values | None
    """(F,), likewise; None where no member has the head. 0 where not refined and the gate has no such head."""
    member_presence: NDArray[np.float32]
    """(members, F); NaN where not refined."""
    refined: NDArray[np.bool_]
    """(F,): seen by the whole ensemble."""
    gate_s: float
    refine_s: float
    first_batch_at: float
    """`time.monotonic()` when the first batch was done."""


def score_case(
    ensemble: Scorer,
    frames: Tensor,
    config: ScoringConfig,
    *,
    batch_frames: int = CPU_BATCH_FRAMES,
    wait_for: Callable[[int], None] = _nothing,
    blank: Callable[[], NDArray[np.bool_]] | None = None,
    progress: Callable[[float], None] = _nothing,
) -> FrameScores:
    """Score the frames of one case: uint8 (F, S, S) on the ensemble's device, F at least 1, S its image size.

    `wait_for(stop)` is called before frames below `stop` are looked at, so that `frames` may still be filling up;
    `blank()` says, once all are there, which (F,) hold nothing and are not worth refining; `progress(share)` is called
    after each batch with the share of the work that is done. Where memory runs out the batch is
    halved; AcouslicError where one frame is too many.
    """
    run = _Batches(ensemble, frames, batch_frames, wait_for)
    if config.mode == "exhaustive":
        return _score_exhaustively(run, progress)
    return _score_gated(run, config, blank, progress)


def choose_batch_frames(tower: TowerConfig, members: int, device: torch.device, dtype: torch.dtype) -> int:
    """Frames a batch: a power of two that a GPU's free memory holds with room to spare, 8 on a CPU.

    A power of two, so that small changes of free memory do not change a result in its last digits.
    """
    if device.type != "cuda":
        return CPU_BATCH_FRAMES
    tokens = 1 + tower.grid_size**2
    per_token = 8 * tower.width + 2 * tower.mlp_width
    frame_bytes = members * tokens * per_token * dtype.itemsize + 12 * tower.image_size**2
    fitting = int(_MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]) // frame_bytes
    return min(MAX_BATCH_FRAMES, 1 << max(0, fitting.bit_length() - 1))


def gate_frames(sweeps: Sequence[range], stride: int) -> NDArray[np.int64]:
    """The frames a gate looks at: every `stride`-th of each sweep from its first, and its last."""
    chosen = {index for sweep in sweeps if len(sweep) for index in (*sweep[::stride], sweep[-1])}
    return np.array(sorted(chosen), dtype=np.int64)


def interpolate_in_sweeps(values: Values, indices: NDArray[np.int64], sweeps: Sequence[range]) -> Values:
    """Values at `indices`, which hold each sweep's first and last frame, linearly interpolated to all frames (F,)."""
    parts = []
    for sweep in sweeps:
        inside = (indices >= sweep.start) & (indices < sweep.stop)
        parts.append(np.interp(np.arange(sweep.start, sweep.stop), indices[inside], values[inside]))
    return np.concatenate(parts)


def choose_refined(
    presence: Values, quality: Values, smoothed_quality: Values, sweeps: Sequence[range], config: ScoringConfig
) -> NDArray[np.int64]:
    """The frames the whole ensemble looks at, ascending, from the gate's (F,) values in their case; at least one.

    A frame could win where its quality, smoothed as selection smooths it or not, reaches `refine_ratio` of the best
    of the case; it and `margin_frames` on each side within its sweep are refined, then the frames whose presence lies
    within `refine_presence`. Not more than `max_refined_fraction` of all: those with the best could-win frame near
    them first, then the ambiguous ones of the best quality, the earlier of equals.
    """
    promise = np.zeros(len(presence))
    for values in (quality, smoothed_quality):
        winners = np.flatnonzero(values >= config.refine_ratio * values.max())
        for sweep in sweeps:
            for index in winners[(winners >= sweep.start) & (winners < sweep.stop)]:
                near = slice(max(sweep.start, index - config.margin_frames), index + config.margin_frames + 1)
                near = slice(near.start, min(near.stop, sweep.stop))
                # Above every ambiguous frame's quality, which is 1 at most.
                promise[near] = np.maximum(promise[near], 1.0 + values[index])
    low, high = config.refine_presence
    ambiguous = (presence >= low) & (presence <= high) & (promise == 0)
    promise[ambiguous] = quality[ambiguous]
    wanted = np.flatnonzero((promise >= 1.0) | ambiguous)
    limit = max(1, int(config.max_refined_fraction * len(presence)))
    best_first = wanted[np.argsort(-promise[wanted], kind="stable")]
    return np.sort(best_first[:limit])


def _score_exhaustively(run: "_Batches", progress: Callable[[float], None]) -> FrameScores:
    start = time.monotonic()
    count = len(run.frames)
    members, optimality = run.score(run.ensemble.score, np.arange(count), progress)
    return FrameScores(
        presence_probability=members.mean(0, dtype=np.float64),
        optimality_probability=optimality.mean(0, dtype=np.float64) if len(optimality) else None,
        member_presence=members,
        refined=np.ones(count, dtype=bool),
        gate_s=0.0,
        refine_s=time.monotonic() - start,
        first_batch_at=run.first_batch_at,
    )


def _score_gated(
    run: "_Batches",
    config: ScoringConfig,
    blank: Callable[[], NDArray[np.bool_]] | None,
    progress: Callable[[float], None],
) -> FrameScores:
    count, selection = len(run.frames), run.ensemble.manifest.selection
    sweeps = sweep_ranges(count)
    start = time.monotonic()
    at = gate_frames(sweeps, config.stride)
    gate_presence, gate_optimality = run.score(run.gate, at, lambda share: progress(share / 3))
    presence = interpolate_in_sweeps(gate_presence.mean(0, dtype=np.float64), at, sweeps)
    optimality = None
    if len(gate_optimality):
        optimality = interpolate_in_sweeps(gate_optimality.mean(0, dtype=np.float64), at, sweeps)
    gated = time.monotonic()
    if blank is not None:
        presence = np.where(blank(), 0.0, presence)
    smoothed = judge_frames(presence, optimality, sweeps, selection)
    indices = choose_refined(
        in_context(presence, smoothed.presence_alone, selection.context),
        frame_quality(presence, optimality, selection.suboptimal_credit),
        smoothed.quality,
        sweeps,
        config,
    )
    fine_presence, fine_optimality = run.score(run.ensemble.score, indices, lambda share: progress((1 + 2 * share) / 3))
    presence[indices] = fine_presence.mean(0, dtype=np.float64)
    if len(fine_optimality):
        optimality = np.zeros(count) if optimality is None else optimality
        optimality[indices] = fine_optimality.mean(0, dtype=np.float64)
    member_presence = np.full((len(fine_presence), count), np.nan, dtype=np.float32)
    member_presence[:, indices] = fine_presence
    refined = np.zeros(count, dtype=bool)
    refined[indices] = True
    refine_s = time.monotonic() - gated
    return FrameScores(presence, optimality, member_presence, refined, gated - start, refine_s, run.first_batch_at)


class _Batches:
    """Runs frames through a network batch by batch, in smaller batches from the moment memory runs out."""

    def __init__(self, ensemble: Scorer, frames: Tensor, batch_frames: int, wait_for: Callable[[int], None]) -> None:
        self.ensemble = ensemble
        self.frames = frames
        self.first_batch_at = 0.0
        self._clock = _DeviceClock(frames.device)
        self._first_batch: float | torch.cuda.Event | None = None
        self._batch_frames = batch_frames
        self._wait_for = wait_for

    def gate(self, images: Tensor) -> MemberScores:
        """The gate as an ensemble of one."""
        scores = self.ensemble.gate(images)
        presence, optimality = scores.presence_probability, scores.optimality_probability
        return MemberScores(
            presence[None], presence.new_empty(0, len(images)) if optimality is None else optimality[None]
        )

    def score(
        self,
        network: Callable[[Tensor], MemberScores],
        indices: NDArray[np.int64],
        progress: Callable[[float], None],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Presence (members, N) and optimality (members, N) of the frames at `indices`, ascending."""
        at = torch.from_numpy(indices).to(self.frames.device)
        presence, optimality = [], []
        start = 0
        while start < len(indices):
            count = self._batch_frames if self._first_batch else min(self._batch_frames, FIRST_BATCH_FRAMES)
            stop = min(start + count, len(indices))
            self._wait_for(int(indices[stop - 1]) + 1)
            scores = self._try(network, at[start:stop])
            if scores is None:
                self._halve()
                continue
            # Kept on the device: a copy to the host here would make it wait for every batch.
            presence.append(scores.presence_probability)
            optimality.append(scores.optimality_probability)
            start = stop
            if self._first_batch is None:
                self._first_batch = self._clock.mark()
            progress(start / len(indices))
        found = [torch.cat(parts, 1).float().cpu().numpy() for parts in (presence, optimality)]
        if not self.first_batch_at and self._first_batch is not None:
            self.first_batch_at = self._clock.passed_at(self._first_batch)
        if not all(np.isfinite(values).all() for values in found):
            raise AcouslicError(
                f"the model gives probabilities that are not numbers in {self.ensemble.dtype}: its weights overflow or "
                "are damaged"
            )
        return found[0], found[1]

    def _try(self, network: Callable[[Tensor], MemberScores], at: Tensor) -> MemberScores | None:
        """One batch, or None where memory ran out. The failed batch's tensors are free once this has returned."""
        try:
            with torch.inference_mode():
                images = normalise(
                    self.frames.index_select(0, at), self.ensemble.manifest.preprocessing, self.ensemble.dtype
                )
                return network(images)
        except torch.OutOfMemoryError:
            return None
        except RuntimeError as error:
            if not any(said in str(error) for said in _OUT_OF_MEMORY):
                raise
            return None

    def _halve(self) -> None:
        if self._batch_frames == 1:
            raise AcouslicError(
                f"{self.frames.device} has no memory for the model and one frame: free some, or use the CPU"
            )
        self._batch_frames //= 2
        log.info("out of memory on %s: going on with batches of %d", self.frames.device, self._batch_frames)
        if self.frames.device.type == "cuda":
            torch.cuda.empty_cache()


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
