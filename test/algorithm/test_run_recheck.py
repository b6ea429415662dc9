"""Which frames are asked again in float32, and what that mends."""

import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest
import torch

from acouslic.geometry import sweep_ranges
from algorithm.engine.batches import BatchScores
from algorithm.engine.device import Precision
from algorithm.engine.merged_weights import MergedWeights
from algorithm.judgement.recheck import call_distance, decisive_frames, recheck
from algorithm.judgement.score import FrameScores
from algorithm.judgement.select_frame import call_level, choose_candidates, judge_frames, presence_logit, probability_of
from algorithm.model.artifact import load_artifact
from algorithm.model.manifest import HalfWay, SelectionConfig
from algorithm.pipeline import Pipeline
from algorithm.serve import Service

SWEEPS = sweep_ranges(840)
SELECTION = SelectionConfig(half_way=HalfWay(0.3), most_positive_frames=120)
MARGIN = 0.1


def scores_of(members, refined=None):
    """Scores of members' presence (members, F), their optimality left out."""
    return FrameScores(
        presence_probability=members.mean(0, dtype=np.float64),
        optimality_probability=None,
        member_presence=members,
        member_embedding=None,
        refined=np.ones(members.shape[1], bool) if refined is None else refined,
        reused=0,
        gate_s=0.0,
        refine_s=0.0,
        first_batch_at=0.0,
    )


class ExactMembers:
    """Says what float32 would, and remembers what it was asked."""

    frames = torch.empty(0)

    def __init__(self, members):
        self.members, self.asked, self.starts = members, [], {}

    def score(self, indices, progress, *, outlined=()):
        self.asked += indices.tolist()
        self.starts |= dict.fromkeys(outlined)
        return BatchScores(self.members[:, indices], np.empty((0, len(indices)), np.float32), None)


def judge(scores, selection=SELECTION):
    return judge_frames(scores.presence_probability, None, SWEEPS, selection)


def drawn_case(seed):
    """Two members' presence (2, 840) in float32, with runs in some sweeps, and as rounding moves it."""
    rng = np.random.default_rng(seed)
    logit = np.full(840, -6.0)
    for sweep in SWEEPS:
        if rng.random() < 0.7:
            at = np.arange(len(sweep))
            logit[sweep.start : sweep.stop] += rng.uniform(6, 12) * np.exp(
                -0.5 * ((at - rng.integers(20, 120)) / rng.uniform(3, 9)) ** 2
            )
    exact = logit + rng.normal(0, 0.5, (2, 840))
    # Rounding moves the frames of a case alike, those of one height more so.
    alike = np.interp(logit, [-6.0, 0.0, 6.0], rng.normal(0, MARGIN / 5, 3))
    moved = exact + alike + rng.normal(0, MARGIN / 5, (2, 840))
    return tuple(probability_of(values).astype(np.float32) for values in (exact, moved))


def recheck_case(half, exact, selection=SELECTION, refined=None):
    members = ExactMembers(exact)
    found = recheck(
        scores_of(half, refined),
        members,
        functools.partial(judge, selection=selection),
        SWEEPS,
        selection,
        threshold=0.5,
        margin=MARGIN,
    )
    return found, members


@pytest.mark.parametrize("selection", [SELECTION, SelectionConfig(), SelectionConfig(most_positive_frames=30)])
def test_decisions_become_those_of_float32(selection):
    """Over 100 drawn cases rounding calls frames otherwise and chooses others. With the frames near a decision exact,
    next to none is called otherwise, and another is chosen in next to no case: frames within a hair of a decision. Few
    frames were asked about."""
    calls, choices, asked, positive = np.zeros(2, int), np.zeros(2, int), [], 0
    for seed in range(100):
        exact, half = drawn_case(seed)
        found, members = recheck_case(half, exact, selection)
        asked.append(len(members.asked))
        want = judge(scores_of(exact), selection)
        positive += np.count_nonzero(want.presence >= 0.5)
        for number, scores in enumerate((scores_of(half), found)):
            judged = judge(scores, selection)
            calls[number] += np.count_nonzero((judged.presence >= 0.5) != (want.presence >= 0.5))
            best, same = (choose_candidates(values.quality, SWEEPS, 1) for values in (judged, want))
            choices[number] += best != same
    assert calls[0] >= 10
    assert calls[1] <= positive / 1000
    assert calls[1] <= calls[0] / 5
    assert choices[1] <= choices[0]
    assert choices[1] <= 1
    assert 5 < np.mean(asked) < 40
    assert max(asked) <= 84 + 8


def test_what_was_asked_is_exact_and_the_rest_stays():
    """Asked frames have float32's probabilities to the bit, no frame is asked twice, and the mean follows."""
    exact, half = drawn_case(1)
    found, members = recheck_case(half, exact, SelectionConfig())
    assert len(set(members.asked)) == len(members.asked) == found.rechecked > 0
    want = half.copy()
    want[:, members.asked] = exact[:, members.asked]
    assert np.array_equal(found.member_presence, want)
    assert np.array_equal(found.presence_probability, want.mean(0, dtype=np.float64))
    assert set(found.outline_starts) <= set(members.asked)
    (best,) = choose_candidates(judge(found, SelectionConfig()).quality, SWEEPS, 1)
    assert set(range(best - 2, best + 3)) <= set(found.outline_starts)  # what the interval measures, too


@pytest.mark.parametrize("hangs_by_a_hair", [True, False])
def test_a_threshold_that_rounding_has_moved(hangs_by_a_hair):
    """Where rounding lifts the top and the median of a case, and with them its threshold, above a frame that lay a hair
    over it, these are asked about too and the frame is called again; a case without such a frame is not asked."""
    selection = SelectionConfig(half_way=HalfWay(0.3))
    logit = np.full(840, -6.0)
    logit[40:60] = logit[180:200] = 4.0
    logit[320:340] = 0.0
    level = call_level(logit, SWEEPS, selection, threshold=0.5)
    logit[320:340] = level + (0.005 if hangs_by_a_hair else 1.0)
    lifted = np.where(np.abs(logit) > 2, logit + 0.04, logit)
    exact, half = (np.stack([probability_of(values)] * 2).astype(np.float32) for values in (logit, lifted))
    found, members = recheck_case(half, exact, selection)
    before, after, want = (
        np.count_nonzero(judge(scores, selection).presence >= 0.5)
        for scores in (scores_of(half), found, scores_of(exact))
    )
    assert (before < want) == hangs_by_a_hair
    assert after == want
    assert (np.isin(members.asked, np.flatnonzero(logit == -6.0)).sum() >= 8) == hangs_by_a_hair
    left = np.setdiff1d(np.flatnonzero(logit == -6.0), members.asked)
    said = -6.0 if hangs_by_a_hair else -5.96
    assert presence_logit(found.presence_probability[left]) == pytest.approx(said, abs=1e-3)
    assert presence_logit(found.member_presence[:, left].astype(float)) == pytest.approx(said, abs=1e-3)


def test_the_median_is_asked_about_where_the_top_is_known():
    """A call that turns out to hang by a hair once it was asked about, in a case whose top was asked about then too."""
    selection = SelectionConfig(half_way=HalfWay(0.3))
    logit = np.full(840, -6.0)
    logit[40:60] = 4.0
    logit[320:340] = call_level(logit, SWEEPS, selection, threshold=0.5) + 0.02
    moved = logit + np.where(logit == -6.0, 0.04, 0.0)
    moved[320:340] += 0.07
    exact, half = (np.stack([probability_of(values)] * 2).astype(np.float32) for values in (logit, moved))
    found, members = recheck_case(half, exact, selection)
    assert set(range(40, 60)) <= set(members.asked)
    left = np.setdiff1d(np.flatnonzero(logit == -6.0), members.asked)
    assert presence_logit(found.presence_probability[left]) == pytest.approx(-6.0, abs=1e-3)


def test_only_what_lies_below_the_level_moves_with_the_median():
    """The gate's frames do, for their scale follows the members'; those above the level, which rounding has moved as
    well, stay as they are, and what was asked about is exact."""
    selection = SelectionConfig(
        smoothing_sigma_frames=0.0, choice_sigma_frames=0.0, half_way=HalfWay(0.3, top_frames=5)
    )
    logit = np.full(840, -6.0)
    logit[40:60] = 4.0
    logit[500:520] = 2.0
    logit[320:340] = call_level(logit, SWEEPS, selection, threshold=0.5) + 0.005
    lifted = np.where(np.abs(logit) > 1, logit + 0.04, logit)
    exact, half = (np.stack([probability_of(values)] * 2).astype(np.float32) for values in (logit, lifted))
    refined = np.arange(840) < 700
    mean = half.mean(0, dtype=np.float64)
    half[:, ~refined] = np.nan
    members = ExactMembers(exact)
    scores = dataclasses.replace(scores_of(half, refined), presence_probability=mean)
    found = recheck(
        scores,
        members,
        functools.partial(judge, selection=selection),
        SWEEPS,
        selection,
        threshold=0.5,
        margin=MARGIN,
    )
    shift = presence_logit(found.presence_probability) - lifted
    asked = np.isin(np.arange(840), members.asked)
    low = logit == -6.0
    assert (asked & low).any()
    assert not asked[700:].any()
    assert shift[~refined] == pytest.approx(-0.04, abs=1e-3)
    assert shift[low & refined & ~asked] == pytest.approx(-0.04, abs=1e-3)
    assert not asked[500:520].any()
    assert shift[500:520] == pytest.approx(0, abs=1e-3)
    assert np.array_equal(found.presence_probability[asked], exact[:, asked].mean(0, dtype=np.float64))
    assert np.isnan(found.member_presence[:, ~refined]).all()


def test_what_was_asked_again_brings_other_frames_near():
    """The top of a case turns out higher, so that a frame hangs by a hair; that asks about the median, which is higher,
    too; so the threshold comes near a third frame, which float32 calls otherwise. Only frames that could be chosen have
    the starts of outlines."""
    selection = SelectionConfig(
        smoothing_sigma_frames=0.0, choice_sigma_frames=0.0, half_way=HalfWay(0.3, top_frames=1)
    )
    logit = np.full(840, -6.0)
    top, hair, third = 50, 330, 600
    logit[[top, hair, third]] = 4.0, 0.494, 0.497
    assert call_level(logit, SWEEPS, selection, threshold=0.5) == pytest.approx(0.5)
    moved = logit - np.where(logit == -6.0, 0.08, 0.0)
    moved[[top, hair, third]] = 3.96, 0.504, 0.592
    exact, half = (np.stack([probability_of(values)] * 2).astype(np.float32) for values in (logit, moved))
    found, members = recheck_case(half, exact, selection)
    assert members.asked.index(top) < members.asked.index(third)
    for scores, called in ((scores_of(half), [top, hair, third]), (found, [top]), (scores_of(exact), [top])):
        assert np.flatnonzero(judge(scores, selection).presence >= 0.5).tolist() == called
    assert set(found.outline_starts) == {top}


def test_frames_that_only_a_gate_has_seen_stay():
    """The ensemble has not said anything of them that float32 could mend."""
    exact, half = drawn_case(2)
    _, asked_of_all = recheck_case(half, exact)
    refined = np.ones(840, bool)
    refined[asked_of_all.asked[::2]] = False
    half[:, ~refined] = np.nan
    scores = dataclasses.replace(scores_of(half, refined), presence_probability=exact.mean(0, dtype=np.float64))
    members = ExactMembers(exact)
    recheck(scores, members, judge, SWEEPS, SELECTION, threshold=0.5, margin=MARGIN)
    assert members.asked
    assert refined[members.asked].all()


def test_no_more_than_a_tenth_of_the_frames():
    """A case whose frames all lie at the threshold asks about a tenth of them, those that could be chosen first."""
    level = probability_of(np.linspace(0.0, 0.01, 840))
    members = np.stack([level, level]).astype(np.float32)
    found, asked = recheck_case(members, members, SelectionConfig())
    assert found.rechecked == len(asked.asked) == 84
    assert 839 in asked.asked


def test_optimality_and_embeddings_are_exact_too():
    """Where the members judge optimality, and where a case head wants their embeddings."""
    exact, half = drawn_case(3)

    class Whole(ExactMembers):
        def score(self, indices, progress, *, outlined=()):
            said = super().score(indices, progress, outlined=outlined)
            ones = np.ones((1, len(indices)), np.float32)
            return BatchScores(said.presence, ones * 0.25, np.ones((2, len(indices), 4), np.float32))

    members = Whole(exact)
    scores = dataclasses.replace(
        scores_of(half), optimality_probability=np.zeros(840), member_embedding=np.zeros((2, 840, 4), np.float32)
    )
    found = recheck(scores, members, judge, SWEEPS, SELECTION, threshold=0.5, margin=MARGIN)
    asked = np.isin(np.arange(840), members.asked)
    assert np.array_equal(found.optimality_probability, np.where(asked, 0.25, 0.0))
    assert np.array_equal(found.member_embedding.any((0, 2)), asked)
    assert not scores.optimality_probability.any()
    assert not scores.member_embedding.any()


def test_black_frames_decide_nothing():
    """A case of black frames has nothing to ask about; black frames beside others are not asked about."""
    judged = judge_frames(np.zeros(840), None, SWEEPS, SELECTION)
    distance = call_distance(judged.presence_alone, SWEEPS, SELECTION, threshold=0.5)
    assert not decisive_frames(judged, distance, SWEEPS, SELECTION, margin=MARGIN).any()
    assert (distance == -np.inf).all()
    for last in (420, 70):  # at the end of a sweep, and within one
        presence = np.where(np.arange(840) < last, 0.5, 0.0)
        judged = judge_frames(presence, None, SWEEPS, SelectionConfig())
        distance = call_distance(judged.presence_alone, SWEEPS, SelectionConfig(), threshold=0.5)
        promise = decisive_frames(judged, distance, SWEEPS, SelectionConfig(), margin=MARGIN)
        assert np.array_equal(promise > 0, presence > 0)


def test_where_calls_are_decided():
    """At the threshold, half-way where the case sets it, or between the last frame that may be positive and the first
    that may not."""
    logit = np.arange(-10.0, 10.0)
    alone = SelectionConfig()
    assert call_level(logit, SWEEPS, alone, threshold=0.5) == 0
    assert call_level(logit, SWEEPS, alone, threshold=0.75) == pytest.approx(np.log(3))
    half_way = dataclasses.replace(alone, half_way=HalfWay(0.5, top_frames=1))
    assert call_level(logit, SWEEPS, half_way, threshold=0.5) == (9 - 0.5 * (9 + 0.5)) / 2
    limited = dataclasses.replace(alone, most_positive_frames=4)
    assert call_level(logit, SWEEPS, limited, threshold=0.5) == 5.5
    assert call_level(logit, SWEEPS, dataclasses.replace(alone, most_positive_frames=10), threshold=0.5) == 0
    assert presence_logit(np.array(0.5)) == 0


@pytest.fixture
def rechecking_model(tiny_model, tmp_path):
    """An artifact that bfloat16 moves too far, but for what is decided where decisions are exact."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    same = {
        "cases": 5,
        "other_frames": 0,
        "positive_frames": 100,
        "changed_frames": 0,
        "circumference_difference_mm": 0.0,
    }
    manifest["half_precision"] |= {
        "frames": 64, "float16": 0.001, "bfloat16": 0.05, "bfloat16_rechecked_consequence": same
    }  # fmt: skip
    path.write_text(json.dumps(manifest))
    return folder


def test_a_gate_is_not_asked_again(rechecking_model, platform_case, monkeypatch, speckle):
    """The float32 members of a gated artifact are merged without the row of averaged adapters. Where all frames are
    refined the answer is that of float32."""
    path = rechecking_model / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["scoring"] |= {"mode": "gated", "refine_ratio": 0.0, "max_refined_fraction": 1.0}
    path.write_text(json.dumps(manifest))
    artifact, device = load_artifact(rechecking_model), torch.device("cpu")
    half = Pipeline.of_artifact(artifact, device, Precision(torch.bfloat16, "", 0.2))
    made = []
    whole = MergedWeights.__init__

    def remember(self, config, state, rows, *others):
        made.append(len(rows))
        whole(self, config, state, rows, *others)

    monkeypatch.setattr(MergedWeights, "__init__", remember)
    sweep = platform_case.write_sweep(speckle(36, 70, 90))
    found = half.run(sweep, None, "case")
    assert made == [2]
    exact = Pipeline.of_artifact(artifact, device, Precision(torch.float32, "")).run(sweep, None, "case")
    assert made == [2, 3]
    assert found.frame_index == exact.frame_index
    assert np.array_equal(found.mask, exact.mask)


def test_a_case_from_end_to_end(rechecking_model, platform_case, monkeypatch, caplog, speckle):
    """The pipeline asks again by itself where the manifest allows bfloat16 so: the frame, its mask and the millimetres
    are those of float32 to the bit, and the log says how many frames that took."""
    monkeypatch.setattr("algorithm.engine.device.cpu_flags", lambda: {"avx512_bf16"})
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    caplog.set_level("INFO")
    sweep = platform_case.write_sweep(speckle(36, 70, 90))
    half = Pipeline.load(rechecking_model, device="cpu")
    assert half.ensemble.dtype == torch.bfloat16
    assert half.recheck.margin == pytest.approx(0.2)
    assert "bfloat16, with the frames near a decision in float32, gives the answers of float32 in 5" in caplog.text
    found = half.run(sweep, None, "case")
    said = [json.loads(record.message) for record in caplog.records if record.message.startswith("{")][-1]
    assert said["precision"] == "bfloat16"
    assert 0 < said["rechecked_frames"] <= 36
    assert said["timings"]["recheck_s"] > 0
    monkeypatch.setattr("algorithm.engine.device.cpu_flags", lambda: set())
    exact_pipeline = Pipeline.load(rechecking_model, device="cpu")
    assert exact_pipeline.recheck is None
    exact = exact_pipeline.run(sweep, None, "case")
    assert found.frame_index == exact.frame_index
    assert np.array_equal(found.mask, exact.mask)
    assert (found.circumference_mm, found.interval_mm) == (exact.circumference_mm, exact.interval_mm)
    assert half.recheck.members() is half.recheck.members()


def test_a_black_case_merges_nothing(rechecking_model, platform_case, caplog):
    """Nothing of it is asked again or outlined."""
    caplog.set_level("INFO")
    half = Pipeline.of_artifact(
        load_artifact(rechecking_model), torch.device("cpu"), Precision(torch.bfloat16, "", 0.2)
    )
    half = dataclasses.replace(half, recheck=dataclasses.replace(half.recheck, members=None))
    found = half.run(platform_case.write_sweep(np.zeros((4, 70, 90), np.uint8)), None, "case")
    assert not found.suitable
    assert json.loads(caplog.messages[-1])["rechecked_frames"] == 0


def test_a_server_is_ready_once_all_members_are_merged(rechecking_model, tmp_path, monkeypatch):
    """The first request does not wait for the float32 ones."""
    monkeypatch.setattr("algorithm.engine.device.cpu_flags", lambda: {"avx512_bf16"})
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    service = Service(tmp_path, tmp_path)
    service.load(rechecking_model, device="cpu", batch_frames=None)
    monkeypatch.setattr("algorithm.pipeline._merge", None)
    assert service.pipeline.recheck.members().dtype == torch.float32
