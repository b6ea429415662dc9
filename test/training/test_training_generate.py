"""The generator: what it writes is a release, what it draws has the statistics it claims."""

import dataclasses
import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from acouslic.ellipse import circumference_mm, fit_ellipse
from acouslic.errors import AcouslicError
from acouslic.fov import field_of_view
from acouslic.release import Release, read_circumferences
from acouslic.sockets import find_sweep_input
from acouslic.stack import open_stack, read_stack
from training.__main__ import main as training_main
from training.demo import main as demo
from training.phantom.draw_case import SWEEP_HAS_TARGET, generate_case
from training.phantom.generate import main
from training.phantom.motion import OPTIMAL_SECTION, SUBOPTIMAL_SECTION, Passage, draw_subject, plan_sweep

SMALL = ["--rows", "80", "--sweeps", "2", "--frames-per-sweep", "35"]


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by relative path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_seed_gives_the_same_files_whatever_the_number_of_jobs(tmp_path: Path) -> None:
    """Two processes write what one writes; another seed writes something else."""
    for name, seed, jobs in (("one", 4, 1), ("two", 4, 2), ("other", 5, 1)):
        assert (
            main([*SMALL, "--out", str(tmp_path / name), "--cases", "3", "--seed", str(seed), "--jobs", str(jobs)]) == 0
        )
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert not set(files(tmp_path / "one").values()) & set(files(tmp_path / "other").values())


def test_a_full_size_case_is_a_release_and_a_platform_input(tmp_path: Path) -> None:
    """One case as run.sh asks for it: shapes, spacing, labels, and circumferences that the masks have."""
    assert training_main(["generate", "--out", str(tmp_path), "--seed", "11", "--platform"]) == 0
    release = Release(tmp_path)
    (uuid,) = release.cases()
    image, mask = open_stack(release.image_path(uuid)), read_stack(release.mask_path(uuid))
    assert (image.header.frames, image.header.rows, image.header.columns) == (840, 562, 744)
    assert mask.frames.shape == (840, 562, 744)
    assert image.header.spacing_mm == mask.header.spacing_mm == (0.28, 0.28)
    assert image.header.spacing_note is None
    fov = field_of_view()
    for indices, frames in image.iter_chunks():
        assert not frames[:, ~fov].any()
        if indices.start == 0:
            inside = frames[0][fov].astype(float)
            assert 10 < inside.mean() < 120
            assert inside.std() / inside.mean() > 0.25  # speckle
    row = read_circumferences(release.circumferences_path)[uuid]
    for sweep, value_mm in enumerate(row.sweep_ac_mm):
        part = mask.frames[sweep * 140 : (sweep + 1) * 140]
        annotated = [frame for frame in part if frame.any()]
        assert (value_mm is not None) == bool(annotated)
        if value_mm is None:
            continue
        assert 135 < value_mm < 355
        ellipses = [fit_ellipse(frame, fov) for frame in annotated]
        measured = max(circumference_mm(ellipse, (0.28, 0.28)) for ellipse in ellipses if ellipse)
        assert measured == pytest.approx(value_mm, rel=0.02)
    found = find_sweep_input(tmp_path / "platform" / uuid)
    assert found.case == uuid
    assert found.path.read_bytes() == release.image_path(uuid).read_bytes()


def test_labels_lie_within_the_fan_and_a_frame_has_one_at_most() -> None:
    """Small cases: labels, padding and circumferences fit each other."""
    black, repeated = 0, 0
    for seed in range(8):
        case = generate_case((3, seed), rows=80, columns=106, sweeps=2, frames_per_sweep=70)
        fov = field_of_view(80, 106)
        assert case.frames.shape == case.labels.shape == (140, 80, 106)
        assert not case.labels[:, ~fov].any()
        assert not case.frames[:, ~fov].any()
        assert all(len(np.unique(frame[frame > 0])) <= 1 for frame in case.labels)
        assert any(value is not None for value in case.sweep_ac_mm[:2])
        assert case.sweep_ac_mm[2:] == (None,) * 4
        assert case.spacing_mm == pytest.approx(0.28 * 562 / 80)
        same = np.array([np.array_equal(a, b) for a, b in zip(case.frames[1:], case.frames[:-1], strict=True)])
        is_black = case.frames.max(axis=(1, 2)) == 0
        padding = is_black | np.append(False, same)
        assert not case.labels[padding].any()
        black, repeated = black + int(is_black.sum()), repeated + int((same & ~is_black[1:]).sum())
    assert black + repeated > 0


def test_small_frames_show_the_scene_of_large_ones() -> None:
    """The same seed at half the size: the same circumferences and labelled frames, the same mask."""
    large = generate_case((9,), sweeps=1, frames_per_sweep=24)
    small = generate_case((9,), sweeps=1, frames_per_sweep=24, rows=281, columns=372)
    np.testing.assert_array_equal(large.labels.max(axis=(1, 2)), small.labels.max(axis=(1, 2)))
    at = int(np.argmax(np.count_nonzero(large.labels, axis=(1, 2))))
    shrunk = large.labels[at, ::2, ::2] > 0
    assert np.mean(shrunk != (small.labels[at] > 0)) < 0.01


def passage(largest: float, *, is_abdomen: bool) -> Passage:
    """A body that passes from frame 40 to 60."""
    subject = draw_subject(np.random.default_rng(0))
    (planned,) = (item for item in plan_sweep(np.random.default_rng(1), subject, True, 140) if item.is_abdomen)
    return dataclasses.replace(
        planned, middle_frame=50, frames_before=10, frames_after=10, largest=largest, is_abdomen=is_abdomen
    )


def test_sections_grow_and_shrink_as_an_ellipsoids_do() -> None:
    """The section is sqrt(1 - z^2) of the largest, and labels follow its size."""
    body = passage(1.0, is_abdomen=True)
    assert body.section(50) == 1.0
    assert body.section(45) == pytest.approx(math.sqrt(0.75))
    assert body.section(40) == body.section(61) == 0.0
    assert [body.label(frame) for frame in (39, 41, 45, 48, 50, 52, 55, 59)] == [0, 0, 2, 1, 1, 1, 2, 0]
    assert SUBOPTIMAL_SECTION < OPTIMAL_SECTION < 1


@pytest.mark.parametrize(("largest", "is_abdomen"), [(0.74, True), (1.0, False)])
def test_grazing_passes_and_other_bodies_are_never_labelled(largest: float, is_abdomen: bool) -> None:
    """The distractors."""
    body = passage(largest, is_abdomen=is_abdomen)
    assert not any(body.label(frame) for frame in range(140))


def test_planned_sweeps_have_the_statistics_of_the_challenge() -> None:
    """Run lengths, share of optimal frames, circumferences, and where targets are, over 150 planned cases."""
    runs, middles, labels = [], [], np.zeros(3, int)
    for seed in range(150):
        rng = np.random.default_rng([2, seed])
        subject = draw_subject(rng)
        for has_target in rng.random(6) < SWEEP_HAS_TARGET:
            frames = np.zeros(140, int)
            for planned in plan_sweep(rng, subject, bool(has_target), 140):
                frames = np.maximum(frames, [planned.label(frame) for frame in range(140)])
            assert frames.any() == has_target
            labels += np.bincount(frames, minlength=3)
            if has_target:
                runs.append(np.count_nonzero(frames))
                middles.append(np.flatnonzero(frames).mean())
    assert 9 <= np.median(runs) <= 13
    assert np.percentile(runs, 95) <= 26
    assert 0.2 < labels[1] / labels[1:].sum() < 0.45
    assert 0.015 < labels[1:].sum() / labels.sum() < 0.04
    assert 45 < np.median(middles) < 63


def test_an_existing_release_is_not_overwritten(tmp_path: Path) -> None:
    """A second run into the same folder is refused before anything is drawn."""
    (tmp_path / "circumferences").mkdir()
    Release(tmp_path).circumferences_path.write_text("precious")
    with pytest.raises(AcouslicError, match="exists already"):
        main([*SMALL, "--out", str(tmp_path)])
    assert list(files(tmp_path).values()) == [b"precious"]


@pytest.mark.parametrize("wrong", [["--rows", "79"], ["--sweeps", "7"], ["--cases", "0"], ["--seed", "-1"], ["--what"]])
def test_impossible_arguments_are_refused(tmp_path: Path, wrong: list[str]) -> None:
    """argparse's exit code 2."""
    with pytest.raises(SystemExit) as error:
        main(["--out", str(tmp_path), *wrong])
    assert error.value.code == 2


def test_words_that_are_no_number_are_refused_in_plain_words(capsys: pytest.CaptureFixture[str]) -> None:
    """And those of the demo by the demo, not by a command that it calls."""
    for command, words, said in (
        (main, ["--out=release", "--cases=x"], "acouslic generate: error: argument --cases: must be a whole number"),
        (demo, ["--jobs=0"], "acouslic train demo: error: --jobs must be at least 1, not 0"),
    ):
        with pytest.raises(SystemExit):
            command(words)
        assert said in capsys.readouterr().err


def test_planned_passages_are_labelled_from_60_frames_a_sweep_on() -> None:
    """In fewer the abdomen may pass between two frames."""
    subject = draw_subject(np.random.default_rng(1))
    unlabelled = {30: 0, 60: 0}
    for frame_count in unlabelled:
        for seed in range(2000):
            passages = plan_sweep(np.random.default_rng(seed), subject, True, frame_count)
            labels = [passage.label(frame) for passage in passages for frame in range(frame_count)]
            unlabelled[frame_count] += not any(labels)
    assert unlabelled[60] == 0 < unlabelled[30]


def test_commands_that_need_no_torch_do_not_import_it(repository: Path) -> None:
    """`generate` runs in the algorithm's environment; it, `split` and the cache's reader are quick to start."""
    for module, light in (
        ("phantom.generate", True),
        ("release.split", True),
        ("release.cache", True),
        ("release.prepare", False),
    ):
        code = f"import sys, training.{module}; sys.exit(7 * ('torch' in sys.modules or 'sklearn' in sys.modules))"
        ended = subprocess.run([sys.executable, "-c", code], cwd=repository, check=False)
        assert ended.returncode == (0 if light else 7), module


@pytest.mark.usefixtures("restored_process")
def test_a_stopped_command_says_whether_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`generate` draws every case again, `prepare` does not."""

    def stop(_: object) -> None:
        raise KeyboardInterrupt(signal.SIGINT)

    monkeypatch.setattr("training.phantom.generate.generate", stop)
    monkeypatch.setattr("training.release.prepare.prepare", stop)
    for words, said in (
        (["generate", f"--out={tmp_path / 'release'}"], "stopped by SIGINT: the same command begins anew"),
        (["prepare", f"--raw={tmp_path}", f"--out={tmp_path}"], "the same command goes on from there"),
    ):
        assert training_main(words) == 130
        assert capsys.readouterr().err.strip().endswith(said)


def test_the_dispatcher_lists_commands_and_refuses_others(capsys: pytest.CaptureFixture[str]) -> None:
    """Help on stdout; an unknown command on stderr with exit code 2."""
    assert training_main(["--help"]) == 0
    assert "prepare" in capsys.readouterr().out
    assert training_main([]) == 2
    assert training_main(["trian"]) == 2
    assert "unknown command 'trian'" in capsys.readouterr().err
