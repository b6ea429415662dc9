"""The cache: what it holds, what the checks find, and what stops or interrupts its making."""

import dataclasses
import json
import os
import pickle
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from acouslic.errors import AcouslicError
from acouslic.release import Release, read_circumferences, write_circumferences
from acouslic.stack import read_stack
from algorithm.frames.preprocess import labels_to_square, resize_frames
from algorithm.model.networks import PreprocessingConfig
from training.__main__ import main as training_main
from training.phantom.generate import main as generate
from training.phantom.generate import write_stack
from training.release import prepare as prepare_module
from training.release.cache import BLACK, REPEATED, Cache
from training.release.prepare import PrepareConfig, check_masks, prepare, prepare_frames
from training.release.prepare_case import CaseTask

SIZE = 28
SPACING_MM = 0.28 * 562 / 80


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small generated cases of two sweeps."""
    folder = tmp_path_factory.mktemp("release")
    assert generate(["--out", str(folder), "--cases", "3", "--seed", "21", "--rows", "80", "--sweeps", "2"]) == 0
    return folder


@pytest.fixture
def release(made_release: Path, tmp_path: Path) -> Release:
    """A copy of it that a test may spoil."""
    return Release(shutil.copytree(made_release, tmp_path / "release"))


@pytest.fixture(scope="module")
def made_cache(made_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of that release, for tests that only read it."""
    folder = tmp_path_factory.mktemp("cache") / "cache"
    prepare(config(Release(made_release), folder))
    return folder


def config(release: Release, out: Path) -> PrepareConfig:
    """The smallest useful settings."""
    return PrepareConfig(raw=release.root, out=out, image_size=SIZE)


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by relative path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def change_stack(path: Path, change: Callable[[np.ndarray], np.ndarray | None]) -> None:
    """Rewrite a stack; `change` edits it in place or returns another."""
    stack = read_stack(path).frames
    changed = change(stack)
    write_stack(path, stack if changed is None else changed, SPACING_MM)


def change_row(release: Release, uuid: str, sweep: int, value_mm: float | None) -> None:
    """Replace one circumference of the table."""
    rows = read_circumferences(release.circumferences_path)
    values = list(rows[uuid].sweep_ac_mm)
    values[sweep - 1] = value_mm
    rows[uuid] = dataclasses.replace(rows[uuid], sweep_ac_mm=tuple(values))
    write_circumferences(release.circumferences_path, list(rows.values()))


def test_the_cache_holds_what_inference_would_see(made_release: Path, made_cache: Path) -> None:
    """Frames, labels, masks and ids of every case, against the stacks read whole."""
    release, cache = Release(made_release), Cache(made_cache)
    rows = read_circumferences(release.circumferences_path)
    assert [case.uuid for case in cache.cases] == list(rows)
    assert cache.image_size == SIZE
    for case in cache.cases:
        frames = read_stack(release.image_path(case.uuid)).frames
        labels = read_stack(release.mask_path(case.uuid)).frames
        assert case.subject_id == rows[case.uuid].subject_id
        assert case.frame_count == 280
        assert case.sweeps == [range(140), range(140, 280)]
        assert case.sweep_ac_mm == rows[case.uuid].sweep_ac_mm[:2]
        resized = resize_frames(torch.from_numpy(frames), SIZE, PreprocessingConfig()).numpy()
        assert isinstance(case.frames, np.memmap)
        np.testing.assert_array_equal(case.frames, resized)
        np.testing.assert_array_equal(case.labels, labels.max(axis=(1, 2)))
        np.testing.assert_array_equal(case.mask_frames, np.flatnonzero(case.labels))
        assert len(case.mask_frames) > 0
        square = labels_to_square(torch.from_numpy(labels[case.mask_frames]), SIZE).numpy()
        np.testing.assert_array_equal(case.masks, square)
        first = int(case.mask_frames[0])
        np.testing.assert_array_equal(case.mask(first), square[0])
        assert not case.mask(first - 1).any()
        assert case.sweep_of_frame.tolist() == [0] * 140 + [1] * 140
        assert case.record.findings == ()
    assert cache.case(cache.cases[1].uuid) is cache.cases[1]
    with pytest.raises(AcouslicError, match="holds no case nobody"):
        cache.case("nobody")


def test_a_case_travels_to_another_process_without_its_frames(made_cache: Path) -> None:
    """A data loader's workers open the arrays themselves."""
    case = Cache(made_cache).cases[0]
    assert case.frames.sum() > 0
    assert case.masks.sum() > 0
    packed = pickle.dumps(case)
    assert len(packed) < 2000
    np.testing.assert_array_equal(pickle.loads(packed).frames, case.frames)


def test_two_processes_write_what_one_does(made_release: Path, made_cache: Path, tmp_path: Path) -> None:
    """The cache does not depend on the number of jobs."""
    prepare(dataclasses.replace(config(Release(made_release), tmp_path / "two"), jobs=2))
    assert files(made_cache) == files(tmp_path / "two")


def test_padding_is_recognised_and_counted(
    release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Black frames, repeated frames, and a sweep's first frame, which repeats nothing; labelled padding is found."""
    uuid = release.cases()[0]
    labelled = np.flatnonzero(read_stack(release.mask_path(uuid)).frames.any(axis=(1, 2)))

    def pad(frames: np.ndarray) -> None:
        frames[:] = np.random.default_rng(0).integers(5, 255, frames.shape)
        frames[130:135] = 0
        frames[135:140] = 3  # padding that a lossy codec went through
        frames[141:144] = frames[140]
        frames[140] = frames[141]
        frames[int(labelled[0])] = 0

    change_stack(release.image_path(uuid), pad)
    assert (
        training_main(["prepare", "--raw", str(release.root), "--out", str(tmp_path / "cache"), "--image-size", "28"])
        == 0
    )
    case = Cache(tmp_path / "cache").case(uuid)
    expected = np.zeros(280, np.uint8)
    expected[130:140], expected[141:144], expected[labelled[0]] = BLACK, REPEATED, BLACK
    np.testing.assert_array_equal(case.padding, expected)
    report = json.loads((tmp_path / "cache/report.json").read_text())
    sweep = int(labelled[0] // 140) + 1
    text = "1 annotated frames are black or repeated"
    assert report["findings"] == [{"uuid": uuid, "sweep": sweep, "text": text}]
    others = [other for other in Cache(tmp_path / "cache").cases if other.uuid != uuid]
    assert report["black_frames"] == 11 + sum(int((other.padding == BLACK).sum()) for other in others)
    assert f"finding: {uuid}: sweep {sweep}: {text}" in capsys.readouterr().out


def test_disagreements_of_table_and_masks_are_listed(release: Release, tmp_path: Path) -> None:
    """A value without masks, masks without a value, and a value that no mask has; 5 % more is not one."""
    rows = read_circumferences(release.circumferences_path)
    uuids = list(rows)
    has = {uuid: [n for n in (1, 2) if rows[uuid].sweep_ac_mm[n - 1]] for uuid in uuids}
    change_row(release, uuids[0], 5, 222.0)
    change_row(release, uuids[0], has[uuids[0]][0], None)
    wrong = has[uuids[1]][0]
    change_row(release, uuids[1], wrong, 1.5 * (rows[uuids[1]].sweep_ac_mm[wrong - 1] or 0))
    close = has[uuids[2]][0]
    change_row(release, uuids[2], close, 1.05 * (rows[uuids[2]].sweep_ac_mm[close - 1] or 0))
    cache = prepare(config(release, tmp_path / "cache"))
    found = {case.uuid: [(item.sweep, item.text) for item in case.record.findings] for case in cache.cases}
    (masks, value) = sorted(found[uuids[0]])
    assert masks[0] == has[uuids[0]][0]
    assert "frames are annotated, but the csv has no value" in masks[1]
    assert value == (5, "the csv has 222.0 mm, but no frame is annotated")
    ((sweep, text),) = found[uuids[1]]
    assert (sweep, "the masks" in text) == (wrong, True)
    assert found[uuids[2]] == []
    assert len(json.loads((tmp_path / "cache/report.json").read_text())["findings"]) == 3


def test_an_interrupted_run_goes_on_where_it_stopped(
    release: Release, made_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No half case is ever in the cache, the rest is made by the next run, and the end is that of one run."""
    calls: list[str] = []

    def stop_in_second(task: CaseTask) -> None:
        if calls:
            (task.partial_folder / "frames.npy").write_bytes(b"half")
            raise KeyboardInterrupt
        calls.append(task.row.uuid)
        prepare_frames(task)

    with monkeypatch.context() as patched:
        patched.setattr(prepare_module, "prepare_frames", stop_in_second)
        with pytest.raises(KeyboardInterrupt):
            prepare(config(release, tmp_path / "cache"))
    done = [path.name for path in (tmp_path / "cache/cases").iterdir() if not path.name.startswith(".")]
    assert done == calls
    with pytest.raises(AcouslicError, match="prepare was interrupted"):
        Cache(tmp_path / "cache")
    with pytest.raises(AcouslicError, match="was prepared with image_size 28"):
        prepare(dataclasses.replace(config(release, tmp_path / "cache"), image_size=30))
    made: list[str] = []

    def note(task: CaseTask) -> None:
        made.append(task.row.uuid)
        prepare_frames(task)

    monkeypatch.setattr(prepare_module, "prepare_frames", note)
    prepare(config(release, tmp_path / "cache"))
    assert made == [uuid for uuid in release.cases() if uuid not in done]
    assert files(tmp_path / "cache") == files(made_cache)
    prepare(config(release, tmp_path / "cache"))
    assert len(made) == 2


def test_a_case_whose_files_or_row_changed_is_made_anew(release: Release, tmp_path: Path) -> None:
    """The others stay as they are."""
    first, second, third = release.cases()
    before = prepare(config(release, tmp_path / "cache"))
    # Held open: the number of a file that is gone may be given to a new one.
    held = {case.uuid: (case.folder / "case.json").open() for case in before.cases}
    stamps = {uuid: os.fstat(file.fileno()).st_ino for uuid, file in held.items()}

    def invert(frames: np.ndarray) -> np.ndarray:
        return 255 - frames

    change_stack(release.image_path(first), invert)
    change_row(release, second, 6, 200.0)
    after = prepare(config(release, tmp_path / "cache"))
    assert [(case.folder / "case.json").stat().st_ino == stamps[case.uuid] for case in after.cases] == [
        False,
        False,
        True,
    ]
    for file in held.values():
        file.close()
    expected = resize_frames(
        torch.from_numpy(read_stack(release.image_path(first)).frames), SIZE, PreprocessingConfig()
    )
    np.testing.assert_array_equal(after.case(first).frames, expected.numpy())
    assert after.case(second).record.sweep_ac_mm[5] == 200.0
    assert after.case(third).record == before.case(third).record


def test_a_mask_that_is_mended_while_frames_are_resized_is_read_by_the_next_run(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All masks are read before the first frame is resized, which may be hours before a case is complete."""
    uuid = release.cases()[0]

    def mend_first(task: CaseTask) -> None:
        if task.row.uuid == uuid:
            change_stack(release.mask_path(uuid), lambda masks: np.roll(masks, 1, axis=0))
        prepare_frames(task)

    with monkeypatch.context() as patched:
        patched.setattr(prepare_module, "prepare_frames", mend_first)
        before = prepare(config(release, tmp_path / "cache")).case(uuid).labels
    after = prepare(config(release, tmp_path / "cache")).case(uuid).labels
    np.testing.assert_array_equal(after, np.roll(before, 1))


def remove_column(release: Release, _uuid: str) -> None:
    """The table without sweep 3."""
    path = release.circumferences_path
    path.write_text(path.read_text().replace("sweep_3_ac_mm", "sweep_3"))


def remove_mask(release: Release, uuid: str) -> None:
    """A case without its mask."""
    release.mask_path(uuid).unlink()


def shorten_mask(release: Release, uuid: str) -> None:
    """A mask of fewer frames."""
    change_stack(release.mask_path(uuid), lambda labels: labels[:-1])


def write_label_3(release: Release, uuid: str) -> None:
    """A label that does not exist, in one pixel."""

    def spoil(labels: np.ndarray) -> None:
        labels[17, 5, 50] = 3

    change_stack(release.mask_path(uuid), spoil)


def write_two_labels(release: Release, uuid: str) -> None:
    """Both labels in one frame."""

    def spoil(labels: np.ndarray) -> None:
        labels[17, 5, 50:52] = (1, 2)

    change_stack(release.mask_path(uuid), spoil)


def clear_masks(release: Release, uuid: str) -> None:
    """A case without positives."""
    change_stack(release.mask_path(uuid), np.zeros_like)


def cut_image(release: Release, uuid: str) -> None:
    """An image whose file ends early."""
    path = release.image_path(uuid)
    path.write_bytes(path.read_bytes()[:-500])


def empty_table(release: Release, _uuid: str) -> None:
    """A header and no case."""
    path = release.circumferences_path
    path.write_text(path.read_text().splitlines()[0] + "\n")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove_column, "column sweep_3_ac_mm is missing"),
        (remove_mask, "UUID.mha is missing"),
        (shorten_mask, r"UUID.mha has shape \(279, 80, 106\), expected \(280, 80, 106\)"),
        (write_label_3, r"UUID.mha, frame 17 \(counted from 0\): label 3; expected 0"),
        (write_two_labels, r"UUID.mha, frame 17 .* labels 1 and 2 in one frame"),
        (clear_masks, "UUID.mha has no annotated frame: remove case UUID .* --allow-unannotated"),
        (cut_image, "UUID.mha: the header announces"),
        (empty_table, "lists no case"),
    ],
)
def test_bad_input_stops_before_any_frame_is_resized(
    release: Release,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Release, str], None],
    message: str,
) -> None:
    """The last case is bad: one sentence on stderr names the file, and the long part has not begun."""
    uuid = release.cases()[-1]
    spoil(release, uuid)
    monkeypatch.setattr(prepare_module, "prepare_frames", lambda _task: pytest.fail("frames were resized"))
    assert training_main(["prepare", "--raw", str(release.root), "--out", str(tmp_path / "cache")]) == 1
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    with pytest.raises(AcouslicError, match=message.replace("UUID", uuid)):
        raise AcouslicError(error)


def test_all_bad_cases_are_listed(release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One run tells them all; the error names the first and how many there are."""
    first, second, _ = release.cases()
    write_label_3(release, first)
    clear_masks(release, second)
    with pytest.raises(AcouslicError, match=rf"{first}.*label 3.*the first of 2 problems, all listed above"):
        prepare(config(release, tmp_path / "cache"))
    listed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem: ")]
    assert [uuid in line for uuid, line in zip((first, second), listed, strict=True)] == [True, True]


def test_a_whole_cache_stays_whole_where_a_further_case_is_refused(release: Release, tmp_path: Path) -> None:
    """Its index does not name the new case before its masks are checked."""
    table = release.circumferences_path
    whole, uuids = table.read_text(), release.cases()
    last = uuids[-1]
    table.write_text("".join(line for line in whole.splitlines(keepends=True) if last not in line))
    prepare(config(release, tmp_path / "cache"))
    table.write_text(whole)
    clear_masks(release, last)
    with pytest.raises(AcouslicError, match="has no annotated frame"):
        prepare(config(release, tmp_path / "cache"))
    assert [case.uuid for case in Cache(tmp_path / "cache").cases] == [uuid for uuid in uuids if uuid != last]


def test_all_missing_files_are_listed(release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As after an archive that was unpacked in part: not one a run."""
    missing = [release.mask_path(release.cases()[0]), release.image_path(release.cases()[2])]
    for path in missing:
        path.unlink()
    with pytest.raises(AcouslicError, match=r"is missing.*the first of 2 problems, all listed above"):
        prepare(config(release, tmp_path / "cache"))
    listed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem: ")]
    assert [str(path) in line for path, line in zip(missing, listed, strict=True)] == [True, True]


def test_cases_without_positives_are_accepted_where_asked_for(release: Release, tmp_path: Path) -> None:
    """With `--allow-unannotated` they are a finding, and have no masks."""
    uuid = release.cases()[0]
    clear_masks(release, uuid)
    for sweep in (1, 2):
        change_row(release, uuid, sweep, None)
    cache = prepare(dataclasses.replace(config(release, tmp_path / "cache"), allow_unannotated=True))
    assert [item.text for item in cache.case(uuid).record.findings] == ["no frame is annotated"]
    assert cache.case(uuid).masks.shape == (0, SIZE, SIZE)
    assert not cache.case(uuid).mask(3).any()


def test_too_little_space_is_said_at_the_start(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before hours are spent."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**9, 10**9, 1000))
    with pytest.raises(AcouslicError, match=r"the cache needs .* GB, the disk has 0\.0 GB free"):
        prepare(config(release, tmp_path / "cache"))


def test_a_disk_that_fills_up_is_a_clear_error(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real full device under the file of frames; the next run, with space, goes on."""

    def check_and_fill(task: CaseTask) -> list[str]:
        problems = check_masks(task)
        (task.partial_folder / "frames.npy").symlink_to("/dev/full")
        return problems

    with monkeypatch.context() as patched:
        patched.setattr(prepare_module, "check_masks", check_and_fill)
        with pytest.raises(AcouslicError, match="No space left on device; free some, or name another folder"):
            prepare(config(release, tmp_path / "cache"))
    assert not any((tmp_path / "cache" / "cases" / uuid).exists() for uuid in release.cases())
    assert len(prepare(config(release, tmp_path / "cache")).cases) == 3


@pytest.mark.parametrize("name", ["index.json", "cases/UUID/case.json", "cases/UUID/frames.npy"])
def test_a_damaged_cache_is_refused(made_cache: Path, tmp_path: Path, name: str) -> None:
    """Each file names itself and the remedy."""
    folder = shutil.copytree(made_cache, tmp_path / "cache")
    path = folder / name.replace("UUID", Cache(folder).cases[0].uuid)
    path.write_bytes(b"{}")
    with pytest.raises(AcouslicError, match=rf"{path.name}.*prepare"):
        _ = Cache(folder).cases[0].frames


def test_a_folder_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    """With the command that makes one."""
    with pytest.raises(AcouslicError, match="acouslic train prepare"):
        Cache(tmp_path)


def test_the_cache_serves_the_split(made_release: Path, made_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`split --cache` counts what the cache holds."""
    table = str(Release(made_release).circumferences_path)
    arguments = ["split", "--protocol", "subject", "--csv", table, "--folds", "2", "--cache", str(made_cache)]
    assert training_main(arguments) == 0
    counts = json.loads(capsys.readouterr().out)
    total = sum(counts[fold]["positives"] for fold in ("fold_1", "fold_2"))
    assert total == sum(int((case.labels > 0).sum()) for case in Cache(made_cache).cases) > 0
