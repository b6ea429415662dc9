"""The report on out-of-fold cases: how they are read, and which frames are drawn."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from algorithm.judgement.select_frame import FrameJudgement
from algorithm.model.manifest import SelectionConfig
from training.judge.calibrate import CaseJudgement
from training.judge.nested_reading import read_nested
from training.judge.reading import fit_half_way, fit_most_frames, has_one_run_a_sweep
from training.judge.worst_frames import COLUMNS, draw_worst_frames, find_worst_frames
from training.learn.out_of_fold import OutOfFold
from training.release.cache import Cache
from training.report import set_names, write_scores


def judged(uuid: str, label: list[int], presence: list[float]) -> CaseJudgement:
    """A case of frames as they are read."""
    values = np.array(presence)
    frames = FrameJudgement(values, values, None, values)
    return CaseJudgement(uuid, np.array(label, np.uint8), frames, values > 0, [range(len(values))])


def drawn_cases(count: int) -> list[CaseJudgement]:
    """Cases with one run each, found at different depths."""
    rng = np.random.default_rng(5)
    found = []
    for k in range(count):
        label = np.zeros(60, np.uint8)
        label[20:30] = 1
        logit = rng.normal(-4, 1, 60) + np.where(label > 0, 3 + k % 4, 0)
        found.append(judged(f"case {k}", label.tolist(), (1 / (1 + np.exp(-logit))).tolist()))
    return found


def test_a_case_is_read_without_its_patient() -> None:
    """The depth comes from all other subjects' cases; a second case of the subject has no word either."""
    cases = drawn_cases(8)
    subjects = {case.uuid: case.uuid for case in cases} | {"case 1": "twice", "case 2": "twice"}
    read = read_nested(cases, subjects, SelectionConfig())
    others = [case for case in cases if case.uuid not in ("case 1", "case 2")]
    for k, without in ((1, others), (2, others), (0, cases[1:])):
        expected = read_nested([cases[k]], subjects, SelectionConfig(half_way=fit_half_way(without)))
        np.testing.assert_array_equal(read[k].frames.presence, expected[0].frames.presence)
    assert not np.array_equal(read[0].frames.presence, cases[0].frames.presence)


def test_what_frames_are_likely_is_found_without_the_patient_too() -> None:
    """The one case with two runs, and the one with most frames, are read by what the others have: one run a sweep, and
    no more frames than twice theirs. It is done where it is asked for."""
    cases = drawn_cases(8)
    two_runs = np.repeat([0, 1, 0, 1, 0], [10, 5, 20, 6, 19])
    many = np.repeat([0, 1, 0], [5, 50, 5])
    for at, label in ((0, two_runs), (1, many)):
        cases[at] = judged(f"case {at}", label.tolist(), np.where(label > 0, 0.95, 0.02).tolist())
    subjects = {case.uuid: case.uuid for case in cases}
    read = read_nested(cases, subjects, SelectionConfig(), one_run=True, most=True)
    assert not has_one_run_a_sweep(cases)
    assert np.flatnonzero(read[0].frames.presence >= 0.5).tolist() == list(range(35, 41))
    # Eleven frames, in two runs, are the most of the others.
    assert np.count_nonzero(read[1].frames.presence >= 0.5) == 22
    plain = read_nested(cases, subjects, SelectionConfig())
    assert [np.count_nonzero(case.frames.presence >= 0.5) for case in plain[:2]] == [11, 50]


def test_few_cases_are_read_plainly() -> None:
    """Five others are needed: with five cases in all a frame is read by itself."""
    cases = drawn_cases(5)
    for before, after in zip(
        cases, read_nested(cases, {c.uuid: c.uuid for c in cases}, SelectionConfig()), strict=True
    ):
        np.testing.assert_array_equal(before.frames.presence, after.frames.presence)


def test_a_remainder_is_no_sweep_of_its_own() -> None:
    """Of a stack of 150 frames with 10 annotated ones twice as many are likely in 140, as where it is read."""
    case = judged("a", [1] * 10 + [0] * 140, [0.5] * 150)
    cases = [replace(case, sweeps=[range(140), range(140, 150)])] * 5
    assert fit_most_frames(cases) == 20


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["w/fold_1", "w/fold_2"], ["fold_1", "fold_2"]),
        (["a/fold_1", "b/fold_1", "b/fold_2"], ["a/fold_1", "b/fold_1", "b/fold_2"]),
        (["."], None),
    ],
)
def test_runs_are_told_apart_by_name(folders: list[str], names: list[str] | None, tmp_path: Path) -> None:
    """As short as tells all apart; a folder given as `.` has its own name."""
    assert set_names([tmp_path / folder for folder in folders]) == (names or [tmp_path.name])


@pytest.mark.parametrize("judging", [0, 1, 2])
def test_optimality_is_reported_where_every_case_has_it(judging: int, tiny_training: Any, tmp_path: Path) -> None:
    """Of runs with and without the head there is no such column: all have a value for each frame."""
    cache = Cache(tiny_training.cache)
    cases = []
    for number, case in enumerate(cache.cases[:2]):
        read = judged(case.uuid, case.labels.tolist(), np.linspace(0.1, 0.9, case.frame_count).tolist())
        optimality = read.frames.presence if number < judging else None
        cases.append(replace(read, frames=replace(read.frames, optimality=optimality)))
    scored: Any = SimpleNamespace(uuid=np.array([case.uuid for case in cases]))
    member: Any = SimpleNamespace(scored=scored, folder=SimpleNamespace(root=tmp_path / "fold_1"))
    write_scores(tmp_path / "scores.npz", [member], cases, cache)
    with np.load(tmp_path / "scores.npz") as table:
        assert {len(table[name]) for name in table.files} == {sum(case.frame_count for case in cache.cases[:2])}
        assert ("optimality" in table.files) == (judging == 2)


def test_the_worst_frame_of_each_wrong_run(tiny_training: Any) -> None:
    """Of a run of wrong frames the worst one; frames that are right are not there."""
    cache = Cache(tiny_training.cache)
    case = cache.cases[0]
    (run,) = np.flatnonzero(case.labels > 0)
    presence = np.where(case.labels > 0, 0.9, 0.1)
    assert find_worst_frames([judged(case.uuid, case.labels.tolist(), presence.tolist())], cache, 10) == []
    presence[20:23] = (0.6, 0.95, 0.7)
    presence[30], presence[run] = 0.55, 0.2
    found = find_worst_frames([judged(case.uuid, case.labels.tolist(), presence.tolist())], cache, 10)
    assert [frame.frame_index for frame in found] == [21, run, 30]
    assert [frame.label > 0 for frame in found] == [False, True, False]
    assert found[0].caption()[1] == "no label, read 0.95"


@pytest.mark.parametrize(("wrong", "asked", "drawn"), [(9, 4, 4), (2, 9, 3)])
def test_called_and_missed_frames_share_the_picture(wrong: int, asked: int, drawn: int, tiny_training: Any) -> None:
    """Half of the frames are missed ones where there are as many; a place that one kind leaves goes to the other."""
    cache = Cache(tiny_training.cache)
    cases = []
    for number, case in enumerate(cache.cases[:wrong]):
        presence = np.where(case.labels > 0, 0.9, 0.1)
        unlabelled = np.flatnonzero(case.labels == 0)
        presence[unlabelled[0]] = 0.8
        if number == 0:
            presence[np.flatnonzero(case.labels > 0)[0]] = 0.4
        cases.append(judged(case.uuid, case.labels.tolist(), presence.tolist()))
    found = find_worst_frames(cases, cache, asked)
    assert len(found) == drawn
    assert sum(frame.label > 0 for frame in found) == 1


def test_the_picture_shows_annotation_and_what_was_drawn(tiny_training: Any) -> None:
    """A missed frame carries the reference in green and the member's mask in orange; six frames fill a row."""
    cache = Cache(tiny_training.cache)
    case = next(case for case in cache.cases if (case.labels > 0).any())
    frame = int(case.mask_frames[0])
    mask = np.zeros((1, 16, 16), np.uint8)
    mask[0, 4:12, 4:12] = 255
    scored = OutOfFold(
        uuid=np.array([case.uuid]),
        frame_counts=np.array([case.frame_count]),
        label=case.labels,
        black=case.black,
        presence_logit=np.zeros(case.frame_count, np.float32),
        optimality_logit=np.zeros(0, np.float32),
        mask_rows=np.array([frame]),
        mask_probability=mask,
    )
    presence = np.where(case.labels > 0, 0.9, 0.1)
    presence[frame] = 0.3
    found = find_worst_frames([judged(case.uuid, case.labels.tolist(), presence.tolist())], cache, 10)
    picture = draw_worst_frames(found, cache, [scored]).astype(int)
    blue, green, red = picture[..., 0], picture[..., 1], picture[..., 2]
    assert ((green - red > 60) & (green - blue > 60)).any()
    assert ((red - blue > 120) & (red > green)).any()
    one, row = picture.shape, draw_worst_frames(found * COLUMNS, cache, [scored]).shape
    two_rows = draw_worst_frames(found * (COLUMNS + 1), cache, [scored]).shape
    assert row[0] == one[0]
    assert row[1] > 5 * one[1]
    assert two_rows[0] > 1.9 * row[0]
    assert draw_worst_frames([], cache, [scored]).shape[2] == 3
