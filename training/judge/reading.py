"""How frames are read, chosen on out-of-fold cases: the half-way reading and the operating points.

What is chosen here is read by the code that inference uses. The cases of all folds are pooled: the more there are, the
less one of them decides.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from acouslic.geometry import sweep_ranges
from algorithm.judgement.select_frame import (
    Values,
    choose_candidates,
    presence_logit,
    read_half_way,
    top_and_median,
)
from algorithm.model.manifest import HalfWay, SelectionConfig, Thresholds
from training.judge.calibrate import CaseJudgement
from training.learn.frame_metrics import best_f1

FEWEST_CASES = 5
"""Annotated cases from which on the half-way reading is fitted: with fewer, a median is one case's word."""


def fit_half_way(cases: Sequence[CaseJudgement], top_frames: int = HalfWay.top_frames) -> HalfWay | None:
    """The reading whose depth is the median over the annotated cases of where each case's own best threshold lies,
    0 at the case's top and 1 at its median. No single case can move a median far.

    None where fewer than `FEWEST_CASES` say anything: frames are then read plainly, from 0.5 on.
    """
    depths = [depth for case in cases if (depth := _depth_of_best(case, top_frames)) is not None]
    if len(depths) < FEWEST_CASES:
        return None
    return HalfWay(depth=round(float(np.median(depths)), 4), top_frames=top_frames)


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
    cases: Sequence[CaseJudgement], selection: SelectionConfig
) -> tuple[SelectionConfig, list[CaseJudgement]]:
    """`selection` with the half-way reading fitted to these cases, where they allow one, and the cases read so.

    A reading that `selection` has already is taken as it is.
    """
    selection = replace(selection, half_way=selection.half_way or fit_half_way(cases))
    return selection, [read_again(case, selection) for case in cases]


def read_again(case: CaseJudgement, selection: SelectionConfig) -> CaseJudgement:
    """A case, its presence read as `selection` says."""
    alone = case.frames.presence_alone
    presence = read_half_way(alone, alone[case.seen], selection.half_way)
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
        _, optimality = best_f1(probability[annotated].astype(np.float32), label[annotated] == 1)
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
    return (
        f"{cases} validation cases; frames are read {how}, positive from {thresholds.presence}; optimal from "
        f"{thresholds.optimality}, suitable from {thresholds.suitable}"
    )


def _suitable_threshold(cases: Sequence[CaseJudgement]) -> float:
    """Where the chosen frame's presence alone best tells annotated choices from wrong ones; at most 0.5."""
    chosen_presence, right = [], []
    for case in cases:
        frame = choose_candidates(case.frames.quality, sweep_ranges(len(case.label)), 1)[0]
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
