"""Calibration and thresholds, on logits and masks drawn in the test."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from acouslic.errors import AcouslicError
from acouslic.geometry import sweep_ranges
from algorithm.judgement.select_frame import judge_frames
from algorithm.model.artifact import load_artifact
from algorithm.model.manifest import HalfWay, SelectionConfig
from bench.setting.random_artifact import TOWERS, write_random_artifact
from training.fit import main as fit
from training.frames.dataset import soft_masks, table_of
from training.judge import mask_threshold
from training.judge.calibrate import Calibration, CaseJudgement, calibrate_member, fit_temperature, judge_cases
from training.judge.mask_threshold import MaskThreshold, choose_mask_threshold
from training.judge.reading import choose_thresholds, describe_reading, fit_half_way, read_cases
from training.judge.teacher import teach
from training.judge.unseen_cases import cases_of_members, score_members, uncertain_frames
from training.learn.frame_metrics import best_f1, count_frames
from training.learn.out_of_fold import OutOfFold, read_out_of_fold, write_out_of_fold
from training.learn.run_folder import RunFolder
from training.release.cache import Cache
from training.release.split import read_split

PLAIN = SelectionConfig(smoothing_sigma_frames=0.0, choice_sigma_frames=0.0)


def draw_scores(uuids: list[str], logit: NDArray[np.float32], label: NDArray[np.uint8]) -> OutOfFold:
    """One member's scores of cases of equal length, without masks."""
    return OutOfFold(
        uuid=np.array(uuids),
        frame_counts=np.full(len(uuids), len(logit) // len(uuids)),
        label=label,
        black=np.zeros(len(logit), bool),
        presence_logit=logit,
        optimality_logit=logit[:0],
        mask_rows=np.zeros(0, np.int64),
        mask_probability=np.zeros((0, 1, 1), np.uint8),
    )


def test_the_temperature_is_found() -> None:
    """Logits that were scaled are set right again."""
    rng = np.random.default_rng(0)
    true = rng.normal(-1.0, 2.0, 20_000)
    positive = rng.random(20_000) < 1 / (1 + np.exp(-true))
    assert fit_temperature((3.0 * true).astype(np.float32), positive) == pytest.approx(3.0, rel=0.05)


def test_without_both_classes_logits_are_left_alone() -> None:
    """Nothing can be fitted to one class; separable frames do not run away."""
    assert fit_temperature(np.zeros(5, np.float32), np.zeros(5, bool)) == 1.0
    assert fit_temperature(np.array([-4, -3, 3, 4], np.float32), np.array([0, 0, 1, 1], bool)) >= 0.5


def test_one_bad_case_does_not_move_what_is_called_positive() -> None:
    """Nine cases that 0.5 divides rightly and one full of confident false positives: a shift would follow that one."""
    logit, label = draw_divided(10)
    bad = logit.copy()
    bad[9] += 9.0
    f1 = []
    for scores in (logit, bad):
        scored = draw_scores([*"abcdefghij"], scores.ravel(), label.ravel())
        selection, cases = read_cases(judge_cases([scored], [calibrate_member(scored)], PLAIN), PLAIN)
        assert selection.half_way is not None
        presence = np.concatenate([case.frames.presence for case in cases[:9]])
        f1.append(count_frames(presence, label[:9].ravel() > 0, 0.5, None).f1)
    assert f1[0] > 0.9
    assert f1[1] > f1[0] - 0.02


def test_optimality_is_fitted_on_annotated_frames() -> None:
    """Frames without label say nothing about optimality."""
    label = np.array([0, 0, 1, 2] * 50, np.uint8)
    logit = np.where(label == 1, 1.0, np.where(label == 2, -1.0, 50.0)).astype(np.float32)
    scored = draw_scores(["a"], logit, label)
    scored = OutOfFold(**(vars(scored) | {"optimality_logit": logit}))
    calibration = calibrate_member(scored)
    assert calibration.optimality_temperature < 1


def with_black(scored: OutOfFold, black: NDArray[np.bool_]) -> OutOfFold:
    """The same scores, of which some frames are black."""
    return replace(scored, black=black)


def test_black_frames_are_judged_as_in_inference() -> None:
    """Whatever a member says of black frames they are 0, lend their neighbours nothing, and leave top and median."""
    rng = np.random.default_rng(3)
    logit = rng.normal(-4, 1, 280).astype(np.float32)
    logit[100:112] += 7
    black = np.arange(280) % 140 >= 112
    label = (np.arange(280) // 6 == 17).astype(np.uint8)
    selection = SelectionConfig(half_way=HalfWay(0.4))
    for said_of_black in (-9.0, 3.0):
        logit[black] = said_of_black
        scored = with_black(draw_scores(["a"], logit, label), black)
        (case,) = judge_cases([scored], [Calibration()], selection)
        presence = np.where(black, 0.0, 1 / (1 + np.exp(-logit.astype(np.float64))))
        expected = judge_frames(presence, None, sweep_ranges(280), selection)
        np.testing.assert_array_equal(case.seen, ~black)
        for name in ("presence_alone", "presence", "quality"):
            np.testing.assert_allclose(getattr(case.frames, name), getattr(expected, name), atol=1e-12)
        assert not case.frames.presence[black].any()
    unseen = with_black(draw_scores(["a"], logit, label), np.ones(280, bool))
    (case,) = judge_cases([unseen, scored], [Calibration()] * 2, selection)
    assert not case.seen.any(), "black by anybody's word"


def test_black_frames_are_not_calibrated_on() -> None:
    """The temperatures are those of the frames that show anything; 1 where none does."""
    rng = np.random.default_rng(4)
    logit = rng.normal(-1, 2, 400).astype(np.float32)
    label = ((rng.random(400) < 1 / (1 + np.exp(-2 * logit))) * rng.integers(1, 3, 400)).astype(np.uint8)
    shown = replace(draw_scores(["a"], logit, label), optimality_logit=logit[::-1].copy())
    expected = calibrate_member(shown)
    padded = replace(
        draw_scores(["a"], np.append(logit, np.full(200, 9, np.float32)), np.append(label, np.full(200, 2, np.uint8))),
        optimality_logit=np.append(logit[::-1], np.full(200, 9, np.float32)),
    )
    black = np.arange(600) >= 400
    assert calibrate_member(with_black(padded, black)) == expected
    assert calibrate_member(padded) != expected
    assert calibrate_member(with_black(padded, np.ones(600, bool))) == Calibration()


def test_runs_say_which_frames_are_black_and_older_ones_none(tmp_path: Path) -> None:
    """What is written is read; a file of an earlier version, without a word of it, has no black frame."""
    black = np.array([False, True, True, False])
    scored = with_black(draw_scores(["a"], np.zeros(4, np.float32), np.zeros(4, np.uint8)), black)
    write_out_of_fold(tmp_path / "now.npz", scored)
    np.testing.assert_array_equal(read_out_of_fold(tmp_path / "now.npz").black, black)
    np.savez(tmp_path / "earlier.npz", **{name: value for name, value in vars(scored).items() if name != "black"})
    np.testing.assert_array_equal(read_out_of_fold(tmp_path / "earlier.npz").black, np.zeros(4, bool))


def test_black_frames_are_seen_in_the_frames(tiny_training: Any, tmp_path: Path) -> None:
    """A run's scores and a model's answers, however long they were kept, find the same black frames: those that
    inference would find, not those that hold a codec's traces. They are no frames to measure half precision on."""
    folder = tmp_path / "cache"
    shutil.copytree(tiny_training.cache, folder)
    uuid = Cache(folder).cases[0].uuid
    frames = np.load(folder / "cases" / uuid / "frames.npy")
    frames[[2, 40]], frames[41] = 0, 1
    np.save(folder / "cases" / uuid / "frames.npy", frames)
    cache = Cache(folder)
    expected = (frames == 0).all(axis=(1, 2))
    assert expected[40]
    assert not expected[41]
    write_random_artifact(tmp_path / "model", replace(TOWERS["tiny"], image_size=28), members=1, seed=4)
    artifact = load_artifact(tmp_path / "model")
    for _ in range(2):  # asked, and read again
        (scored,) = score_members(artifact, cache, [(uuid,)], torch.device("cpu"), keep_in=tmp_path / "kept")
        np.testing.assert_array_equal(scored.black, expected)
    assert uncertain_frames([scored], cache, int((~expected).sum())).amax((1, 2)).min() > 0
    lessons = teach([scored], artifact.manifest.members)
    np.testing.assert_array_equal(lessons[uuid].presence == 0, expected)
    run = tmp_path / "run"
    words = [f"--split={tiny_training.paper_split}", "--optimiser.epochs=1", f"--cache={folder}"]
    validated = read_split(tiny_training.paper_split).validation_cases()
    shutil.copy(folder / "cases" / uuid / "frames.npy", folder / "cases" / validated[0] / "frames.npy")
    assert fit(tiny_training.fit_arguments(run, *words)) == 0
    of_run = read_out_of_fold(RunFolder(run).out_of_fold)
    np.testing.assert_array_equal(of_run.black[: len(expected)], expected)


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


@pytest.mark.parametrize("own", ["none", "the paper's", "of subjects"])
def test_the_papers_validation_cases_are_for_members_that_did_not_learn_from_them(own: str, tiny_training: Any) -> None:
    """A model of the paper's split, or an imported one that names none, is judged by them; a model of other folds,
    whose members learned from some of them, is refused."""
    cache = Cache(tiny_training.cache)
    paper, subjects = read_split(tiny_training.paper_split), read_split(tiny_training.subject_split)
    sha256 = {"none": None, "the paper's": paper.sha256(), "of subjects": subjects.sha256()}[own]
    manifest: Any = SimpleNamespace(members=[None] * 3, provenance=SimpleNamespace(split_sha256=sha256))
    if own == "of subjects":
        with pytest.raises(AcouslicError, match="may have learned from its validation cases"):
            cases_of_members(manifest, cache, paper)
        assert cases_of_members(manifest, cache, subjects) == [subjects.validation_cases(k) for k in range(3)]
    else:
        assert cases_of_members(manifest, cache, paper) == [paper.validation_cases()] * 3


def draw_case(presence: list[float], label: list[int], optimality: list[float] | None = None) -> CaseJudgement:
    """A judged case of one short sweep."""
    frames = judge_frames(
        np.array(presence),
        None if optimality is None else np.array(optimality),
        sweep_ranges(len(presence)),
        PLAIN,
    )
    return CaseJudgement("a", np.array(label, np.uint8), frames, np.ones(len(label), bool), sweep_ranges(len(label)))


def test_thresholds_separate_what_can_be_separated() -> None:
    """Optimality between 0.3 and 0.7 among annotated frames; all choices right; presence is never fitted."""
    case = draw_case([0.1, 0.6, 0.9, 0.2], [0, 2, 1, 0], [0.99, 0.3, 0.7, 0.99])
    thresholds = choose_thresholds([case], 0.45)
    assert thresholds.presence == 0.5
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


def draw_divided(cases: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Logits and labels (cases, 60): a bump whose frames above 0 are annotated, as they would be without noise."""
    rng = np.random.default_rng(seed)
    top = rng.uniform(2.5, 3.5, cases)
    profile = top[:, None] - 12.0 * np.abs(np.linspace(-1, 1, 60))[None]
    logit = (profile + rng.normal(0, 0.3, profile.shape)).astype(np.float32)
    return logit, (profile >= 0).astype(np.uint8)


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


def test_half_way_finds_what_no_threshold_can() -> None:
    """Fitted on twelve cases it lifts F1 on twelve others, and leaves the order of frames as it was."""
    scored, unseen = draw_patients(12, seed=1), draw_patients(12, seed=2)
    selection, judged = read_cases(judge_cases([scored], [Calibration()], PLAIN), PLAIN, one_run=False)
    assert selection.half_way is not None
    f1 = {}
    for name, settings in (("plain", PLAIN), ("half-way", selection)):
        cases = judge_cases([unseen], [Calibration()], settings)
        presence = np.concatenate([case.frames.presence for case in cases])
        f1[name] = count_frames(presence, unseen.label > 0, 0.5, None).f1
        for case in cases:
            assert np.array_equal(np.argsort(case.frames.presence), np.argsort(case.frames.presence_alone))
    best, _ = best_f1(unseen.presence_logit, unseen.label > 0)
    assert f1["half-way"] > f1["plain"] + 0.05
    assert f1["half-way"] > best, "better than the best threshold on the unseen cases themselves"
    assert [case.uuid for case in judged] == scored.uuid.tolist()
    # A case is suitable by what its best frame shows alone, however good it is beside its neighbours.
    assert (
        choose_thresholds(judged, 0.5).suitable
        == choose_thresholds(judge_cases([scored], [Calibration()], PLAIN), 0.5).suitable
    )


def test_the_depth_is_the_median_of_the_cases_own() -> None:
    """Of each case's frames 3, 2 and 1 below a top of 4 the first so many are annotated; the median is at 0."""
    depths = []
    for annotated in (1, 2, 3, 2, 2):
        logit = np.array([4.0, 3.0, 2.0, 1.0] + [0.0] * 5)
        depths.append((4.0 - (4.5 - annotated)) / 4.0)
        label = (np.arange(9) < annotated).astype(np.uint8)
        case = judge_cases([draw_scores(["a"], logit.astype(np.float32), label)], [Calibration()], PLAIN)[0]
        assert fit_half_way([case] * 5, top_frames=1) == HalfWay(round(depths[-1], 4), 1)
    assert sorted(depths)[2] == pytest.approx((4.0 - 2.5) / 4.0)


def test_one_odd_case_does_not_move_the_depth() -> None:
    """Four cases whose first frame alone is annotated and one that is annotated to its middle: the depth is that of the
    four."""
    logit = np.array([4.0, 3.0, 2.0, 1.0] + [0.0] * 5, np.float32)
    cases = []
    for annotated in (1, 1, 1, 1, 4):
        label = (np.arange(9) < annotated).astype(np.uint8)
        cases += judge_cases([draw_scores(["a"], logit, label)], [Calibration()], PLAIN)
    assert fit_half_way(cases, top_frames=1) == HalfWay((4.0 - 3.5) / 4.0, 1)


def test_no_half_way_without_cases_enough() -> None:
    """Five annotated cases are enough, four are not, nor are cases that nothing is annotated in; then 0.5 plainly."""

    def fit(scored: OutOfFold) -> object:
        return fit_half_way(judge_cases([scored], [Calibration()], PLAIN))

    assert fit(draw_patients(5, seed=3)) is not None
    assert fit(draw_patients(4, seed=3)) is None
    assert fit(draw_scores([*"abcdefghi"], np.zeros(90, np.float32), np.zeros(90, np.uint8))) is None
    flat = draw_scores([*"abcdefghi"], np.zeros(90, np.float32), np.ones(90, np.uint8))
    assert fit(flat) is None, "all frames alike say nothing about depth"
    selection, cases = read_cases(judge_cases([flat], [Calibration()], PLAIN), PLAIN)
    assert selection.half_way is None
    assert "each frame by itself" in describe_reading(selection, choose_thresholds(cases, 0.5), len(cases))


def test_a_reading_that_was_given_is_kept() -> None:
    """Settings of the command line go before what would be fitted."""
    selection = SelectionConfig(half_way=HalfWay(0.9, 3))
    kept, cases = read_cases(judge_cases([draw_patients(9, seed=5)], [Calibration()], PLAIN), selection)
    assert kept == replace(selection, one_run_a_sweep=True, most_positive_frames=kept.most_positive_frames)
    assert "depth 0.9" in describe_reading(kept, choose_thresholds(cases, 0.5), len(cases))


def test_one_run_a_sweep_is_taken_from_the_annotation() -> None:
    """Where every annotated sweep has one run it is read so; two runs in one of ten, or too few cases, and it is not.

    On cases that all carry a second, weaker bump, the reading calls the annotated one alone.
    """

    def cases(runs: list[list[int]]) -> OutOfFold:
        label = np.zeros((len(runs), 60), np.uint8)
        logit = np.full((len(runs), 60), -4.0, np.float32)
        for row, starts in enumerate(runs):
            logit[row, 40:45] = 2.0
            for start in starts:
                label[row, start : start + 5], logit[row, start : start + 5] = 1, 4.0
        return draw_scores([f"{k}" for k in range(len(runs))], logit.ravel(), label.ravel())

    def judged(runs: list[list[int]]) -> tuple[SelectionConfig, list[CaseJudgement]]:
        return read_cases(judge_cases([cases(runs)], [Calibration()], PLAIN), PLAIN, half_way=False, most=False)

    selection, read = judged([[10]] * 10)
    assert selection == replace(PLAIN, one_run_a_sweep=True)
    assert [np.flatnonzero(case.frames.presence >= 0.5).tolist() for case in read] == [[10, 11, 12, 13, 14]] * 10
    assert "one run a sweep" in describe_reading(selection, choose_thresholds(read, 0.5), len(read))
    assert not judged([[10]] * 9 + [[10, 25]])[0].one_run_a_sweep
    assert not judged([[10]] * 4 + [[]] * 6)[0].one_run_a_sweep
    unasked, _ = read_cases(judge_cases([cases([[10]] * 10)], [Calibration()], PLAIN), PLAIN, one_run=False)
    assert not unasked.one_run_a_sweep


def test_how_many_frames_are_likely_is_taken_from_the_annotation() -> None:
    """Twice the most of any case, in sweeps of 140: 8 of a case of one sweep of 60 are 2 x 8 x 140 / 60, rounded up. A
    case in which the members are sure of everything keeps its likeliest frames; four annotated cases set no limit."""
    label = np.zeros((6, 60), np.uint8)
    logit = np.full((6, 60), -4.0, np.float32)
    for row in range(5):
        label[row, 10 : 14 + row], logit[row, 10 : 14 + row] = 1, 4.0
    logit[5] = 3.0 + np.linspace(0, 1, 60, dtype=np.float32)
    selections = []
    for annotated in (5, 4):
        known = label * (np.arange(6) < annotated)[:, None].astype(np.uint8)
        scored = draw_scores([*"abcdef"], logit.ravel(), known.ravel())
        judged = judge_cases([scored], [Calibration()], PLAIN)
        selection, read = read_cases(judged, PLAIN, half_way=False, one_run=False)
        selections.append(selection.most_positive_frames)
        if annotated == 5:
            assert np.flatnonzero(read[5].frames.presence >= 0.5).tolist() == list(range(44, 60))
            assert np.flatnonzero(read[4].frames.presence >= 0.5).tolist() == list(range(10, 18))
            assert "at most 38 frames a case" in describe_reading(selection, choose_thresholds(read, 0.5), len(read))
    assert selections == [38, None]


def test_half_way_does_no_harm_where_cases_do_not_differ() -> None:
    """Where one threshold serves all cases, as the network was trained to have it, nothing is lost."""
    losses = []
    for seed in range(10):
        logit, label = draw_divided(20, seed)
        scored = draw_scores([f"{k}" for k in range(10)], logit[:10].ravel(), label[:10].ravel())
        unseen = draw_scores([f"{k}" for k in range(10)], logit[10:].ravel(), label[10:].ravel())
        selection, _ = read_cases(judge_cases([scored], [Calibration()], PLAIN), PLAIN)
        f1 = []
        for settings in (PLAIN, selection):
            judged = judge_cases([unseen], [Calibration()], settings)
            presence = np.concatenate([case.frames.presence for case in judged])
            f1.append(count_frames(presence, unseen.label > 0, 0.5, None).f1)
        losses.append(f1[0] - f1[1])
    assert max(losses) < 0.02


def draw_masks(cache: Cache, power: float, background: float = 0.0) -> OutOfFold:
    """Masks of a soft edge around the true one, raised to a power: above 1 too small, below 1 too large."""
    cases = [case for case in cache.cases if len(case.mask_frames)]
    table = table_of(cache, [case.uuid for case in cases])
    rows = np.flatnonzero(table.label > 0)
    coverage = soft_masks(table.read(rows).masks, 28).numpy()
    blurred = soft_masks(table.read(rows).masks, 14).numpy()
    soft = np.kron(blurred, np.ones((1, 2, 2))) * 0.5 + coverage * 0.5
    soft = background + (1 - background) * soft**power
    scored = draw_scores([case.uuid for case in cases], np.zeros(len(table), np.float32), table.label)
    masks = (soft * 255).round().astype(np.uint8)
    return OutOfFold(**(vars(scored) | {"mask_rows": rows, "mask_probability": masks}))


def test_the_mask_threshold_undoes_a_bias(tiny_training: Any) -> None:
    """Probabilities that are too large everywhere are cut higher, ones that are too small lower."""
    cache = Cache(tiny_training.cache)
    chosen = {}
    for name, power in (("large", 0.4), ("right", 1.0), ("small", 2.0)):
        found = choose_mask_threshold([draw_masks(cache, power)], cache)
        assert found.error < 0.2, name
        assert "warning" not in found.describe()
        chosen[name] = found.value
    assert chosen["small"] < chosen["right"] < chosen["large"]


def test_the_mask_threshold_goes_on_beyond_its_usual_range_and_says_so(tiny_training: Any) -> None:
    """Decoders that say 0.6 where nothing is are cut above 0.7, with a word about it."""
    cache = Cache(tiny_training.cache)
    found = choose_mask_threshold([draw_masks(cache, 0.6, background=0.6)], cache)
    assert found.value > 0.7
    assert found.error < 0.2
    assert found.background == pytest.approx(0.6, abs=0.02)
    assert f"warning: a mask threshold of {found.value}" in found.describe()
    assert "train for more epochs" in found.describe().replace("\n", " ")
    assert "0.60 where no abdomen is" in found.describe()
    faint = choose_mask_threshold([draw_masks(cache, 7.0)], cache)
    assert faint.value < 0.3
    assert "warning" in faint.describe()
    assert "compare the table with the annotated masks" in faint.describe()


def test_the_mask_threshold_suits_the_frames_that_could_be_chosen(
    tiny_training: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first annotated frame of each case is drawn too small and all others too large: the likeliest ones decide."""
    monkeypatch.setattr(mask_threshold, "_CHOSEN", 1)
    cache = Cache(tiny_training.cache)
    small, large = draw_masks(cache, 1.5), draw_masks(cache, 0.7)
    case_of_row = np.repeat(np.arange(len(small.uuid)), small.frame_counts)[small.mask_rows]
    is_first = np.diff(case_of_row, prepend=-1) > 0
    masks = np.where(is_first[:, None, None], small.mask_probability, large.mask_probability)
    chosen = {}
    for likely, rows in (("first", small.mask_rows[is_first]), ("others", small.mask_rows[~is_first])):
        logit = np.zeros_like(small.presence_logit)
        logit[rows] = 1.0
        found = choose_mask_threshold([replace(small, presence_logit=logit, mask_probability=masks)], cache)
        chosen[likely] = found.value
    assert chosen["first"] < chosen["others"]


@pytest.mark.parametrize("most", [400, 20, 13, 7])
def test_frames_of_every_rank_choose_the_mask_threshold(
    most: int, tiny_training: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are too many, sweeps are left out, and not the same rank of each."""
    monkeypatch.setattr(mask_threshold, "_MOST_MASKS", most)
    cache = Cache(tiny_training.cache)
    frames = list(mask_threshold._frames([draw_masks(cache, 1.0)], cache))
    likeliest = sum(frame.is_likeliest for frame in frames)
    assert 0 < likeliest < len(frames) <= most
    assert len(frames) <= 3 * likeliest


def test_the_mask_threshold_goes_by_the_tables_circumference(tiny_training: Any) -> None:
    """Where the table says that abdomens are a tenth larger than annotated frames, less probability is enough."""
    cache = Cache(tiny_training.cache)
    scored = draw_masks(cache, 1.0)
    as_it_is = choose_mask_threshold([scored], cache)
    for case in cache.cases:
        larger = tuple(None if ac_mm is None else 1.1 * ac_mm for ac_mm in case.record.sweep_ac_mm)
        object.__setattr__(case, "record", replace(case.record, sweep_ac_mm=larger))
    assert choose_mask_threshold([scored], cache).value < as_it_is.value


def test_the_error_of_nine_in_ten_sweeps_needs_nine(tiny_training: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven or eight annotated sweeps are too few to say, however many members have drawn each; of twice as many, one
    of the largest errors is meant."""
    monkeypatch.setattr(mask_threshold, "_CHOSEN", 1)
    cache = Cache(tiny_training.cache)
    scored = draw_masks(cache, 1.0)
    alone = choose_mask_threshold([scored], cache)
    assert alone.nine_in_ten is None
    assert "the interval" not in alone.describe()
    assert choose_mask_threshold([scored, scored], cache).nine_in_ten is None
    frames = list(mask_threshold._frames([scored], cache))
    others = [replace(frame, sweep=(f"another {frame.sweep[0]}", frame.sweep[1])) for frame in frames]
    monkeypatch.setattr(mask_threshold, "_frames", lambda *_: iter([*frames, *others]))
    twice = choose_mask_threshold([scored], cache)
    assert twice.nine_in_ten is not None
    assert twice.nine_in_ten >= twice.error
    assert f"reaches at least {twice.nine_in_ten:.1%} either way" in twice.describe()


def test_the_error_of_nine_in_ten_is_that_of_likeliest_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine sweeps whose likeliest frames are off by 1 to 9 %, their others by 50 %: the ninth of nine is 9 %."""
    monkeypatch.setattr(mask_threshold, "_judge_frame", lambda frame, _: [(frame.error, 1.0)])
    frames: Any = [
        SimpleNamespace(sweep=("case", number), is_likeliest=likeliest, error=error)
        for number in range(9)
        for likeliest, error in ((True, (number + 1) / 100), (False, 0.5))
    ]
    assert mask_threshold._nine_in_ten(frames, 10) == pytest.approx(0.09)


def test_of_equally_good_mask_thresholds_the_middle_one_is_taken() -> None:
    """The nearest to a half, whatever was tried first; a better one goes before it."""
    alike = mask_threshold._Outlines(0.1, 0.9)
    tried = dict.fromkeys([6, 7, 9, 12, 14], alike)
    assert mask_threshold._best(tried) == 9
    assert mask_threshold._best(dict(reversed(tried.items()))) == 9
    assert mask_threshold._best(tried | {14: mask_threshold._Outlines(0.09, 0.9)}) == 14


@pytest.mark.parametrize(("background", "warned"), [(0.02, False), (0.15, True)])
def test_a_decoder_that_has_not_converged_is_told_of(background: float, warned: bool) -> None:
    """One that says 0.15 everywhere is, one that says 0.02 is not."""
    described = MaskThreshold(0.5, 0.1, background, None).describe()
    assert ("decoders that were trained too briefly" in described) is warned


def test_members_may_draw_on_different_grids(tiny_training: Any) -> None:
    """Twice as fine, the masks are the same."""
    cache = Cache(tiny_training.cache)
    coarse = draw_masks(cache, 1.0, background=0.2)
    fine = replace(coarse, mask_probability=np.kron(coarse.mask_probability, np.ones((1, 2, 2), np.uint8)))
    found = choose_mask_threshold([coarse, fine], cache)
    assert found.error < 0.2
    assert found.background == pytest.approx(0.2, abs=0.02)


def test_without_masks_the_threshold_is_a_half(tiny_training: Any) -> None:
    """Nothing to choose by."""
    scored = draw_scores(["a"], np.zeros(4, np.float32), np.zeros(4, np.uint8))
    found = choose_mask_threshold([scored], Cache(tiny_training.cache))
    assert found.value == 0.5
    assert found.describe() == "mask threshold 0.5: no member draws masks"
