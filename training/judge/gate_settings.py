"""What of a student's gate the ensemble looks at again: chosen on cases that neither has learned from.

Every combination of the settings below is tried as inference would run it, from what both say of every frame. Taken is
the one that sends the fewest frames to the ensemble and still keeps the answers of exhaustive scoring.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from acouslic.errors import AcouslicError
from acouslic.geometry import sweep_ranges
from algorithm.judgement.refine import refine
from algorithm.judgement.select_frame import Values, choose_candidates, judge_frames, presence_logit, probability_of
from algorithm.model.manifest import ScoringConfig, SelectionConfig
from algorithm.model.networks import Agreement
from training.judge.teacher import FrameOpinions
from training.learn.frame_metrics import count_frames

LEAST_SAME_FRAME = 0.98
"""Share of the cases in which the same frame has to be chosen."""
LEAST_FRAME_F1 = 0.995
"""F1 of the frames called positive against those of exhaustive scoring."""
MOST_F1_DIFFERENCE = 0.005
"""By so much F1 against the annotation may differ from exhaustive scoring's."""

MOST_ROUNDS = 8
"""How often the ensemble is asked at most: mostly it ends after three or four."""

# Nothing leaner: it can pass on the few cases that settings are chosen on, and fails on others (bench/LOG.md, 69).
_MARGIN_FRAMES = (4, 6)
_REFINE_RATIO = (0.5, 0.3)
_REFINE_PRESENCE = ((0.15, 0.85), (0.07, 0.93), (0.03, 0.97), (0.01, 0.99))
_SCALE_FRAMES = (12, 24, 48)
"""Never none: these cases are of the sites that the student learned from, where its scale is right; at another site it
may be off, and every threshold with it. The more there are, the nearer the threshold of a case is to the ensemble's."""


@dataclass(frozen=True)
class JudgedTwice:
    """A case as the members that did not learn from it judge it, and as the student does."""

    ensemble: FrameOpinions
    student: FrameOpinions
    black: NDArray[np.bool_]
    """(F,): not all of them."""
    annotated: NDArray[np.bool_]
    """(F,)"""


@dataclass(frozen=True)
class _Answer:
    frame_index: int
    positive: NDArray[np.bool_]


def scale_shift(cases: Sequence[JudgedTwice]) -> float:
    """How far a student's logits lie from the ensemble's in the middle of a case: the median over the cases of the
    difference between the ensemble's median and the student's.

    A student learns mean probabilities, which are those of higher logits than the median's; and the median of a case
    sets the threshold of all its frames.
    """
    return float(np.median([_median_logit(case.ensemble, case) - _median_logit(case.student, case) for case in cases]))


def shifted(case: JudgedTwice, shift: float) -> JudgedTwice:
    """A case as a student whose presence logits lie higher by `shift` would judge it."""
    presence = probability_of(presence_logit(case.student.presence) + shift)
    return replace(case, student=replace(case.student, presence=presence))


def _median_logit(opinions: FrameOpinions, case: JudgedTwice) -> float:
    return float(np.median(presence_logit(opinions.presence[~case.black])))


@dataclass(frozen=True)
class _Tried:
    """A gate, and what it keeps of the answers."""

    scoring: ScoringConfig
    agreement: Agreement
    f1_difference: float
    """Against the annotation, to exhaustive scoring."""

    @property
    def keeps_answers(self) -> bool:
        """Whether it may stand for exhaustive scoring."""
        return (
            self.agreement.other_frames <= (1 - LEAST_SAME_FRAME) * self.agreement.cases
            and self.agreement.frame_f1 >= LEAST_FRAME_F1
            and abs(self.f1_difference) <= MOST_F1_DIFFERENCE
        )

    @property
    def kept(self) -> tuple[int, float]:
        """More is nearer to exhaustive scoring."""
        return -self.agreement.other_frames, self.agreement.frame_f1


def choose_gate(
    cases: Sequence[JudgedTwice], selection: SelectionConfig, threshold: float, most_refined: float
) -> tuple[ScoringConfig, Agreement]:
    """The settings of a student's gate, and how far they keep the answers to these cases, at least one.

    `threshold` is that of presence, `most_refined` the largest share of a case's frames that may be refined.
    Raises AcouslicError where no settings keep the answers.
    """
    exhaustive = [_answer(case.ensemble, case.black, selection, threshold) for case in cases]
    tried = [_try(cases, exhaustive, scoring, selection, threshold) for scoring in _settings(most_refined)]
    chosen = min(
        (gate for gate in tried if gate.keeps_answers), key=lambda gate: gate.agreement.refined_share, default=None
    )
    if chosen is None:
        nearest = max(tried, key=lambda gate: gate.kept)
        raise AcouslicError(
            f"the student cannot be the gate: {describe_agreement(nearest.agreement)}, and F1 against the annotation "
            f"differs by {abs(nearest.f1_difference):.4f}, where {LEAST_SAME_FRAME:.0%}, {LEAST_FRAME_F1} and "
            f"{MOST_F1_DIFFERENCE} are asked for with at most {most_refined:.0%} of the frames refined; give it more "
            "cases, more epochs or more width, or raise --most_refined"
        )
    return chosen.scoring, chosen.agreement


def describe_agreement(agreement: Agreement) -> str:
    """A few words for people."""
    return (
        f"with {agreement.refined_share:.1%} of the frames refined, it has the frame of exhaustive scoring in "
        f"{agreement.cases - agreement.other_frames} of {agreement.cases} held-out cases, and an F1 of "
        f"{agreement.frame_f1:.4f} against its positive frames"
    )


def _settings(most_refined: float) -> Iterator[ScoringConfig]:
    grid = itertools.product(_MARGIN_FRAMES, _REFINE_RATIO, _REFINE_PRESENCE, _SCALE_FRAMES)
    for margin, ratio, presence, scale_frames in grid:
        yield ScoringConfig(
            mode="gated",
            gate="student",
            stride=1,
            margin_frames=margin,
            refine_ratio=ratio,
            refine_presence=presence,
            max_refined_fraction=most_refined,
            rounds=MOST_ROUNDS,
            scale_frames=scale_frames,
        )


def _try(
    cases: Sequence[JudgedTwice],
    exhaustive: Sequence[_Answer],
    scoring: ScoringConfig,
    selection: SelectionConfig,
    threshold: float,
) -> _Tried:
    gated, refined = [], 0
    for case in cases:
        mixed, count = _gated(case, scoring, selection)
        gated.append(_answer(mixed, case.black, selection, threshold))
        refined += count
    found, expected = (np.concatenate([answer.positive for answer in answers]) for answers in (gated, exhaustive))
    agreement = Agreement(
        cases=len(cases),
        other_frames=sum(a.frame_index != b.frame_index for a, b in zip(gated, exhaustive, strict=True)),
        positive_frames=int(found.sum() + expected.sum()),
        changed_frames=int((found != expected).sum()),
        refined_share=refined / len(found),
    )
    annotated = np.concatenate([case.annotated for case in cases])
    f1, f1_exhaustive = (count_frames(called, annotated, 0.5, None).f1 for called in (found, expected))
    return _Tried(scoring, agreement, f1 - f1_exhaustive)


def _gated(case: JudgedTwice, scoring: ScoringConfig, selection: SelectionConfig) -> tuple[FrameOpinions, int]:
    """A case as a gated run leaves it, and how many of its frames were refined."""
    ensemble, student = case.ensemble, case.student

    def ask(indices: NDArray[np.int64], _: Values) -> tuple[Values, Values | None]:
        return ensemble.presence[indices], None if ensemble.optimality is None else ensemble.optimality[indices]

    presence = np.where(case.black, 0.0, student.presence)
    sweeps = sweep_ranges(len(presence))
    known = refine(presence, student.optimality, sweeps, selection, scoring, ask, black=case.black)
    return FrameOpinions(known.presence, known.optimality), int(known.refined.sum())


def _answer(opinions: FrameOpinions, black: NDArray[np.bool_], selection: SelectionConfig, threshold: float) -> _Answer:
    """Chosen frame and positive frames, as the pipeline comes to them where every mask has an ellipse."""
    sweeps = sweep_ranges(len(black))
    judged = judge_frames(np.where(black, 0.0, opinions.presence), opinions.optimality, sweeps, selection)
    candidates = choose_candidates(np.where(black, -1.0, judged.quality), sweeps, 1)
    return _Answer(candidates[0], judged.presence >= threshold)
