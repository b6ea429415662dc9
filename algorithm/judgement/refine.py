"""Which of a gate's judgements the whole ensemble looks at again, round after round. Pure NumPy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from algorithm.judgement.select_frame import (
    Values,
    frame_quality,
    judge_frames,
    presence_logit,
    probability_of,
    read_half_way,
    smooth_in_sweeps,
)
from algorithm.model.manifest import ScoringConfig, SelectionConfig

Ask = Callable[[NDArray[np.int64], Values], tuple[Values, Values | None]]
"""Presence and optimality (N,), in 0..1, of the frames at the indices (N,), as the ensemble says; optimality is None
where no member judges it. The second argument is the quality (F,) of all frames, as far as it is known."""

_MIDDLE = (0.4, 0.6)
"""Of a case's frames by rank: from there its scale is asked for. Frames beside each other in time are rarely neighbours
by rank, so they err independently."""
_GOLDEN_RATIO = (np.sqrt(5.0) - 1.0) / 2.0
"""Its multiples, without their whole parts, are spread evenly, however many of them are taken."""
_SHARES = 4
"""Of the frames that may be refined, one share in so many at most tells the scale, and one at most are the best of
their sweeps: a short stack has few."""
_OWN_WORD_FRAMES = 8
"""How many frames the gate's own word about the case's scale is worth: medians of cases differed by 0.4 between a
student and its ensemble, logits of single frames by 1.2 (bench/LOG.md, 69)."""


@dataclass(frozen=True)
class Refined:
    """What is known of a case's frames once the ensemble has looked at some of them."""

    presence: Values
    """(F,) in 0..1: the ensemble's where refined, elsewhere the gate's."""
    optimality: Values | None
    """(F,), likewise; None where neither judges it, 0 where not refined and the gate does not."""
    refined: NDArray[np.bool_]
    """(F,): seen by the whole ensemble."""


def refine(
    presence: Values,
    optimality: Values | None,
    sweeps: Sequence[range],
    selection: SelectionConfig,
    config: ScoringConfig,
    ask: Ask,
    *,
    black: NDArray[np.bool_] | None = None,
) -> Refined:
    """Ask the ensemble about frames of a case until all that matters is its word; `presence` (F,), 0 of black frames,
    and `optimality` (F,) are the gate's, F at least 1.

    First come a few frames of the middle, if the case's own scale decides which frames are positive: all others of the
    gate's logits are moved as far as the ensemble's lie from them there. Then, where `config` allows more than one
    round, the best frame of each sweep, which shows where a gate has missed a whole run. Then as many rounds
    as it allows, each by what is known by then. Frames that are `black` (F,), if it is given, are not asked about,
    unless all are.
    """
    nothing = np.zeros(len(presence), dtype=bool)
    by_gate = Refined(np.array(presence), None if optimality is None else np.array(optimality), nothing)
    asking = _Asking(by_gate, sweeps, selection, config, ask)
    shown = np.ones(len(presence), dtype=bool) if black is None or black.all() else ~black
    asking.ask_for_scale()
    if config.rounds > 1:
        asking.ask_for_peaks(shown)
    for _ in range(config.rounds):
        if not asking.ask_what_matters(shown):
            break
    return asking.known


class _Asking:
    """Asks the ensemble about frames of a case, and keeps what is known of it."""

    def __init__(
        self, known: Refined, sweeps: Sequence[range], selection: SelectionConfig, config: ScoringConfig, ask: Ask
    ) -> None:
        self.known = known
        """Its arrays are this object's own."""
        self._sweeps, self._selection, self._config, self._ask = sweeps, selection, config, ask
        self._share = _limit(config, len(known.presence)) // _SHARES

    def ask_for_scale(self) -> None:
        """Ask about a few frames of the middle, where the case's own scale decides, and move the gate's logits of all
        others as far as the ensemble's lie from them there."""
        at = middle_frames(
            self.known.presence, min(self._config.scale_frames, self._share) if self._selection.half_way else 0
        )
        if not len(at):
            return
        gate = presence_logit(self.known.presence)
        self._take(at, self._quality())
        # The median: some of them may be flanks of a run that the gate takes for the middle.
        shift = np.median(presence_logit(self.known.presence[at]) - gate[at]) * len(at) / (len(at) + _OWN_WORD_FRAMES)
        others = ~self.known.refined & (self.known.presence > 0)
        self.known.presence[others] = probability_of(gate[others] + shift)

    def ask_for_peaks(self, shown: NDArray[np.bool_]) -> None:
        """Ask about the best frame of each sweep, of those that are `shown` (F,) and not refined yet."""
        smoothed = smooth_in_sweeps(self.known.presence, self._sweeps, self._selection.smoothing_sigma_frames)
        peaks = sweep_peaks(np.where(shown & ~self.known.refined, smoothed, 0.0), self._sweeps, self._share)
        if len(peaks):
            self._take(peaks, self._quality())

    def ask_what_matters(self, shown: NDArray[np.bool_]) -> bool:
        """One round by what is known now; False where no frame that is `shown` (F,) is left to ask about."""
        judged = judge_frames(self.known.presence, self.known.optimality, self._sweeps, self._selection)
        scale = judged.presence_alone[self.known.presence > 0]
        positive = read_half_way(judged.presence_alone, scale, self._selection.half_way) >= 0.5
        indices = choose_refined(
            read_half_way(self.known.presence, scale, self._selection.half_way),
            self._quality(),
            judged.quality,
            self._sweeps,
            self._config,
            confirmed=self.known.refined & positive,
            refined=self.known.refined,
            shown=shown,
        )
        if len(indices):
            self._take(indices, judged.quality)
        return len(indices) > 0

    def _quality(self) -> Values:
        return frame_quality(self.known.presence, self.known.optimality, self._selection.suboptimal_credit)

    def _take(self, indices: NDArray[np.int64], quality: Values) -> None:
        """The ensemble's word on the frames at `indices` (N,) in place of what was known of them."""
        self.known.presence[indices], found = self._ask(indices, quality)
        if found is not None:
            optimality = np.zeros(len(self.known.presence)) if self.known.optimality is None else self.known.optimality
            optimality[indices] = found
            self.known = replace(self.known, optimality=optimality)
        self.known.refined[indices] = True


def asks_for_scale(selection: SelectionConfig, config: ScoringConfig) -> bool:
    """Whether frames are refined for the case's scale alone."""
    return config.scale_frames > 0 and selection.half_way is not None


def middle_frames(presence: Values, count: int) -> NDArray[np.int64]:
    """At most `count` frames, ascending, of the middle fifth by rank of those whose presence (F,) is not 0, spread over
    the case; [] where all are 0.

    Which frame of that fifth is taken first hangs on its index alone. So where rounding moves frames into the fifth or
    out of it, nearly all that are taken stay.
    """
    seen = np.flatnonzero(presence > 0)
    by_rank = seen[np.argsort(presence[seen], kind="stable")]
    first, last = (round(share * (len(by_rank) - 1)) for share in _MIDDLE)
    middle = by_rank[max(0, first) : last + 1]
    return np.sort(middle[np.argsort(middle * _GOLDEN_RATIO % 1.0, kind="stable")[:count]])


def sweep_peaks(presence: Values, sweeps: Sequence[range], count: int) -> NDArray[np.int64]:
    """Of each sweep the frame whose presence (F,) is highest, the earlier of equals; ascending, at most `count` of
    them, the highest; no frame of 0."""
    best = [sweep.start + int(np.argmax(presence[sweep.start : sweep.stop])) for sweep in sweeps if len(sweep)]
    seen = sorted((index for index in best if presence[index] > 0), key=lambda index: -presence[index])
    return np.array(sorted(seen[:count]), dtype=np.int64)


def choose_refined(
    presence: Values,
    quality: Values,
    smoothed_quality: Values,
    sweeps: Sequence[range],
    config: ScoringConfig,
    *,
    confirmed: NDArray[np.bool_],
    refined: NDArray[np.bool_],
    shown: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """The frames that the whole ensemble looks at next, ascending, from the (F,) values in their case; at least one
    where none is `refined` yet.

    A frame could win where its quality, smoothed as selection smooths it or not, reaches `refine_ratio` of the best
    of the case; it and `margin_frames` on each side within its sweep are refined, as are those on each side of the
    frames that are `confirmed`, which the ensemble calls positive; then the frames whose presence lies within
    `refine_presence`. Only frames that are `shown`, which are not black, are taken. With those that are `refined`
    already not more than `max_refined_fraction` of all: the ones with the best could-win or confirmed frame near them
    first, then the ambiguous ones of the best quality, the earlier of equals.
    """
    promise = np.zeros(len(presence))
    for values in (quality, smoothed_quality):
        near = (values >= config.refine_ratio * values.max()) | confirmed
        # Above every ambiguous frame's quality, which is 1 at most.
        promise = np.maximum(promise, best_near(np.where(near, 1.0 + values, 0.0), sweeps, config.margin_frames))
    low, high = config.refine_presence
    ambiguous = (presence >= low) & (presence <= high) & (promise == 0)
    promise[ambiguous] = quality[ambiguous]
    wanted = np.flatnonzero(((promise >= 1.0) | ambiguous) & shown & ~refined)
    left = _limit(config, len(presence)) - np.count_nonzero(refined)
    best_first = wanted[np.argsort(-promise[wanted], kind="stable")]
    return np.sort(best_first[:left])


def _limit(config: ScoringConfig, frames: int) -> int:
    """How many of a case's frames may be refined in all."""
    return max(1, int(config.max_refined_fraction * frames))


def best_near(values: Values, sweeps: Sequence[range], reach: int) -> Values:
    """Of each frame (F,) the highest of `values` at most `reach` frames away in its sweep."""
    best = values.copy()
    for sweep in sweeps:
        for index in np.flatnonzero(values[sweep.start : sweep.stop]) + sweep.start:
            near = slice(max(sweep.start, index - reach), min(sweep.stop, index + reach + 1))
            best[near] = np.maximum(best[near], values[index])
    return best
