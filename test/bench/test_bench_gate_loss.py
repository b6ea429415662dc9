"""Replaying a gated run from a record of everything, and what a gate is said to lose."""

import dataclasses
import json
import os

import numpy as np
import pytest
import torch

from acouslic.errors import AcouslicError
from acouslic.release import CaseCircumferences, Release, write_circumferences
from algorithm.engine.ensemble import Ensemble
from algorithm.frames.frame_stream import FrameStream
from algorithm.frames.resized_frames import ResizedFrames
from algorithm.judgement.score import score_case
from algorithm.model.artifact import load_artifact
from algorithm.model.manifest import ScoringConfig, read_manifest
from algorithm.model.networks import StudentConfig
from algorithm.model.student import student_from_state
from bench import gate_loss, parity
from bench.figures.recorded_scores import Record, frame_labels, record_case, replay, spelled_frames
from bench.setting.random_artifact import TOWERS, write_random_artifact
from training.phantom.generate import write_stack


def gated_ensemble(model, **settings):
    """The tiny artifact with these settings, in float32."""
    artifact = load_artifact(model)
    scoring = ScoringConfig(mode="gated", **settings)
    artifact = dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, scoring=scoring))
    return Ensemble.from_artifact(artifact, torch.device("cpu"), torch.float32)


@pytest.fixture
def release(tmp_path, speckle):
    """One case of 30 frames, 9 of them labelled."""
    found = Release(tmp_path / "release")
    labels = np.zeros((30, 40, 60), np.uint8)
    labels[8:17, 10:30, 20:40] = 2
    labels[11:13, 10:30, 20:40] = 1
    write_stack(found.image_path("one"), speckle(30), 0.28)
    write_stack(found.mask_path("one"), labels, 0.28)
    write_circumferences(found.circumferences_path, [CaseCircumferences("one", "1", (200.0, *[None] * 5))])
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {"stride": 3, "margin_frames": 1, "refine_ratio": 0.95, "refine_presence": (0.4, 0.6)},
        {"gate": "member", "gate_member": 1, "max_refined_fraction": 0.2},
    ],
)
def test_a_replayed_run_is_the_run(tiny_model, release, settings):
    """Which frames are refined, and every probability, come out as from `score_case` on the frames themselves."""
    average = gated_ensemble(tiny_model)
    record = record_case(
        average, "one", release.image_path("one"), release.mask_path("one"), with_gate=True, batch_frames=8
    )
    ensemble = gated_ensemble(tiny_model, **settings)
    stream = FrameStream(release.image_path("one"))
    resized = ResizedFrames(stream, 56, ensemble.manifest.preprocessing, torch.device("cpu"))
    resized.finish()
    real = score_case(ensemble, resized.frames, ensemble.manifest.scoring)
    replayed = replay(record, ensemble.manifest, ensemble.manifest.scoring)
    assert replayed.refined.tolist() == real.refined.tolist()
    assert 0 < real.refined.sum() < 30
    np.testing.assert_allclose(replayed.presence_probability, real.presence_probability, atol=1e-5)
    np.testing.assert_allclose(replayed.optimality_probability, real.optimality_probability, atol=1e-5)
    assert record.labels.tolist() == [0] * 8 + [2] * 3 + [1] * 2 + [2] * 4 + [0] * 13


def test_frames_spell_numbers_beyond_a_byte(tiny_model):
    """840 frames need two grey levels each; every one is read back as itself."""
    frames = spelled_frames(840)
    assert frames.shape == (840, 1, 2)
    assert frames[839, 0].tolist() == [3, 71]
    presence = np.linspace(0, 1, 840, dtype=np.float32)
    record = record_of(presence, presence, np.zeros(840))
    manifest = read_manifest(tiny_model)
    members = tuple(dataclasses.replace(member, optimality=False) for member in manifest.members)
    scores = replay(record, dataclasses.replace(manifest, members=members), ScoringConfig())
    np.testing.assert_array_equal(scores.presence_probability, presence)


def record_of(presence, gate, labels):
    """Two members of the same opinion and a gate of its own."""
    presence = np.array([presence, presence], np.float32)
    nothing = np.zeros(0, np.float32)
    frames = len(labels)
    return Record(
        case="x",
        labels=np.array(labels, np.uint8),
        blank=np.zeros(frames, bool),
        presence=presence,
        optimality=np.zeros((0, frames), np.float32),
        gate_presence=np.array(gate, np.float32),
        gate_optimality=nothing,
        members_s=10.0,
        gate_s=2.0,
        student_presence=nothing,
        student_optimality=nothing,
        student_s=0.0,
    )


def test_a_student_is_replayed_as_the_run_is(release, tmp_path):
    """Its opinions are recorded beside the averaged gate's, and replaying its settings is the run on the frames."""
    scoring = ScoringConfig(mode="gated", gate="student", stride=1, max_refined_fraction=0.3)
    write_random_artifact(
        tmp_path / "model", TOWERS["tiny"], members=2, scoring=scoring, student=StudentConfig(4, (1, 1))
    )
    loaded = load_artifact(tmp_path / "model")
    average, ensemble = (
        gated_ensemble(tmp_path / "model"),
        Ensemble.from_artifact(loaded, torch.device("cpu"), torch.float32),
    )
    student = student_from_state(loaded.manifest.student, loaded.student, torch.device("cpu"), torch.float32)
    paths = release.image_path("one"), release.mask_path("one")
    record = record_case(average, "one", *paths, with_gate=True, batch_frames=8, student=student)
    stream = FrameStream(paths[0])
    resized = ResizedFrames(stream, 56, ensemble.manifest.preprocessing, torch.device("cpu"))
    resized.finish()
    real = score_case(ensemble, resized.frames, scoring)
    replayed = replay(record, ensemble.manifest, scoring)
    assert replayed.refined.tolist() == real.refined.tolist()
    np.testing.assert_allclose(replayed.presence_probability, real.presence_probability, atol=1e-5)
    assert record.student_s > 0
    assert not np.allclose(record.student_presence, record.gate_presence, atol=0.01)


def test_losses_are_counted_against_the_exhaustive_run(tiny_model):
    """A gate that is blind to the one good frame: its case scores 0, F1 falls, and time is what was run."""
    manifest = read_manifest(tiny_model)
    members = tuple(dataclasses.replace(member, optimality=False) for member in manifest.members)
    selection = dataclasses.replace(manifest.selection, smoothing_sigma_frames=0.0, choice_sigma_frames=0.0)
    manifest = dataclasses.replace(manifest, members=members, selection=selection)
    good, seen = [0.05, 0.9, 0.05, 0.05, 0.6], [0.05, 0.9, 0.05, 0.05, 0.6]
    blind = [0.05, 0.05, 0.05, 0.05, 0.6]
    records = [record_of(good, seen, [0, 1, 0, 0, 0]), record_of(good, blind, [0, 1, 0, 0, 0])]
    scoring = ScoringConfig(
        mode="gated", stride=1, margin_frames=0, refine_ratio=1.0, refine_presence=(1.0, 1.0), max_refined_fraction=0.5
    )
    exhaustive = gate_loss.outcome(records, manifest, ScoringConfig())
    assert exhaustive.f1 == pytest.approx(2 * 2 / (2 + 4))
    found = gate_loss.loss(records, manifest, scoring, exhaustive)
    assert (found.same_share, found.worth, found.same_frame_share) == (0.5, 0.5, 0.5)
    # One hit of two found in the first case, none of one in the second.
    assert found.f1 == pytest.approx(2 * 1 / (2 + 3))
    assert found.f1_difference == pytest.approx(found.f1 - exhaustive.f1)
    # The exhaustive run calls two frames in each case; of the blind gate's case one of them is called.
    assert found.f1_to_exhaustive == pytest.approx(2 * 3 / (4 + 3))
    assert found.f1_interval is not None
    assert found.f1_interval[0] < found.f1_difference < found.f1_interval[1]
    assert found.refined_share == pytest.approx(2 / 10)
    # Every frame by the gate (2 s of 10 a case), one of five by all members.
    assert found.time_share == pytest.approx((2 + 10 / 5) / 10)
    assert not found.within_bounds


def test_what_is_slower_and_no_better_is_not_listed():
    """Three settings: a fast one that loses, a slower one that does not, and one that is slower still."""
    base = gate_loss.Loss(ScoringConfig(), 1.0, 1, 1, 1, 0.0, None, 1, 0.1, 0.5)
    fast = dataclasses.replace(base, time_share=0.2, same_share=0.9)
    slowest = dataclasses.replace(base, time_share=0.8)
    assert gate_loss.best([slowest, base, fast]) == [fast, base]


def test_the_command_records_once_and_prints_json_last(tiny_model, release, tmp_path, capsys, monkeypatch):
    """A second run reads the record instead of scoring again, and says the same."""
    monkeypatch.setattr(gate_loss, "GRID", {"gate": ("average", "member"), "stride": (1, 2)})
    command = ["--model", str(tiny_model), "--release", str(release.root), "--cache", str(tmp_path / "cache")]
    assert gate_loss.main([*command, "--device", "cpu"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    monkeypatch.setattr("bench.figures.recorded_scores.record_case", None)
    assert gate_loss.main([*command, "--device", "cpu"]) == 0
    second = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert first["best"] == second["best"]
    assert first["settings_tried"] == 4
    assert gate_loss.main([*command, "--device", "cpu", "--own-settings"]) == 0
    own = capsys.readouterr().out
    assert json.loads(own.splitlines()[-1])["settings_tried"] == 0
    assert "as in the manifest" in own
    assert "defaults" not in json.loads(own.splitlines()[-1])
    assert first["cases"] == 1
    assert set(first) >= {"exhaustive", "defaults", "as_in_the_manifest", "chosen", "versions", "date", "machine"}


def test_a_student_is_judged_without_the_averaged_gate(release, tmp_path, capsys):
    """By the manifest's own settings nobody asks it, and it is a pass of its own. Once others are to be tried it is
    asked after all. The precision is the one that was wanted."""
    scoring = ScoringConfig(mode="gated", gate="student", stride=1)
    model, cache = tmp_path / "model", tmp_path / "cache"
    write_random_artifact(model, TOWERS["tiny"], members=2, scoring=scoring, student=StudentConfig(4, (1, 1)))
    command = ["--model", str(model), "--release", str(release.root), "--cache", str(cache), "--device", "cpu"]
    assert gate_loss.main([*command, "--own-settings", "--precision", "bfloat16"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["precision"] == "bfloat16"
    (kept,) = cache.iterdir()
    assert not len(Record.load(kept).gate_presence)
    assert gate_loss.main([*command, "--precision", "bfloat16"]) == 0
    assert len(Record.load(kept).gate_presence) == 30


def test_releases_with_a_case_of_the_same_name_are_refused(tiny_model, release):
    """What was scored is kept by name, so one case would be judged by what was said of another."""
    with pytest.raises(AcouslicError, match="hold a case of the same name"):
        gate_loss.main(["--model", str(tiny_model), "--release", str(release.root), str(release.root)])


def test_labels_are_the_largest_value_of_each_frame(release):
    """Nine labelled frames of thirty."""
    assert np.flatnonzero(frame_labels(release.mask_path("one"))).tolist() == list(range(8, 17))


def test_a_record_serves_its_own_model_type_and_files_alone(release, tmp_path, capsys):
    """`train distil` run again gives another student under the same name; a release may be drawn anew, too."""
    model = tmp_path / "model"
    command = ["--model", str(model), "--release", str(release.root), "--device", "cpu", "--own-settings"]

    def asked(*more):
        assert gate_loss.main([*command, "--cache", str(tmp_path / "cache"), *more]) == 0
        return "1/1 one" in capsys.readouterr().out

    for seed in (1, 2):
        write_random_artifact(model, TOWERS["tiny"], members=2, student=StudentConfig(4, (1, 1)), seed=seed)
        assert [asked(), asked()] == [True, False]
    # One of them is what this machine takes by itself.
    assert sorted(asked("--precision", dtype) for dtype in ("float32", "bfloat16")) == [False, True]
    os.utime(release.mask_path("one"), ns=(1, 1))
    assert asked()


def test_a_stack_of_black_frames_is_named(tiny_model, tmp_path):
    """No frame of it can be chosen, in the comparison of precisions as in that of gates."""
    black = tmp_path / "black.mha"
    write_stack(black, np.zeros((4, 96, 128), np.uint8), 0.28)
    with pytest.raises(AcouslicError, match=r"black\.mha has only black frames"):
        parity.main(["--model", str(tiny_model), "--device", "cpu", str(black)])
    with pytest.raises(AcouslicError, match=r"black\.mha has only black frames"):
        record_case(gated_ensemble(tiny_model), "black", black, black, with_gate=False, batch_frames=4)
