"""Which of a gate's judgements the whole ensemble looks at again, and what is then known of a case."""

import dataclasses

import numpy as np
import pytest

from acouslic.geometry import sweep_ranges
from algorithm.judgement.refine import choose_refined, middle_frames, refine, sweep_peaks
from algorithm.judgement.select_frame import judge_frames, presence_logit, probability_of
from algorithm.model.manifest import HalfWay, ScoringConfig, SelectionConfig

SELECTION = SelectionConfig(smoothing_sigma_frames=0.0, choice_sigma_frames=0.0)
STUDENT = ScoringConfig(mode="gated", gate="student", stride=1, max_refined_fraction=1.0)
NARROW = dataclasses.replace(STUDENT, refine_ratio=1.0, refine_presence=(0.5, 0.5), margin_frames=0)
"""The best frame alone is looked at."""


def refined(presence, *, already=(), confirmed=(), black=(), **settings):
    """choose_refined over two sweeps of 20, without optimality and smoothing."""
    config = dataclasses.replace(ScoringConfig(mode="gated", max_refined_fraction=1.0), **settings)
    presence = np.asarray(presence, float)
    known = {name: np.isin(np.arange(40), list(at)) for name, at in (("confirmed", confirmed), ("refined", already))}
    known["shown"] = ~np.isin(np.arange(40), list(black))
    return choose_refined(presence, presence, presence, [range(20), range(20, 40)], config, **known).tolist()


def test_refined_are_those_that_could_win_with_a_margin_within_their_sweep():
    """Best 1.0 at frame 19, ratio 0.5: 0.5 at frame 25 could win, 0.49 at 10 not; margins stop at sweep ends."""
    presence = np.zeros(40)
    presence[[19, 25, 10]] = [1.0, 0.5, 0.49]
    assert refined(presence, refine_presence=(0.95, 0.96)) == [16, 17, 18, 19, *range(22, 29)]


def test_black_frames_take_no_room():
    """The sweep ends in padding beside its best frame: the room of 4 goes to what shows something."""
    presence = np.zeros(40)
    presence[[16, 30]] = [1.0, 0.8]
    settings = {"margin_frames": 2, "max_refined_fraction": 0.1}
    assert refined(presence, **settings) == [14, 15, 16, 17]
    assert refined(presence, black=[17, 18, 19], **settings) == [14, 15, 16, 28]


def test_ambiguous_frames_are_refined_alone():
    """Frame 10 at 0.3 cannot win against 1.0, but it decides F1: it is refined, its neighbours are not."""
    presence = np.zeros(40)
    presence[[19, 10]] = [1.0, 0.3]
    assert refined(presence, margin_frames=1) == [10, 18, 19]
    assert refined(presence, margin_frames=1, refine_presence=(0.4, 0.9)) == [18, 19]


def test_the_limit_keeps_the_best_first():
    """Room for 4 of 40: the best peak with its margin, then one frame of the second peak, no ambiguous one."""
    presence = np.zeros(40)
    presence[[5, 30, 12]] = [1.0, 0.8, 0.4]
    assert refined(presence, margin_frames=1, max_refined_fraction=0.1) == [4, 5, 6, 29]
    assert refined(np.zeros(40), max_refined_fraction=0.01) == [0]


def test_a_later_round_looks_beside_what_the_ensemble_has_confirmed():
    """Frames 9..11 were refined and 11 is positive: 12 and 13 are looked at next, none twice, none of another sweep."""
    presence = np.zeros(40)
    presence[[10, 11]] = [1.0, 0.6]
    settings = {"refine_ratio": 1.0, "margin_frames": 2, "refine_presence": (0.4, 0.5)}
    assert refined(presence, already=range(8, 13), **settings) == []
    assert refined(presence, already=range(8, 13), confirmed=[10, 11], **settings) == [13]
    presence[19] = 0.9
    assert refined(presence, already=[*range(8, 14), 19], confirmed=[10, 11, 19], **settings) == [17, 18]


def test_the_limit_is_never_passed():
    """Of 40 frames 12 % are 4.8: four are looked at, not five."""
    assert len(refined(np.linspace(0.5, 1.0, 40), max_refined_fraction=0.12)) == 4


def test_a_frame_could_win_by_either_quality():
    """A lone peak is the best before smoothing, the middle of a plateau after it: both are looked at."""
    quality, smoothed = np.full(40, 0.01), np.full(40, 0.01)
    quality[10], smoothed[30] = 1.0, 0.4
    nothing = np.zeros(40, bool)
    known = {"confirmed": nothing, "refined": nothing, "shown": ~nothing}
    sweeps = [range(20), range(20, 40)]
    assert choose_refined(np.zeros(40), quality, smoothed, sweeps, NARROW, **known).tolist() == [10, 30]


def test_of_ambiguous_frames_the_best_choice_comes_first():
    """Frame 5 is likelier to show the plane, frame 12 would be the better choice: room for one beside the best takes
    the latter."""
    presence, quality = np.zeros(40), np.zeros(40)
    presence[[5, 12, 30]], quality[[5, 12, 30]] = [0.5, 0.4, 1.0], [0.2, 0.3, 1.0]
    nothing = np.zeros(40, bool)
    config = dataclasses.replace(NARROW, refine_presence=(0.3, 0.7), max_refined_fraction=0.05)
    known = {"confirmed": nothing, "refined": nothing, "shown": ~nothing}
    assert choose_refined(presence, quality, quality, [range(40)], config, **known).tolist() == [12, 30]


def test_what_was_refined_counts_for_the_limit():
    """Room for 4 of 40, of which three are taken: one more, and then none."""
    presence = np.zeros(40)
    presence[[5, 30]] = [1.0, 0.8]
    assert refined(presence, already=[4, 5, 6], margin_frames=1, max_refined_fraction=0.1) == [29]
    assert refined(presence, already=[4, 5, 6, 29], margin_frames=1, max_refined_fraction=0.1) == []


class Answers:
    """An ensemble that has an answer for every frame, and remembers which it was asked for."""

    def __init__(self, presence, optimality=None):
        self.presence, self.optimality, self.asked = presence, optimality, []

    def __call__(self, indices, quality):
        assert len(quality) == len(self.presence)
        self.asked.append(indices.tolist())
        return self.presence[indices], None if self.optimality is None else self.optimality[indices]


def test_the_middle_is_the_middle_fifth_by_rank_of_what_shows_anything():
    """Of 101 frames from dark to bright the ranks 40 to 60; of fewer frames no more than there are, of none none."""
    presence = np.linspace(0.1, 0.9, 101)
    assert middle_frames(presence, 30).tolist() == list(range(40, 61))
    assert len(middle_frames(presence, 5)) == 5
    assert np.diff(middle_frames(presence, 5)).max() <= 6
    shuffled = np.random.default_rng(0).permutation(101)
    assert sorted(shuffled[middle_frames(presence[shuffled], 30)]) == list(range(40, 61))
    assert set(middle_frames(np.concatenate([np.zeros(300), presence]), 5).tolist()) <= set(range(340, 361))
    assert middle_frames(np.array([0.0, 0.5, 0.0]), 12).tolist() == [1]
    assert middle_frames(np.array([0.5, 0.6]), 12).tolist() == [0, 1]
    assert middle_frames(np.zeros(4), 12).tolist() == []


def test_rounding_moves_few_frames_of_the_middle():
    """Where each of 840 logits moves by up to a hundredth, nearly all frames of the middle are the same."""
    random = np.random.default_rng(0)
    logit = random.normal(-4.0, 1.5, 840)
    before, after = (
        middle_frames(1 / (1 + np.exp(-values)), 48) for values in (logit, logit + random.uniform(-0.01, 0.01, 840))
    )
    assert len(before) == len(after) == 48
    assert len(set(before) & set(after)) >= 44


def test_the_gates_frames_take_the_ensembles_scale():
    """The ensemble's logits lie 3 lower. Twelve frames say so against the weight of eight: the others move by 1.8.
    Black frames are neither asked about nor moved."""
    gate = probability_of(np.linspace(-6, 2, 140))
    gate[:20] = 0.0
    ensemble = Answers(probability_of(presence_logit(gate) - 3))
    config = dataclasses.replace(
        STUDENT, refine_ratio=1.0, refine_presence=(0.5, 0.5), margin_frames=0, scale_frames=12
    )
    selection = dataclasses.replace(SELECTION, half_way=HalfWay(0.3, top_frames=1))
    known = refine(gate, None, sweep_ranges(140), selection, config, ensemble)
    assert len(ensemble.asked) == 2
    assert len(ensemble.asked[0]) == 12
    assert min(ensemble.asked[0]) > 20 + 0.39 * 120
    assert max(ensemble.asked[0]) < 20 + 0.61 * 120
    assert ensemble.asked[1] == [139]
    assert np.flatnonzero(known.refined).tolist() == [*ensemble.asked[0], 139]
    moved = presence_logit(known.presence) - presence_logit(gate)
    assert moved[known.refined] == pytest.approx(-3)
    assert moved[20:][~known.refined[20:]] == pytest.approx(-3 * 12 / 20)
    assert not known.presence[:20].any()


def test_a_few_flanks_do_not_move_the_scale():
    """Of twelve frames of the middle three belong to a run and lie 9 higher by the ensemble's word: the others are
    moved as the nine say, 3 lower."""
    gate = probability_of(np.linspace(-6, 2, 140))
    config = dataclasses.replace(NARROW, scale_frames=12)
    selection = dataclasses.replace(SELECTION, half_way=HalfWay(0.3, top_frames=1))
    asked = middle_frames(gate, 12)
    said = presence_logit(gate) - 3
    said[asked[:3]] += 12
    known = refine(gate, None, [range(140)], selection, config, Answers(probability_of(said)))
    assert known.refined[asked].all()
    moved = presence_logit(known.presence) - presence_logit(gate)
    assert moved[~known.refined] == pytest.approx(-3 * 12 / 20)


def test_the_best_of_a_sweep_is_not_asked_about_twice():
    """The best frame of the first sweep lies in the middle of the case and has told its scale: the next best is asked
    about instead."""
    gate = probability_of(np.linspace(-6, 2, 60))
    selection = dataclasses.replace(SELECTION, half_way=HalfWay(0.3, top_frames=1))
    ensemble = Answers(gate)
    config = dataclasses.replace(NARROW, scale_frames=15, rounds=2)
    refine(gate, None, [range(30), range(30, 60)], selection, config, ensemble)
    assert ensemble.asked[0] == list(range(24, 36))
    assert ensemble.asked[1] == [23, 59]


def test_the_padding_of_a_short_sweep_is_not_asked_about():
    """The best frame stands beside it: in no round is a black frame asked about, however far margins reach."""
    gate = np.concatenate([np.linspace(0.1, 0.9, 60), np.zeros(80)])
    config = dataclasses.replace(STUDENT, refine_ratio=0.3, margin_frames=6, rounds=4)
    for black, expected in ((gate == 0, 59), (None, 65), (np.ones(140, bool), 65)):
        ensemble = Answers(gate)
        known = refine(gate, None, [range(140)], SELECTION, config, ensemble, black=black)
        assert np.flatnonzero(known.refined).max() == expected


def test_in_a_short_stack_the_scale_leaves_room_for_what_could_win():
    """Of 40 frames 8 may be refined: two tell the scale, one is the best of the sweep, and its margin are the others.
    Of 10 frames two may, which both could win."""
    selection = dataclasses.replace(SELECTION, half_way=HalfWay(0.3))
    config = dataclasses.replace(STUDENT, refine_ratio=0.3, max_refined_fraction=0.2, scale_frames=12, rounds=8)
    for count, told, limit in ((40, 2, 8), (10, 0, 2)):
        gate = np.linspace(0.02, 0.9, count)
        ensemble = Answers(gate / 2)
        known = refine(gate, None, [range(count)], selection, config, ensemble)
        assert known.refined.sum() == limit
        assert known.refined[-8:].sum() >= limit - told
        assert [len(part) for part in ensemble.asked] == ([told, 1, limit - told - 1] if told else [limit])


def test_a_scale_that_decides_nothing_is_not_asked_for():
    """Read plainly, a frame is positive whatever the rest of its case shows."""
    gate = np.linspace(0.01, 0.9, 140)
    ensemble = Answers(gate)
    refine(gate, None, sweep_ranges(140), SELECTION, dataclasses.replace(NARROW, scale_frames=12), ensemble)
    assert ensemble.asked == [[139]]


def test_rounds_and_scale_keep_the_frames_of_exhaustive_scoring():
    """Ten cases of six sweeps, a run in each. The gate sees a run's middle only, and its logits lie 2 higher elsewhere.
    With the case's scale and a few rounds nearly all frames are called that the ensemble alone would call; without the
    scale twice as many are called otherwise, without the rounds many times as many."""
    known = {(rounds, scale): _refined_otherwise(rounds, scale) for rounds, scale in ((8, 48), (8, 0), (1, 48))}
    otherwise = {setting: sum(count for count, _ in cases) for setting, cases in known.items()}
    assert otherwise[8, 48] <= 20
    assert otherwise[8, 0] >= 2 * otherwise[8, 48]
    assert otherwise[1, 48] >= 10 * otherwise[8, 48]
    assert max(share for _, share in known[8, 48]) < 0.25


def _refined_otherwise(rounds, scale_frames):
    """How many of a case's about 80 positive frames are others than the ensemble's, and the share refined, by case."""
    sweeps, at = sweep_ranges(840), np.arange(140)
    centres = (30, 50, 70, 90, 110, 60)
    runs, peaks = (
        np.concatenate([height * np.exp(-0.5 * ((at - centre) / width) ** 2) for centre in centres])
        for height, width in ((12, 6), (10, 2))
    )
    selection = dataclasses.replace(SELECTION, smoothing_sigma_frames=1.5, half_way=HalfWay(0.8))
    config = dataclasses.replace(STUDENT, refine_presence=(0.3, 0.7), rounds=rounds, scale_frames=scale_frames)
    found = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        ensemble = Answers(probability_of(-8 + runs + 0.3 * rng.standard_normal(840)))
        gate = probability_of(-6 + peaks + 0.3 * rng.standard_normal(840))
        known = refine(gate, None, sweeps, selection, config, ensemble)
        called, expected = (
            judge_frames(presence, None, sweeps, selection).presence >= 0.5
            for presence in (known.presence, ensemble.presence)
        )
        # No frame is asked about twice.
        assert sum(map(len, ensemble.asked)) == len({index for part in ensemble.asked for index in part})
        assert len(ensemble.asked) <= rounds + 2
        found.append((np.count_nonzero(called != expected), known.refined.mean()))
    return found


@pytest.mark.parametrize(("rounds", "found"), [(8, True), (1, False)])
def test_a_run_that_the_gate_takes_for_nothing_is_found(rounds, found):
    """Six sweeps, a run in the first and in the last. Of the last the gate thinks no more than of the sweeps between,
    but it, too, likes its middle best: where it may ask again, the ensemble is asked about the best frame of each."""
    sweeps, at = sweep_ranges(840), np.arange(140)
    run, hint = (height * np.exp(-0.5 * ((at - 70) / 6) ** 2) for height in (12, 1))
    ensemble = Answers(probability_of(-8 + np.concatenate([run, *[hint] * 4, run])))
    gate = probability_of(-8 + np.concatenate([run, *[hint] * 4, hint]))
    selection = dataclasses.replace(SELECTION, smoothing_sigma_frames=1.5, half_way=HalfWay(0.4))
    known = refine(
        gate, None, sweeps, selection, dataclasses.replace(STUDENT, rounds=rounds, scale_frames=12), ensemble
    )
    called = judge_frames(known.presence, None, sweeps, selection).presence >= 0.5
    assert called[:140].any()
    assert called[-140:].any() == found
    assert known.refined.mean() < 0.15
    if found:
        assert [70 + 140 * k for k in range(6)] == ensemble.asked[1]
        expected = judge_frames(ensemble.presence, None, sweeps, selection).presence >= 0.5
        assert np.array_equal(called, expected)


def test_best_frames_of_sweeps():
    """One of each, the earlier of equals, the highest first where there is no room for all; none where all are 0."""
    presence = np.concatenate([np.zeros(4), [0.1, 0.4, 0.4], [0.9, 0.2], [0.3]])
    sweeps = [range(4), range(4, 7), range(7, 9), range(9, 9), range(9, 10)]
    assert sweep_peaks(presence, sweeps, 6).tolist() == [5, 7, 9]
    assert sweep_peaks(presence, sweeps, 2).tolist() == [5, 7]
    assert sweep_peaks(presence, sweeps, 0).tolist() == []


def test_optimality_of_a_gate_that_does_not_judge_it():
    """The ensemble's where it was asked, 0 elsewhere; the arrays that came in stay as they are."""
    gate = np.full(40, 0.1)
    gate[20] = 0.9
    ensemble = Answers(np.full(40, 0.8), np.full(40, 0.7))
    config = dataclasses.replace(NARROW, margin_frames=1)
    known = refine(gate, None, [range(40)], SELECTION, config, ensemble)
    assert np.flatnonzero(known.optimality).tolist() == [19, 20, 21]
    assert known.presence[20] == 0.8
    assert gate[20] == 0.9
