"""Out-of-fold cases as an artifact would read them, each by a reading that was fitted without its patient."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from algorithm.model.manifest import HalfWay, SelectionConfig
from training.judge.calibrate import CaseJudgement
from training.judge.reading import fit_half_way, read_again
from training.learn.frame_metrics import count_frames

Fit = Callable[[Sequence[CaseJudgement]], HalfWay | None]
"""From the cases that a reading is fitted on to the reading; None reads each frame by itself."""


def read_nested(
    cases: Sequence[CaseJudgement],
    subjects: Mapping[str, str],
    selection: SelectionConfig,
    fit: Fit = fit_half_way,
) -> list[CaseJudgement]:
    """The cases, each read as fitted on the cases of all other subjects; `subjects` is by uuid.

    A reading that `selection` has already is taken as it is. Where the others are too few, a frame is read by itself.
    """
    fitted: dict[str, HalfWay | None] = {}
    for subject in sorted({subjects[case.uuid] for case in cases}):
        others = [case for case in cases if subjects[case.uuid] != subject]
        fitted[subject] = selection.half_way or fit(others)
    return [read_again(case, replace(selection, half_way=fitted[subjects[case.uuid]])) for case in cases]


def choose_reading(cases: Sequence[CaseJudgement], *, one_run_a_sweep: bool = False) -> HalfWay | None:
    """The half-way reading, or None for the plain one: whichever has the higher F1 over all frames of these cases.

    For presence that has seen the case already, so that its threshold need not be the case's once more.
    """
    if not cases:
        return None
    label = np.concatenate([case.label > 0 for case in cases])

    def f1(half_way: HalfWay | None) -> float:
        selection = SelectionConfig(half_way=half_way, one_run_a_sweep=one_run_a_sweep)
        read = [read_again(case, selection).frames.presence for case in cases]
        return count_frames(np.concatenate(read), label, 0.5, None).f1

    half_way = fit_half_way(cases)
    return half_way if half_way is not None and f1(half_way) > f1(None) else None
