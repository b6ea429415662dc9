"""`python -m training export` and `pack`: an artifact that says what its members said, or none."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from acouslic.errors import AcouslicError
from algorithm.engine.ensemble import Ensemble
from algorithm.frames.preprocess import normalise
from algorithm.frames.resized_frames import ResizedFrames
from algorithm.model.artifact import MemberState, load_artifact, write_artifact
from algorithm.model.manifest import MANIFEST_FILE, Consequence, HalfPrecision, HalfWay, Manifest, manifest_to_json
from algorithm.model.networks import PreprocessingConfig
from training.__main__ import main as training_main
from training.export.calibrate_artifact import main as calibrate
from training.export.consequence import case_of_cache
from training.export.pack import main as pack
from training.export.precision import main as precision
from training.export.trained_member import MovedTower, read_member, rebuild_network, shared_tower
from training.export.write_artifact import ExportSettings, _provenance, _say_missing_folds, _whole_cases, main
from training.fit import main as fit
from training.frames.dataset import table_of
from training.judge.unseen_cases import cases_of_members
from training.learn.run_folder import RunFolder, find_runs, made_with
from training.release.cache import Cache
from training.release.split import Split, read_split

WORDS = [
    "--tower=a tower of random numbers",
    "--tower_licence=Apache-2.0",
    "--training_data=generated sweeps",
    "--training_data_licence=Apache-2.0",
]


@pytest.fixture(scope="module")
def runs(tiny_training: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three folds, trained for two epochs on the patches inside the fan."""
    out = tmp_path_factory.mktemp("runs")
    more = [f"--split={tiny_training.subject_split}", "--tower.kept_patches=fan"]
    assert fit(tiny_training.fit_arguments(out, *more)) == 0
    return out


@pytest.fixture(scope="module")
def model(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of those runs."""
    out = tmp_path_factory.mktemp("artifact") / "model"
    assert main([str(runs), f"--out={out}", *WORDS]) == 0
    return out


def copy_runs(runs: Path, to: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(runs, to / "runs"))


def test_the_artifact_loads_and_describes_itself(model: Path, tiny_training: Any) -> None:
    """Three members on one half-precision tower, with provenance, the split's hash, and thresholds in range."""
    artifact = load_artifact(model)
    manifest = artifact.manifest
    assert len(manifest.members) == 3
    assert all(
        member.adapter and member.presence and member.optimality and member.decoder for member in manifest.members
    )
    assert {tensor.dtype for tensor in artifact.tower_state.values()} == {torch.float16}
    assert manifest.preprocessing.antialias
    assert manifest.provenance.split_sha256 == json.loads(tiny_training.subject_split.read_text())["sha256"]
    assert "python -m training export" in manifest.provenance.made_by
    assert manifest.provenance.tower_licence == "Apache-2.0"
    assert manifest.thresholds.presence == 0.5
    assert 0.05 <= manifest.thresholds.mask <= 0.95
    assert manifest.half_precision.frames == 126  # 42 of each member
    assert 0 < manifest.half_precision.float16 < manifest.half_precision.bfloat16


def test_the_ensemble_says_what_training_said(model: Path, runs: Path, tiny_training: Any) -> None:
    """Each member's calibrated probabilities and masks through the artifact are those of the unmerged peft network."""
    members = [read_member(run) for run in find_runs(runs)]
    loaded = shared_tower(members, Cache(tiny_training.cache), MovedTower())
    cache = Cache(tiny_training.cache)
    table = table_of(cache, [case.uuid for case in cache.cases])
    images = normalise(table.read(np.arange(0, len(table), 30)).frames, loaded.preprocessing, torch.float32)
    ensemble = Ensemble.from_artifact(load_artifact(model), torch.device("cpu"), torch.float32)
    scores, masks = ensemble.score(images), ensemble.segment(images)
    for k, member in enumerate(members):
        with torch.inference_mode():
            output = rebuild_network(member, loaded)(images, torch.arange(len(images)))
        calibration = member.calibration
        presence = (output.presence / calibration.presence_temperature).sigmoid()
        torch.testing.assert_close(scores.presence_probability[k], presence, rtol=0, atol=5e-3)
        optimality = (output.optimality / calibration.optimality_temperature).sigmoid()
        torch.testing.assert_close(scores.optimality_probability[k], optimality, rtol=0, atol=5e-3)
        torch.testing.assert_close(masks[k], output.mask.sigmoid(), rtol=0, atol=2e-2)
    assert not torch.allclose(scores.presence_probability[0], scores.presence_probability[1], atol=1e-4)


def test_members_that_are_not_the_folds_in_their_order_are_judged_by_no_split(tiny_training: Any) -> None:
    """In another order, one fold twice, or of two splits: each would be judged by cases that it has learned from.
    Members of the paper's split, of `fit` or of `table`, all have its validation cases."""
    cache = Cache(tiny_training.cache)
    paper, subjects = read_split(tiny_training.paper_split), read_split(tiny_training.subject_split)

    def cases(split: Split, *trained: tuple[Split, int | None]) -> list[tuple[str, ...]]:
        runs: Any = [SimpleNamespace(record={"split_sha256": of.sha256(), "fold": fold}) for of, fold in trained]
        provenance = _provenance(runs, ExportSettings("", "", "", ""), "")
        return cases_of_members(cast("Any", SimpleNamespace(members=runs, provenance=provenance)), cache, split)

    folds = [(subjects, 1), (subjects, 2), (subjects, 3)]
    assert cases(subjects, *folds) == [subjects.validation_cases(k) for k in range(3)]
    for trained in ([folds[1], folds[0], folds[2]], [folds[0], folds[0], folds[1]], [(paper, 1), *folds[1:]]):
        for split in (paper, subjects):
            with pytest.raises(AcouslicError, match="were not trained on"):
                cases(split, *trained)
    assert cases(subjects, *folds[:2]) == [subjects.validation_cases(k) for k in range(2)]
    for fold in (1, None):
        assert cases(paper, *[(paper, fold)] * 3) == [paper.validation_cases()] * 3


@pytest.mark.parametrize(
    ("folds", "told"),
    [([1, 2, 3], ""), ([2], "note: no run of fold 1 and 3 of 3 is among them\n"), ([None, 1], "")],
)
def test_folds_that_are_missing_are_told(
    folds: list[int | None], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fold whose run has not begun leaves no folder; a run of the paper's split has no fold."""
    _say_missing_folds([{"split_sha256": "a", "fold": fold, "folds": 3} for fold in folds])
    assert capsys.readouterr().out == told


def test_what_half_precision_changes_in_whole_cases(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `whole_cases` the manifest says what the device's half type changes in the answers to validation cases of
    the cache; a gate that the model does not have yet, and a record of half the kind, are refused."""
    monkeypatch.setattr("algorithm.engine.device.cpu_flags", lambda: {"avx512_bf16"})
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    words = [str(runs), f"--out={tmp_path / 'model'}", *WORDS, "--precision_frames=3", "--device=cpu"]
    assert main([*words, "--whole_cases=2"]) == 0
    found = load_artifact(tmp_path / "model").manifest.half_precision
    assert found.bfloat16_consequence is not None
    assert found.bfloat16_consequence.cases == 2
    assert found.float16_consequence is None
    assert "bfloat16 in 2 whole cases: it chooses another frame in" in capsys.readouterr().out
    with pytest.raises(AcouslicError, match="after the export, by `acouslic train distil`"):
        main([*words, "--scoring.gate=student", "--scoring.stride=1"])
    with pytest.raises(AcouslicError, match="whole_cases needs precision_frames"):
        main([*words, "--whole_cases=2", "--precision_frames=0"])


def test_whole_cases_by_default(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Five on a GPU of which a type is refused, none on a CPU, where it says what could be done; as told otherwise."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr("algorithm.engine.device.cpu_flags", lambda: {"avx512_bf16"})
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    settings = ExportSettings("t", "l", "d", "l")
    good, refused = HalfPrecision(64, 0.001, 0.01), HalfPrecision(64, 0.001, 0.03)
    assert [_whole_cases(settings, good, device) for device in (gpu, cpu)] == [0, 0]
    assert capsys.readouterr().out == ""
    assert [_whole_cases(settings, refused, device) for device in (gpu, cpu)] == [5, 0]
    assert capsys.readouterr().out.startswith("bfloat16 may still be used if it changes nothing in whole cases: ")
    assert _whole_cases(replace(settings, whole_cases=0), refused, gpu) == 0
    assert _whole_cases(replace(settings, whole_cases=2), good, cpu) == 2


def test_a_case_of_the_cache_is_seen_as_training_saw_it(tiny_training: Any) -> None:
    """Its frames come out of the resize as they went in, and its pixels are as large as they have to be."""
    case = Cache(tiny_training.cache).cases[0]
    with case_of_cache(case).open() as frames:
        resized = ResizedFrames(frames, 28, PreprocessingConfig(antialias=True), torch.device("cpu"))
        resized.finish()
        assert np.array_equal(resized.frames.numpy(), case.frames)
        wider = case.record.columns / 28
        assert frames.header.spacing_mm == pytest.approx(tuple(wider * mm for mm in case.record.spacing_mm))


def test_an_artifact_that_says_something_else_is_refused(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the heads change between training and artifact, nothing is written."""
    import training.export.write_artifact as export

    def changed(
        folder: Path, manifest: Manifest, tower: dict[str, torch.Tensor], members: list[MemberState]
    ) -> Manifest:
        others = [MemberState(member.adapter, member.heads | {"presence.bias": torch.ones(1)}) for member in members]
        return write_artifact(folder, manifest, tower, others)

    monkeypatch.setattr(export, "write_artifact", changed)
    with pytest.raises(AcouslicError, match="not exported"):
        main([str(runs), f"--out={tmp_path / 'model'}", *WORDS])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("restored_process")
@pytest.mark.parametrize(
    "words",
    [
        ["export", "runs", *WORDS],
        ["head", "model", "--cache=cache"],
        ["distil", "model", "--cache=cache"],
        ["import", "--checkpoint=cls.ckpt"],
        ["demo", "--work=work"],
    ],
    ids=lambda words: str(words[0]),
)
def test_a_place_for_no_artifact_is_refused_before_the_work(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not after the hours that it may take: nothing that the command reads is there yet."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    for out, message in (
        ("file", "file is no folder: choose another name"),
        ("link", "link is no folder: choose another name"),
        ("full", "full is neither empty nor an artifact: choose another folder"),
        ("file/model", "file could not be written: "),
        ("n" * 300, "could not be written: File name too long; shorten the name"),
    ):
        assert training_main([*words, f"--out={out}"]) == 1
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_unfinished_runs_are_refused(runs: Path, tmp_path: Path) -> None:
    """A run without its record, and one without its scores, are named."""
    copy = copy_runs(runs, tmp_path)
    (copy / "fold_2" / "out_of_fold.npz").unlink()
    with pytest.raises(AcouslicError, match="fold_2"):
        main([str(copy), f"--out={tmp_path / 'model'}", *WORDS])
    (copy / "fold_1" / "run.json").unlink()
    with pytest.raises(AcouslicError, match="not a finished training run"):
        main([str(copy), f"--out={tmp_path / 'model'}", *WORDS])


def test_members_of_different_towers_are_refused(runs: Path, tmp_path: Path) -> None:
    """An artifact has one tower."""
    copy = copy_runs(runs, tmp_path)
    record = json.loads((copy / "fold_3" / "run.json").read_text())
    (copy / "fold_3" / "run.json").write_text(json.dumps(record | {"tower_sha256": "0" * 64}))
    with pytest.raises(AcouslicError, match="different towers"):
        main([str(copy), f"--out={tmp_path / 'model'}", *WORDS])


def test_a_tower_that_changed_is_refused(tiny_training: Any, tmp_path: Path) -> None:
    """Weights that are no longer those of the training are noticed, by their hash."""
    from training.network.tower_source import load_tower
    from training.recipe.settings import TowerSource

    tower = load_tower(TowerSource(config=str(tiny_training.tower_config), random_init=True), (562, 744), True)
    weights, run = tmp_path / "tower.safetensors", tmp_path / "run"
    save_file(tower.state, weights)
    more = [f"--split={tiny_training.paper_split}", "--tower.random_init=false", f"--tower.weights={weights}"]
    assert fit(tiny_training.fit_arguments(run, *more, "--optimiser.epochs=1")) == 0
    state = load_file(weights)
    save_file(state | {"proj": state["proj"] + 1}, weights)
    with pytest.raises(AcouslicError, match="not the tower"):
        main([str(run), f"--out={tmp_path / 'model'}", *WORDS])


def test_settings_of_the_manifest(runs: Path, tmp_path: Path) -> None:
    """Scoring and selection come from the command line; unknown ones are refused."""
    more = ["--scoring.mode=gated", "--selection.candidates=3", "--tower_dtype=float32"]
    assert main([str(runs / "fold_1"), f"--out={tmp_path / 'model'}", *WORDS, *more]) == 0
    manifest = load_artifact(tmp_path / "model").manifest
    assert manifest.scoring.mode == "gated"
    assert manifest.selection.candidates == 3
    assert len(manifest.members) == 1
    with pytest.raises(AcouslicError, match="export: "):
        main([str(runs), f"--out={tmp_path / 'other'}", *WORDS, "--selection.candidats=3"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--scoring.stride=0", r"^scoring\.stride must be an integer >= 1, not 0$"),
        ("--scoring.gate_member=3", r"^scoring\.gate_member 3 is not one of 1 members$"),
        ("--scoring.refine_presence=[0.9,0.1]", r"^export: refine_presence must be two ascending probabilities$"),
    ],
)
def test_settings_that_no_model_can_have_are_one_sentence(word: str, message: str, tmp_path: Path) -> None:
    """Before the run, which is not there, is read."""
    with pytest.raises(AcouslicError, match=message):
        main([str(tmp_path / "run"), f"--out={tmp_path / 'model'}", *WORDS, word])


def test_the_reading_is_fitted_given_or_left_out(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fitted reading goes into the manifest, a given one is kept, none is none; 0.5 is the threshold of each. One run
    a sweep is taken from the cases, unless it is left out."""
    monkeypatch.setattr("training.judge.reading.fit_half_way", lambda _: HalfWay(0.4))
    monkeypatch.setattr("training.judge.reading.has_one_run_a_sweep", lambda _: True)
    given = [
        f"--selection.{name}" for name in ("half_way.depth=0.2", "half_way.top_frames=3", "most_positive_frames=9")
    ]
    manifests = {}
    monkeypatch.setattr("training.judge.reading.fit_most_frames", lambda _: 70)
    none = ["--fit_half_way=false", "--fit_one_run=false", "--fit_most_frames=false"]
    ways: dict[str, list[str]] = {"fitted": [], "given": given, "none": none}
    for name, words in ways.items():
        assert main([str(runs), f"--out={tmp_path / name}", *WORDS, *words]) == 0
        manifests[name] = load_artifact(tmp_path / name).manifest
    assert manifests["fitted"].selection.half_way == HalfWay(0.4, 8)
    assert manifests["given"].selection.half_way == HalfWay(0.2, 3)
    assert manifests["none"].selection.half_way is None
    assert [manifest.selection.one_run_a_sweep for manifest in manifests.values()] == [True, True, False]
    assert [manifest.selection.most_positive_frames for manifest in manifests.values()] == [70, 9, None]
    assert {manifest.thresholds.presence for manifest in manifests.values()} == {0.5}
    assert manifests["fitted"].thresholds.suitable == manifests["none"].thresholds.suitable


def test_a_trained_tower_is_exported_with_its_run(tiny_training: Any, tmp_path: Path) -> None:
    """A run that trained the tower itself carries it, and it is not the one it started from."""
    more = [f"--split={tiny_training.paper_split}", "--tower.train_all=true", "--adapter.rank=0"]
    assert fit(tiny_training.fit_arguments(tmp_path / "run", *more)) == 0
    assert main([str(tmp_path / "run"), f"--out={tmp_path / 'model'}", *WORDS, "--tower_dtype=float32"]) == 0
    artifact = load_artifact(tmp_path / "model")
    assert not artifact.manifest.members[0].adapter
    trained = load_file(tmp_path / "run" / "tower" / "tower.safetensors")
    assert torch.equal(artifact.tower_state["conv1.weight"], trained["conv1.weight"])
    changed = tmp_path / "run" / "tower" / "tower.safetensors"
    save_file(trained | {"conv1.weight": trained["conv1.weight"] + 1}, changed)
    with pytest.raises(AcouslicError, match=r"run/tower/tower\.safetensors is not the tower"):
        main([str(tmp_path / "run"), f"--out={tmp_path / 'other'}", *WORDS])


def test_packing_twice_gives_the_same_bytes(model: Path, tmp_path: Path) -> None:
    """`model.tar.gz` is deterministic."""
    for name in ("a.tar.gz", "b.tar.gz"):
        assert pack([f"--model={model}", f"--out={tmp_path / name}"]) == 0
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tar.gz").read_bytes()


def test_an_archive_that_cannot_be_written_is_one_sentence(model: Path, tmp_path: Path) -> None:
    """Its folder is a file, or itself a folder: no traceback, and nothing half-written beside it."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    for out in (tmp_path / "file" / "model.tar.gz", tmp_path / "folder"):
        with pytest.raises(AcouslicError, match="could not be written"):
            pack([f"--model={model}", f"--out={out}"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_command_with_a_path_that_is_not_utf_8_is_told_in_the_manifest() -> None:
    """Escaped: the manifest is UTF-8, and is written when all has been computed."""
    assert made_with(f"export {os.fsdecode(bytes([255]))}").startswith(r"export \udcff, version ")


def test_only_folds_by_number_are_members(tmp_path: Path) -> None:
    """In their order; a copy that somebody put beside them is none."""
    for name in ("fold_10", "fold_2", "fold_2_old", "fold_"):
        (tmp_path / name).mkdir()
    assert [run.root.name for run in find_runs(tmp_path)] == ["fold_2", "fold_10"]
    assert [run.root for run in find_runs(tmp_path / "fold_2")] == [tmp_path / "fold_2"]


@pytest.mark.parametrize("name", ["out_of_fold.npz", "member/heads.safetensors"])
def test_a_damaged_run_is_one_sentence(name: str, tiny_training: Any, tmp_path: Path) -> None:
    """A file that was cut off, and one that is missing."""
    run = tmp_path / "run"
    words = [f"--split={tiny_training.subject_split}", "--fold=1", "--optimiser.epochs=1"]
    assert fit(tiny_training.fit_arguments(run, *words)) == 0
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(AcouslicError, match="of a finished run"):
        read_member(RunFolder(run))
    (run / name).unlink()
    with pytest.raises(AcouslicError, match="of a finished run"):
        read_member(RunFolder(run))


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    """A copy of the artifact to calibrate."""
    return Path(shutil.copytree(model, tmp_path / "model"))


def change(folder: Path, **fields: Any) -> Manifest:
    """The manifest with other fields, written."""
    manifest = replace(load_artifact(folder).manifest, **fields)
    (folder / MANIFEST_FILE).write_text(manifest_to_json(manifest))
    return manifest


def test_on_its_own_folds_a_model_gets_what_export_gave_it(
    model: Path, copy: Path, tiny_training: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Spoilt, then chosen again by the members that validated on each case: as it was, but for half precision."""
    exported = load_artifact(model).manifest
    assert exported.selection.half_way is not None
    spoilt = change(
        copy,
        members=tuple(replace(member, presence_temperature=7.0) for member in exported.members),
        selection=replace(exported.selection, half_way=HalfWay(0.99)),
        thresholds=replace(exported.thresholds, optimality=0.9, suitable=0.0),
    )
    own = [f"--cache={tiny_training.cache}", f"--split={tiny_training.subject_split}", "--precision-frames=0"]
    assert calibrate([str(copy), *own]) == 0
    found = load_artifact(copy).manifest
    for before, after in zip(exported.members, found.members, strict=True):
        assert after.presence_temperature == pytest.approx(before.presence_temperature, rel=0.15)
        assert after.optimality_temperature == pytest.approx(before.optimality_temperature, rel=0.15)
    assert found.selection.half_way is not None
    assert found.selection.half_way.depth == pytest.approx(exported.selection.half_way.depth, abs=0.1)
    assert found.thresholds.mask == pytest.approx(exported.thresholds.mask, abs=0.051)
    assert found.thresholds.suitable == pytest.approx(exported.thresholds.suitable, abs=0.03)
    assert found.files == spoilt.files
    assert "frames are read half-way" in capsys.readouterr().out


def test_nothing_is_fitted_to_answers_that_are_not_numbers(copy: Path, tiny_training: Any) -> None:
    """A member whose logits overflow, as in a half type that was not measured: the manifest stays as it was."""
    artifact = load_artifact(copy)
    heads = artifact.members[1].heads
    too_large = replace(artifact.members[1], heads=heads | {"presence.weight": torch.full((1, 8), 3e38)})
    members = [artifact.members[0], too_large, artifact.members[2]]
    write_artifact(copy, artifact.manifest, artifact.tower_state, members)
    before = (copy / MANIFEST_FILE).read_bytes()
    with pytest.raises(AcouslicError, match="answers are not numbers"):
        calibrate([str(copy), f"--cache={tiny_training.cache}", f"--split={tiny_training.subject_split}"])
    assert (copy / MANIFEST_FILE).read_bytes() == before


def test_a_model_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """A slip of the pen in its name leaves no empty folder behind."""
    for command, more in ((calibrate, [f"--cache={tmp_path}"]), (precision, ["sweep.mha"])):
        with pytest.raises(AcouslicError, match=r"manifest\.json is missing"):
            command([str(tmp_path / "modle"), *more])
    assert list(tmp_path.iterdir()) == []


def test_without_a_split_all_cases_are_judged(
    copy: Path, tiny_training: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the seven once; half precision is measured anew, and whence the model comes stays as it was. What earlier
    cases said of runs does not stay where these say otherwise, nor what half precision changed in whole cases, which
    is told."""
    before = load_artifact(copy).manifest
    consequence = Consequence(2, 0, 10, 0, 0.0)
    half = HalfPrecision(5, 0.001, 0.002, bfloat16_consequence=consequence)
    before = change(copy, selection=replace(before.selection, one_run_a_sweep=True), half_precision=half)
    monkeypatch.setattr("training.judge.reading.has_one_run_a_sweep", lambda _: False)
    assert calibrate([str(copy), f"--cache={tiny_training.cache}", "--precision-frames=9"]) == 0
    after = load_artifact(copy).manifest
    said = capsys.readouterr().out
    assert "scored 7 of 7 cases" in said
    assert "7 validation cases" in said
    assert after.half_precision.frames == 9
    assert after.half_precision.bfloat16_consequence is None
    assert "in whole cases is to be measured anew" in said
    assert after.provenance == before.provenance
    assert not after.selection.one_run_a_sweep


def test_cases_that_members_may_have_learned_from_are_refused(copy: Path, tiny_training: Any, tmp_path: Path) -> None:
    """A split that the model was not made with, frames of another size, a missing cache: one sentence, no change."""
    content = (copy / MANIFEST_FILE).read_bytes()
    split = json.loads(tiny_training.subject_split.read_text())
    cache = f"--cache={tiny_training.cache}"
    change(copy, provenance=replace(load_artifact(copy).manifest.provenance, split_sha256="0" * 64))
    for words, message in (
        ([cache, f"--split={tiny_training.subject_split}"], "were not trained on the folds of this split"),
        ([f"--cache={tmp_path / 'none'}"], "index.json is missing"),
    ):
        changed = (copy / MANIFEST_FILE).read_bytes()
        with pytest.raises(AcouslicError, match=message):
            calibrate([str(copy), *words])
        assert (copy / MANIFEST_FILE).read_bytes() == changed
    assert changed != content
    assert split["sha256"] in content.decode()
    preprocessing = load_artifact(copy).manifest.preprocessing
    change(copy, preprocessing=replace(preprocessing, antialias=not preprocessing.antialias))
    with pytest.raises(AcouslicError, match="prepare the release again with --image-size"):
        calibrate([str(copy), cache])


@pytest.mark.parametrize("changed", ["a mask that is a little too large", "a weight that is no number"])
def test_a_decoder_that_says_something_else_is_refused(
    changed: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bias of 0.3 on every pixel, and a NaN, are found by the read-back check: a mean over whole frames would hide
    the one, and Python's `max` the other."""
    import training.export.write_artifact as export

    right, name = export.write_artifact, "decoder.decoder0_header.2.block.bias"
    wrong = 0.3 if "large" in changed else float("nan")

    def changed_heads(folder: Path, manifest: Manifest, tower: Any, members: Any) -> Manifest:
        other = [MemberState(m.adapter, m.heads | {name: m.heads[name] + wrong}) for m in members]
        return right(folder, manifest, tower, other)

    monkeypatch.setattr(export, "write_artifact", changed_heads)
    with pytest.raises(AcouslicError):
        main([str(runs / "fold_1"), f"--out={tmp_path / 'model'}", *WORDS])
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_number_passes_no_tolerance() -> None:
    """Of probabilities and of masks; at the tolerance itself it passes."""
    from training.export.read_back import Difference

    Difference(0.1, 0.2).refuse_above(0.1, 0.2, "of a test")
    for difference in (Difference(float("nan"), 0.0), Difference(0.0, float("nan")), Difference(0.0, 0.21)):
        with pytest.raises(AcouslicError, match="not exported"):
            difference.refuse_above(0.1, 0.2, "of a test")


def test_cache_and_tower_may_have_moved(tiny_training: Any, tmp_path: Path) -> None:
    """Both are named where they lie now, though what the runs say is gone; another tower in their place is refused."""
    from training.network.tower_source import load_tower
    from training.recipe.settings import TowerSource

    tower = load_tower(TowerSource(config=str(tiny_training.tower_config), random_init=True), (562, 744), True)
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(tiny_training.cache, old / "cache")
    save_file(tower.state, old / "tower.safetensors")
    shutil.copy(tiny_training.tower_config, old / "tower.json")
    words = tiny_training.fit_arguments(
        tmp_path / "run", f"--split={tiny_training.paper_split}", "--optimiser.epochs=1"
    )
    moved = {"cache": old / "cache", "tower.weights": old / "tower.safetensors", "tower.config": old / "tower.json"}
    words += [f"--{name}={path}" for name, path in moved.items()]
    assert fit([*words, "--tower.random_init=false"]) == 0
    old.rename(new)
    to = [
        str(tmp_path / "run"),
        f"--out={tmp_path / 'model'}",
        *WORDS,
        "--precision_frames=0",
        f"--cache={new / 'cache'}",
    ]
    with pytest.raises(AcouslicError, match=r"old.tower\.json is "):
        main(to)
    there = [f"--tower_weights={new / 'tower.safetensors'}", f"--tower_config={new / 'tower.json'}"]
    assert main([*to, *there]) == 0
    assert len(load_artifact(tmp_path / "model").manifest.members) == 1
    save_file(tower.state | {"proj": tower.state["proj"] + 1}, new / "tower.safetensors")
    with pytest.raises(AcouslicError, match="not the tower"):
        main([*to, *there])


def test_the_report_before_an_export(runs: Path, tiny_training: Any, tmp_path: Path) -> None:
    """Runs that are finished get the evaluation's own report on their validation cases, each fold a set, and the
    picture of the worst frames; frames are read as the artifact reads them."""
    assert training_main(["report", str(runs), "--out", str(tmp_path), "--worst", "3"]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert "fold_2" in (tmp_path / "per_case.csv").read_text()
    assert 0 <= metrics["intervals"]["frame_f1_all_frames"]["estimate"] <= 1
    assert "<html" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "worst_frames.png").read_bytes().startswith(b"\x89PNG")
    with np.load(tmp_path / "scores.npz") as table:
        labels = {case.uuid: case.labels for case in Cache(tiny_training.cache).cases}
        uuids = sorted(set(table["case"].tolist()))
        assert uuids == sorted(labels)
        assert table["chosen"].sum() == len(uuids)
        np.testing.assert_array_equal(table["label"][table["case"] == uuids[0]], labels[uuids[0]])
