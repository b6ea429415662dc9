"""`python -m training fit`: settings, one run, its independence of others, resuming, several processes."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from acouslic.errors import AcouslicError
from algorithm.engine.ensemble import Ensemble
from training.__main__ import main as training_main
from training.ensemble import main as ensemble
from training.export.trained_member import MovedTower, artifact_of, read_member, shared_tower
from training.export.write_artifact import main as export
from training.fit import main, parse_arguments, settings_of
from training.frames.dataset import table_of
from training.judge.ask_members import ask_members
from training.learn.learner import FrameLearner
from training.learn.run_folder import RunFolder, made_by, read_settings, settings_to_yaml
from training.learn.run_member import (
    FoldCases,
    _refuse_seen,
    build_learner,
    load_tower_for,
    run_member,
    say_where_unfinished,
    train,
)
from training.network.model import FrameNetwork
from training.recipe.settings import FAITHFUL_CLS, FAITHFUL_SEG, TrainSettings
from training.release.cache import Cache
from training.release.split import read_split
from training.table import main as table

WHERE = ["--cache=c", "--split=s", "--out=o"]


def trained(run: Path) -> dict[str, torch.Tensor]:
    """All tensors that a run wrote for its member."""
    tensors = {}
    for path in sorted((run / "member").glob("*.safetensors")):
        tensors |= {f"{path.name}:{name}": tensor for name, tensor in load_file(path).items()}
    return tensors


def assert_same(first: Path, second: Path, tolerance: float = 0.0) -> None:
    """Two runs trained the same member."""
    one, other = trained(first), trained(second)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=tolerance, atol=tolerance, msg=name)


@pytest.fixture(scope="module")
def finished_run(tiny_training: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs on the first fold."""
    out = tmp_path_factory.mktemp("fit") / "run"
    assert main(tiny_training.fit_arguments(out, f"--split={tiny_training.subject_split}", "--fold=1")) == 0
    return out


def test_defaults_are_our_recipe() -> None:
    """Without a word, the settings are those of the dataclasses."""
    assert settings_of(parse_arguments(WHERE)) == TrainSettings()


@pytest.mark.parametrize(
    ("words", "preset"),
    [(["--faithful"], FAITHFUL_CLS), (["--faithful", "cls"], FAITHFUL_CLS), (["--faithful", "seg"], FAITHFUL_SEG)],
)
def test_the_published_recipe_is_a_preset(words: list[str], preset: TrainSettings) -> None:
    """`--faithful` is the paper's, and single settings still go over it."""
    assert settings_of(parse_arguments([*WHERE, *words])) == preset
    changed = settings_of(parse_arguments([*WHERE, *words, "--optimiser.epochs=7", "--adapter.dead_out_proj=false"]))
    assert changed.optimiser.epochs == 7
    assert not changed.adapter.dead_out_proj
    assert changed.sampling == preset.sampling


def test_settings_survive_their_file(tmp_path: Path) -> None:
    """What a run writes is what it reads, as `--config` and as a record; the command line goes over it."""
    path = tmp_path / "settings.yaml"
    path.write_text(settings_to_yaml(FAITHFUL_SEG))
    assert read_settings(path) == FAITHFUL_SEG
    assert settings_of(parse_arguments([*WHERE, f"--config={path}"])) == FAITHFUL_SEG
    assert settings_of(parse_arguments([*WHERE, f"--config={path}", "--seed=9"])).seed == 9


def test_the_command_line_goes_over_files_wherever_they_stand(tmp_path: Path) -> None:
    """Of files the later one wins; `--config` may stand before or behind a setting, and is not shortened."""
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    one.write_text("seed: 4\noptimiser:\n  epochs: 7\n  batch_size: 5\n")
    other.write_text("optimiser:\n  batch_size: 6\n")
    for words in (
        [f"--config={one}", "--config", str(other), "--optimiser.epochs=3"],
        ["--optimiser.epochs", "3", "--config", str(one), f"--config={other}"],
        [f"--config={one}", "--optimiser.epochs=3", f"--config={other}"],
    ):
        settings = settings_of(parse_arguments([*words, *WHERE]))
        assert (settings.seed, settings.optimiser.epochs, settings.optimiser.batch_size) == (4, 3, 6)
    with pytest.raises(AcouslicError, match="conf"):
        parse_arguments([*WHERE, f"--conf={one}"])
    with pytest.raises(AcouslicError, match="config"):
        parse_arguments([*WHERE, "--config"])


def test_a_file_names_no_other_recipe_than_the_command_line(tmp_path: Path) -> None:
    """`faithful` in a file would be read after the defaults were chosen: it is refused unless it says the same."""
    path = tmp_path / "x.yaml"
    path.write_text("faithful: seg\n")
    with pytest.raises(AcouslicError, match="give --faithful seg there"):
        parse_arguments([*WHERE, f"--config={path}"])
    with pytest.raises(AcouslicError, match="ensemble: a --config file says faithful: seg"):
        ensemble(["--raw=raw", "--out=out", f"--config={path}"])
    assert settings_of(parse_arguments([*WHERE, f"--config={path}", "--faithful=seg"])) == FAITHFUL_SEG
    assert settings_of(parse_arguments([*WHERE, "--faithful", f"--config={path}"])) == FAITHFUL_CLS


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--adapter.rnk=3"], "adapter.rnk"),
        (["--adapter.rank=many"], "adapter.rank"),
        (["--heads.taps=odd"], "heads.taps"),
        (["--nonsense=1"], "nonsense"),
        (["--adapter.rank=-1"], "adapter.rank"),
        (["--optimiser.batch_size=0"], "optimiser.batch_size"),
        (["--augment.flip=2"], "augment.flip"),
        (["--augment.scale=[1.0, .inf]"], "augment.scale"),
        (["--sampling.negatives_per_positive=.inf"], "sampling.negatives_per_positive must be at least 0, not inf"),
        (["--seed=-1"], "seed must be between 0 and 4294967295, not -1"),
        (["--seed=4294967296"], "seed"),
    ],
)
def test_a_wrong_setting_is_refused(words: list[str], named: str) -> None:
    """Unknown names, wrong types and impossible values end it at once, by name."""
    with pytest.raises(AcouslicError, match=named):
        settings_of(parse_arguments([*WHERE, *words]))


def test_a_seed_of_folds_that_is_none_is_refused() -> None:
    """Before anything is prepared."""
    with pytest.raises(AcouslicError, match="--split_seed must be between 0 and"):
        ensemble(["--raw=raw", "--out=out", "--split_seed=-1"])


def test_an_unknown_setting_in_a_file_is_refused(tmp_path: Path) -> None:
    """A misspelt line of YAML is an error, not a default."""
    path = tmp_path / "x.yaml"
    path.write_text("adapter:\n  rnk: 3\n")
    with pytest.raises(AcouslicError, match="rnk"):
        parse_arguments([*WHERE, f"--config={path}"])


def test_a_file_of_settings_that_is_not_utf8_is_one_sentence(tmp_path: Path) -> None:
    """A comment with an accent in Latin-1, in a file of one's own or in a run's."""
    path = tmp_path / "x.yaml"
    path.write_bytes(b"seed: 4  # d\xe9j\xe0 vu\n")
    with pytest.raises(AcouslicError, match="fit: a --config file is not UTF-8"):
        parse_arguments([*WHERE, f"--config={path}"])
    with pytest.raises(AcouslicError, match="does not hold a run's settings"):
        read_settings(path)


@pytest.mark.parametrize("option", ["out", "cache", "tower.weights"])
def test_a_name_that_is_not_utf8_is_refused_at_the_start(option: str) -> None:
    """A run with such a cache was trained to its end and could not write its record."""
    for command, run in (("fit", main), ("ensemble", ensemble), ("table", table)):
        with pytest.raises(AcouslicError, match=rf"{command}: --{option}=/caf\\udce9 is not UTF-8"):
            run([f"--{option}=/caf\udce9"])


def test_a_record_holds_a_path_that_is_not_utf8(tmp_path: Path) -> None:
    """As where the current folder has such a name, which no option states."""
    RunFolder(tmp_path).write_record({"cache": "/caf\udce9/cäché"})
    assert RunFolder(tmp_path).read_record() == {"cache": "/caf\udce9/cäché"}
    assert "cäché" in (tmp_path / "run.json").read_text(encoding="utf-8")


def test_a_run_leaves_its_record(finished_run: Path, tiny_training: Any) -> None:
    """Settings, seed, commit, split hash, logs in both forms, the member and its out-of-fold scores."""
    record = RunFolder(finished_run).read_record()
    split = json.loads(tiny_training.subject_split.read_text())
    assert record["split_sha256"] == split["sha256"]
    assert record["validation_cases"] == split["parts"]["fold_1"]
    assert not set(record["train_cases"]) & set(record["validation_cases"])
    assert record["seed"] == 1
    assert record["epochs"] == 2
    assert record["commit"]
    assert record["command"].startswith("python -m training fit")
    assert 0 <= record["kept"]["f1"] <= 1
    with (finished_run / "logs" / "metrics.csv").open() as file:
        assert {"train/loss", "val/f1", "val/loss"} <= set(csv.DictReader(file).fieldnames or ())
    assert list((finished_run / "tensorboard").glob("events.*"))
    names = {path.name for path in (finished_run / "member").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "heads.safetensors", "member.json"}
    # peft keeps them as a set, whose order differs from process to process.
    targets = json.loads((finished_run / "member" / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets)
    assert len(targets) > 1
    assert read_settings(finished_run / "settings.yaml").adapter.rank == 2
    checkpoint = torch.load(finished_run / "checkpoints" / "last.ckpt", weights_only=True)
    assert not any("resblocks.0." in name for name in checkpoint["state_dict"]), "the frozen tower is not in it"


def test_a_run_names_the_commit_it_began_with(
    tiny_training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the one that is checked out when it ends, hours later."""
    commits = ["first"]

    def committed_meanwhile(*words: Any, **more: Any) -> Any:
        commits.append("second")
        return train(*words, **more)

    monkeypatch.setattr("training.learn.run_member.made_by", lambda: {"version": "1", "commit": commits[-1]})
    monkeypatch.setattr("training.learn.run_member.train", committed_meanwhile)
    words = [f"--split={tiny_training.subject_split}", "--fold=1", "--optimiser.epochs=1"]
    assert main(tiny_training.fit_arguments(tmp_path / "run", *words)) == 0
    assert RunFolder(tmp_path / "run").read_record()["commit"] == "first"


def test_a_training_that_diverges_is_one_sentence(tiny_training: Any, tmp_path: Path) -> None:
    """At its end, where no epoch before was good: it is no finished run, and what to change is said."""
    words = [f"--split={tiny_training.subject_split}", "--fold=1", "--optimiser.epochs=1"]
    words += ["--optimiser.learning_rate=1e30", "--optimiser.clip_norm=0"]
    with pytest.raises(AcouslicError, match=r"the training diverged: .* kept epoch, 1, .* lower --optimiser"):
        main(tiny_training.fit_arguments(tmp_path / "run", *words))
    assert not (tmp_path / "run" / "run.json").exists()


def test_validation_without_a_circumference_is_refused(tiny_training: Any, tmp_path: Path) -> None:
    """With `sampling.sweeps annotated` no frame of it would be looked at: nothing says which epoch to keep."""
    cache = tmp_path / "cache"
    shutil.copytree(tiny_training.cache, cache)
    for uuid in json.loads(tiny_training.subject_split.read_text())["parts"]["fold_1"]:
        path = cache / "cases" / uuid / "case.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"sweep_ac_mm": [None] * 6}))
    words = [f"--split={tiny_training.subject_split}", "--fold=1", f"--cache={cache}", "--sampling.sweeps=annotated"]
    with pytest.raises(AcouslicError, match="no validation case has an annotated frame in a sweep with a circumf"):
        main(tiny_training.fit_arguments(tmp_path / "run", *words))


def test_the_commit_of_another_repository_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed into a virtual environment within somebody's own project, this program has no commit."""

    def git(*words: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e"]
        ended = subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return ended.stdout.strip()

    installed = tmp_path / "venv" / "training" / "learn" / "run_folder.py"
    installed.parent.mkdir(parents=True)
    installed.touch()
    monkeypatch.setattr("training.learn.run_folder.__file__", str(installed))
    git("init")
    git("commit", "--allow-empty", "--message=theirs")
    assert made_by()["commit"] == "unknown"
    git("add", ".")
    assert made_by()["commit"] == git("rev-parse", "HEAD") + "+"


def test_training_moves_what_it_should(finished_run: Path) -> None:
    """Every factor that starts at zero has moved."""
    tensors = trained(finished_run)
    moved = [name for name in tensors if "lora_B" in name]
    assert len(moved) == 12
    assert all(tensors[name].abs().sum() > 0 for name in moved)


def test_a_run_does_not_depend_on_the_ones_before(finished_run: Path, tiny_training: Any, tmp_path: Path) -> None:
    """The same seed after other runs in the same process gives the same member; another seed another one."""
    arguments = [f"--split={tiny_training.subject_split}", "--fold=1"]
    assert main(tiny_training.fit_arguments(tmp_path / "other", *arguments, "--seed=5")) == 0
    assert main(tiny_training.fit_arguments(tmp_path / "again", *arguments)) == 0
    assert_same(finished_run, tmp_path / "again")
    with pytest.raises(AssertionError):
        assert_same(finished_run, tmp_path / "other")


def test_a_finished_run_is_left_alone(
    finished_run: Path, tiny_training: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command says so and does nothing; other settings for the same folder are an error."""
    before = (finished_run / "run.json").stat().st_mtime_ns
    arguments = tiny_training.fit_arguments(finished_run, f"--split={tiny_training.subject_split}", "--fold=1")
    assert main(arguments) == 0
    assert "finished already" in capsys.readouterr().out
    assert (finished_run / "run.json").stat().st_mtime_ns == before
    with pytest.raises(AcouslicError, match="other settings"):
        main([*arguments, "--seed=3"])


def test_a_killed_run_goes_on_to_the_same_result(tiny_training: Any, tmp_path: Path) -> None:
    """kill -9 in the middle, then the same command: the same member to the last bit as without interruption."""
    more = [f"--split={tiny_training.subject_split}", "--fold=2", "--optimiser.epochs=12"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-m", "training", "fit", *tiny_training.fit_arguments(killed, *more)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while not (killed / "checkpoints" / "last.ckpt").is_file() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (killed / "run.json").exists(), "it ended before it was killed: nothing was tested"
    stopped_at = torch.load(killed / "checkpoints" / "last.ckpt", weights_only=True)["epoch"]
    assert stopped_at < 11
    assert main(tiny_training.fit_arguments(killed, *more)) == 0
    assert main(tiny_training.fit_arguments(whole, *more)) == 0
    assert_same(killed, whole)
    assert RunFolder(killed).read_record()["epochs"] == RunFolder(whole).read_record()["epochs"]


def test_two_processes_train_the_same_model_as_one(tiny_training: Any, tmp_path: Path) -> None:
    """Two gloo processes with half a batch each: the same member, to float32 sums in another order.

    Without the decoder, whose batch statistics are those of each process where there is no GPU to share them.
    """
    more = [
        f"--split={tiny_training.subject_split}",
        "--fold=1",
        "--heads.decoder=false",
        "--augment.recipe=none",
        "--adapter.dropout=0",
        "--optimiser.patience_epochs=null",
    ]
    assert main(tiny_training.fit_arguments(tmp_path / "one", *more)) == 0
    two = tiny_training.fit_arguments(tmp_path / "two", *more, "--machine.devices=2", "--machine.strategy=ddp")
    command = [sys.executable, "-m", "training", "fit", *two]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert ended.returncode == 0, ended.stderr
    assert_same(tmp_path / "one", tmp_path / "two", tolerance=2e-4)
    one, other = (RunFolder(tmp_path / name).read_record() for name in ("one", "two"))
    assert other["kept"]["f1"] == pytest.approx(one["kept"]["f1"], abs=1e-4)


def test_check_takes_one_batch_of_everything(
    tiny_training: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--check` runs training, validation, saving and scoring once and leaves nothing."""
    out = tmp_path / "run"
    assert main(tiny_training.fit_arguments(out, f"--split={tiny_training.paper_split}", "--check")) == 0
    assert "one batch of everything" in capsys.readouterr().out
    assert not out.exists()


@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "32-true"), ("cpu", "bf16-mixed"), pytest.param("gpu", "16-mixed", marks=pytest.mark.gpu)],
)
def test_gradients_are_clipped_in_every_precision(
    device: str, precision: str, tiny_training: Any, tmp_path: Path
) -> None:
    """It trains as on a GPU, and a bound near nothing leaves the adapters' B factors, which begin at zero, where they
    are."""
    moved = []
    for name, bound in (("free", 1.0), ("held", 1e-15)):
        more = [f"--split={tiny_training.paper_split}", "--optimiser.epochs=1", f"--optimiser.clip_norm={bound}"]
        more += [f"--machine.accelerator={device}", f"--machine.precision={precision}"]
        assert main(tiny_training.fit_arguments(tmp_path / name, *more)) == 0
        factors = [value for key, value in trained(tmp_path / name).items() if "lora_B" in key]
        moved.append(max(float(factor.abs().max()) for factor in factors))
    assert moved[0] > 1e-4
    assert moved[1] < 1e-6


def test_gradients_are_summed_in_one_order(tiny_training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's attention does that only where nothing else is allowed: so it is while gradients are computed."""
    seen = []
    backward, training_step = torch.Tensor.backward, FrameLearner.training_step

    def noting(self: torch.Tensor, *rest: Any, **more: Any) -> None:
        seen.append(("backward", torch.is_deterministic_algorithms_warn_only_enabled()))
        backward(self, *rest, **more)

    def step(self: FrameLearner, batch: Any) -> torch.Tensor:
        seen.append(("forward", torch.is_deterministic_algorithms_warn_only_enabled()))
        return training_step(self, batch)

    monkeypatch.setattr(torch.Tensor, "backward", noting)
    monkeypatch.setattr(FrameLearner, "training_step", step)
    words = tiny_training.fit_arguments(tmp_path / "run", f"--split={tiny_training.paper_split}", "--check")
    assert main(words) == 0
    assert seen == [("forward", True), ("backward", False)]


def test_a_device_that_cannot_sum_in_one_order_trains_all_the_same(
    tiny_training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where an operator refuses, after some gradients were added up, the step begins anew as the device does it; one
    sentence says so, and what is learned is the same."""
    backward, refusals = torch.Tensor.backward, []

    def refusing(self: torch.Tensor, *rest: Any, **more: Any) -> None:
        backward(self, *rest, **more)
        if not torch.is_deterministic_algorithms_warn_only_enabled():
            refusals.append(self)
            raise RuntimeError("grid_sampler_2d_backward does not have a deterministic implementation")

    more = [f"--split={tiny_training.paper_split}", "--optimiser.epochs=1"]
    assert main(tiny_training.fit_arguments(tmp_path / "undisturbed", *more)) == 0
    monkeypatch.setattr(torch.Tensor, "backward", refusing)
    assert main(tiny_training.fit_arguments(tmp_path / "refused", *more)) == 0
    assert len(refusals) == 1
    assert "may end at other digits on cpu: grid_sampler_2d_backward" in capsys.readouterr().out
    assert_same(tmp_path / "undisturbed", tmp_path / "refused")


@pytest.mark.gpu
def test_a_gpu_trains_to_the_same_bits(tiny_training: Any, tmp_path: Path) -> None:
    """Twice the same run, in the precision of the card."""
    for name in ("once", "again"):
        more = [f"--split={tiny_training.paper_split}", "--machine.accelerator=gpu", "--machine.precision=auto"]
        assert main(tiny_training.fit_arguments(tmp_path / name, *more)) == 0
    assert_same(tmp_path / "once", tmp_path / "again")


def test_every_fold_without_a_word(tiny_training: Any, tmp_path: Path) -> None:
    """Without `--fold`, every fold of a split by subject is trained, each validated on its own cases."""
    assert (
        main(tiny_training.fit_arguments(tmp_path, f"--split={tiny_training.subject_split}", "--optimiser.epochs=1"))
        == 0
    )
    parts = json.loads(tiny_training.subject_split.read_text())["parts"]
    for fold in (1, 2, 3):
        record = RunFolder(tmp_path / f"fold_{fold}").read_record()
        assert record["validation_cases"] == parts[f"fold_{fold}"]


def test_weights_that_have_seen_the_validation_cases_are_refused(
    finished_run: Path, tiny_training: Any, tmp_path: Path
) -> None:
    """Heads of one fold's run as the start of another's: its cases would no longer be unseen."""
    heads = finished_run / "member" / "heads.safetensors"
    own = json.loads((finished_run / "cases.json").read_text())
    other = FoldCases(tuple(own["validation_cases"]), tuple(own["train_cases"][:2]))
    settings = replace(TrainSettings(), heads=replace(TrainSettings().heads, weights=str(heads)))
    with pytest.raises(AcouslicError, match=r"heads\.weights: .* has learned from 2 of the 2 cases"):
        run_member(Cache(tiny_training.cache), other, settings, tmp_path / "run", command="")
    assert not (tmp_path / "run").exists()
    _refuse_seen(settings, FoldCases(other.validation, tuple(own["validation_cases"])))


def test_masks_start_at_the_share_of_the_training_frames(tiny_training: Any) -> None:
    """The decoder of a run begins with what the masks of its own training cases cover; the published one does not."""
    cache = Cache(tiny_training.cache)
    split = read_split(tiny_training.subject_split)
    cases = FoldCases(split.training_cases(1), split.validation_cases(1))
    share = table_of(cache, cases.train).mask_share
    assert 0.01 < share < 0.5
    words = tiny_training.fit_arguments(Path("run"), f"--split={tiny_training.subject_split}", "--fold=1")
    settings = settings_of(parse_arguments(words))
    for prior, expected in ((True, math.log(share / (1 - share))), (False, None)):
        settings = replace(settings, heads=replace(settings.heads, mask_prior=prior))
        network = build_learner(cache, cases, settings, load_tower_for(cache, settings)).network
        assert isinstance(network, FrameNetwork)
        assert network.heads.decoder is not None
        bias = network.heads.decoder.get_parameter("decoder0_header.2.block.bias").item()
        assert bias == pytest.approx(expected) if expected is not None else abs(bias) < 1
    assert not FAITHFUL_SEG.heads.mask_prior


@pytest.mark.parametrize("preset", ["cls", "seg"])
def test_the_published_recipes_train(
    preset: str, tiny_training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both presets run; the classifier has no decoder, the segmentation no adapter and no head."""
    # Scored in float32 also where the CPU has bfloat16.
    monkeypatch.setattr("training.learn.out_of_fold.autocast_type", lambda _: (torch.float32, "as on any CPU"))
    more = [f"--split={tiny_training.paper_split}", "--faithful", preset, "--optimiser.epochs=1"]
    if preset == "seg":  # four blocks have no published taps, and the tower's grid is 2
        more += ["--heads.taps=even", "--heads.decoder_grid=2", "--adapter.rank=0"]
    assert main(tiny_training.fit_arguments(tmp_path / "run", *more)) == 0
    names = {name.partition(":")[2].split(".")[0] for name in trained(tmp_path / "run")}
    assert names == ({"base_model", "presence"} if preset == "cls" else {"decoder"})
    if preset == "cls":
        assert_judged_but_not_exported(tmp_path / "run", Cache(tiny_training.cache), tmp_path / "model")


def assert_judged_but_not_exported(run: Path, cache: Cache, out: Path) -> None:
    """A classifier alone is asked as inference asks, so that it can stand beside other recipes; it is no model for the
    container, which has to draw a mask."""
    member = read_member(RunFolder(run))
    artifact = artifact_of([member], shared_tower([member], cache, MovedTower()))
    ensemble = Ensemble.from_artifact(artifact, torch.device("cpu"), torch.float32)
    uuid, frames = str(member.scored.uuid[0]), int(member.scored.frame_counts[0])
    said = ask_members(ensemble, table_of(cache, [uuid]), np.arange(frames), 16)
    np.testing.assert_allclose(said.presence[0], member.scored.presence_logit[:frames], atol=1e-3)
    words = ["--tower=t", "--tower_licence=l", "--training_data=d", "--training_data_licence=l"]
    with pytest.raises(AcouslicError, match="none of the runs has a mask decoder"):
        export([str(run), f"--out={out}", *words])
    assert not out.exists()


def test_the_published_segmentation_keeps_its_epoch_by_one_dice(
    tiny_training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the pixels of all validation frames. Its masks are drawn here: right in the first epoch, but for a stray
    pixel a frame; none in the second. A mean over batches, most of which hold no mask, would keep the second."""
    from training.learn import learner

    epochs: list[int] = []
    begin, figures = learner.FrameLearner.on_validation_epoch_start, learner.mask_figures

    def begin_counted(self: learner.FrameLearner) -> None:
        epochs.append(self.current_epoch)
        begin(self)

    def figures_of_drawn(logit: torch.Tensor, target: torch.Tensor, settings: Any) -> dict[str, torch.Tensor]:
        drawn = torch.full_like(logit, -20.0)
        if epochs[-1] == 0:
            drawn[target > 0.5] = 20.0
            drawn[:, 0, 0] = 20.0
        return figures(drawn, target, settings)

    monkeypatch.setattr(learner.FrameLearner, "on_validation_epoch_start", begin_counted)
    monkeypatch.setattr(learner, "mask_figures", figures_of_drawn)
    monkeypatch.setattr(learner, "VALIDATION_BATCH", 4)
    words = [f"--split={tiny_training.paper_split}", "--faithful", "seg", "--optimiser.epochs=2"]
    words += ["--heads.taps=even", "--heads.decoder_grid=2", "--adapter.rank=0"]
    assert main(tiny_training.fit_arguments(tmp_path / "run", *words)) == 0
    assert epochs == [0, 1]
    kept = RunFolder(tmp_path / "run").read_record()["kept"]
    assert kept["epoch"] == 0
    assert kept["mask_dice"] > 0.5
    # A smoothing of one pixel stands between them.
    assert kept["loss"] == pytest.approx(1 - kept["mask_dice"], abs=0.02)
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["steps"] * 2 == last["global_step"]


def test_what_is_said_of_a_decoder_is_said_of_the_kept_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    """The steps after it have changed nothing of what is kept, and more of them need not either."""
    say_where_unfinished({"steps": 30, "mask_background": 0.12}, 90)
    said = capsys.readouterr().out
    assert "of step 30 of 90, is not done" in said
    assert "or choose --optimiser.keep last" in said
    say_where_unfinished({"steps": 90, "mask_background": 0.12}, 90)
    said = capsys.readouterr().out
    assert "of step 90 of 90, is not done" in said
    assert "keep last" not in said
    for kept in ({}, {"steps": 90, "mask_background": 0.01}):
        say_where_unfinished(kept, 90)
    assert not capsys.readouterr().out


def test_weights_from_a_file(tiny_training: Any, tmp_path: Path) -> None:
    """A whole CLIP's state dict from a .pt file and its visual part from .safetensors are the same tower."""
    from training.network.tower_source import load_tower
    from training.recipe.settings import TowerSource

    config = str(tiny_training.tower_config)
    tower = load_tower(TowerSource(config=config, random_init=True), (562, 744), False)
    packed: dict[str, torch.Tensor] = {}
    for name, tensor in tower.state.items():
        if ".q_proj." in name:
            parts = [tower.state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            packed[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
        elif ".k_proj." not in name and ".v_proj." not in name:
            packed[name] = tensor.clone()
    torch.save(
        {f"visual.{name}": tensor for name, tensor in packed.items()} | {"logit_scale": torch.ones(())},
        tmp_path / "clip.pt",
    )
    save_file(packed, tmp_path / "visual.safetensors")
    for name in ("clip.pt", "visual.safetensors"):
        loaded = load_tower(TowerSource(weights=str(tmp_path / name), config=config), (562, 744), False)
        assert loaded.sha256 == tower.sha256, name


class Payload:
    """Something a pickle would run."""

    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("code", "more than tensors"),
        ("noise", "weights.pt"),
        ("missing", "is missing"),
        ("another", "visual.conv1|tensor"),
        ("no weights", "no weights for the tower"),
    ],
)
def test_bad_weights_are_refused(content: str, message: str, tiny_training: Any, tmp_path: Path) -> None:
    """Code in a checkpoint, noise, nothing, another network: a clear error before anything is trained."""
    path = tmp_path / "weights.pt"
    if content == "code":
        torch.save({"a": Payload()}, path)
    elif content == "noise":
        path.write_bytes(b"no weights at all")
    elif content == "another":
        torch.save({"fc.weight": torch.zeros(2)}, path)
    tower = [] if content == "no weights" else [f"--tower.weights={path}"]
    arguments = tiny_training.fit_arguments(tmp_path / "run", f"--split={tiny_training.paper_split}", *tower)
    with pytest.raises(AcouslicError, match=message):
        main([*arguments, "--tower.random_init=false"])


def test_another_image_size_is_refused(tiny_training: Any, tmp_path: Path) -> None:
    """A cache of another size than the tower's input says how to prepare it."""
    config = json.loads(tiny_training.tower_config.read_text())
    config["vision_cfg"]["image_size"] = 56
    (tmp_path / "config.json").write_text(json.dumps(config))
    arguments = tiny_training.fit_arguments(tmp_path / "run", f"--split={tiny_training.paper_split}")
    with pytest.raises(AcouslicError, match="prepare with --image-size 56"):
        main([*arguments, f"--tower.config={tmp_path / 'config.json'}"])


def test_errors_end_the_command_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m training fit` on a folder that is no cache: exit code 1, one line on stderr."""
    assert training_main(["fit", f"--cache={tmp_path}", "--split=x.json", f"--out={tmp_path / 'out'}"]) == 1
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert str(tmp_path) in error
