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
from algorithm.judgement.select_frame import Values, frame_quality, judge_frames, read_half_way
from algorithm.model.manifest import ScoringConfig, SelectionConfig

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


def refined_frames(
    presence: Values,
    optimality: Values | None,
    sweeps: Sequence[range],
    selection: SelectionConfig,
    config: ScoringConfig,
) -> NDArray[np.int64]:
    """The frames that a gate's probabilities (F,) send to the whole ensemble, ascending, as they are read and smoothed
    in their case; those of black frames are 0."""
    smoothed = judge_frames(presence, optimality, sweeps, selection)
    return choose_refined(
        read_half_way(presence, smoothed.presence_alone[presence > 0], selection.half_way),
        frame_quality(presence, optimality, selection.suboptimal_credit),
        smoothed.quality,
        sweeps,
        config,
    )


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
    count, selection = len(run.frames), run.ensemble.manifest.selection
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
    if blank is not None:
        presence = np.where(blank(), 0.0, presence)
    indices = refined_frames(presence, optimality, sweeps, selection, config)
    outlined: list[int] = []
    if config.gate == "student" and run.frames.device.type == "cpu":
        # The likeliest first, so that they share batches and little is kept of others.
        quality = judge_frames(presence, optimality, sweeps, selection).quality
        indices = indices[np.argsort(-quality[indices], kind="stable")]
        outlined = indices[:OUTLINED_FRAMES].tolist()
    fine_presence, fine_optimality, _ = run.score(
        indices, lambda share: progress((1 + 2 * share) / 3), outlined=outlined
    )
    presence[indices] = fine_presence.mean(0, dtype=np.float64)
    if len(fine_optimality):
        optimality = np.zeros(count) if optimality is None else optimality
        optimality[indices] = fine_optimality.mean(0, dtype=np.float64)
    member_presence = np.full((len(fine_presence), count), np.nan, dtype=np.float32)
    member_presence[:, indices] = fine_presence
    refined = np.zeros(count, dtype=bool)
    refined[indices] = True
    return FrameScores(
        presence_probability=presence,
        optimality_probability=optimality,
        member_presence=member_presence,
        member_embedding=None,
        refined=refined,
        reused=run.reused,
        gate_s=gated - start,
        refine_s=time.monotonic() - gated,
        first_batch_at=run.first_batch_at,
        outline_starts=run.starts,
    )
