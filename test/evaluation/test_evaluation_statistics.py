"""Agreement, calibration and intervals: worked by hand, and against plain loops and scikit-learn."""

import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, f1_score

from acouslic.geometry import FRAMES_PER_CASE
from bench.interval_coverage import bootstrap_interval, coverage, report_interval, true_f1
from evaluation.metrics.agreement import choice_of, circumference_agreement, frame_choices, sweep_table
from evaluation.metrics.calibration import calibration, reliability_table
from evaluation.metrics.case_result import CaseResult
from evaluation.metrics.frame_f1 import ConfusionCounts
from evaluation.metrics.intervals import (
    SEED,
    f1_interval,
    f1_without_extremes,
    mean_interval,
    paired_f1_interval,
    paired_mean_interval,
    units_of,
)
from evaluation.metrics.own_judgement import risk_against_coverage
from evaluation.metrics.summary import per_case_columns, summarise

Build = Callable[..., CaseResult]


def labelled(optimal: range = range(0), suboptimal: range = range(0)) -> np.ndarray:
    labels = np.zeros(FRAMES_PER_CASE, dtype=np.uint8)
    labels[suboptimal.start : suboptimal.stop], labels[optimal.start : optimal.stop] = 2, 1
    return labels


def measured(make_case_result: Build, pairs: list[tuple[float | None, float | None]]) -> list[CaseResult]:
    return [
        make_case_result(case=f"case {number}", reference_ac_mm=reference, predicted_ac_mm=predicted)
        for number, (reference, predicted) in enumerate(pairs)
    ]


# Agreement


def test_circumference_errors_worked_by_hand(make_case_result: Build) -> None:
    """Errors +10, -30, +20 mm of 200: bias 0, mean absolute 20, sample variance 700; per cent is half of it."""
    pairs = [(200.0, 210.0), (200.0, 170.0), (200.0, 220.0), (None, 200.0), (200.0, None), (None, None)]
    found = circumference_agreement(measured(make_case_result, pairs))
    counts = (found["cases_measured"], found["cases_without_reference"], found["cases_without_ellipse"])
    assert counts == (3, 2, 1)
    limit_mm = 1.96 * math.sqrt(700)
    assert found["error_mm"] == {
        "bias": pytest.approx(0, abs=1e-12),
        "mean_absolute": pytest.approx(20),
        "median_absolute": pytest.approx(20),
        "sd": pytest.approx(math.sqrt(700)),
        "lower_limit": pytest.approx(-limit_mm),
        "upper_limit": pytest.approx(limit_mm),
    }
    assert found["error_percent"]["upper_limit"] == pytest.approx(limit_mm / 2)
    assert found["share_of_measured_cases"] == {
        "within_5_percent": pytest.approx(1 / 3),
        "within_10_percent": pytest.approx(2 / 3),
        "within_15_percent": 1.0,
    }
    assert found["share_of_all_cases"]["within_15_percent"] == pytest.approx(3 / 6)


def test_an_error_of_exactly_five_per_cent_is_within(make_case_result: Build) -> None:
    """Whatever the last digit of its float; one of 5.001 % is not."""
    references = [100.0 + number / 10 for number in range(1000)]
    for factor, share in ((1.05, 1.0), (1.05001, 0.0)):
        pairs: list[tuple[float | None, float | None]] = [(value, value * factor) for value in references]
        found = circumference_agreement(measured(make_case_result, pairs))
        assert found["share_of_measured_cases"]["within_5_percent"] == share


def test_one_measured_case_has_no_limits_and_none_has_only_counts(make_case_result: Build) -> None:
    """A spread needs two; nothing is NaN."""
    one = circumference_agreement(measured(make_case_result, [(300.0, 285.0)]))
    assert one["error_mm"] == {"bias": -15.0, "mean_absolute": 15.0, "median_absolute": 15.0}
    assert one["share_of_measured_cases"]["within_5_percent"] == 1.0
    none = circumference_agreement(measured(make_case_result, [(None, None)]))
    assert none == {"cases_measured": 0, "cases_without_reference": 1, "cases_without_ellipse": 0}


def test_choices_and_distances_worked_by_hand(make_case_result: Build) -> None:
    """Each kind of choice once; the distances of those that have one: 0, 0, 7 and, to an optimal frame, 0, 1, 5."""
    labels = labelled(optimal=range(50, 52), suboptimal=range(48, 55))
    found = [
        make_case_result(labels=labels, frame_number=51, annotated_distance_frames=0, optimal_distance_frames=0),
        make_case_result(labels=labels, frame_number=52, annotated_distance_frames=0, optimal_distance_frames=1),
        make_case_result(labels=labels, frame_number=41, annotated_distance_frames=7, optimal_distance_frames=5),
        make_case_result(labels=labels, frame_number=140),
        make_case_result(labels=labelled(), frame_number=-1),
    ]
    names = ["optimal", "suboptimal", "unannotated_frame", "unannotated_sweep", "no_frame"]
    assert [choice_of(result) for result in found] == names
    assert frame_choices(found) == {
        "cases": dict.fromkeys(names, 1),
        "cases_with_optimal_frame": 4,
        "to_annotated_frames": {"cases": 3, "mean": pytest.approx(7 / 3), "median": 0.0, "max": 7},
        "to_optimal_frames": {"cases": 3, "mean": pytest.approx(2.0), "median": 1.0, "max": 5},
    }
    assert frame_choices(found[-1:])["to_annotated_frames"] == {"cases": 0}


def test_the_sweep_table_worked_by_hand(make_case_result: Build) -> None:
    """Two cases annotated in sweep 1; one chooses there and hits, the other chooses in sweep 6 and misses."""
    labels = labelled(suboptimal=range(10, 20))
    presence = np.zeros(FRAMES_PER_CASE)
    presence[15:25] = 1.0
    fields: dict[str, Any] = {"labels": labels, "annotated_sweeps": (True,) + (False,) * 5}
    hit = make_case_result(
        frame_number=12,
        reference_ac_mm=250.0,
        predicted_ac_mm=245.0,
        presence_probability=presence,
        presence_threshold=0.5,
        official={"wfss": 1.0, "DiceCoefficientSoft": 0.8, "nae_circumference": 0.02},
        **fields,
    )
    miss = make_case_result(frame_number=839, **fields)
    table = sweep_table([hit, miss])
    assert list(table) == [f"sweep_{number}" for number in range(1, 7)]
    first = table["sweep_1"]
    assert (first["cases_annotated"], first["cases_chosen"], first["cases_chosen_annotated"]) == (2, 1, 1)
    assert first["mean_score"] == pytest.approx(0.5 * 0.98 + 0.25 * 0.8 + 0.25)
    assert first["circumference"]["error_mm"]["bias"] == -5.0
    assert {name: first["presence"][name] for name in ("tp", "fp", "fn", "tn")} == {
        "tp": 5,
        "fp": 5,
        "fn": 5,
        "tn": 125,
    }
    last = table["sweep_6"]
    assert (last["cases_annotated"], last["cases_chosen"], last["cases_chosen_annotated"]) == (0, 1, 0)
    assert "error_mm" not in last["circumference"]
    assert sweep_table([]) == {}


# Calibration


def test_calibration_worked_by_hand() -> None:
    """Two frames at 0.3, one positive; one negative at 1.0: Brier (0.49 + 0.09 + 1) / 3, gaps 0.2 and 1."""
    truth, probability = np.array([True, False, False]), np.array([0.3, 0.3, 1.0])
    found = calibration(truth, probability)
    assert found["brier_score"] == pytest.approx((0.49 + 0.09 + 1) / 3)
    assert found["expected_calibration_error"] == pytest.approx(2 / 3 * 0.2 + 1 / 3 * 1.0)
    assert found["reliability"]["bin_4"] == {
        "frames": 2,
        "mean_probability": pytest.approx(0.3),
        "observed_fraction": 0.5,
    }
    assert found["reliability"]["bin_10"] == {"frames": 1, "mean_probability": 1.0, "observed_fraction": 0.0}
    assert found["reliability"]["bin_1"] == {"frames": 0}
    assert calibration(truth[:0], probability[:0]) == {"frames": 0}


def test_calibration_is_scikit_learns() -> None:
    """Brier score and the filled bins of 5,000 frames."""
    generator = np.random.default_rng(3)
    probability = generator.beta(0.5, 2.0, size=5000)
    truth = generator.random(5000) < probability**1.5
    table = reliability_table(truth, probability)
    observed, mean = calibration_curve(truth, probability, n_bins=10)
    filled = table["frames"] > 0
    assert table["observed_fraction"][filled] == pytest.approx(observed, abs=1e-12)
    assert table["mean_probability"][filled] == pytest.approx(mean, abs=1e-12)
    assert calibration(truth, probability)["brier_score"] == pytest.approx(brier_score_loss(truth, probability))


@pytest.mark.parametrize("edge", range(11))
def test_a_probability_on_an_edge_belongs_to_the_bin_above(edge: int) -> None:
    """Also 0.3 and 0.7, whose tenths are not exact in floats; 1.0 stays in the last bin."""
    frames = reliability_table(np.array([True]), np.array([edge / 10]))["frames"]
    assert np.flatnonzero(frames).tolist() == [min(edge, 9)]


# Intervals


def test_units_are_subjects_and_lone_cases() -> None:
    """Cases of a subject share a unit; unknown subjects do not; a subject named like a number is no case."""
    assert units_of(["a", None, "b", "a", None, "0"]).tolist() == [0, 1, 2, 0, 3, 4]
    assert units_of([]).tolist() == []


TWENTY_CASES = units_of([f"subject {number // 2}" for number in range(20)])
"""Ten subjects of two cases each."""


def test_intervals_of_means_are_scipys_bca_over_subjects() -> None:
    """Mean, mean of a subset and paired difference: every resample built case by case, by hand."""
    generator = np.random.default_rng(11)
    # Sums of whole 1024ths are exact, so that the order of adding decides no tie between resamples.
    values_a, values_b = np.round(generator.random((2, 20)) * 1024) / 1024
    some = np.where(generator.random(20) < 0.4, np.nan, values_a)

    def by_hand(values: np.ndarray) -> tuple[float, float]:
        subjects = sorted({unit for unit in TWENTY_CASES.tolist() if not np.isnan(values[unit == TWENTY_CASES]).all()})

        def mean_of(drawn: np.ndarray) -> float:
            return float(np.nanmean(np.concatenate([values[subjects[unit] == TWENTY_CASES] for unit in drawn])))

        numbers = (np.arange(len(subjects)),)
        rng = np.random.default_rng(SEED)
        found = stats.bootstrap(numbers, mean_of, n_resamples=200, vectorized=False, method="BCa", rng=rng)
        return float(found.confidence_interval.low), float(found.confidence_interval.high)

    for interval, values in (
        (mean_interval(values_a, TWENTY_CASES, 200), values_a),
        (mean_interval(some, TWENTY_CASES, 200), some),
        (paired_mean_interval(values_a, values_b, TWENTY_CASES, 200), values_b - values_a),
    ):
        assert interval is not None
        assert (interval.lower, interval.upper) == pytest.approx(by_hand(values), abs=1e-12)
        assert interval.estimate == pytest.approx(np.nanmean(values), abs=1e-12)


def test_intervals_of_f1_are_a_jackknife_over_subjects() -> None:
    """Each subject left out once, F1 by scikit-learn: logits for F1 itself, the plain scale for paired differences."""
    generator = np.random.default_rng(11)
    counts_a = [ConfusionCounts(*map(int, generator.integers(0, 5, 4))) for _ in range(20)]
    counts_b = [ConfusionCounts(*map(int, generator.integers(0, 5, 4))) for _ in range(20)]

    def f1(cases: list[int], counts: list[ConfusionCounts]) -> float:
        truth, called = [], []
        for case in cases:
            cell = counts[case]
            truth += [1] * cell.tp + [0] * cell.fp + [1] * cell.fn + [0] * cell.tn
            called += [1] * cell.tp + [1] * cell.fp + [0] * cell.fn + [0] * cell.tn
        return float(f1_score(truth, called))

    def logit(cases: list[int]) -> float:
        tp, errors = (sum(getattr(counts_a[case], name) for case in cases) for name in ("tp", "fp"))
        errors += sum(counts_a[case].fn for case in cases)
        return math.log((2 * tp + 0.5) / (errors + 0.5))

    def difference(cases: list[int]) -> float:
        return f1(cases, counts_b) - f1(cases, counts_a)

    def ends(statistic: Callable[[list[int]], float]) -> tuple[float, float]:
        without = np.array([statistic(np.flatnonzero(unit != TWENTY_CASES).tolist()) for unit in range(10)])
        deviations = without - without.mean()
        degrees = max(3, min(9, np.sum(deviations**2) ** 2 / np.sum(deviations**4)))
        margin = stats.t.ppf(0.975, degrees) * math.sqrt(0.9 * np.sum(deviations**2))
        middle = statistic(list(range(20)))
        return middle - margin, middle + margin

    single, paired = f1_interval(counts_a, TWENTY_CASES), paired_f1_interval(counts_a, counts_b, TWENTY_CASES)
    assert single is not None
    assert paired is not None
    assert single.estimate == pytest.approx(f1(list(range(20)), counts_a))
    assert (single.lower, single.upper) == pytest.approx([1 / (1 + math.exp(-end)) for end in ends(logit)], abs=1e-12)
    assert (paired.lower, paired.upper) == pytest.approx(ends(difference), abs=1e-12)


def test_subjects_of_two_equal_cases_widen_the_interval() -> None:
    """Ten subjects of two equal cases say as much as ten cases, not as twenty."""
    generator = np.random.default_rng(5)
    values = np.repeat(generator.random(10), 2)
    counts = [ConfusionCounts(tp=20, fp=int(value * 9)) for value in values]
    for intervals in (
        [mean_interval(values, units) for units in (TWENTY_CASES, np.arange(20))],
        [f1_interval(counts, units) for units in (TWENTY_CASES, np.arange(20))],
    ):
        by_subject, by_case = (interval.upper - interval.lower for interval in intervals if interval is not None)
        assert by_subject > 1.2 * by_case


def test_intervals_that_nothing_can_be_said_of() -> None:
    """No values, no positives, a single subject: None. Values that are all alike: no width. A perfect F1: one side."""
    two = np.arange(2)
    assert mean_interval(np.array([np.nan, np.nan]), two) is None
    assert mean_interval(np.array([0.25, np.nan]), two) is None
    assert mean_interval(np.array([0.25, 0.5]), np.zeros(2, dtype=int)) is None
    assert f1_interval([ConfusionCounts(tn=5), ConfusionCounts(tn=5)], two) is None
    assert f1_interval([ConfusionCounts(tp=5)], np.zeros(1, dtype=int)) is None
    assert paired_f1_interval([ConfusionCounts(tp=5)] * 2, [ConfusionCounts(tp=5)] * 2, np.zeros(2, dtype=int)) is None
    alike = mean_interval(np.array([0.25, 0.25]), two)
    perfect = f1_interval([ConfusionCounts(tp=20)] * 2, two)
    assert alike is not None
    assert (alike.lower, alike.upper) == (0.25, 0.25)
    assert perfect is not None
    assert perfect.lower < perfect.estimate == perfect.upper == 1


def test_subjects_that_are_alike_have_an_interval_of_no_width() -> None:
    """Two subjects of a good and a bad case each: no resampling gives another mean, and nothing is said on stderr."""
    interval = mean_interval(np.array([1.0, 0.0, 1.0, 0.0]), np.array([0, 0, 1, 1]))
    assert interval is not None
    assert (interval.lower, interval.upper) == (0.5, 0.5)


def test_two_subjects_have_an_interval_that_says_something() -> None:
    """F1 4/5, by two subjects of logits ln 4.5/0.5 and ln 4.5/2.5: their spread with Student's t at three degrees, not
    at one, which would reach from nothing to everything."""
    counts = [ConfusionCounts(tp=2), ConfusionCounts(tp=2, fp=1, fn=1)]
    interval = f1_interval(counts, np.arange(2))
    assert interval is not None
    assert interval.estimate == pytest.approx(4 / 5)
    middle, half = math.log(8.5 / 2.5), (math.log(4.5 / 0.5) - math.log(4.5 / 2.5)) / 2
    margin = 3.18245 * half
    assert interval.lower == pytest.approx(1 / (1 + math.exp(margin - middle)), abs=1e-5)
    assert interval.upper == pytest.approx(1 / (1 + math.exp(-margin - middle)), abs=1e-5)


def test_f1_without_its_worst_and_without_its_best_case() -> None:
    """Ten hits each; 0, 5 and 20 false alarms. Without the last 40 / 45, without the first 40 / 65."""
    counts = [ConfusionCounts(tp=10, fp=fp) for fp in (0, 5, 20)]
    assert f1_without_extremes(counts) == (pytest.approx(40 / 45), pytest.approx(40 / 65))
    assert f1_without_extremes(counts[:1]) is None
    assert f1_without_extremes([ConfusionCounts(tp=1), ConfusionCounts(tn=1)]) is None


def test_intervals_of_f1_hold_the_truth_more_often_than_percentiles() -> None:
    """By simulation, with few cases that carry the errors: the percentiles of a bootstrap do so in 84 % of test sets of
    24 cases (`bench/interval_coverage.py` simulates more)."""
    truth = true_f1()
    percentile = coverage(lambda counts: bootstrap_interval(counts, "percentile", 400), 24, 300, truth)
    assert percentile["covered"] < 0.89
    assert coverage(report_interval, 24, 300, truth)["covered"] > percentile["covered"] + 0.05
    assert coverage(report_interval, 40, 600, truth)["covered"] > 0.93
    assert coverage(report_interval, 12, 600, truth)["covered"] > 0.82


# Summary


def test_cases_of_one_confidence_are_taken_in_together(make_case_result: Build) -> None:
    """Confidence 0.9, 0.5 and 0.5, risk 1/4, 1/2 and 1: after the first a mean of 1/4, after all three 7/12, and
    nothing between; a case without a confidence does not count."""
    cases = []
    for confidence, risk in ((0.5, 0.5), (0.9, 0.25), (0.5, 1.0), (None, 1.0)):
        official = {"nae_circumference": risk, "DiceCoefficientSoft": 1 - risk, "wfss": 1 - risk}
        cases.append(make_case_result(confidence=confidence, official=official))
    shares, risks = risk_against_coverage(cases)
    assert shares.tolist() == pytest.approx([1 / 3, 1])
    assert risks.tolist() == pytest.approx([1 / 4, 7 / 12])
    assert [len(part) for part in risk_against_coverage(cases[3:])] == [0, 0]


def many_cases(make_case_result: Build, count: int) -> list[CaseResult]:
    """Cases of a release's size, from one seed."""
    generator = np.random.default_rng(1)
    results = []
    for number in range(count):
        start = int(generator.integers(0, 820))
        labels = labelled(suboptimal=range(start, start + 11))
        presence = np.clip(0.5 * (labels > 0) + 0.6 * generator.random(FRAMES_PER_CASE), 0, 1)
        annotated = tuple(bool(labels[first : first + 140].any()) for first in range(0, FRAMES_PER_CASE, 140))
        results.append(
            make_case_result(
                case=f"{number:04}",
                subject_id=str(number * 281 // 300),
                labels=labels,
                frame_number=start + 5,
                annotated_sweeps=annotated,
                reference_ac_mm=250.0,
                predicted_ac_mm=float(generator.normal(250, 15)),
                presence_probability=presence,
                optimality_probability=generator.random(FRAMES_PER_CASE),
                presence_threshold=0.6,
                optimality_threshold=0.5,
                annotated_distance_frames=0,
                official={"wfss": 1.0, "DiceCoefficientSoft": float(generator.random()), "nae_circumference": 0.05},
            )
        )
    return results


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    else:
        yield path, value


@pytest.mark.parametrize("kind", ["many", "failed", "one bare", "none"])
def test_the_summary_holds_finite_numbers_under_plain_keys(make_case_result: Build, kind: str) -> None:
    """What the platform's leaderboard can read, for good, failed and single cases."""
    results = {
        "many": lambda: many_cases(make_case_result, 5),
        "failed": lambda: [make_case_result(failure="case x: the mask is not an image")],
        "one bare": lambda: [make_case_result(frame_number=3)],
        "none": list,
    }[kind]()
    summary = summarise(results)
    for path, value in leaves(summary):
        assert type(value) in (int, float), path
        assert math.isfinite(value), path
        assert all("." not in key and key.isascii() for key in path)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert (summary["case_count"], summary["cases_failed"]) == (len(results), int(kind == "failed"))


def test_interval_estimates_are_the_figures_themselves(make_case_result: Build) -> None:
    """An interval belongs to the number printed beside it, and holds it here."""
    results = many_cases(make_case_result, 30)
    summary = summarise(results)
    found = summary["intervals"]
    assert found["units"] == summary["subjects"] == len({result.subject_id for result in results})
    assert found["score"]["estimate"] == pytest.approx(np.mean([result.score for result in results]), abs=1e-12)
    for protocol in ("annotated_sweeps", "all_frames"):
        own = summary["frame_f1"][protocol]["at_own_threshold"]["f1"]
        assert found[f"frame_f1_{protocol}"]["estimate"] == own
        assert found[f"frame_f1_{protocol}"]["lower"] < own < found[f"frame_f1_{protocol}"]["upper"]
    error_mm = summary["circumference"]["error_mm"]["mean_absolute"]
    assert found["ac_absolute_error_mm"]["estimate"] == pytest.approx(error_mm, abs=1e-12)


def test_a_row_of_per_case_says_what_was_measured(make_case_result: Build) -> None:
    """Every row has the same columns; what is unknown is an empty cell."""
    full, bare = many_cases(make_case_result, 1)[0], make_case_result()
    columns = per_case_columns(full)
    assert list(columns) == list(per_case_columns(bare))
    assert columns["sweep"] == full.frame_number // 140 + 1
    assert columns["ac_error_percent"] == pytest.approx(100 * (full.predicted_ac_mm - 250) / 250)  # type: ignore[operator]
    names = [f"all_frames_own_threshold_{cell}" for cell in ("tp", "fp", "fn", "tn")]
    assert sum(int(columns[name]) for name in names) == FRAMES_PER_CASE  # type: ignore[arg-type]
    assert per_case_columns(bare)[names[0]] is None
    assert per_case_columns(bare)["sweep"] is None
    assert per_case_columns(bare)["all_frames_selection_tn"] == FRAMES_PER_CASE


def test_three_hundred_cases_take_seconds(make_case_result: Build) -> None:
    """300 cases of 840 frames with 1,000 resamples; measured 1.5 s of one core."""
    results = many_cases(make_case_result, 300)
    begin_s = time.process_time()
    summary = summarise(results)
    assert time.process_time() - begin_s < 10
    assert summary["intervals"]["resamples"] == 1000
