"""`python -m training distil`: a student that learns what the ensemble says, and the model that has it as its gate."""

import dataclasses
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from acouslic.errors import AcouslicError
from algorithm.engine.ensemble import Ensemble
from algorithm.frames.preprocess import normalise
from algorithm.judgement.score import score_case
from algorithm.judgement.select_frame import probability_of
from algorithm.model.artifact import load_artifact
from algorithm.model.manifest import (
    HalfWay,
    Provenance,
    ScoringConfig,
    SelectionConfig,
    read_manifest,
    untuned_manifest,
)
from algorithm.model.networks import MemberConfig, StudentConfig, TowerConfig
from algorithm.model.student import student_from_state
from training.export.calibrate_artifact import main as calibrate
from training.export.distil import _student_config, main
from training.export.trained_member import read_member
from training.export.write_artifact import main as export
from training.fit import main as fit
from training.frames.dataset import FrameTable
from training.judge.ask_members import Answers, ask_members
from training.judge.gate_settings import JudgedTwice, choose_gate, scale_shift, shifted
from training.judge.teacher import FrameOpinions, ask_student, teach
from training.judge.unseen_cases import ask_about
from training.learn.keeping import Keeping, StoppedError
from training.learn.run_folder import find_runs
from training.network.student import Normalised, StudentNetwork, student_flop
from training.recipe.distil_settings import DistilSettings, StudentSize
from training.release.cache import Cache

CPU = torch.device("cpu")
WORDS = ["--tower=random", "--tower_licence=none", "--training_data=generated", "--training_data_licence=none"]
SMALL = ["--student.width=4", "--student.blocks=[1,0,1]", "--optimiser.epochs=2", "--optimiser.batch_size=8"]
SMALL += ["--machine.accelerator=cpu", "--machine.precision=32-true", "--machine.threads=1", "--augment.clahe=0"]
ANY = "--most_refined=1.0"
"""Of a student that has hardly learned: every frame may be refined."""


@pytest.fixture(scope="module")
def runs(tiny_training: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three folds, trained for an epoch, and scored in float32 also where the CPU has bfloat16."""
    out = tmp_path_factory.mktemp("runs")
    arguments = tiny_training.fit_arguments(out, f"--split={tiny_training.subject_split}", "--optimiser.epochs=1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.learn.out_of_fold.autocast_type", lambda _: (torch.float32, "as on any CPU"))
        assert fit(arguments) == 0
    return out


@pytest.fixture(scope="module")
def model(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of those runs."""
    out = tmp_path_factory.mktemp("artifact") / "model"
    assert export([str(runs), f"--out={out}", "--precision_frames=0", *WORDS]) == 0
    return out


def words(model: Path, tiny_training: Any, out: Path, *more: str) -> list[str]:
    """Of a run of seconds."""
    return [str(model), f"--cache={tiny_training.cache}", f"--out={out}", *SMALL, *more]


@pytest.fixture(scope="module")
def distilled(model: Path, runs: Path, tiny_training: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with a student that learned from the runs' scores."""
    out = tmp_path_factory.mktemp("distilled") / "model"
    assert main(words(model, tiny_training, out, f"--runs={runs}", ANY)) == 0
    return out


def test_a_model_gets_a_student(distilled: Path, model: Path) -> None:
    """The new model is the old one to the byte, but for the student and the gate; both load with every check, and
    manifest and card say how far the gate agrees."""
    before, after = load_artifact(model).manifest, load_artifact(distilled).manifest
    assert {name: record for name, record in after.files.items() if name != "student.safetensors"} == before.files
    assert (before.student, before.scoring.mode) == (None, "exhaustive")
    assert (after.scoring.mode, after.scoring.gate, after.scoring.stride) == ("gated", "student", 1)
    assert after.student is not None
    assert (after.student.width, after.student.blocks, after.student.optimality) == (4, (1, 0, 1), True)
    agreement = after.student.agreement
    assert agreement is not None
    assert agreement.cases >= 1
    assert 0 < agreement.refined_share <= 1
    assert "its student: python -m training distil" in after.provenance.made_by
    card = distilled.with_name("model.md").read_text()
    assert f"| agreement.refined_share | {agreement.refined_share} |" in card


def test_the_pipeline_runs_as_the_settings_were_chosen(distilled: Path, tiny_training: Any) -> None:
    """On any case the student judges every frame, as it did when the settings were chosen, and the ensemble those that
    are refined; the answer is a mixture of the two."""
    artifact, cache = load_artifact(distilled), Cache(tiny_training.cache)
    manifest = artifact.manifest
    ensemble = Ensemble.from_artifact(artifact, CPU, torch.float32)
    assert manifest.student is not None
    assert artifact.student is not None
    student = student_from_state(manifest.student, artifact.student, CPU, torch.float32)
    case = cache.cases[0]
    frames = torch.from_numpy(np.array(case.frames))
    limited = ScoringConfig(mode="gated", gate="student", stride=1, max_refined_fraction=0.25)
    scores = score_case(ensemble, frames, limited)
    assert scores.refined.sum() == 12
    assert scores.reused == 0
    told = ask_student(student, case, manifest.preprocessing, CPU)
    rest = ~scores.refined
    np.testing.assert_allclose(scores.presence_probability[rest], told.presence[rest], atol=1e-5)
    members = ensemble.score(normalise(frames, manifest.preprocessing, torch.float32)).presence_probability.mean(0)
    np.testing.assert_allclose(scores.presence_probability[~rest], members.numpy()[~rest], atol=1e-5)


def test_the_same_seed_gives_the_same_bits_also_after_a_signal(
    distilled: Path, model: Path, runs: Path, tiny_training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM in the middle: a sentence, the exit code, no model; the same command goes on to the student that a run
    without interruption has, also with the members' runs in another place. Another seed gives another."""
    out, save = tmp_path / "model", Keeping.on_train_batch_end
    arguments = words(model, tiny_training, out, f"--runs={runs}", ANY)

    def signalled(self: Keeping, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        save(self, trainer, *rest)

    monkeypatch.setattr(Keeping, "on_train_batch_end", signalled)
    with pytest.raises(StoppedError, match="the same command goes on from there"):
        main(arguments)
    assert not out.exists()
    monkeypatch.undo()
    moved = shutil.copytree(runs, tmp_path / "moved")
    assert main([f"--runs={moved}" if word.startswith("--runs=") else word for word in arguments]) == 0
    expected = read_manifest(distilled)
    assert read_manifest(out).files == expected.files
    assert read_manifest(out).scoring == expected.scoring
    other = tmp_path / "other"
    assert main(words(model, tiny_training, other, f"--runs={runs}", ANY, "--seed=2")) == 0
    assert read_manifest(other).files["student.safetensors"] != expected.files["student.safetensors"]


def test_without_runs_the_model_is_asked(
    distilled: Path, model: Path, tiny_training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own split says which member may teach which case: what it says is what the runs said, in the type that the
    runs ask in, so the student is nearly the same. A command that goes on asks only for the cases that it has not
    kept."""
    out, asked = tmp_path / "model", []
    arguments = words(model, tiny_training, out, f"--split={tiny_training.subject_split}", ANY)

    def ask_until_ended(ensemble: Ensemble, table: FrameTable, *rest: Any) -> Answers:
        asked.append(table.cases[0].uuid)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return ask_members(ensemble, table, *rest)

    monkeypatch.setattr("training.judge.unseen_cases.ask_members", ask_until_ended)
    # The runs were scored in float32, whatever this CPU is fast in and the model may be used in.
    monkeypatch.setattr("training.export.distil.autocast_type", lambda _: (torch.float32, "as the runs"))
    monkeypatch.setattr("training.judge.unseen_cases.choose_precision", lambda *_: (torch.bfloat16, "measured"))
    with pytest.raises(KeyboardInterrupt):
        main(arguments)
    assert main(arguments) == 0
    assert len(asked) == 4 + 4
    assert len(set(asked)) == 7
    one, other = load_artifact(distilled).student, load_artifact(out).student
    assert one is not None
    assert other is not None
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0.05, atol=0.02)


def test_a_case_that_was_made_anew_is_asked_about_again(
    model: Path, tiny_training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was kept of it is of other frames; what was kept of the others is taken as it is."""
    cache, asked = Cache(Path(shutil.copytree(tiny_training.cache, tmp_path / "cache"))), []

    def note(ensemble: Ensemble, table: FrameTable, *rest: Any) -> Answers:
        asked.append(table.cases[0].uuid)
        return ask_members(ensemble, table, *rest)

    monkeypatch.setattr("training.judge.unseen_cases.ask_members", note)
    uuids = [cache.index.cases[:2]]
    for _ in range(2):
        ask_about(load_artifact(model), cache, uuids, torch.device("cpu"), tmp_path / "kept")
        later_s = time.time() + 1
        os.utime(tmp_path / "cache" / "cases" / uuids[0][1] / "case.json", (later_s, later_s))
    assert asked == [*uuids[0], uuids[0][1]]


def test_only_who_did_not_learn_from_a_case_teaches_it(runs: Path, model: Path) -> None:
    """Of a case in one fold, the lesson is that fold's member alone, calibrated."""
    manifest = read_manifest(model)
    scored = [read_member(run).scored for run in find_runs(runs)]
    lessons = teach(scored, manifest.members)
    assert len(lessons) == 7
    for member, of_member in zip(manifest.members, scored, strict=True):
        count = int(of_member.frame_counts[0])
        expected = 1 / (1 + np.exp(-of_member.presence_logit[:count] / member.presence_temperature))
        expected[of_member.black[:count]] = 0
        np.testing.assert_allclose(lessons[str(of_member.uuid[0])].presence, expected, atol=1e-6)


def test_what_is_refused(
    distilled: Path, model: Path, runs: Path, tiny_training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence each, and nothing is written: runs of another model, settings no student has, a network that costs
    too much, a student that is no gate yet; and calibrating a model that has a student."""

    def refused(match: str, *more: str) -> None:
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        with pytest.raises(AcouslicError, match=match):
            main(words(model, tiny_training, out, *more))
        assert not out.exists()

    swapped = tmp_path / "swapped"
    for number, of in ((1, 2), (2, 1), (3, 3)):
        shutil.copytree(runs / f"fold_{of}", swapped / f"fold_{number}")
    refused("is not the run of that member", f"--runs={swapped}")
    refused("3 members, --runs names 1 runs", f"--runs={runs / 'fold_1'}")
    refused("runs know their own cases", f"--runs={runs}", f"--split={tiny_training.subject_split}")
    refused(r"student.width must be an integer <= 128, not 129", "--student.width=129")
    refused("optimiser.decoder_learning_rate has no effect on a student", "--optimiser.decoder_learning_rate=1e-3")
    refused("optimiser.keep has no effect on a student", "--optimiser.keep=loss")
    refused("machine.checkpoint_blocks has no effect on a student", "--machine.checkpoint_blocks=true")
    monkeypatch.setattr("training.export.distil.MOST_FLOP", 1_000)
    refused("GFLOP a frame, more than", f"--runs={runs}")
    monkeypatch.undo()
    refused("held_out must be a share between 0 and 1", "--held_out=1.0")
    refused("optimiser.epochs must be at least 1", "--optimiser.epochs=0")
    refused("seed must be between 0 and", "--seed=-1")
    refused("the student cannot be the gate", f"--runs={runs}", "--most_refined=0.01", "--optimiser.epochs=1")
    with pytest.raises(AcouslicError, match="is the model itself"):
        main(words(model, tiny_training, model))
    with pytest.raises(AcouslicError, match="calibrate the model that it was made from"):
        calibrate([str(distilled), f"--cache={tiny_training.cache}"])


def test_a_student_judges_optimality_where_every_member_does() -> None:
    """A case is taught by the members that did not learn from it, perhaps by the one that does not judge optimality."""
    tower = TowerConfig(28, 14, 16, 4, 2, 64, 8)
    for judged in ((True, True), (True, False), (False, False)):
        members = [MemberConfig(adapter=False, presence=True, optimality=one) for one in judged]
        manifest = untuned_manifest("two", tower, members, Provenance("", "", "", "", ""))
        settings = DistilSettings(student=StudentSize(width=4, blocks=(1,)))
        assert _student_config(settings, manifest).optimality == all(judged)


def test_normalisation_is_folded() -> None:
    """The convolutions without normalisation say what training's network says, statistics, factors and all."""
    from algorithm.model.networks import StudentConfig

    torch.manual_seed(0)
    network = StudentNetwork(StudentConfig(width=6, blocks=(1, 0, 2)))
    norms = [module.norm for module in network.modules() if isinstance(module, Normalised)]
    assert len(norms) == 3 + 2 * 3
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        for tensor in (norm.running_mean, norm.bias.data):
            tensor.normal_(0, 0.2)
        for tensor in (norm.running_var, norm.weight.data):
            tensor.uniform_(0.5, 2)
    images = torch.randn(5, 3, 58, 58)
    with torch.inference_mode():
        expected = network.eval()(images)
        presence, optimality = student_from_state(network.config, network.folded_state(), CPU, torch.float32)(images)
    torch.testing.assert_close(presence, expected.presence, rtol=0, atol=1e-5)
    torch.testing.assert_close(optimality, expected.optimality, rtol=0, atol=1e-5)
    assert presence.std() > 1e-3


def test_the_default_student_is_far_below_its_limit() -> None:
    """Counted as torch counts it, beside a tower of 224 pixels: 0.9 GFLOP."""
    assert student_flop(StudentConfig(), 224) == pytest.approx(0.9e9, rel=0.01)


SELECTION = SelectionConfig(smoothing_sigma_frames=0.0, choice_sigma_frames=0.0)


def judged_twice(ensemble: Any, student: Any, annotated: Sequence[int] = ()) -> JudgedTwice:
    """A case of one sweep, without optimality."""
    return JudgedTwice(
        FrameOpinions(np.array(ensemble), None),
        FrameOpinions(np.array(student), None),
        np.zeros(len(ensemble), bool),
        np.isin(np.arange(len(ensemble)), annotated),
    )


def test_the_gate_refines_no_more_than_it_has_to() -> None:
    """A sweep with one run. The student puts its second best frame first and doubts the two at its ends: the leanest
    settings that are tried are enough. Four frames on each side of what the ensemble calls positive are looked at and
    twelve for the case's scale, and what the student is sure of stays its own."""
    ensemble, student = np.full(140, 0.02), np.full(140, 0.02)
    ensemble[110:116] = [0.6, 0.9, 0.95, 0.9, 0.8, 0.7]
    student[110:116] = [0.45, 0.9, 0.9, 0.95, 0.8, 0.55]
    half_way = dataclasses.replace(SELECTION, half_way=HalfWay(0.3, top_frames=1))
    for selection, refined in ((SELECTION, 6 + 2 * 4), (half_way, 6 + 2 * 4 + 12)):
        scoring, agreement = choose_gate([judged_twice(ensemble, student, range(110, 116))], selection, 0.5, 1.0)
        assert (scoring.gate, scoring.stride, scoring.margin_frames) == ("student", 1, 4)
        assert agreement.refined_share == pytest.approx(refined / 140)
        assert (agreement.other_frames, agreement.changed_frames) == (0, 0)
        assert agreement.frame_f1 == 1.0


def test_black_frames_are_not_refined_where_settings_are_chosen() -> None:
    """A run that ends where a sweep is padded: as in inference nobody looks at the padding, and it is not counted."""
    ensemble, student = np.full(140, 0.02), np.full(140, 0.02)
    ensemble[110:116] = [0.6, 0.9, 0.95, 0.9, 0.8, 0.7]
    student[110:116] = [0.45, 0.9, 0.9, 0.95, 0.8, 0.55]
    black = np.arange(140) >= 116
    ensemble[black] = 0
    case = dataclasses.replace(judged_twice(ensemble, student, range(110, 116)), black=black)
    _, agreement = choose_gate([case], SELECTION, 0.5, 1.0)
    assert agreement.refined_share == pytest.approx((4 + 6) / 140)
    assert agreement.changed_frames == 0


def test_a_student_that_misses_what_matters_is_refused() -> None:
    """It is sure that the best frame is none: no settings within the limit find it, and the sentence says how far."""
    ensemble, student = [0.0] * 11 + [0.9], [0.6] + [0.2] * 10 + [0.0]
    with pytest.raises(AcouslicError, match=r"in 0 of 1 held-out cases.*or raise --most_refined"):
        choose_gate([judged_twice(ensemble, student)], SELECTION, 0.5, 0.5)


def test_f1_against_the_annotation_counts_too() -> None:
    """One of 120 positive frames is lost: 0.996 of the ensemble's, which is enough. Where it is one of the two that are
    annotated it is not: the limit of frames that are refined does not let it be found."""
    ensemble, student = np.full(140, 0.9), np.full(140, 0.9)
    ensemble[120:], student[120:] = 0.01, 0.01
    ensemble[0], student[1] = 0.95, 0.0
    for annotated, is_kept in ((range(120), True), ((0, 1), False)):
        case = judged_twice(ensemble, student, annotated)
        if is_kept:
            assert choose_gate([case], SELECTION, 0.5, 0.01)[1].changed_frames == 1
        else:
            with pytest.raises(AcouslicError, match=r"F1 against the annotation differs by 0\.0[0-9]+"):
                choose_gate([case], SELECTION, 0.5, 0.01)


def test_a_students_scale_is_brought_to_the_ensembles() -> None:
    """Medians of three cases differ by 1, 2 and 9 logits: 2 is added to all, black frames left out of the medians."""
    logit = np.linspace(-3, 1, 9)
    cases = [
        JudgedTwice(
            FrameOpinions(probability_of(np.append(logit + higher, 5.0)), None),
            FrameOpinions(probability_of(np.append(logit, -5.0)), None),
            np.arange(10) == 9,
            np.zeros(10, bool),
        )
        for higher in (1, 2, 9)
    ]
    shift = scale_shift(cases)
    assert shift == pytest.approx(2)
    student = shifted(cases[1], shift).student
    np.testing.assert_allclose(student.presence[:9], cases[1].ensemble.presence[:9])
