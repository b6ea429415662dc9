"""Out-of-fold cases as an artifact would read them, each by a reading that was fitted without its patient."""

from collections.abc import Mapping, Sequence

from algorithm.model.manifest import SelectionConfig
from training.judge.calibrate import CaseJudgement
from training.judge.reading import fit_reading, read_again


def read_nested(
    cases: Sequence[CaseJudgement],
    subjects: Mapping[str, str],
    selection: SelectionConfig,
    *,
    one_run: bool = False,
    most: bool = False,
) -> list[CaseJudgement]:
    """The cases, each read as fitted on the cases of all other subjects; `subjects` is by uuid.

    The half-way reading is fitted, and where it is asked for whether a sweep has one run, and how many frames are
    likely. What `selection` has already is taken as it is. Where the others are too few, a frame is read by itself.
    """
    fitted: dict[str, SelectionConfig] = {}
    for subject in sorted({subjects[case.uuid] for case in cases}):
        others = [case for case in cases if subjects[case.uuid] != subject]
        fitted[subject] = fit_reading(others, selection, half_way=True, one_run=one_run, most=most)
    return [read_again(case, fitted[subjects[case.uuid]]) for case in cases]
