"""Frame classification: counts worked by hand, every figure against scikit-learn, protocols kept apart."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from acouslic.geometry import FRAMES_PER_CASE
from evaluation.metrics.case_result import CaseResult
from evaluation.metrics.frame_f1 import (
    PROTOCOLS,
    TARGETS,
    ConfusionCounts,
    best_threshold,
    called_positive,
    case_counts,
    pooled,
    pooled_counts,
    protocol_frames,
    score_metrics,
    score_of,
    selection_metrics,
)
from evaluation.metrics.summary import summarise

Build = Callable[..., CaseResult]


def hand_case(make_case_result: Build, **changes: Any) -> CaseResult:
    """Sweep 1 annotated: frames 10..13 suboptimal, 14..15 optimal. Presence is high in 12..16 and, in sweep 3, 300."""
    labels = np.zeros(FRAMES_PER_CASE, dtype=np.uint8)
    labels[10:14], labels[14:16] = 2, 1
    presence = np.full(FRAMES_PER_CASE, 0.1)
    presence[12:17], presence[300] = 0.8, 0.6
    optimality = np.full(FRAMES_PER_CASE, 0.2)
    optimality[15:17] = 0.75
    fields: dict[str, Any] = {
        "case": "hand",
        "labels": labels,
        "annotated_sweeps": (True, False, False, False, False, False),
        "presence_probability": presence,
        "optimality_probability": optimality,
        "presence_threshold": 0.7,
        "optimality_threshold": 0.75,
        "frame_number": 13,
    }
    return make_case_result(**(fields | changes))


def random_cases(make_case_result: Build, count: int = 6) -> list[CaseResult]:
    """Cases with ties in the scores, some sweeps annotated, thresholds of their own."""
    generator = np.random.default_rng(7)
    results = []
    for number in range(count):
        labels = generator.choice([0, 1, 2], size=FRAMES_PER_CASE, p=[0.9, 0.03, 0.07]).astype(np.uint8)
        noisy = np.clip(0.25 * (labels > 0) + 0.75 * generator.random(FRAMES_PER_CASE), 0, 1)
        results.append(
            make_case_result(
                case=f"case {number}",
                labels=labels,
                annotated_sweeps=tuple((generator.random(6) < 0.5).tolist()),
                presence_probability=np.round(noisy, 2),
                optimality_probability=np.round(generator.random(FRAMES_PER_CASE), 2),
                presence_threshold=0.6,
                optimality_threshold=0.3,
                frame_number=int(generator.integers(-1, FRAMES_PER_CASE)),
            )
        )
    return results


def test_presence_worked_by_hand(make_case_result: Build) -> None:
    """Calls 12..16 of positives 10..15: 4 right, 1 wrong, 2 missed; frame 300 only counts in all frames."""
    case = hand_case(make_case_result)
    annotated = case_counts(case, "presence", "own_threshold", "annotated_sweeps")
    assert annotated == ConfusionCounts(tp=4, fp=1, fn=2, tn=133)
    everything = case_counts(case, "presence", "own_threshold", "all_frames")
    assert everything == ConfusionCounts(tp=4, fp=1, fn=2, tn=833)
    half = case_counts(case, "presence", "half", "all_frames")
    assert half == ConfusionCounts(tp=4, fp=2, fn=2, tn=832)
    assert case_counts(case, "presence", "half", "annotated_sweeps") == annotated
    values = annotated.metrics()
    expected = {
        "f1": Fraction(8, 11),
        "accuracy": Fraction(137, 140),
        "precision": Fraction(4, 5),
        "recall": Fraction(2, 3),
        "specificity": Fraction(133, 134),
    }
    for name, fraction in expected.items():
        assert values[name] == pytest.approx(float(fraction), abs=1e-15), name


def test_optimal_against_the_rest_worked_by_hand(make_case_result: Build) -> None:
    """Both own thresholds must be met (15, 16 against 14, 15); at one half it is the product, 0.8 x 0.75."""
    case = hand_case(make_case_result)
    expected = ConfusionCounts(tp=1, fp=1, fn=1, tn=137)
    assert case_counts(case, "optimal", "own_threshold", "annotated_sweeps") == expected
    assert case_counts(case, "optimal", "half", "annotated_sweeps") == expected
    score = score_of(case, "optimal")
    assert score is not None
    assert score[15] == pytest.approx(0.6)
    assert score[12] == pytest.approx(0.16)


def test_a_probability_on_the_threshold_is_a_positive_call(make_case_result: Build) -> None:
    """`from the threshold on`, both for the own one and for 0.5."""
    case = hand_case(make_case_result, presence_threshold=0.8)
    assert case_counts(case, "presence", "own_threshold", "annotated_sweeps") == ConfusionCounts(4, 1, 2, 133)
    half = hand_case(make_case_result, presence_probability=np.full(FRAMES_PER_CASE, 0.5))
    called = called_positive(half, "presence", "half")
    assert called is not None
    assert called.all()


def test_the_selection_is_a_classifier_of_one_frame(make_case_result: Build) -> None:
    """Frame 13 is positive but not optimal; no frame calls nothing; scores are not needed."""
    case = hand_case(make_case_result, presence_probability=None, optimality_probability=None)
    assert case_counts(case, "presence", "selection", "all_frames") == ConfusionCounts(1, 0, 5, 834)
    assert case_counts(case, "optimal", "selection", "all_frames") == ConfusionCounts(0, 1, 2, 837)
    none = hand_case(make_case_result, frame_number=-1)
    assert case_counts(none, "presence", "selection", "all_frames") == ConfusionCounts(0, 0, 6, 834)
    outside = hand_case(make_case_result, frame_number=300)
    assert case_counts(outside, "presence", "selection", "annotated_sweeps") == ConfusionCounts(0, 0, 6, 134)
    assert case_counts(outside, "presence", "selection", "all_frames") == ConfusionCounts(0, 1, 6, 833)
    assert case_counts(case, "presence", "own_threshold", "all_frames") is None


def test_the_protocols_count_what_they_say(make_case_result: Build) -> None:
    """Annotated sweeps are those with a circumference, whole; stacks of another length keep their own sweeps."""
    case = hand_case(make_case_result, annotated_sweeps=(False, True, False, False, False, True))
    counted = np.flatnonzero(protocol_frames(case, "annotated_sweeps"))
    assert counted.tolist() == [*range(140, 280), *range(700, 840)]
    short = hand_case(make_case_result, labels=np.zeros(720, np.uint8), annotated_sweeps=(False,) * 5 + (True,))
    assert np.flatnonzero(protocol_frames(short, "annotated_sweeps")).tolist() == list(range(600, 720))
    assert protocol_frames(short, "all_frames").sum() == 720


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("target", TARGETS)
def test_every_figure_is_scikit_learns(make_case_result: Build, target: Any, protocol: Any) -> None:
    """AUROC, average precision, and F1, accuracy, precision, recall at 0.5 of the pooled frames."""
    results = random_cases(make_case_result)
    truth, score = pooled(results, target, protocol)
    values = score_metrics(results, target, protocol)
    called = score >= 0.5
    assert values["frames"] == len(truth)
    assert values["auroc"] == pytest.approx(sklearn_metrics.roc_auc_score(truth, score), abs=1e-12)
    assert values["average_precision"] == pytest.approx(
        sklearn_metrics.average_precision_score(truth, score), abs=1e-12
    )
    half = values["at_half"]
    assert half["f1"] == pytest.approx(sklearn_metrics.f1_score(truth, called), abs=1e-12)
    assert half["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(truth, called), abs=1e-12)
    assert half["precision"] == pytest.approx(sklearn_metrics.precision_score(truth, called), abs=1e-12)
    assert half["recall"] == pytest.approx(sklearn_metrics.recall_score(truth, called), abs=1e-12)
    assert half["specificity"] == pytest.approx(sklearn_metrics.recall_score(~truth, ~called), abs=1e-12)
    matrix = sklearn_metrics.confusion_matrix(truth, called)
    assert [[half["tn"], half["fp"]], [half["fn"], half["tp"]]] == matrix.tolist()


def test_the_best_threshold_is_the_best_of_all(make_case_result: Build) -> None:
    """No other score as threshold gives a larger F1, by trying each; its name says that it is optimistic."""
    results = random_cases(make_case_result)
    truth, score = pooled(results, "presence", "all_frames")
    best = max(sklearn_metrics.f1_score(truth, score >= threshold) for threshold in np.unique(score))
    found = score_metrics(results, "presence", "all_frames")["at_best_threshold_optimistic"]
    assert found["f1"] == pytest.approx(best, abs=1e-12)
    assert found["threshold"] == best_threshold(truth, score)
    assert found["f1"] >= score_metrics(results, "presence", "all_frames")["at_half"]["f1"]


def test_each_case_is_called_at_its_own_threshold(make_case_result: Build) -> None:
    """Two cases with the same scores and different thresholds add up their own counts."""
    strict, loose = hand_case(make_case_result), hand_case(make_case_result, case="loose", presence_threshold=0.1)
    assert pooled_counts([strict, loose], "presence", "own_threshold", "all_frames") == ConfusionCounts(10, 835, 2, 833)


def test_undefined_figures_are_left_out(make_case_result: Build) -> None:
    """Without positives there is no F1 unless something was called, no recall, no AUROC; without frames nothing."""
    blank = hand_case(make_case_result, labels=np.zeros(FRAMES_PER_CASE, np.uint8))
    quiet = score_metrics(
        [hand_case(make_case_result, labels=blank.frame_labels, presence_threshold=1.0)], "presence", "all_frames"
    )
    assert quiet == {
        "frames": 840,
        "positives": 0,
        "at_own_threshold": {"accuracy": 1.0, "specificity": 1.0, "tp": 0, "fp": 0, "fn": 0, "tn": 840},
        "at_half": {"f1": 0.0, "precision": 0.0, "tp": 0, "fp": 6, "fn": 0, "tn": 834}
        | {"accuracy": 834 / 840, "specificity": 834 / 840},
    }
    nothing = score_metrics(
        [hand_case(make_case_result, annotated_sweeps=(False,) * 6)], "presence", "annotated_sweeps"
    )
    assert nothing["frames"] == 0
    assert nothing["at_half"] == {"tp": 0, "fp": 0, "fn": 0, "tn": 0}
    only = ConfusionCounts(fn=3).metrics()
    assert (only["f1"], only["recall"]) == (0.0, 0.0)
    assert "precision" not in only


def test_partial_scores_never_have_the_comparable_name(make_case_result: Build) -> None:
    """One case without scores moves the figures to `..._of_scored_cases`, and the counts say how many there were."""
    scored, bare = hand_case(make_case_result), hand_case(make_case_result, case="bare", presence_probability=None)
    whole, part = summarise([scored]), summarise([scored, bare])
    assert whole["frame_f1"]["all_frames"] == part["frame_f1_of_scored_cases"]["all_frames"]
    assert not {"frame_f1", "optimal_f1", "calibration"} & set(part)
    assert (part["cases_with_presence_scores"], part["case_count"]) == (1, 2)
    assert not any(name.startswith("frame_f1") for name in summarise([bare]))
    assert part["selection_f1"]["all_frames"]["tp"] == 2


def test_optimality_may_be_missing_alone(make_case_result: Build) -> None:
    """Presence has its comparable name, optimal-against-rest has none."""
    metrics = summarise([hand_case(make_case_result, optimality_probability=None, optimality_threshold=None)])
    assert "frame_f1" in metrics
    assert "optimal_f1" not in metrics
    assert metrics["cases_with_optimal_scores"] == 0


def test_selection_metrics_pool_all_cases(make_case_result: Build) -> None:
    """Two cases, one hit: precision 1/2, recall 1/12."""
    results = [hand_case(make_case_result), hand_case(make_case_result, case="miss", frame_number=100)]
    values = selection_metrics(results, "presence", "annotated_sweeps")
    assert (values["precision"], values["recall"]) == (pytest.approx(1 / 2), pytest.approx(1 / 12))
