"""Beside half precision: the frames that decide something are asked again in float32.

Rounding moves every logit a little. That matters only where a decision is near: at the threshold of the positive
frames, and among the frames that could be chosen. There the members are asked again with float32 weights, about a few
frames of a case. All others keep what half precision said of them.

Rounding moves frames of one case alike, so it also moves a threshold that the case itself sets. Where a frame lies
within a hair of it, the frames that set it are asked again too. Not looked at is which of a sweep's runs is the
strongest (`SelectionConfig.one_run_a_sweep`): a sum over many frames is rarely so near another.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from acouslic.geometry import FRAMES_PER_SWEEP
from algorithm.engine.batches import Batches
from algorithm.judgement.refine import best_near, middle_frames
from algorithm.judgement.score import OUTLINED_FRAMES, FrameScores
from algorithm.judgement.select_frame import (
    FrameJudgement,
    Values,
    call_level,
    presence_logit,
    probability_of,
)
from algorithm.model.manifest import SelectionConfig

Judge = Callable[[FrameScores], FrameJudgement]
"""What is thought of each frame in its case, as the artifact reads it."""

_MOST_SHARE = 0.1
"""Of a case's frames asked again, at most, those of the middle apart: in float32 a frame takes a CPU four times as
long."""
_LEAST_LIMIT = 16
"""A short stack may ask again about so many all the same."""
_ROUNDS = 4
"""What was asked again moves the threshold by a hair, which may bring another frame near it."""
_REACH_SIGMAS = 2.0
"""A smoothed logit is that of the frame and its neighbours. Those within so many sigmas have 95 % of the weight."""
_CHOICE_MARGINS = 2.0
"""The choice compares two frames, both of which are moved."""
_HAIR = 0.25
"""Share of the margin: no further was the threshold of any case moved (bench/LOG.md, 71)."""
_MIDDLE_FRAMES = 8
"""Of the middle by rank, which say how far rounding has moved the median of the case."""


def recheck(
    scores: FrameScores,
    members: Batches,
    judge: Judge,
    sweeps: Sequence[range],
    selection: SelectionConfig,
    *,
    threshold: float,
    margin: float,
) -> FrameScores:
    """What is known of a case's frames (F,), those that decide something in float32.

    `members` are the artifact's in float32, on the case's frames. `threshold` is `thresholds.presence`; `margin` is how
    far from a decision rounding may have moved a logit, above 0. A frame that only a gate has seen is not asked about:
    the gate's word is a rough one in any type; but it moves with the others below the threshold where rounding has
    moved these alike, as the gate's scale follows the members'. Of the likeliest frames `outline_starts` has what the
    float32 members' outlines begin with; the starts that half precision has left are gone.
    """
    known = replace(scores, outline_starts={})
    limit = max(_LEAST_LIMIT, int(_MOST_SHARE * len(scores.refined)))
    exact = np.zeros(len(scores.refined), dtype=bool)
    keeps_starts = members.frames.device.type == "cpu"
    scale_is_exact = selection.half_way is None
    for _ in range(_ROUNDS):
        judged = judge(known)
        distance = call_distance(judged.presence_alone, sweeps, selection, threshold=threshold)
        promise = decisive_frames(judged, distance, sweeps, selection, margin=margin)
        middle = np.zeros(0, dtype=np.int64)
        if not scale_is_exact and np.abs(distance).min() <= _HAIR * margin:
            scale_is_exact = True
            promise = np.maximum(promise, _frames_of_the_top(judged.presence_alone, sweeps, selection))
            askable = known.refined & ~exact & np.isfinite(distance)
            middle = middle_frames(np.where(askable, known.presence_probability, 0.0), _MIDDLE_FRAMES)
        wanted = np.flatnonzero((promise > 0) & known.refined & ~exact)
        left = max(0, limit - np.count_nonzero(exact))
        best_first = wanted[np.argsort(-promise[wanted], kind="stable")][:left]
        if not len(best_first) and not len(middle):
            break
        places = max(0, OUTLINED_FRAMES - len(members.starts))
        # The likeliest lead, so that they share batches and little is kept of others.
        starts = best_first[promise[best_first] > 1.0][:places] if keeps_starts else best_first[:0]
        others = np.setdiff1d(np.union1d(best_first, middle), starts)
        before = known
        known = _with_exact(known, members, np.concatenate([starts, others]), starts)
        exact[best_first] = True
        exact[middle] = True
        if len(middle):
            below = np.isfinite(distance) & (distance < 0)
            known = _move(known, below & ~exact, _moved_by(before, known, middle))
    return replace(known, rechecked=int(np.count_nonzero(exact)), outline_starts=members.starts)


def decisive_frames(
    judged: FrameJudgement, distance: Values, sweeps: Sequence[range], selection: SelectionConfig, *, margin: float
) -> Values:
    """How much of a decision lies at each frame (F,): above 1 where the choice does, above 0 where its call does, 0
    where nothing does. `distance` (F,) is `call_distance`. A frame's neighbours count as it does, since its smoothed
    logit is theirs too."""
    seen = judged.presence_alone > 0
    if not seen.any():
        return np.zeros(len(seen))
    promise = _nearness(distance, margin)
    quality = presence_logit(judged.quality)
    could_win = np.where(seen, _nearness(quality[seen].max() - quality, _CHOICE_MARGINS * margin), 0.0)
    promise = np.where(could_win > 0, 1.0 + could_win, promise)
    # A black frame stays 0, whatever would be said of it.
    return np.where(seen, best_near(promise, sweeps, _reach(sweeps, selection)), 0.0)


def call_distance(alone: Values, sweeps: Sequence[range], selection: SelectionConfig, *, threshold: float) -> Values:
    """How far above the level from which on it is called positive the smoothed logit of each frame lies, (F,) from
    smoothed presence (F,) in 0..1; minus infinity for black frames, whose presence is 0."""
    distance = np.full(len(alone), -np.inf)
    seen = alone > 0
    if seen.any():
        logit = presence_logit(alone[seen])
        distance[seen] = logit - call_level(logit, sweeps, selection, threshold=threshold)
    return distance


def _nobody_watches(_: float) -> None:
    """A few frames are soon done."""


def _nearness(distance: NDArray[np.float64], margin: float) -> NDArray[np.float64]:
    """1 at a distance of 0, a half at the margin, 0 beyond it."""
    far = np.abs(distance)
    return np.where(far <= margin, 1.0 - 0.5 * far / margin, 0.0)


def _reach(sweeps: Sequence[range], selection: SelectionConfig) -> int:
    """How many frames on each side have a word in a smoothed logit."""
    longest = max((len(sweep) for sweep in sweeps), default=0)
    sigma = max(selection.smoothing_sigma_frames, selection.choice_sigma_frames)
    return round(_REACH_SIGMAS * sigma * longest / FRAMES_PER_SWEEP)


def _frames_of_the_top(alone: Values, sweeps: Sequence[range], selection: SelectionConfig) -> Values:
    """A quarter, less than any decision, at the frames (F,) whose mean is the top of their case, and beside them."""
    assert selection.half_way is not None
    highest = np.argsort(-alone, kind="stable")[: selection.half_way.top_frames]
    chosen = np.zeros(len(alone))
    chosen[highest] = 0.25
    return np.where(alone > 0, best_near(chosen, sweeps, _reach(sweeps, selection)), 0.0)


def _moved_by(half: FrameScores, exact: FrameScores, at: NDArray[np.int64]) -> float:
    """How much higher float32's logits are at the frames `at` (N,), N at least 1."""
    logits = (presence_logit(scores.presence_probability[at]) for scores in (exact, half))
    return float(np.median(np.subtract(*logits)))


def _move(known: FrameScores, frames: NDArray[np.bool_], by: float) -> FrameScores:
    """The logits of `frames` (F,) moved."""
    mean, said = known.presence_probability.copy(), known.member_presence.copy()
    mean[frames] = probability_of(presence_logit(mean[frames]) + by)
    asked = frames & np.isfinite(said)
    said[asked] = probability_of(presence_logit(said[asked].astype(np.float64)) + by)
    return replace(known, presence_probability=mean, member_presence=said)


def _with_exact(known: FrameScores, members: Batches, at: NDArray[np.int64], starts: NDArray[np.int64]) -> FrameScores:
    """The frames `at` (N,) as the float32 members see them."""
    presence, optimality, embedding = members.score(at, _nobody_watches, outlined=starts.tolist())
    said = known.member_presence.copy()
    said[:, at] = presence
    mean = known.presence_probability.copy()
    mean[at] = presence.mean(0, dtype=np.float64)
    found = replace(known, presence_probability=mean, member_presence=said)
    if known.optimality_probability is not None and len(optimality):
        of_optimality = known.optimality_probability.copy()
        of_optimality[at] = optimality.mean(0, dtype=np.float64)
        found = replace(found, optimality_probability=of_optimality)
    if known.member_embedding is not None and embedding is not None:
        embeddings = known.member_embedding.copy()
        embeddings[:, at] = embedding
        found = replace(found, member_embedding=embeddings)
    return found
