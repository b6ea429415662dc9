"""Beside half precision: the frames that decide something are asked again in float32.

Rounding moves every logit a little. That matters only where a decision is near: at the threshold of the positive
frames, and among the frames that could be chosen. There the members are asked again with float32 weights, about a few
frames of a case. All others keep what half precision said of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from acouslic.geometry import FRAMES_PER_SWEEP
from algorithm.engine.batches import Batches
from algorithm.judgement.refine import best_near
from algorithm.judgement.score import OUTLINED_FRAMES, FrameScores
from algorithm.judgement.select_frame import (
    FrameJudgement,
    Values,
    half_way_threshold,
    most_frames,
    presence_logit,
)
from algorithm.model.manifest import SelectionConfig

Judge = Callable[[FrameScores], FrameJudgement]
"""What is thought of each frame in its case, as the artifact reads it."""

MOST_SHARE = 0.1
"""Of a case's frames asked again, at most: in float32 a frame takes a CPU four times as long."""
_LEAST_LIMIT = 16
"""A short stack may ask again about so many all the same."""
_ROUNDS = 3
"""What was asked again moves the threshold by a hair, which may bring another frame near it."""
_REACH_SIGMAS = 2.0
"""A smoothed logit is that of the frame and its neighbours. Those within so many sigmas have 95 % of the weight."""
_CHOICE_MARGINS = 2.0
"""The choice compares two frames, both of which are moved."""


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
    far from a decision rounding may have moved a logit. A frame that only a gate has seen is left as it is: in float32
    it would be, too. Of the likeliest frames `outline_starts` has what the float32 members' outlines begin with; the
    starts that half precision has left are gone.
    """
    known = replace(scores, outline_starts={})
    limit = max(_LEAST_LIMIT, int(MOST_SHARE * len(scores.refined)))
    exact = np.zeros(len(scores.refined), dtype=bool)
    keeps_starts = members.frames.device.type == "cpu"
    for _ in range(_ROUNDS):
        judged = judge(known)
        promise = decisive_frames(judged, sweeps, selection, threshold=threshold, margin=margin)
        wanted = np.flatnonzero((promise > 0) & known.refined & ~exact)
        best_first = wanted[np.argsort(-promise[wanted], kind="stable")][: limit - np.count_nonzero(exact)]
        if not len(best_first):
            break
        places = max(0, OUTLINED_FRAMES - len(members.starts))
        # The likeliest lead, so that they share batches and little is kept of others.
        starts = best_first[promise[best_first] > 1.0][:places] if keeps_starts else best_first[:0]
        known = _with_exact(known, members, np.array([*starts, *np.setdiff1d(best_first, starts)]), starts)
        exact[best_first] = True
    return replace(known, rechecked=int(np.count_nonzero(exact)), outline_starts=members.starts)


def decisive_frames(
    judged: FrameJudgement, sweeps: Sequence[range], selection: SelectionConfig, *, threshold: float, margin: float
) -> Values:
    """How much of a decision lies at each frame (F,): above 1 where the choice does, above 0 where its call does, 0
    where nothing does. A frame's neighbours count as it does, since its smoothed logit is theirs too."""
    promise = np.zeros(len(judged.presence_alone))
    seen = judged.presence_alone > 0
    if not seen.any():
        return promise
    logit = presence_logit(judged.presence_alone)
    level = call_level(logit[seen], sweeps, selection, threshold=threshold)
    promise[seen] = _nearness(logit[seen] - level, margin)
    quality = presence_logit(judged.quality)
    could_win = _nearness(quality[seen].max() - quality[seen], _CHOICE_MARGINS * margin)
    promise[seen] = np.where(could_win > 0, 1.0 + could_win, promise[seen])
    longest = max((len(sweep) for sweep in sweeps), default=0)
    sigma = max(selection.smoothing_sigma_frames, selection.choice_sigma_frames)
    near = best_near(promise, sweeps, round(_REACH_SIGMAS * sigma * longest / FRAMES_PER_SWEEP))
    # A black frame stays 0, whatever would be said of it.
    return np.where(seen, near, 0.0)


def call_level(
    logit: NDArray[np.float64], sweeps: Sequence[range], selection: SelectionConfig, *, threshold: float
) -> float:
    """The smoothed logit from which on a frame is called positive; `logit` (n,) is of all frames of the case that show
    anything, n at least 1. Where more frames reach it than may be positive, it lies between the last that may and the
    first that may not."""
    level = (
        float(presence_logit(np.array(threshold)))
        if selection.half_way is None
        else half_way_threshold(logit, selection.half_way)
    )
    if selection.most_positive_frames is None:
        return level
    most = most_frames(sweeps, selection.most_positive_frames)
    if np.count_nonzero(logit >= level) <= most:
        return level
    likeliest = np.sort(logit)[::-1]
    return float(likeliest[most - 1 : most + 1].mean())


def _nobody_watches(_: float) -> None:
    """A few frames are soon done."""


def _nearness(distance: NDArray[np.float64], margin: float) -> NDArray[np.float64]:
    """1 at a distance of 0, a half at the margin, 0 beyond it."""
    far = np.abs(distance)
    return np.where(far <= margin, 1.0 - 0.5 * far / margin, 0.0)


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
