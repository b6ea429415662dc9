"""Which frame is chosen: cases small enough to work by hand."""

import dataclasses

import numpy as np
import pytest

from algorithm.judgement.select_frame import (
    choose_candidates,
    frame_quality,
    half_way_threshold,
    judge_frames,
    keep_likeliest,
    keep_strongest_runs,
    most_frames,
    positive_runs,
    presence_logit,
    probability_of,
    read_half_way,
    smooth_in_sweeps,
)
from algorithm.model.manifest import HalfWay, SelectionConfig, Thresholds
from bench.setting.plain_manifest import drawn_manifest

TWO_SWEEPS = [range(20), range(20, 40)]


def test_smoothing_stays_within_its_sweep():
    """A peak in the last frame of sweep 1 does not leak into sweep 2, and a constant stays the constant."""
    probability = np.full(40, 0.1)
    probability[19] = 0.9
    smoothed = smooth_in_sweeps(probability, TWO_SWEEPS, 14.0)
    assert np.allclose(smoothed[20:], 0.1)
    assert smoothed[18] > 0.15
    assert np.allclose(smooth_in_sweeps(np.full(40, 0.7), TWO_SWEEPS, 3.0), 0.7)


def test_smoothing_by_hand():
    """Sigma 1 of 140 frames, logits of 0 around a lone one of 3: its neighbour has 3 exp(-1/2) over the sum of the
    weights; sigma 0 changes nothing."""
    logit = np.zeros(140)
    logit[10] = 3.0
    weights = np.exp(-0.5 * np.arange(-4, 5) ** 2.0)
    smoothed = presence_logit(smooth_in_sweeps(probability_of(logit), [range(140)], 1.0))
    assert smoothed[10] == pytest.approx(3 / weights.sum())
    assert smoothed[[9, 11]] == pytest.approx(3 * np.exp(-0.5) / weights.sum())
    assert smoothed[15] == pytest.approx(0, abs=1e-12)
    # At the sweep's first frame only half of the kernel exists, so its weights are shared among those frames.
    logit = np.zeros(140)
    logit[0] = 3.0
    smoothed = presence_logit(smooth_in_sweeps(probability_of(logit), [range(140)], 1.0))
    assert smoothed[0] == pytest.approx(3 / weights[4:].sum())
    assert np.array_equal(smooth_in_sweeps(probability_of(logit), [range(140)], 0), probability_of(logit))


def test_a_frame_of_which_nothing_was_said_lends_nothing():
    """Black frames have exactly 0: they stay so, and their neighbours are as if the sweep ended there."""
    probability = np.random.default_rng(0).uniform(0.2, 0.9, 140)
    black = probability.copy()
    black[100:] = 0.0
    smoothed = smooth_in_sweeps(black, [range(140)], 2.0)
    assert (smoothed[100:] == 0).all()
    wide = smooth_in_sweeps(probability[:100], [range(100)], 2.0 * 140 / 100)
    assert smoothed[:100] == pytest.approx(wide)


def test_smoothing_a_sweep_shorter_than_the_kernel():
    """Two frames, sigma 140, which is 2 in so short a sweep: each logit is the mean weighted 1 to exp(-1/8)."""
    weight = np.exp(-0.125)
    expected = [1 / (1 + weight), weight / (1 + weight)]
    found = presence_logit(smooth_in_sweeps(probability_of(np.array([1.0, 0.0])), [range(2)], 140.0))
    assert found == pytest.approx(expected)
    assert smooth_in_sweeps(np.array([]), [], 2.0).shape == (0,)
    assert smooth_in_sweeps(np.array([0.4]), [range(0), range(1)], 2.0) == pytest.approx([0.4])


def test_smoothing_takes_the_same_share_of_every_sweep():
    """A probe that crosses the belly in 280 frames shows each plane twice as long as in 140, and is smoothed as far."""
    probability = np.random.default_rng(0).random(140)
    smoothed = smooth_in_sweeps(probability, [range(140)], 4.0)
    twice = smooth_in_sweeps(np.repeat(probability, 2), [range(280)], 4.0)
    assert twice.reshape(140, 2).mean(1) == pytest.approx(smoothed, abs=2e-3)


def test_quality_is_the_expected_credit():
    """Presence 0.5: 0.5 if surely optimal, 0.3 if surely suboptimal, 0.4 half way; presence itself without a head."""
    presence = np.full(3, 0.5)
    assert frame_quality(presence, np.array([1.0, 0.0, 0.5]), 0.6) == pytest.approx([0.5, 0.3, 0.4])
    assert frame_quality(presence, None, 0.6) is presence


def test_half_way_by_hand():
    """Top 4 (of the two best, 5 and 3), median 0, depth 1/4: relative threshold 3, half-way to the absolute 0: 1.5."""
    half_way = HalfWay(depth=0.25, top_frames=2)
    logit = np.array([5.0, 3.0, 0.0, -1.0, -2.0])
    assert half_way_threshold(logit, half_way) == pytest.approx(1.5)
    presence = probability_of(logit)
    assert read_half_way(presence, presence, half_way) == pytest.approx(probability_of(logit - 1.5))
    assert read_half_way(presence, presence, None) is presence
    assert read_half_way(np.array([]), np.array([]), half_way).shape == (0,)
    # The scale comes from the case, whichever frames are read.
    assert read_half_way(presence[1:3], presence, half_way) == pytest.approx(probability_of(logit[1:3] - 1.5))


def test_half_way_does_not_feel_the_scale_of_logits():
    """A network that is twice as sure of everything calls the same frames positive; a shift does change them."""
    half_way = HalfWay(depth=0.3)
    logit = np.random.default_rng(1).normal(-2.0, 3.0, 200)
    called = [logit * scale >= half_way_threshold(logit * scale, half_way) for scale in (0.2, 1.0, 2.0)]
    assert 0 < called[0].sum() < 100
    assert np.array_equal(called[0], called[1])
    assert np.array_equal(called[1], called[2])
    assert (logit + 3.0 >= half_way_threshold(logit + 3.0, half_way)).sum() != called[1].sum()


def test_a_case_of_one_frame_is_read_plainly():
    """Top and median are that frame: it is positive from 0.5 on, whatever the depth."""
    for logit in (-0.01, 0.01):
        presence = probability_of(np.array([logit]))
        read = read_half_way(presence, presence, HalfWay(depth=0.7))
        assert (read[0] >= 0.5) == (logit >= 0)


def test_a_case_without_a_plane_has_no_positive_frame():
    """Nothing above a logit of -2: half-way between 0 and what is seen from there nobody is."""
    presence = probability_of(np.linspace(-8.0, -2.0, 300))
    assert not (read_half_way(presence, presence, HalfWay(depth=0.3)) >= 0.5).any()


def test_black_frames_do_not_set_the_scale():
    """Five sweeps of six are black padding: the threshold stays that of the frames that show something."""
    selection = SelectionConfig(half_way=HalfWay(depth=0.3))
    sweeps = [range(start, start + 140) for start in range(0, 840, 140)]
    presence = np.zeros(840)
    presence[:140] = probability_of(3.0 - 12.0 * np.abs(np.linspace(-1, 1, 140)))
    judged = judge_frames(presence, None, sweeps, selection).presence
    alone = judge_frames(presence[:140], None, sweeps[:1], selection).presence
    assert np.array_equal(judged[:140], alone)
    assert (judged[140:] == 0).all()


def test_a_review_says_what_is_positive_and_not_what_is_best():
    """Frames that it takes for nothing do not set the scale, whatever the members say of them; the quality is of the
    members' presence alone."""
    selection = SelectionConfig(0.0, choice_sigma_frames=0.0, half_way=HalfWay(depth=0.3))
    presence = probability_of(np.linspace(-6.0, 3.0, 100))
    reviewed = np.where(np.arange(100) < 60, 0.0, presence[::-1])
    judged = judge_frames(presence, None, [range(100)], selection, reviewed)
    alone = judge_frames(reviewed[60:], None, [range(40)], selection)
    assert np.array_equal(judged.presence[60:], alone.presence)
    assert not judged.presence[:60].any()
    assert np.array_equal(judged.quality, judge_frames(presence, None, [range(100)], selection).quality)


def test_no_frame_overtakes_another_and_nothing_stays_nothing():
    """Probabilities from 0 to 1 keep their order, without a warning, whatever the numbers; 0 stays 0."""
    presence = np.array([0.0, 1e-11, 1e-6, 0.3, 0.999, 1 - 1e-6, 1.0])
    for half_way in (HalfWay(0.0, 1), HalfWay(0.25), HalfWay(1.0, 100)):
        read = read_half_way(presence, presence[1:], half_way)
        assert read[0] == 0
        assert (np.diff(read) >= 0).all()
        assert ((read >= 0) & (read <= 1)).all()
    nothing = np.zeros(9)
    assert (read_half_way(nothing, nothing[:0], HalfWay(0.25)) == 0).all()


def test_the_reading_changes_what_is_called_positive_and_not_what_is_best():
    """Logits ln 4 and 0, top ln 4, median ln 4 / 2, depth 1/2: threshold 3 ln 4 / 8. Quality is of the frames alone."""
    selection = SelectionConfig(
        smoothing_sigma_frames=0.0,
        choice_sigma_frames=0.0,
        half_way=HalfWay(depth=0.5, top_frames=1),
        suboptimal_credit=0.6,
    )
    presence, optimality = np.array([0.5, 0.8]), np.array([1.0, 0.5])
    judged = judge_frames(presence, optimality, [range(2)], selection)
    expected = probability_of(presence_logit(presence) - 3 * np.log(4) / 8)
    assert judged.presence == pytest.approx(expected)
    assert judged.quality == pytest.approx([0.5, 0.8 * 0.8])
    by_presence = judge_frames(presence, optimality, [range(2)], SelectionConfig(smoothing_sigma_frames=0.0))
    assert np.array_equal(by_presence.quality, judge_frames(presence, None, [range(2)], SelectionConfig()).quality)
    assert judged.presence_alone.tolist() == [0.5, 0.8]
    plain = judge_frames(np.linspace(0.1, 0.9, 40), None, TWO_SWEEPS, SelectionConfig())
    assert plain.presence is plain.presence_alone
    assert np.array_equal(plain.presence, smooth_in_sweeps(np.linspace(0.1, 0.9, 40), TWO_SWEEPS, 1.5))


def test_one_run_a_sweep_by_hand():
    """Sweep 1 has three runs, and the strongest by its logits stays; sweep 2 has one, which stays; sweep 3 has none.

    The others fall below 0.5 and keep their order; frames below it are not touched.
    """
    sweeps = [range(10), range(10, 14), range(14, 16)]
    presence = np.array([0.6, 0.6, 0.2, 0.7, 0.8, 0.7, 0.3, 1.0, 0.4, 0.1, 0.5, 0.6, 0.4, 0.1, 0.49, 0.3])
    kept = keep_strongest_runs(presence, sweeps)
    expected = presence.copy()
    expected[[0, 1]] = 0.3
    expected[[3, 4, 5]] = 0.35, 0.4, 0.35
    assert np.allclose(kept, expected), "the single frame of 1.0 has a logit of 16, the three beside it 3.1 together"
    assert presence[0] == 0.6, "what was given stays as it is"
    equal = keep_strongest_runs(np.array([1.0, 0.0, 1.0]), [range(3)])
    assert equal[0] == 1.0
    assert equal[1] == 0.0
    assert 0.49 < equal[2] < 0.5
    assert (keep_strongest_runs(np.array([]), []) == []).all()


def test_no_more_frames_than_are_likely_stay_positive():
    """The likeliest stay, of equal ones the earlier; the others fall below 0.5 and keep their order. In sweeps of 70
    frames a limit of 4 is 2."""
    presence = np.array([0.9, 0.6, 0.95, 0.6, 0.4, 1.0])
    assert keep_likeliest(presence, 3).tolist() == [0.9, 0.3, 0.95, 0.3, 0.4, 1.0]
    assert keep_likeliest(presence, 4).tolist() == [0.9, 0.6, 0.95, 0.3, 0.4, 1.0]
    assert np.array_equal(keep_likeliest(presence, 5), presence)
    assert keep_likeliest(np.array([0.9, 0.5]), 1).tolist() == [0.9, 0.25], "0.5 is positive"
    assert most_frames([range(140), range(140, 280)], 4) == 4
    assert most_frames([range(70), range(70, 140), range(140, 140)], 4) == 2
    assert most_frames([range(140), range(140, 141)], 4) == 4, "a frame that is left over is no sweep"
    assert most_frames([range(3)], 4) == most_frames([], 4) == 1
    selection = SelectionConfig(smoothing_sigma_frames=0, choice_sigma_frames=0, most_positive_frames=4)
    sure = np.linspace(0.6, 0.9, 140)
    judged = judge_frames(sure, None, [range(70), range(70, 140)], selection)
    assert np.flatnonzero(judged.presence >= 0.5).tolist() == [138, 139]
    assert np.array_equal(judged.presence_alone, sure)
    # Written with six decimals, too, a frame that is not to be positive is none.
    assert (np.round(keep_likeliest(np.ones(5), 1), 6) >= 0.5).sum() == 1


def test_one_run_is_kept_of_what_is_read_and_the_choice_is_as_before():
    """The runs are those of the half-way reading, and the chosen frame does not depend on them."""
    presence = np.zeros(40)
    presence[[2, 3, 4, 5]], presence[[12, 13]], presence[30] = 0.9, 0.95, 0.97
    plain = SelectionConfig(smoothing_sigma_frames=0, choice_sigma_frames=0)
    one = SelectionConfig(smoothing_sigma_frames=0, choice_sigma_frames=0, one_run_a_sweep=True)
    before, after = (judge_frames(presence, None, TWO_SWEEPS, selection) for selection in (plain, one))
    assert np.flatnonzero(before.presence >= 0.5).tolist() == [2, 3, 4, 5, 12, 13, 30]
    assert np.flatnonzero(after.presence >= 0.5).tolist() == [2, 3, 4, 5, 30]
    assert np.array_equal(before.quality, after.quality)
    assert np.array_equal(before.presence_alone, after.presence_alone)


def test_the_frame_may_be_chosen_on_a_wider_smoothing_than_frames_are_judged_on():
    """A lone sharp peak of 0.95 loses to a plateau of 0.5, though it is called positive more surely."""
    presence = np.full(140, 0.01)
    presence[20:23] = 0.95
    presence[70:100] = 0.5
    optimality = np.full(140, 0.5)
    selection = SelectionConfig(smoothing_sigma_frames=1.0, choice_sigma_frames=6.0, suboptimal_credit=0.6)
    judged = judge_frames(presence, optimality, [range(140)], selection)
    assert judged.presence.argmax() == 21
    assert 75 <= choose_candidates(judged.quality, [range(140)], 1)[0] <= 95
    assert np.array_equal(
        judged.quality,
        frame_quality(
            smooth_in_sweeps(presence, [range(140)], 6.0), smooth_in_sweeps(optimality, [range(140)], 6.0), 0.6
        ),
    )


def test_candidates_are_the_best_and_apart():
    """Frames next to the best are skipped, a frame of another sweep is not, however near its index."""
    quality = np.zeros(40)
    quality[[18, 17, 19, 13, 20, 5]] = [0.9, 0.85, 0.84, 0.7, 0.8, 0.6]
    assert choose_candidates(quality, TWO_SWEEPS, 4) == [18, 20, 13, 5]
    assert choose_candidates(quality, TWO_SWEEPS, 1) == [18]


def test_a_plateau_is_met_in_its_middle():
    """Of frames 4..8 with one quality, 6 comes first; an even run gives the earlier middle frame."""
    quality = np.zeros(40)
    quality[4:9] = 0.5
    assert choose_candidates(quality, TWO_SWEEPS, 1) == [6]
    quality[9] = 0.5 + 1e-12
    assert choose_candidates(quality, TWO_SWEEPS, 1) == [6]
    quality[30:38] = 0.5
    assert choose_candidates(quality, TWO_SWEEPS, 2) == [33, 6]


def test_all_alike_gives_the_middle_of_the_first_sweep():
    """840 black frames: nothing speaks for any frame, and the answer is still one frame, always the same."""
    sweeps = [range(start, start + 140) for start in range(0, 840, 140)]
    assert choose_candidates(np.zeros(840), sweeps, 3) == [69, 209, 349]


def test_no_frames_no_candidates():
    """An empty stack yields no candidate."""
    assert choose_candidates(np.array([]), [], 5) == []


def test_runs_end_at_the_sweep():
    """Positives 18..21 are two runs, one a sweep."""
    positive = np.zeros(40, bool)
    positive[[2, 18, 19, 20, 21]] = True
    assert positive_runs(positive, TWO_SWEEPS[0]) == [range(2, 3), range(18, 20)]
    assert positive_runs(positive, TWO_SWEEPS[1]) == [range(20, 22)]
    assert positive_runs(np.zeros(40, bool), TWO_SWEEPS[1]) == []


@pytest.mark.parametrize(
    "selection", [{"half_way": HalfWay(0.3)}, {"one_run_a_sweep": True}, {"most_positive_frames": 80}]
)
def test_frames_read_in_their_case_are_positive_from_one_half(selection):
    """The reading puts its threshold at 0.5: a manifest with another one would call positive what the reading took
    away, and is refused. Frames judged by themselves may have any."""
    plain = drawn_manifest("plain", image_size=28)
    in_case = dataclasses.replace(plain, selection=dataclasses.replace(plain.selection, **selection))
    other = Thresholds(presence=0.3)
    assert dataclasses.replace(plain, thresholds=other).thresholds.presence == 0.3
    with pytest.raises(ValueError, match=r"thresholds\.presence is 0\.3, .* it must be 0\.5"):
        dataclasses.replace(in_case, thresholds=other)
