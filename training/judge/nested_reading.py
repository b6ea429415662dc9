"""Out-of-fold cases as an artifact would read them, each by a reading that was fitted without its patient."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from algorithm.model.manifest import SelectionConfig
from training.judge.calibrate import CaseJudgement
from training.judge.reading import fit_half_way, read_again


def read_nested(
    cases: Sequence[CaseJudgement], subjects: Mapping[str, str], selection: SelectionConfig
) -> list[CaseJudgement]:
    """The cases, read half-way with a depth fitted on the cases of all other subjects; `subjects` is by uuid.

    A reading that `selection` has already is taken as it is. Where the others are too few, a frame is read by itself.
    """
    read = []
    for case in cases:
        half_way = selection.half_way
        if half_way is None:
            half_way = fit_half_way([other for other in cases if subjects[other.uuid] != subjects[case.uuid]])
        read.append(read_again(case, replace(selection, half_way=half_way)))
    return read
