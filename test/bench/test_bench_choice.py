"""What the benchmarks compute from per-frame probabilities, and side A's extrapolation, by hand."""

import numpy as np
import pytest

from acouslic.frame_labels import frame_worth
from algorithm.model.manifest import SelectionConfig
from bench.figures.frame_choice import choose_frame, rank_correlation
from bench.figures.table import number, table
from bench.scaling import CaseSize, fit_line, memory_growth
from bench.setting.sides import SideRun, case_done, extrapolate


def test_a_frame_is_worth_what_the_challenge_gives_for_it():
    """Optimal 1, suboptimal 0.6 where an optimal one exists and 1 where none does, anything else 0."""
    both, suboptimal = np.array([0, 1, 2], np.uint8), np.array([0, 2, 2], np.uint8)
    assert [frame_worth(both, index) for index in range(3)] == [0.0, 1.0, 0.6]
    assert [frame_worth(suboptimal, index) for index in range(3)] == [0.0, 1.0, 1.0]
    assert frame_worth(np.zeros(3, np.uint8), 1) == 0.0


def test_a_blank_frame_is_never_chosen_and_lends_nothing():
    """The best probability lies on a blank frame; the frame beside it wins, with what is its own."""
    presence = np.array([0.1, 0.2, 0.9, 0.8, 0.1])
    blank = np.array([False, False, True, False, False])
    choice = choose_frame(presence, None, blank, SelectionConfig(smoothing_sigma_frames=0.0, choice_sigma_frames=0.0))
    assert choice.frame_index == 3
    assert choice.presence_probability.tolist() == [0.1, 0.2, 0.0, 0.8, 0.1]


def test_optimality_decides_between_frames_of_like_presence():
    """0.8 x (0.6 + 0.4 x 1) beats 0.9 x (0.6 + 0.4 x 0)."""
    presence, optimality = np.array([0.9, 0.8]), np.array([0.0, 1.0])
    settings = SelectionConfig(smoothing_sigma_frames=0.0, choice_sigma_frames=0.0, suboptimal_credit=0.6)
    assert choose_frame(presence, optimality, np.zeros(2, bool), settings).frame_index == 1
    left_out = SelectionConfig(smoothing_sigma_frames=0.0, choice_sigma_frames=0.0)
    assert choose_frame(presence, optimality, np.zeros(2, bool), left_out).frame_index == 0
    assert choose_frame(presence, None, np.zeros(2, bool), settings).frame_index == 0


def test_rank_correlation_is_spearmans():
    """1 - 6 sum d^2 / (n (n^2 - 1)) without ties; equal values share their mean rank; a constant has none."""
    assert rank_correlation(np.array([1.0, 2.0, 3.0, 4.0]), np.array([10.0, 20.0, 40.0, 30.0])) == pytest.approx(0.8)
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4.
    expected = np.corrcoef([1, 2.5, 2.5, 4], [1, 2, 3, 4])[0, 1]
    assert rank_correlation(np.array([0.0, 5.0, 5.0, 9.0]), np.arange(4.0)) == pytest.approx(expected)
    assert np.isnan(rank_correlation(np.ones(3), np.arange(3.0)))


def test_side_a_on_a_case_is_its_few_frames_scaled_up():
    """Start, load and outlining once; reading, preparing, writing by frames; scoring by the median full pass."""
    report = {
        "frames": 20,
        "import_s": 4.0,
        "load_s": 10.0,
        "read_s": 0.2,
        "preprocess_s": 1.0,
        "score_s": 100.0,
        "segment_s": 3.0,
        "write_s": 0.1,
        # Three members, batches of 8, 8 and 4 frames; the first pass of all is slow, the short ones do not count.
        "passes": [[8, 30.0], [8, 8.0], [8, 8.0], [8, 8.0], [8, 8.0], [8, 9.0], [4, 9.0], [4, 9.0], [4, 9.0]],
    }
    whole = extrapolate(SideRun(wall_s=118.5, report=report), members=3, frames=840)
    assert whole.measured_frames == 20
    expected = {"import_s": 4, "load_s": 10, "segment_s": 3, "read_s": 8.4, "preprocess_s": 42, "write_s": 4.2}
    assert whole.phases_s == pytest.approx(expected | {"score_s": 3 * 840 * 1.0, "end_s": 0.2})
    assert whole.total_s == pytest.approx(2591.8)


def test_the_last_case_in_a_log_is_found_among_other_lines():
    """Lines that are no JSON, or JSON of something else, are passed over."""
    log = 'model: x\n{"event": "case done", "case": "a"}\n{"event": "case done", "case": "b"}\n{"event": "other"}\n{x\n'
    assert case_done(log)["case"] == "b"


def test_a_line_is_fitted_and_says_how_far_the_worst_point_is():
    """Points on a line; then one of them 10 % off it."""
    line = fit_line([1, 2, 4], [5.0, 7.0, 11.0])
    assert (line.intercept, line.slope, line.worst) == pytest.approx((3, 2, 0), abs=1e-9)
    assert fit_line([1, 2, 3], [1.0, 2.2, 3.0]).worst > 0.03


def test_memory_growth_is_between_the_two_largest_cases():
    """200 bytes over 100 frames."""
    sizes = [CaseSize(100, 1, 1, 1000, 0), CaseSize(10, 1, 1, 5, 0), CaseSize(200, 1, 1, 1200, 0)]
    assert memory_growth(sizes) == 2.0


def test_numbers_and_tables_are_aligned_for_people():
    """Three significant digits, thousands apart, a dash for what is not known."""
    assert [number(value) for value in (4080.3, 12.345, 0.04567, 0, None)] == ["4,080", "12.3", "0.046", "0", "-"]
    lines = table(["what", "A", "B"], [["time", "1", "20"], ["longer name", "300", "4"]]).splitlines()
    assert lines[0] == "what           A   B"
    assert lines[3] == "longer name  300   4"
