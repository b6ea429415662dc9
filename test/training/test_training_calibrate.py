"""Calibration and thresholds, on logits and masks drawn in the test."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from acouslic.geometry import sweep_ranges
from algorithm.judgement.select_frame import judge_frames
from algorithm.model.manifest import SelectionConfig
from training.export.calibrate import (
    Calibration,
    CaseJudgement,
    calibrate_member,
    choose_mask_threshold,
    choose_thresholds,
    fit_context,
    fit_platt,
    judge_cases,
    judge_in_context,
)
from training.frames.dataset import soft_masks, table_of
from training.learn.frame_metrics import best_f1, count_frames
from training.learn.out_of_fold import OutOfFold
from training.release.cache import Cache

PLAIN = SelectionConfig(smoothing_sigma_frames=0.0)


def draw_scores(uuids: list[str], logit: NDArray[np.float32], label: NDArray[np.uint8]) -> OutOfFold:
    """One member's scores of cases of equal length, without masks."""
    return OutOfFold(
        uuid=np.array(uuids),
        frame_counts=np.full(len(uuids), len(logit) // len(uuids)),
        label=label,
        presence_logit=logit,
        optimality_logit=logit[:0],
        mask_rows=np.zeros(0, np.int64),
        mask_probability=np.zeros((0, 1, 1), np.uint8),
    )


def test_platt_finds_shift_and_temperature() -> None:
    """Logits that were scaled and shifted are set right again."""
    rng = np.random.default_rng(0)
    true = rng.normal(-1.0, 2.0, 20_000)
    positive = rng.random(20_000) < 1 / (1 + np.exp(-true))
    shift, temperature = fit_platt((3.0 * true - 2.0).astype(np.float32), positive)
    assert temperature == pytest.approx(3.0, rel=0.05)
    assert shift == pytest.approx(2.0, abs=0.15)
    _, alone = fit_platt((3.0 * true).astype(np.float32), positive, shift=False)
    assert alone == pytest.approx(3.0, rel=0.05)


def test_platt_without_both_classes_leaves_logits_alone() -> None:
    """Nothing can be fitted to one class; separable frames do not run away."""
    assert fit_platt(np.zeros(5, np.float32), np.zeros(5, bool)) == (0.0, 1.0)
    _, temperature = fit_platt(np.array([-4, -3, 3, 4], np.float32), np.array([0, 0, 1, 1], bool))
    assert 0.2 <= temperature <= 20


def test_optimality_is_fitted_on_annotated_frames() -> None:
    """Frames without label say nothing about optimality."""
    label = np.array([0, 0, 1, 2] * 50, np.uint8)
    logit = np.where(label == 1, 1.0, np.where(label == 2, -1.0, 50.0)).astype(np.float32)
    scored = draw_scores(["a"], logit, label)
    scored = OutOfFold(**(vars(scored) | {"optimality_logit": logit}))
    calibration = calibrate_member(scored)
    assert abs(calibration.optimality_shift) < 0.2
    assert calibration.optimality_temperature < 1


def test_best_f1_by_hand() -> None:
    """Three right of four called, one missed: F1 6/8; the threshold lies between the last called and the next."""
    probability = np.array([0.9, 0.8, 0.7, 0.6, 0.2, 0.15, 0.12, 0.1], np.float32)
    positive = np.array([1, 0, 1, 1, 0, 0, 0, 1], bool)
    score, threshold = best_f1(probability, positive)
    assert score == pytest.approx(6 / 8)
    assert threshold == pytest.approx(0.4)
    assert count_frames(probability, positive, threshold, None).f1 == pytest.approx(score)
    assert best_f1(probability, np.zeros(8, bool)) == (0.0, 0.5)


def test_frames_of_one_probability_are_called_together() -> None:
    """A cut cannot pass between equal probabilities."""
    score, threshold = best_f1(np.array([0.5, 0.5, 0.1], np.float32), np.array([1, 0, 0], bool))
    assert score == pytest.approx(2 / 3)
    assert 0.1 < threshold <= 0.5


def test_weights_stand_for_skipped_frames() -> None:
    """A frame of weight 3 counts as three."""
    probability, positive = np.array([0.9, 0.8, 0.1], np.float32), np.array([1, 0, 0], bool)
    counts = count_frames(probability, positive, 0.5, np.array([1, 3, 3], np.float32))
    assert (counts.true_positive, counts.false_positive, counts.true_negative) == (1, 3, 3)
    assert counts.precision == pytest.approx(1 / 4)
    assert counts.accuracy == pytest.approx(4 / 7)


def test_cases_are_judged_by_members_that_did_not_learn_from_them() -> None:
    """Each case once; two members on one case are averaged after calibration."""
    label = np.zeros(8, np.uint8)
    first = draw_scores(["a", "b"], np.zeros(8, np.float32), label)
    second = draw_scores(["b"], np.full(4, 2.0, np.float32), label[:4])
    judged = judge_cases([first, second], [Calibration(), Calibration(presence_temperature=2.0)], PLAIN)
    assert [case.uuid for case in judged] == ["a", "b"]
    np.testing.assert_allclose(judged[0].frames.presence, 0.5)
    np.testing.assert_allclose(judged[1].frames.presence, (0.5 + 1 / (1 + np.exp(-1.0))) / 2)
    assert judged[0].frames.optimality is None


def draw_case(presence: list[float], label: list[int], optimality: list[float] | None = None) -> CaseJudgement:
    """A judged case of one short sweep."""
    frames = judge_frames(
        np.array(presence),
        None if optimality is None else np.array(optimality),
        sweep_ranges(len(presence)),
        PLAIN,
    )
    return CaseJudgement("a", np.array(label, np.uint8), frames)


def test_thresholds_separate_what_can_be_separated() -> None:
    """Presence between 0.2 and 0.6, optimality between 0.3 and 0.7 among annotated frames; all choices right."""
    case = draw_case([0.1, 0.6, 0.9, 0.2], [0, 2, 1, 0], [0.99, 0.3, 0.7, 0.99])
    thresholds = choose_thresholds([case], 0.45)
    assert thresholds.presence == pytest.approx(0.4)
    assert thresholds.optimality == pytest.approx(0.5)
    assert thresholds.mask == 0.45
    assert thresholds.suitable <= 0.45, "every choice is right: nothing may be called unsuitable"


def test_suitable_tells_wrong_choices_apart() -> None:
    """A case whose best frame is not annotated scored 0.3, the right one 0.45: the threshold lies above the former."""
    cases = [draw_case([0.3, 0.1], [0, 2]), draw_case([0.1, 0.45], [0, 1])]
    assert 0.3 < choose_thresholds(cases, 0.5).suitable <= 0.45
    # Rounded to four places it must not pass the right one.
    cases[1] = draw_case([0.1, 0.41236], [0, 1])
    assert 0.3 < choose_thresholds(cases, 0.5).suitable <= 0.41236


def draw_patients(cases: int, seed: int, spread: float = 6.0) -> OutOfFold:
    """Cases of 60 frames, annotated where a bump of logits reaches 3 below its top; tops differ by up to `spread`.

    With a spread no threshold on the logit alone can find them: one case's best frame is another's background.
    """
    rng = np.random.default_rng(seed)
    top = 3.0 + rng.uniform(-spread / 2, spread / 2, cases)
    profile = top[:, None] - 12.0 * np.abs(np.linspace(-1, 1, 60))[None]
    label = (profile >= top[:, None] - 3.0).astype(np.uint8)
    logit = (profile + rng.normal(0, 0.3, profile.shape)).astype(np.float32)
    return draw_scores([f"{seed}-{k}" for k in range(cases)], logit.ravel(), label.ravel())


def test_a_context_finds_what_no_threshold_can() -> None:
    """Fitted on twelve cases it lifts F1 on twelve others, and leaves the order of frames as it was."""
    scored, unseen = draw_patients(12, seed=1), draw_patients(12, seed=2)
    selection, judged = judge_in_context([scored], [Calibration()], PLAIN)
    assert selection.context is not None
    assert selection.context.slope > 0 > selection.context.best_slope
    f1 = {}
    for name, settings in (("alone", PLAIN), ("context", selection)):
        threshold = choose_thresholds(judge_cases([scored], [Calibration()], settings), 0.5).presence
        cases = judge_cases([unseen], [Calibration()], settings)
        presence = np.concatenate([case.frames.presence for case in cases])
        f1[name] = count_frames(presence, unseen.label > 0, threshold, None).f1
        for case in cases:
            assert np.array_equal(np.argsort(case.frames.presence), np.argsort(case.frames.presence_alone))
    assert f1["alone"] < 0.85
    assert f1["context"] > 0.93
    assert [case.uuid for case in judged] == scored.uuid.tolist()
    # A case is suitable by what its best frame shows alone, however good it is beside its neighbours.
    assert (
        choose_thresholds(judged, 0.5).suitable
        == choose_thresholds(judge_cases([scored], [Calibration()], PLAIN), 0.5).suitable
    )


def test_no_context_without_cases_enough_or_where_it_would_turn_the_order_round() -> None:
    """Seven annotated cases are too few; logits that fall where frames are annotated ask for a negative slope."""

    def fit(scored: OutOfFold) -> object:
        return fit_context(judge_cases([scored], [Calibration()], PLAIN))

    assert fit(draw_patients(8, seed=3)) is not None
    assert fit(draw_patients(7, seed=3)) is None
    assert fit(draw_scores([*"abcdefghi"], np.zeros(90, np.float32), np.zeros(90, np.uint8))) is None
    wrong = draw_patients(12, seed=4)
    assert fit(OutOfFold(**(vars(wrong) | {"presence_logit": -wrong.presence_logit}))) is None


def test_no_context_where_cases_do_not_differ() -> None:
    """Cases whose tops lie at one level teach nothing about each other: mostly none is fitted, and none that harms."""
    gains = []
    for seed in range(10):
        scored, unseen = draw_patients(10, seed, spread=0.0), draw_patients(10, seed + 100, spread=0.0)
        selection, _ = judge_in_context([scored], [Calibration()], PLAIN)
        f1 = []
        for settings in (PLAIN, selection):
            threshold = choose_thresholds(judge_cases([scored], [Calibration()], settings), 0.5).presence
            judged = judge_cases([unseen], [Calibration()], settings)
            presence = np.concatenate([case.frames.presence for case in judged])
            f1.append(count_frames(presence, unseen.label > 0, threshold, None).f1)
        gains.append(f1[1] - f1[0])
    assert min(gains) > -0.02


def test_the_mask_threshold_undoes_a_bias(tiny_training: Any) -> None:
    """Probabilities that are too large everywhere are cut higher, ones that are too small lower."""
    cache = Cache(tiny_training.cache)
    cases = [case for case in cache.cases if len(case.mask_frames)]
    table = table_of(cache, [case.uuid for case in cases])
    rows = np.flatnonzero(table.label > 0)
    coverage = soft_masks(table.read(rows).masks, 28).numpy()
    chosen = {}
    for name, power in (("large", 0.4), ("right", 1.0), ("small", 2.0)):
        # A soft edge whose 0.5 lies outside or inside the true one.
        blurred = soft_masks(table.read(rows).masks, 14)[:, None]
        soft = np.kron(blurred.numpy()[:, 0], np.ones((2, 2))) * 0.5 + coverage * 0.5
        scored = draw_scores([case.uuid for case in cases], np.zeros(len(table), np.float32), table.label)
        masks = (soft**power * 255).round().astype(np.uint8)
        scored = OutOfFold(**(vars(scored) | {"mask_rows": rows, "mask_probability": masks}))
        chosen[name], error = choose_mask_threshold([scored], cache)
        assert error < 0.2, name
    assert chosen["small"] < chosen["large"]
    assert choose_mask_threshold([draw_scores(["a"], np.zeros(4, np.float32), np.zeros(4, np.uint8))], cache)[0] == 0.5
