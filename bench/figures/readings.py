"""Ways to read what a system says of the frames of a case: which frames are positive, and which one is chosen.

Each reading is fitted on some cases and applied to others. `plain` is the paper's; `half-way` is what `training export`
writes; the others are what was tried and given up, kept so that the comparison can be run again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from algorithm.judgement.select_frame import (
    Values,
    choose_candidates,
    judge_frames,
    presence_logit,
    probability_of,
    smooth_in_sweeps,
    top_and_median,
)
from algorithm.model.manifest import SelectionConfig
from training.judge.calibrate import CaseJudgement
from training.judge.reading import read_cases
from training.learn.frame_metrics import best_f1

SELECTION = SelectionConfig()
_MASK_RULE = 0.01
"""Share of a mask's pixels from which on the published decoder calls a frame positive."""


@dataclass(frozen=True)
class SaidOfCase:
    """What a system says of one case: the mean of its members."""

    uuid: str
    subject: str
    label: NDArray[np.uint8]
    """(F,): 0, 1 optimal, 2 suboptimal."""
    sweeps: Sequence[range]
    """The frames of each."""
    plain: Values
    """(F,): mean of sigmoid(logit), not calibrated."""
    presence: Values
    """(F,): mean of the calibrated probabilities; 0 of black frames."""
    optimality: Values | None
    mask_area: Values | None
    """(F,): mean share of mask pixels above 0.5; None where masks were not drawn on all frames."""


@dataclass(frozen=True)
class Called:
    """One case, read."""

    positive: NDArray[np.bool_]
    chosen: int


Fitted = Callable[[SaidOfCase], Called]
Reading = Callable[[Sequence[SaidOfCase]], Fitted]
"""From the cases that it is fitted on to what it does with another."""


def plain(_: Sequence[SaidOfCase]) -> Fitted:
    """Positive from 0.5 on, the highest frame chosen."""
    return lambda case: Called(case.plain >= 0.5, _best(case.plain, case))


def half_way(
    cases: Sequence[SaidOfCase], selection: SelectionConfig = SELECTION, *, one_run: bool = True, most: bool = True
) -> Fitted:
    """As exported; `selection` with other smoothings for the rows that show what they do."""
    fitted, _ = read_cases([_judge(case, selection) for case in cases], selection, one_run=one_run, most=most)

    def read(case: SaidOfCase) -> Called:
        frames = _judge(case, fitted).frames
        return Called(frames.presence >= 0.5, _best(frames.quality, case))

    return read


def absolute(cases: Sequence[SaidOfCase], selection: SelectionConfig = SELECTION) -> Fitted:
    """Smoothed as exported, positive from 0.5 on."""
    return half_way(cases[:0], selection)


def half_way_by_sweep(cases: Sequence[SaidOfCase], kept_share: float = 0.95) -> Fitted:
    """Half-way, every run, inside a conformal gate: a sweep counts only if its top lies within g of the top of the
    case's best sweep, in units of top - median; g is the quantile over annotated sweeps that keeps `kept_share` of
    them."""
    inside = half_way(cases, one_run=False, most=False)
    distances = []
    for case in cases:
        of_sweeps = _distances(case)
        annotated = [bool((case.label[sweep.start : sweep.stop] > 0).any()) for sweep in case.sweeps]
        distances += [distance for distance, counts in zip(of_sweeps, annotated, strict=True) if counts]
    gate = float(np.quantile(distances, kept_share)) if distances else np.inf

    def read(case: SaidOfCase) -> Called:
        called = inside(case)
        positive = called.positive.copy()
        for sweep, distance in zip(case.sweeps, _distances(case), strict=True):
            if distance > gate:
                positive[sweep.start : sweep.stop] = False
        return replace(called, positive=positive)

    return read


def calibrated(cases: Sequence[SaidOfCase]) -> Fitted:
    """Platt's shift and temperature, smoothed, the threshold with the best F1 (exported until version 0.1.0)."""
    label = np.concatenate([case.label > 0 for case in cases])
    logit = np.concatenate([presence_logit(case.presence) for case in cases])
    model = LogisticRegression(C=1e4).fit(logit[:, None], label)

    def smoothed(case: SaidOfCase) -> Values:
        shifted = probability_of(model.coef_[0, 0] * presence_logit(case.presence) + model.intercept_[0])
        return smooth_in_sweeps(shifted, case.sweeps, SELECTION.smoothing_sigma_frames)

    _, threshold = best_f1(np.concatenate([smoothed(case) for case in cases]).astype(np.float32), label)
    return lambda case: Called(smoothed(case) >= threshold, _best_of(case, SELECTION.smoothing_sigma_frames))


def in_context(cases: Sequence[SaidOfCase]) -> Fitted:
    """A logistic model of the smoothed logit and the case's best, the threshold with the best F1 (until 0.1.0)."""

    def features(case: SaidOfCase) -> Values:
        alone = smooth_in_sweeps(case.presence, case.sweeps, SELECTION.smoothing_sigma_frames)
        logit = presence_logit(alone)
        return np.stack([logit, np.full(len(logit), logit.max())], axis=1)

    label = np.concatenate([case.label > 0 for case in cases])
    model = LogisticRegression(C=1e4).fit(np.concatenate([features(case) for case in cases]), label)

    def judged(case: SaidOfCase) -> Values:
        return np.asarray(model.predict_proba(features(case))[:, 1])

    _, threshold = best_f1(np.concatenate([judged(case) for case in cases]).astype(np.float32), label)
    return lambda case: Called(judged(case) >= threshold, _best_of(case, SELECTION.smoothing_sigma_frames))


def by_mask(_: Sequence[SaidOfCase]) -> Fitted:
    """The decoder alone: positive where 1 % of the mask's pixels are above 0.5, the largest mask chosen."""

    def read(case: SaidOfCase) -> Called:
        assert case.mask_area is not None
        return Called(case.mask_area >= _MASK_RULE, _best(case.mask_area, case))

    return read


def own_threshold(_: Sequence[SaidOfCase]) -> Fitted:
    """Each case's best threshold, smoothed as exported: nobody has it."""

    def read(case: SaidOfCase) -> Called:
        frames = _judge(case, SELECTION).frames
        alone = frames.presence_alone.astype(np.float32)
        _, threshold = best_f1(alone, case.label > 0)
        return Called(alone >= threshold, _best(frames.quality, case))

    return read


READINGS: dict[str, Reading] = {
    "plain, 0.5": plain,
    "half-way, as exported": half_way,
    "smoothed, 0.5": absolute,
    "half-way, every run": lambda cases: half_way(cases, one_run=False, most=False),
    "half-way, one run, any number": lambda cases: half_way(cases, most=False),
    "smoothed, 0.5, one run a sweep": lambda cases: absolute(cases, replace(SELECTION, one_run_a_sweep=True)),
    "half-way, smoothed by 1": lambda cases: half_way(cases, replace(SELECTION, smoothing_sigma_frames=1.0)),
    "half-way, smoothed by 2": lambda cases: half_way(cases, replace(SELECTION, smoothing_sigma_frames=2.0)),
    "half-way, chosen on 4": lambda cases: half_way(cases, replace(SELECTION, choice_sigma_frames=4.0)),
    "half-way, chosen with optimality": lambda cases: half_way(cases, replace(SELECTION, suboptimal_credit=0.6)),
    "half-way, gate by sweep": half_way_by_sweep,
    "calibrated (Platt), own threshold": calibrated,
    "in context, own threshold": in_context,
    "the mask alone": by_mask,
    "each case's best threshold": own_threshold,
}


def read_out_of_fold_cases(
    cases: dict[str, SaidOfCase], folds: Sequence[Sequence[str]], reading: Reading
) -> list[Called]:
    """Each fold's cases, read as fitted on the other folds'; in the order of `cases`."""
    called = {}
    for fold in folds:
        fitted = reading([case for uuid, case in cases.items() if uuid not in fold])
        called |= {uuid: fitted(cases[uuid]) for uuid in fold}
    return [called[uuid] for uuid in cases]


def _judge(case: SaidOfCase, selection: SelectionConfig) -> CaseJudgement:
    frames = judge_frames(case.presence, case.optimality, case.sweeps, selection)
    return CaseJudgement(case.uuid, case.label, frames, case.presence > 0, case.sweeps)


def _best_of(case: SaidOfCase, sigma_frames: float) -> int:
    return _best(_judge(case, replace(SELECTION, choice_sigma_frames=sigma_frames)).frames.quality, case)


def _best(quality: Values, case: SaidOfCase) -> int:
    return choose_candidates(quality, case.sweeps, 1)[0]


def _distances(case: SaidOfCase) -> list[float]:
    """Of each sweep's top from the best sweep's, in units of the case's top - median; black frames do not count."""
    logit = presence_logit(smooth_in_sweeps(case.presence, case.sweeps, SELECTION.smoothing_sigma_frames))
    shown = case.presence > 0
    top, median = top_and_median(logit[shown] if shown.any() else logit, 8)
    tops = [float(logit[sweep.start : sweep.stop].max()) for sweep in case.sweeps]
    return [(max(tops) - value) / max(1e-9, top - median) for value in tops]
