"""Out-of-fold cases as an artifact would read them, each by a reading that was fitted without its patient."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from algorithm.model.manifest import HalfWay, SelectionConfig
from training.judge.calibrate import CaseJudgement
from training.judge.reading import fit_half_way, read_again


def read_nested(
    cases: Sequence[CaseJudgement], subjects: Mapping[str, str], selection: SelectionConfig
) -> list[CaseJudgement]:
    """The cases, each read as fitted on the cases of all other subjects; `subjects` is by uuid.

    A reading that `selection` has already is taken as it is. Where the others are too few, a frame is read by itself.
    """
    fitted: dict[str, HalfWay | None] = {}
    for subject in sorted({subjects[case.uuid] for case in cases}):
        others = [case for case in cases if subjects[case.uuid] != subject]
        fitted[subject] = selection.half_way or fit_half_way(others)
    return [read_again(case, replace(selection, half_way=fitted[subjects[case.uuid]])) for case in cases]
