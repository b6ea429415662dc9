"""Which frame is chosen: cases small enough to work by hand."""

import numpy as np
import pytest

from algorithm.judgement.select_frame import (
    choose_candidates,
    frame_quality,
    in_context,
    judge_frames,
    positive_runs,
    probability_of,
    smooth_in_sweeps,
)
from algorithm.model.manifest import CaseContext, SelectionConfig

TWO_SWEEPS = [range(20), range(20, 40)]


def test_smoothing_stays_within_its_sweep():
    """A peak in the last frame of sweep 1 does not leak into sweep 2, and a constant stays the constant."""
    probability = np.zeros(40)
    probability[19] = 1.0
    smoothed = smooth_in_sweeps(probability, TWO_SWEEPS, 2.0)
    assert (smoothed[20:] == 0).all()
    assert smoothed[18] > 0
    assert np.allclose(smooth_in_sweeps(np.full(40, 0.7), TWO_SWEEPS, 3.0), 0.7)


def test_smoothing_by_hand():
    """Sigma 1: the neighbour of a lone peak gets exp(-1/2) over the sum of the weights; sigma 0 changes nothing."""
    probability = np.zeros(21)
    probability[10] = 1.0
    weights = np.exp(-0.5 * np.arange(-4, 5) ** 2.0)
    smoothed = smooth_in_sweeps(probability, [range(21)], 1.0)
    assert smoothed[10] == pytest.approx(1 / weights.sum())
    assert smoothed[11] == smoothed[9] == pytest.approx(np.exp(-0.5) / weights.sum())
    assert smoothed[15] == 0
    # At the sweep's first frame only half of the kernel exists, so its weights are shared among those frames.
    probability = np.zeros(21)
    probability[0] = 1.0
    assert smooth_in_sweeps(probability, [range(21)], 1.0)[0] == pytest.approx(1 / weights[4:].sum())
    assert np.array_equal(smooth_in_sweeps(probability, [range(21)], 0), probability)


def test_smoothing_a_sweep_shorter_than_the_kernel():
    """Two frames, sigma 2: each is the mean weighted 1 to exp(-1/8)."""
    weight = np.exp(-0.125)
    expected = [1 / (1 + weight), weight / (1 + weight)]
    assert smooth_in_sweeps(np.array([1.0, 0.0]), [range(2)], 2.0) == pytest.approx(expected)
    assert smooth_in_sweeps(np.array([]), [], 2.0).shape == (0,)


def test_quality_is_the_expected_credit():
    """Presence 0.5: 0.5 if surely optimal, 0.3 if surely suboptimal, 0.4 half way; presence itself without a head."""
    presence = np.full(3, 0.5)
    assert frame_quality(presence, np.array([1.0, 0.0, 0.5]), 0.6) == pytest.approx([0.5, 0.3, 0.4])
    assert frame_quality(presence, None, 0.6) is presence


def test_context_by_hand():
    """Slope 3, best slope -2, offset 0.5: logits 2 and 0 under a best of 1 become 6 - 2 + 0.5 and 0 - 2 + 0.5."""
    context = CaseContext(3.0, -2.0, 0.5, (-1.0, 1.0))
    presence = probability_of(np.array([2.0, 0.0]))
    expected = probability_of(np.array([4.5, -1.5]))
    assert in_context(presence, probability_of(np.array([1.0, 0.0])), context) == pytest.approx(expected)
    assert in_context(presence, presence, context) == pytest.approx(expected), "a best of 2 counts as 1"
    low = probability_of(np.array([-2.0, -4.0]))
    assert in_context(low, low, context) == pytest.approx(probability_of(np.array([-3.5, -9.5]))), "of -2 as -1"
    assert in_context(presence, presence, None) is presence
    assert in_context(np.array([]), np.array([]), context).shape == (0,)


def test_no_frame_overtakes_another_and_nothing_stays_nothing():
    """Probabilities from 0 to 1 keep their order, without a warning, whatever the numbers; 0 stays 0."""
    presence = np.array([0.0, 1e-11, 1e-8, 0.3, 0.999, 1 - 1e-8, 1.0])
    for context in (CaseContext(2.0, -1.0, 0.0, (-9.0, 9.0)), CaseContext(90.0, -3.0, 50.0, (-90.0, 90.0))):
        judged = in_context(presence, presence, context)
        assert judged[0] == 0
        assert (np.diff(judged) >= 0).all()
        assert ((judged >= 0) & (judged <= 1)).all()
    # Fitted to cases with nothing in them, the best of which sets a very low scale.
    nothing = np.zeros(9)
    assert (in_context(nothing, nothing, CaseContext(1.8, -1.8, 1.1, (-14.0, 3.0))) == 0).all()


def test_context_changes_what_is_called_positive_and_not_what_is_best():
    """Slope 2, best slope -1: logits -ln 4 and 2 ln 4 - ln 4. Quality is that of the frames by themselves."""
    selection = SelectionConfig(smoothing_sigma_frames=0.0, context=CaseContext(2.0, -1.0, 0.0, (-9.0, 9.0)))
    presence, optimality = np.array([0.5, 0.8]), np.array([1.0, 0.5])
    judged = judge_frames(presence, optimality, [range(2)], selection)
    assert judged.presence == pytest.approx([0.2, 0.8])
    assert judged.quality == pytest.approx([0.5, 0.8 * 0.8])
    assert judged.presence_alone.tolist() == [0.5, 0.8]
    plain = judge_frames(np.linspace(0.1, 0.9, 40), None, TWO_SWEEPS, SelectionConfig())
    assert plain.presence is plain.presence_alone is plain.quality
    assert np.array_equal(plain.presence, smooth_in_sweeps(np.linspace(0.1, 0.9, 40), TWO_SWEEPS, 2.0))


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
