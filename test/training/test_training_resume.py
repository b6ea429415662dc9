"""A run that was ended goes on: with its own cases only, from its last epoch, elsewhere, after an early stop."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from acouslic.errors import AcouslicError
from training.ensemble import main as ensemble
from training.fit import main
from training.learn.run_folder import RunFolder
from training.learn.run_member import read_own_checkpoint
from training.network.tower_source import read_checkpoint


def fit(tiny_training: Any, out: Path, *words: str) -> Path:
    """A run on the first fold of the split by subject, or as `words` have it."""
    assert main(tiny_training.fit_arguments(out, f"--split={tiny_training.subject_split}", "--fold=1", *words)) == 0
    return out


def as_if_ended_while_scoring(run: Path, copy: Path) -> Path:
    """A copy of a finished run as it was when only training had ended."""
    shutil.copytree(run, copy)
    (copy / "run.json").unlink()
    (copy / "out_of_fold.npz").unlink()
    shutil.rmtree(copy / "member")
    return copy


def epoch_of(run: Path, name: str) -> int:
    """The epoch of a checkpoint."""
    return int(torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)["epoch"])


def assert_same_member(first: Path, second: Path) -> None:
    """To the bit, with the same epoch kept."""
    for name in ("adapter_model.safetensors", "heads.safetensors"):
        one, other = (load_file(run / "member" / name) for run in (first, second))
        assert one.keys() == other.keys()
        differing = [key for key in one if not torch.equal(one[key], other[key])]
        assert not differing
    records = [RunFolder(run).read_record() for run in (first, second)]
    assert records[0]["kept"] == records[1]["kept"]
    assert records[0]["epochs"] == records[1]["epochs"]


def test_a_run_goes_on_with_its_own_cases_only(tiny_training: Any, tmp_path: Path) -> None:
    """Finished or not, a run of one fold is not taken for one of another fold or split: it would be judged by cases
    that it has learned from."""
    finished = fit(tiny_training, tmp_path / "finished", "--optimiser.epochs=1")
    ended = as_if_ended_while_scoring(finished, tmp_path / "ended")
    before = (finished / "run.json").read_text()
    for run in (finished, ended):
        for others in (
            (f"--split={tiny_training.subject_split}", "--fold=2"),
            (f"--split={tiny_training.paper_split}",),
        ):
            with pytest.raises(AcouslicError, match="names other cases, another fold, another cache or"):
                main(tiny_training.fit_arguments(run, "--optimiser.epochs=1", *others))
    assert (finished / "run.json").read_text() == before
    assert not (ended / "run.json").exists()
    (ended / "cases.json").unlink()
    with pytest.raises(AcouslicError, match="nobody knows which cases the run has seen"):
        fit(tiny_training, ended, "--optimiser.epochs=1")


def test_a_run_goes_on_with_its_own_tower_only(tiny_training: Any, tmp_path: Path) -> None:
    """A file of weights that was replaced meanwhile is found before any training."""
    finished = fit(tiny_training, tmp_path / "finished", "--optimiser.epochs=1")
    ended = RunFolder(as_if_ended_while_scoring(finished, tmp_path / "ended"))
    last = ended.checkpoints / "last.ckpt"
    known = read_checkpoint(last)["tower_sha256"]
    assert read_own_checkpoint(last, ended, known)["epoch"] == 0
    with pytest.raises(AcouslicError, match="was trained on another tower"):
        read_own_checkpoint(last, ended, "0" * 64)


def test_an_ensemble_of_other_folds_is_refused(tiny_training: Any, tmp_path: Path) -> None:
    """Three folds, then two into the same folder: the members that are there are of another split."""
    words = tiny_training.fit_arguments(tmp_path / "work", "--optimiser.epochs=1", "--antialias=true")
    words = [word for word in words if not word.startswith("--cache")] + [f"--raw={tiny_training.release}"]
    assert ensemble([*words, "--folds=3"]) == 0
    with pytest.raises(AcouslicError):
        ensemble([*words, "--folds=2"])


def test_a_fold_that_a_split_has_not_is_refused(tiny_training: Any, tmp_path: Path) -> None:
    """The published split is for one member, whatever fold is named."""
    with pytest.raises(AcouslicError, match="fold 7 is not there"):
        main(tiny_training.fit_arguments(tmp_path / "run", f"--split={tiny_training.paper_split}", "--fold=7"))


def test_the_last_checkpoint_is_of_the_last_epoch(tiny_training: Any, tmp_path: Path) -> None:
    """Also where an earlier epoch is kept as the best; going on elsewhere keeps that one, and gives the same member."""
    words = ("--optimiser.epochs=6", "--optimiser.learning_rate=0.3", "--optimiser.keep=loss")
    words += ("--optimiser.patience_epochs=null",)  # Processors differ in where a run as rough as this would stop.
    whole = fit(tiny_training, tmp_path / "whole", *words)
    assert epoch_of(whole, "last") == 5
    assert epoch_of(whole, "best") < 5, "the best is the last: nothing is tested"
    moved = as_if_ended_while_scoring(whole, tmp_path / "moved")
    fit(tiny_training, moved, *words)
    assert_same_member(whole, moved)


def test_the_seconds_of_a_run_are_those_of_all_its_processes(tiny_training: Any, tmp_path: Path) -> None:
    """One that goes on took what the processes before it took, too, as their last checkpoint has it."""
    run = fit(tiny_training, tmp_path / "run", "--optimiser.epochs=1")
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert 0 < last["seconds"] < RunFolder(run).read_record()["seconds"]
    ended = as_if_ended_while_scoring(run, tmp_path / "ended")
    torch.save(last | {"seconds": 1e6}, ended / "checkpoints" / "last.ckpt")
    fit(tiny_training, ended, "--optimiser.epochs=1")
    assert 1e6 < RunFolder(ended).read_record()["seconds"] < 1.1e6


def test_the_best_epoch_is_not_forgotten_in_another_folder(tiny_training: Any, tmp_path: Path) -> None:
    """Ended after three epochs, moved, and trained on: what was the best stays it until something better comes."""
    words = ("--optimiser.learning_rate=0.3", "--optimiser.keep=loss", "--optimiser.schedule=constant")
    # Masks that are learned slowly: a decoder at its usual rate makes every epoch better than the one before.
    words += ("--optimiser.decoder_learning_rate=1e-3", "--heads.mask_prior=false")
    whole = fit(tiny_training, tmp_path / "whole", *words, "--optimiser.epochs=6", "--optimiser.warmup_share=0")
    short = fit(tiny_training, tmp_path / "short", *words, "--optimiser.epochs=3", "--optimiser.warmup_share=0")
    assert epoch_of(whole, "best") < 3, "the best comes late: nothing is tested"
    moved = as_if_ended_while_scoring(short, tmp_path / "moved")
    settings = (moved / "settings.yaml").read_text()
    (moved / "settings.yaml").write_text(settings.replace("epochs: 3", "epochs: 6"))
    fit(tiny_training, moved, *words, "--optimiser.epochs=6", "--optimiser.warmup_share=0")
    assert_same_member(whole, moved)


@pytest.mark.parametrize("keep", ["last", "loss"])
def test_a_run_that_had_stopped_early_does_not_train_on(keep: str, tiny_training: Any, tmp_path: Path) -> None:
    """Ended while its frames were scored, it goes on with scoring: the same member, the same number of epochs."""
    words = ("--optimiser.epochs=12", "--optimiser.learning_rate=0.3", f"--optimiser.keep={keep}")
    words += ("--optimiser.patience_epochs=1",)
    whole = fit(tiny_training, tmp_path / "whole", *words)
    assert RunFolder(whole).read_record()["epochs"] < 12, "it did not stop early: nothing is tested"
    ended = as_if_ended_while_scoring(whole, tmp_path / "ended")
    fit(tiny_training, ended, *words)
    assert_same_member(whole, ended)


def test_cases_are_written_down_at_the_start(tiny_training: Any, tmp_path: Path) -> None:
    """What `cases.json` says is what `run.json` says in the end."""
    run = fit(tiny_training, tmp_path / "run", "--optimiser.epochs=1")
    cases, record = json.loads((run / "cases.json").read_text()), RunFolder(run).read_record()
    assert cases["image_size"] == 28
    assert cases["antialias"] is True
    for name in ("fold", "split_sha256", "train_cases", "validation_cases"):
        assert cases[name] == record[name]
