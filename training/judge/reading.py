"""How frames are read, chosen on out-of-fold cases: the half-way reading and the operating points.

What is chosen here is read by the code that inference uses. The cases of all folds are pooled: the more there are, the
less one of them decides.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from acouslic.frame_labels import OPTIMAL
from acouslic.geometry import FRAMES_PER_SWEEP
from algorithm.judgement.select_frame import (
    Values,
    choose_candidates,
    positive_runs,
    presence_logit,
    read_presence,
    top_and_median,
)
from algorithm.model.manifest import HalfWay, SelectionConfig, Thresholds
from training.judge.calibrate import CaseJudgement
from training.learn.frame_metrics import best_f1

FEWEST_CASES = 5
"""Annotated cases from which on the half-way reading is fitted: with fewer, a median is one case's word."""
_MOST_FRAMES_FACTOR = 2
"""Of the annotated frames of the validation case that has most: a case of the release has 19 in the median and 68 in
the 99th percentile, so twice the most of a few cases is rarely too few."""
_ONE_RUN_SHARE = 0.98
"""Of the release's annotated sweeps 99.1 % have one run (547 of 552)."""


def fit_half_way(cases: Sequence[CaseJudgement], top_frames: int = HalfWay.top_frames) -> HalfWay | None:
    """The reading whose depth is the median over the annotated cases of where each case's own best threshold lies,
    0 at the case's top and 1 at its median. No single case can move a median far.

    None where fewer than `FEWEST_CASES` say anything: frames are then read plainly, from 0.5 on.
    """
    depths = [depth for case in cases if (depth := _depth_of_best(case, top_frames)) is not None]
    if len(depths) < FEWEST_CASES:
        return None
    return HalfWay(depth=round(float(np.median(depths)), 4), top_frames=top_frames)


def has_one_run_a_sweep(cases: Sequence[CaseJudgement]) -> bool:
    """Whether the annotated frames of 98 % of the annotated sweeps are one run; False where fewer than `FEWEST_CASES`
    cases have any."""
    runs = [
        [len(positive_runs(case.label > 0, sweep)) for sweep in case.sweeps] for case in cases if (case.label > 0).any()
    ]
    annotated = [count for of_case in runs for count in of_case if count]
    return len(runs) >= FEWEST_CASES and annotated.count(1) >= _ONE_RUN_SHARE * len(annotated)


def fit_most_frames(cases: Sequence[CaseJudgement]) -> int | None:
    """Twice as many frames as the case with most annotated ones has, in sweeps of 140, by its longest as `most_frames`
    has it; None where fewer than `FEWEST_CASES` cases have any."""
    counts = [
        np.count_nonzero(case.label) * FRAMES_PER_SWEEP / max(len(sweep) for sweep in case.sweeps)
        for case in cases
        if (case.label > 0).any()
    ]
    return math.ceil(_MOST_FRAMES_FACTOR * max(counts)) if len(counts) >= FEWEST_CASES else None


def _depth_of_best(case: CaseJudgement, top_frames: int) -> float | None:
    """Where the case's best threshold lies; None where it has no annotated frame or all frames are alike."""
    logit, positive = presence_logit(case.frames.presence_alone[case.seen]), case.label[case.seen] > 0
    if not positive.any():
        return None
    top, median = top_and_median(logit, top_frames)
    if top <= median:
        return None
    lowest = logit.min()
    _, above_lowest = best_f1((logit - lowest).astype(np.float32), positive)
    return min(1.0, max(0.0, (top - (lowest + above_lowest)) / (top - median)))


def read_cases(
    cases: Sequence[CaseJudgement],
    selection: SelectionConfig,
    *,
    half_way: bool = True,
    one_run: bool = True,
    most: bool = True,
) -> tuple[SelectionConfig, list[CaseJudgement]]:
    """What `fit_reading` finds on these cases, and the cases read so."""
    selection = fit_reading(cases, selection, half_way=half_way, one_run=one_run, most=most)
    return selection, [read_again(case, selection) for case in cases]


def fit_reading(
    cases: Sequence[CaseJudgement], selection: SelectionConfig, *, half_way: bool, one_run: bool, most: bool
) -> SelectionConfig:
    """`selection` with the reading that these cases allow: half-way, one run a sweep where their annotation has it, and
    no more frames than are likely, each where it is asked for.

    What `selection` has already is taken as it is.
    """
    if half_way:
        selection = replace(selection, half_way=selection.half_way or fit_half_way(cases))
    if one_run:
        one_run = selection.one_run_a_sweep or has_one_run_a_sweep(cases)
        selection = replace(selection, one_run_a_sweep=one_run)
    if most:
        limit = selection.most_positive_frames or fit_most_frames(cases)
        selection = replace(selection, most_positive_frames=limit)
    return selection


def read_again(case: CaseJudgement, selection: SelectionConfig) -> CaseJudgement:
    """A case, its presence read as `selection` says."""
    alone = case.frames.presence_alone
    presence = read_presence(alone, case.seen, case.sweeps, selection)
    return replace(case, frames=replace(case.frames, presence=presence))


def choose_thresholds(cases: Sequence[CaseJudgement], mask_threshold: float) -> Thresholds:
    """The operating points of cases as they are read.

    Presence is 0.5: the half-way reading puts each case's threshold there, and without it a threshold fitted on few
    cases is luck on others. Optimality has the highest frame F1 among annotated frames.
    """
    optimality = 0.5
    judged = [(case.label, case.frames.optimality) for case in cases if case.frames.optimality is not None]
    if judged:
        label, probability = (np.concatenate(values) for values in zip(*judged, strict=True))
        annotated = label > 0
        _, optimality = best_f1(probability[annotated].astype(np.float32), label[annotated] == OPTIMAL)
    return Thresholds(
        presence=0.5,
        optimality=round(optimality, 4),
        mask=mask_threshold,
        # Down, or it could pass the very case it was set on.
        suitable=math.floor(_suitable_threshold(cases) * 1e4) / 1e4,
    )


def describe_reading(selection: SelectionConfig, thresholds: Thresholds, cases: int) -> str:
    """One line for people about what was chosen on so many cases."""
    if selection.half_way is None:
        how = f"each frame by itself (a half-way reading takes {FEWEST_CASES} annotated cases)"
    else:
        how = f"half-way, depth {selection.half_way.depth}"
    if selection.one_run_a_sweep:
        how += ", one run a sweep"
    if selection.most_positive_frames is not None:
        how += f", at most {selection.most_positive_frames} frames a case"
    return (
        f"{cases} validation cases; frames are read {how}, positive from {thresholds.presence}; optimal from "
        f"{thresholds.optimality}, suitable from {thresholds.suitable}"
    )


def _suitable_threshold(cases: Sequence[CaseJudgement]) -> float:
    """Where the chosen frame's presence alone best tells annotated choices from wrong ones; at most 0.5."""
    chosen_presence, right = [], []
    for case in cases:
        frame = choose_candidates(case.frames.quality, case.sweeps, 1)[0]
        chosen_presence.append(case.frames.presence_alone[frame])
        right.append(bool(case.label[frame] > 0))
    values: Values = np.array(chosen_presence)
    correct = np.array(right)
    if correct.all():
        return float(min(0.5, values.min() / 2))
    if not correct.any():
        return 0.5
    candidates = np.sort(values)
    accuracy = [((values >= at) == correct).mean() for at in candidates]
    return float(min(0.5, candidates[int(np.argmax(accuracy))]))
