"""From probabilities of frames to the frames that are worth outlining, best first. Pure NumPy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acouslic.geometry import FRAMES_PER_SWEEP
from algorithm.model.manifest import HalfWay, SelectionConfig

Values = NDArray[np.float64]

CANDIDATE_DISTANCE_FRAMES = 5
"""Candidates of one sweep lie at least this far apart: nearer frames show the same plane and fail alike."""

_KERNEL_SIGMAS = 4.0
_TIE_DECIMALS = 9
"""Qualities that agree to this many decimals are ties: far below what a model can mean, far above rounding."""
_BELOW_HALF = 0.49999
"""Also where a probability is written with fewer digits."""
_LEAST_PROBABILITY = 2.0**-24
"""Logits are taken of probabilities at least this far from 0 and 1, so within +-16.6: beyond it a float32 probability
is 1, and nobody knows how sure the network was."""


@dataclass(frozen=True)
class FrameJudgement:
    """What is thought of each frame of a case, its neighbours and the rest of the case considered."""

    presence_alone: Values
    """(F,) in 0..1: smoothed within sweeps. Whether the chosen frame is good enough is read here."""
    presence: Values
    """(F,) in 0..1: against the case's best frames, no more than are likely and one run a sweep, where the artifact
    says so; else `presence_alone`. Which frames are called positive is read here, from 0.5 on."""
    optimality: Values | None
    """(F,) in 0..1: smoothed within sweeps; None without such a head."""
    quality: Values
    """(F,) in 0..1: `frame_quality` of presence and optimality, smoothed for the choice. Which frame is best is read
    here."""


def judge_frames(
    presence: Values,
    optimality: Values | None,
    sweeps: Sequence[range],
    selection: SelectionConfig,
    reviewed: Values | None = None,
) -> FrameJudgement:
    """From what the members said of each frame, (F,) in 0..1, to what is thought of it in its case.

    `reviewed` is presence as a case head sees it, (F,) in 0..1: which frames are called positive is read from it, the
    best one is still chosen by `presence`.
    """

    def smoothed(probability: Values, sigma_frames: float) -> tuple[Values, Values | None]:
        of_optimality = None if optimality is None else smooth_in_sweeps(optimality, sweeps, sigma_frames)
        return smooth_in_sweeps(probability, sweeps, sigma_frames), of_optimality

    called = presence if reviewed is None else reviewed
    alone, optimality_alone = smoothed(called, selection.smoothing_sigma_frames)
    quality = frame_quality(*smoothed(presence, selection.choice_sigma_frames), selection.suboptimal_credit)
    return FrameJudgement(alone, read_presence(alone, called > 0, sweeps, selection), optimality_alone, quality)


def read_presence(
    alone: Values, seen: NDArray[np.bool_], sweeps: Sequence[range], selection: SelectionConfig
) -> Values:
    """Smoothed presence (F,) in 0..1 as `selection` reads it in its case; `seen` (F,) are the frames that show
    anything."""
    read = read_half_way(alone, alone[seen], selection.half_way)
    if selection.most_positive_frames is not None:
        read = keep_likeliest(read, most_frames(sweeps, selection.most_positive_frames))
    return keep_strongest_runs(read, sweeps) if selection.one_run_a_sweep else read


def smooth_in_sweeps(probability: Values, sweeps: Sequence[range], sigma_frames: float) -> Values:
    """Gaussian mean of logits along each sweep, never across its ends: (F,) in 0..1 to (F,) in 0..1.

    `sigma_frames` is meant for a sweep of 140 frames; in one with more or fewer it takes the same share of the way over
    the belly. Only frames of which something was said are weighted, so a constant stays that constant, also at the ends
    of a sweep; one of exactly 0 stays 0 and lends its neighbours nothing. Sigma 0 is no smoothing. Frames outside all
    sweeps are left as they are.
    """
    smoothed = np.array(probability, dtype=np.float64)
    if sigma_frames == 0:
        return smoothed
    for sweep in filter(len, sweeps):
        part = slice(sweep.start, sweep.stop)
        said = smoothed[part] > 0
        kernel = _kernel(sigma_frames * len(sweep) / FRAMES_PER_SWEEP)
        total = _weighted(np.where(said, presence_logit(smoothed[part]), 0.0), kernel)
        weight = _weighted(said.astype(np.float64), kernel)
        # A frame's own weight is 1.
        smoothed[part] = np.where(said, probability_of(total / np.maximum(weight, 1.0)), 0.0)
    return smoothed


def read_half_way(presence: Values, case: Values, half_way: HalfWay | None) -> Values:
    """Presence of frames, any shape, in 0..1, as it is read in their case: 0.5 lies at the case's threshold.

    `case` is the smoothed presence of those of the case's frames that show anything, (n,) in 0..1: black ones would
    pull its median down. A frame of 0 stays 0, and no frame overtakes another. Without `half_way`, or where no frame
    shows anything, presence is returned as it is.
    """
    if half_way is None or not len(case):
        return presence
    read = probability_of(presence_logit(presence) - half_way_threshold(presence_logit(case), half_way))
    return np.where(presence > 0, read, 0.0)


def half_way_threshold(logit: Values, half_way: HalfWay) -> float:
    """The logit from which on a frame of this case is positive; `logit` (n,) is of all its frames, n at least 1.

    Of one frame, or where all are alike, it lies between 0 and that logit: the frame is judged as if it were alone.
    """
    top, median = top_and_median(logit, half_way.top_frames)
    return (top - half_way.depth * (top - median)) / 2


def call_level(logit: Values, sweeps: Sequence[range], selection: SelectionConfig, *, threshold: float) -> float:
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


def top_and_median(logit: Values, top_frames: int) -> tuple[float, float]:
    """The mean of the `top_frames` highest of (n,) logits, or of all where there are fewer, and the median of all."""
    return float(np.sort(logit)[-top_frames:].mean()), float(np.median(logit))


def most_frames(sweeps: Sequence[range], of_140: float) -> int:
    """How many frames of these sweeps show what `of_140` do where a sweep has 140; at least 1. The longest sweep says
    how many it has: the short rest of a stack that is cut every 140 frames is no sweep of the probe."""
    longest = max((len(sweep) for sweep in sweeps), default=0)
    return max(1, round(of_140 * longest / FRAMES_PER_SWEEP))


def keep_likeliest(presence: Values, most: int) -> Values:
    """Presence (F,) in 0..1 with at most `most` positive frames, the likeliest, of equal ones the earlier. The others
    are halved, which takes them below 0.5."""
    kept = np.array(presence)
    positive = np.flatnonzero(presence >= 0.5)
    others = positive[np.argsort(-presence[positive], kind="stable")[most:]]
    kept[others] = _below_half(kept[others])
    return kept


def keep_strongest_runs(presence: Values, sweeps: Sequence[range]) -> Values:
    """Presence (F,) in 0..1 with one run of positive frames a sweep at most, the one with the largest sum of logits;
    of equal ones the earlier. The frames of other runs are halved, which takes them below 0.5."""
    kept = np.array(presence)
    positive, logit = presence >= 0.5, presence_logit(presence)
    for sweep in sweeps:
        runs = positive_runs(positive, sweep)
        strongest = max(runs, key=lambda run: logit[run.start : run.stop].sum(), default=None)
        for run in runs:
            if run != strongest:
                kept[run.start : run.stop] = _below_half(kept[run.start : run.stop])
    return kept


def _below_half(presence: Values) -> Values:
    """Positive frames (n,) that do not stay so, in their order."""
    return np.minimum(presence / 2, _BELOW_HALF)


def presence_logit(probability: Values) -> Values:
    """log(p / (1 - p)), finite also for 0 and 1."""
    inside = np.clip(probability, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    return np.log(inside / (1 - inside))


def probability_of(logit: Values) -> Values:
    """1 / (1 + exp(-logit)), without overflow."""
    return np.exp(-np.logaddexp(0.0, -logit))


def frame_quality(presence: Values, optimality: Values | None, suboptimal_credit: float) -> Values:
    """How good a choice each frame is: presence x (credit + (1 - credit) x optimality), (F,) in 0..1.

    A `suboptimal_credit` of 0.6, what a suboptimal frame scores in the challenge where an optimal one exists, makes it
    the expected WFSS; 1 leaves optimality out. Without optimality, quality is presence.
    """
    if optimality is None:
        return presence
    return presence * (suboptimal_credit + (1.0 - suboptimal_credit) * optimality)


def choose_candidates(quality: Values, sweeps: Sequence[range], count: int) -> list[int]:
    """At most `count` frame indices, best quality first, apart from each other; [] without frames.

    Frames of one sweep are at least CANDIDATE_DISTANCE_FRAMES apart. Where neighbours have the same quality, the
    middle of their run comes first; where runs do, the longer, then the earlier one.
    """
    rounded = np.round(quality, _TIE_DECIMALS)
    ranked: list[tuple[float, int, float, int]] = []
    sweep_of: dict[int, int] = {}
    for number, sweep in enumerate(sweeps):
        for run in _equal_runs(rounded, sweep):
            # Of an even run the earlier of the two middle frames: both are equally far, and the index decides.
            middle = (run.start + run.stop - 1) / 2
            ranked.extend((-rounded[index], -len(run), abs(index - middle), index) for index in run)
            sweep_of.update(dict.fromkeys(run, number))
    chosen: list[int] = []
    for *_, index in sorted(ranked):
        if all(
            sweep_of[index] != sweep_of[other] or abs(index - other) >= CANDIDATE_DISTANCE_FRAMES for other in chosen
        ):
            chosen.append(index)
            if len(chosen) == count:
                break
    return chosen


def positive_runs(positive: NDArray[np.bool_], sweep: range) -> list[range]:
    """The unbroken runs of True within one sweep, as ranges of frame indices, in order."""
    return [run for run in _equal_runs(positive, sweep) if positive[run.start]]


def _weighted(values: Values, kernel: Values) -> Values:
    """The sum of the values (n,) around each, weighted; nothing lies beyond the ends."""
    reach = len(kernel) // 2
    return np.convolve(values, kernel)[reach : reach + len(values)]


def _kernel(sigma_frames: float) -> Values:
    """Weights of the frames around one, which is in the middle."""
    reach = int(np.ceil(_KERNEL_SIGMAS * sigma_frames))
    return np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma_frames) ** 2)


def _equal_runs(values: NDArray, sweep: range) -> list[range]:
    """One sweep cut where neighbouring values differ."""
    if not len(sweep):
        return []
    inside = values[sweep.start : sweep.stop]
    cuts = (np.flatnonzero(inside[1:] != inside[:-1]) + 1 + sweep.start).tolist()
    return [range(a, b) for a, b in zip([sweep.start, *cuts], [*cuts, sweep.stop], strict=True)]
