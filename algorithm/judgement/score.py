"""Every frame gets a probability: from the whole ensemble, or from a gate and the ensemble where it matters."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from acouslic.geometry import sweep_ranges
from algorithm.engine.batches import CPU_BATCH_FRAMES, Batches, Scorer
from algorithm.engine.outline_start import OutlineStart
from algorithm.judgement.refine import asks_for_scale, refine
from algorithm.judgement.select_frame import Values
from algorithm.model.manifest import ScoringConfig

OUTLINED_FRAMES = 16
"""Whose outlines are begun while they are scored, of which about five are outlined: two batches on a CPU, 130 MB with
five members of ViT-L/14."""


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
    member_embedding: NDArray[np.float32] | None
    """(members, F, output_dim); None where no case head wants it."""
    refined: NDArray[np.bool_]
    """(F,): seen by the whole ensemble."""
    reused: int
    """Of the refined frames: whose trunk the gate had run."""
    gate_s: float
    refine_s: float
    first_batch_at: float
    """`time.monotonic()` when the first batch was done."""
    outline_starts: Mapping[int, OutlineStart] = field(default_factory=dict)
    """Of some of the best frames, by index: what their outlines begin with."""
    rechecked: int = 0
    """How many frames were asked again in float32 (`recheck.py`)."""


def score_case(
    ensemble: Scorer,
    frames: Tensor,
    config: ScoringConfig,
    *,
    batch_frames: int = CPU_BATCH_FRAMES,
    wait_for: Callable[[int], None] = _nothing,
    blank: Callable[[], NDArray[np.bool_]] | None = None,
    progress: Callable[[float], None] = _nothing,
    sweeps: Sequence[range] | None = None,
) -> FrameScores:
    """Score the frames of one case: uint8 (F, S, S) on the ensemble's device, F at least 1, S its image size.

    `wait_for(stop)` is called before frames below `stop` are looked at, so that `frames` may still be filling up;
    `blank()` says, once all are there, which (F,) hold nothing and are not worth refining; `progress(share)` is called
    after each batch with the share of the work that is done; `sweeps` are the frames of each sweep, by default as the
    challenge has them. Where memory runs out the batch is halved; AcouslicError where one frame is too many.
    """
    run = Batches(ensemble, frames, batch_frames, wait_for)
    if config.mode == "exhaustive":
        return _score_exhaustively(run, progress)
    return _score_gated(run, config, sweep_ranges(len(frames)) if sweeps is None else sweeps, blank, progress)


def gate_frames(sweeps: Sequence[range], stride: int) -> NDArray[np.int64]:
    """The indices of the frames that a gate looks at, ascending: of each sweep every `stride`-th from its first, and
    its last; none of an empty sweep."""
    chosen = {index for sweep in sweeps if len(sweep) for index in (*sweep[::stride], sweep[-1])}
    return np.array(sorted(chosen), dtype=np.int64)


def interpolate_in_sweeps(values: Values, indices: NDArray[np.int64], sweeps: Sequence[range]) -> Values:
    """Values at `indices`, which hold each sweep's first and last frame, linearly interpolated to all frames (F,)."""
    parts = []
    for sweep in sweeps:
        inside = (indices >= sweep.start) & (indices < sweep.stop)
        parts.append(np.interp(np.arange(sweep.start, sweep.stop), indices[inside], values[inside]))
    return np.concatenate(parts)


def _score_exhaustively(run: Batches, progress: Callable[[float], None]) -> FrameScores:
    start = time.monotonic()
    count = len(run.frames)
    members, optimality, embedding = run.score(np.arange(count), progress)
    return FrameScores(
        presence_probability=members.mean(0, dtype=np.float64),
        optimality_probability=optimality.mean(0, dtype=np.float64) if len(optimality) else None,
        member_presence=members,
        member_embedding=embedding,
        refined=np.ones(count, dtype=bool),
        reused=0,
        gate_s=0.0,
        refine_s=time.monotonic() - start,
        first_batch_at=run.first_batch_at,
    )


def _score_gated(
    run: Batches,
    config: ScoringConfig,
    sweeps: Sequence[range],
    blank: Callable[[], NDArray[np.bool_]] | None,
    progress: Callable[[float], None],
) -> FrameScores:
    start = time.monotonic()
    at = gate_frames(sweeps, config.stride)
    gate_presence, gate_optimality, _ = run.gate(
        at, lambda share: progress(share / 3), on_trunk=config.gate != "student"
    )
    presence = interpolate_in_sweeps(gate_presence.mean(0, dtype=np.float64), at, sweeps)
    optimality = None
    if len(gate_optimality):
        optimality = interpolate_in_sweeps(gate_optimality.mean(0, dtype=np.float64), at, sweeps)
    gated = time.monotonic()
    black = None if blank is None else blank()
    if black is not None:
        presence = np.where(black, 0.0, presence)
    members = _Members(run, config, progress)
    known = refine(presence, optimality, sweeps, run.ensemble.manifest.selection, config, members.ask, black=black)
    progress(1.0)
    return FrameScores(
        presence_probability=known.presence,
        optimality_probability=known.optimality,
        member_presence=members.presence,
        member_embedding=None,
        refined=known.refined,
        reused=run.reused,
        gate_s=gated - start,
        refine_s=time.monotonic() - gated,
        first_batch_at=run.first_batch_at,
        outline_starts=run.starts,
    )


class _Members:
    """The whole ensemble, asked about the frames of one round after another."""

    def __init__(self, run: Batches, config: ScoringConfig, progress: Callable[[float], None]) -> None:
        self.presence = np.zeros((0, len(run.frames)), np.float32)
        """(members, F): what each has said; NaN where it was not asked."""
        self._optimality = self.presence
        self._run, self._progress = run, progress
        self._keeps_starts = config.gate == "student" and run.frames.device.type == "cpu"
        self._rounds_left = config.rounds + asks_for_scale(run.ensemble.manifest.selection, config)
        self._done = 1 / 3
        """Share of the work; the gate has had a third."""

    def ask(self, indices: NDArray[np.int64], quality: Values) -> tuple[Values, Values | None]:
        """As `refine.Ask`."""
        starts: list[int] = []
        if self._keeps_starts:
            # The likeliest first, so that they share batches and little is kept of others.
            likeliest = np.argsort(-quality, kind="stable")
            starts = [index for index in likeliest[:OUTLINED_FRAMES].tolist() if index in indices]
        in_order = np.array([*starts, *np.setdiff1d(indices, starts)], dtype=np.int64)
        # Nobody knows how many rounds follow, nor how large they are: each but the last takes half of what is left.
        begun, self._rounds_left = self._done, self._rounds_left - 1
        self._done = (1 + begun) / 2 if self._rounds_left else 1.0
        presence, optimality, _ = self._run.score(
            in_order, lambda share: self._progress(begun + share * (self._done - begun)), outlined=starts
        )
        self.presence = _with_columns(self.presence, in_order, presence)
        self._optimality = _with_columns(self._optimality, in_order, optimality)
        if not len(optimality):
            return self.presence[:, indices].mean(0, dtype=np.float64), None
        return tuple(known[:, indices].mean(0, dtype=np.float64) for known in (self.presence, self._optimality))


def _with_columns(known: NDArray[np.float32], at: NDArray[np.int64], said: NDArray[np.float32]) -> NDArray[np.float32]:
    """(rows, F) with the columns `at` (N,) as `said` (rows, N); where nothing is known yet, the others are NaN."""
    found = known if len(known) else np.full((len(said), known.shape[1]), np.nan, np.float32)
    found[:, at] = said
    return found
