"""Runs of one recipe judged on their own folds and on sets of other patients: figures, and paired differences."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.metrics import average_precision_score

from acouslic.frame_labels import frame_worth
from bench.figures.answers import answers_of_run, answers_to_set, open_set, said_of
from bench.figures.readings import READINGS, Called, SaidOfCase, read_out_of_fold_cases
from evaluation.metrics import intervals
from evaluation.metrics.frame_f1 import ConfusionCounts, confusion_counts
from evaluation.metrics.intervals import Interval
from training.export.trained_member import TrainedMember
from training.release.cache import Cache

ALL_SETS = "all sets"
PLAIN, EXPORTED, BEST = "plain, 0.5", "half-way, as exported", "each case's best threshold"


@dataclass(frozen=True)
class Judged:
    """What the runs of one variant and one seed said of all folds' cases, in one order for all variants."""

    cases: list[SaidOfCase]
    called: dict[str, list[Called]]
    """By reading."""

    @property
    def average_precision(self) -> float:
        """Over all frames, plain."""
        label = np.concatenate([case.label > 0 for case in self.cases])
        return float(average_precision_score(label, np.concatenate([case.plain for case in self.cases])))

    def counts(self, reading: str) -> list[ConfusionCounts]:
        """Of each case."""
        pairs = zip(self.cases, self.called[reading], strict=True)
        return [confusion_counts(case.label > 0, called.positive) for case, called in pairs]

    def f1(self, reading: str) -> float:
        """Over all frames."""
        return sum(self.counts(reading), ConfusionCounts()).f1 or 0.0

    def worth(self, reading: str) -> np.ndarray:
        """Of each case's chosen frame, by the challenge's WFSS; float (cases,)."""
        pairs = zip(self.cases, self.called[reading], strict=True)
        return np.array([frame_worth(case.label, called.chosen) for case, called in pairs])


def judge_runs(members: Sequence[TrainedMember], cache: Cache) -> Judged:
    """Runs on different folds of one split, each on the cases that it did not learn from."""
    cases = _left_out(members, cache)
    folds = [member.scored.uuid.tolist() for member in members]
    readings = [PLAIN, BEST] if len(members) == 1 else [PLAIN, EXPORTED, BEST]
    called = {name: read_out_of_fold_cases(cases, folds, READINGS[name]) for name in readings}
    return Judged(list(cases.values()), called)


def judge_set(
    members: Sequence[TrainedMember], own: Cache, other: Cache, name: str, scores: Path, stride: int
) -> Judged:
    """Runs on different folds of one split, together on a set of other patients."""
    cases = open_set(members, own, other, name)
    answers = answers_to_set(members, cases, other, scores, stride, masks=False)
    said = [said_of(members, answers, case) for case in cases]
    fitted_on = list(_left_out(members, own).values())
    called = {}
    for reading in (PLAIN, EXPORTED, BEST):
        fitted = READINGS[reading](fitted_on)
        called[reading] = [fitted(case) for case in said]
    return Judged(said, called)


def judge_sets(
    members: Sequence[TrainedMember], own: Cache, sets: dict[str, Cache], scores: Path, stride: int
) -> dict[str, Judged]:
    """`judge_set` of each, and of all together where there are several."""
    judged = {name: judge_set(members, own, other, name, scores, stride) for name, other in sets.items()}
    return judged | {ALL_SETS: _together(list(judged.values()))} if len(judged) > 1 else judged


def _together(sets: Sequence[Judged]) -> Judged:
    """What was said of the cases of several sets."""
    return Judged(
        [case for one in sets for case in one.cases],
        {name: [called for one in sets for called in one.called[name]] for name in sets[0].called},
    )


def _left_out(members: Sequence[TrainedMember], cache: Cache) -> dict[str, SaidOfCase]:
    """What the runs said of the cases that they did not learn from, by uuid."""
    answers = [answers_of_run(member.scored) for member in members]
    return {uuid: said_of(members, answers, cache.case(uuid)) for found in answers for uuid in found}


def difference(
    base: Sequence[Judged], other: Sequence[Judged], reading: str, base_reading: str | None = None
) -> Interval | None:
    """Of F1 over all frames, seeds together, whole subjects being what varies; the base is read the same way, or as
    `base_reading` says."""
    sides = ((base, base_reading or reading), (other, reading))
    counts = [[count for judged in side for count in judged.counts(name)] for side, name in sides]
    subjects = [case.subject for judged in base for case in judged.cases]
    return intervals.paired_f1_interval(counts[0], counts[1], intervals.units_of(subjects))


def signed(interval: Interval | None) -> str:
    """A difference with its interval, for people."""
    return "-" if interval is None else f"{interval.estimate:+.3f} ({interval.lower:+.3f} to {interval.upper:+.3f})"
