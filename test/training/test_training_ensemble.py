"""`python -m training ensemble`: from a raw release to an archive in two commands."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from acouslic.errors import AcouslicError
from acouslic.release import Release
from acouslic.stack import open_stack
from algorithm.model.artifact import load_artifact
from training.ensemble import main
from training.export.write_artifact import main as export
from training.learn.keeping import StoppedError
from training.phantom.generate import write_stack


def test_a_release_becomes_an_archive_in_two_commands(tiny_training: Any, tmp_path: Path) -> None:
    """Prepare, split and two folds by the first, artifact and archive by the second."""
    work, model, archive = tmp_path / "work", tmp_path / "model", tmp_path / "model.tar.gz"
    words = tiny_training.fit_arguments(work, "--optimiser.epochs=1")[1:]
    assert main([f"--raw={tiny_training.release}", "--folds=2", *words]) == 0
    names = ["--tower=t", "--tower_licence=l", "--training_data=d", "--training_data_licence=m"]
    assert export([str(work), f"--out={model}", f"--pack={archive}", *names]) == 0
    assert len(load_artifact(model).manifest.members) == 2
    assert archive.stat().st_size > 1000


def test_settings_of_folds_that_are_there_are_not_written_over(tiny_training: Any, tmp_path: Path) -> None:
    """Other settings for folds that have started are refused before anything is written; another machine's are not."""
    words = [f"--raw={tiny_training.release}", "--folds=2", "--parallel=0", *tiny_training.fit_arguments(tmp_path)[1:]]
    assert main(words) == 0
    before = (tmp_path / "settings.yaml").read_bytes()
    (tmp_path / "fold_2").mkdir()
    (tmp_path / "fold_2" / "settings.yaml").write_bytes(before)
    with pytest.raises(AcouslicError, match=r"fold_2/settings\.yaml holds other settings"):
        main([*words, "--optimiser.epochs=9"])
    assert (tmp_path / "settings.yaml").read_bytes() == before
    assert main([*words, "--machine.threads=2"]) == 0


def test_the_split_of_folds_that_are_there_is_not_written_over(tiny_training: Any, tmp_path: Path) -> None:
    """Other folds are refused as soon as one has started; what the members are judged by stays."""
    words = [f"--raw={tiny_training.release}", "--parallel=0", *tiny_training.fit_arguments(tmp_path)[1:]]
    assert main([*words, "--folds=2"]) == 0
    assert main([*words, "--folds=3"]) == 0
    before = (tmp_path / "split.json").read_bytes()
    (tmp_path / "fold_1").mkdir()
    (tmp_path / "fold_1" / "cases.json").write_text("{}")
    for other in (["--folds=2"], ["--folds=3", "--split_seed=5"]):
        with pytest.raises(AcouslicError, match="give --folds 3 --split_seed 1, or choose another --out"):
            main([*words, *other])
    assert (tmp_path / "split.json").read_bytes() == before
    assert main([*words, "--folds=3"]) == 0


def test_a_release_that_has_grown_does_not_divide_the_runs_cases_anew(tiny_training: Any, tmp_path: Path) -> None:
    """One row fewer, and again one more: the split that the runs beside it were trained by stays."""
    release = Release(Path(shutil.copytree(tiny_training.release, tmp_path / "release")))
    table = release.circumferences_path
    whole = table.read_text()
    table.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    words = [f"--raw={release.root}", "--folds=2", "--parallel=0", *tiny_training.fit_arguments(tmp_path / "work")[1:]]
    assert main(words) == 0
    split = tmp_path / "work" / "split.json"
    before = split.read_bytes()
    (tmp_path / "work" / "fold_1").mkdir()
    (tmp_path / "work" / "fold_1" / "cases.json").write_text("{}")
    table.write_text(whole)
    with pytest.raises(AcouslicError, match=r"lists other cases than .*split\.json, by which the runs beside it"):
        main(words)
    assert split.read_bytes() == before


def test_cases_without_an_annotated_frame_are_accepted_where_that_is_asked_for(
    tiny_training: Any, tmp_path: Path
) -> None:
    """By the option that the refusal names."""
    release = Release(Path(shutil.copytree(tiny_training.release, tmp_path / "release")))
    mask = release.mask_path(release.cases()[0])
    header = open_stack(mask).header
    write_stack(mask, np.zeros((header.frames, header.rows, header.columns), np.uint8), header.spacing_mm[0])
    words = [f"--raw={release.root}", "--folds=2", "--parallel=0", *tiny_training.fit_arguments(tmp_path / "work")[1:]]
    with pytest.raises(AcouslicError, match=r"has no annotated frame.*accept such cases with --allow-unannotated"):
        main(words)
    assert main([*words, "--allow-unannotated"]) == 0


def test_folds_beside_each_other_go_on_to_the_same_bits(tiny_training: Any, tmp_path: Path) -> None:
    """In bfloat16: two folds at once, stopped while they train, go on by the same command to the members that one fold
    after another gives."""
    more = ["--optimiser.epochs=12", "--machine.precision=bf16-mixed", "--machine.threads=1"]
    after, beside = tmp_path / "after", tmp_path / "beside"

    def words(out: Path, *parallel: str) -> list[str]:
        return [f"--raw={tiny_training.release}", "--folds=2", *tiny_training.fit_arguments(out, *more)[1:], *parallel]

    assert main(words(after)) == 0
    logs = [beside / f"fold_{fold}" / "logs" / "metrics.csv" for fold in (1, 2)]

    def stop_when_they_train() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and not all(log.is_file() for log in logs):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_they_train).start()
    with pytest.raises(StoppedError, match="each fold kept what it says"):
        main(words(beside, "--parallel=2"))
    unfinished = [fold for fold in (1, 2) if not (beside / f"fold_{fold}" / "run.json").exists()]
    assert unfinished
    kept = [beside / f"fold_{fold}" / "checkpoints" / "last.ckpt" for fold in unfinished]
    assert any(path.is_file() for path in kept)
    assert main(words(beside, "--parallel=2")) == 0
    for fold in (1, 2):
        for name in ("adapter_model.safetensors", "heads.safetensors"):
            one, other = (load_file(out / f"fold_{fold}" / "member" / name) for out in (after, beside))
            assert [key for key in one if not torch.equal(one[key], other[key])] == []
    assert "goes on from step" in "".join((beside / f"fold_{fold}" / "log.txt").read_text() for fold in unfinished)


def test_a_single_fold_is_refused_before_anything_is_prepared(tiny_training: Any, tmp_path: Path) -> None:
    """Not after the hours in which a release is prepared."""
    words = tiny_training.fit_arguments(tmp_path / "work")[1:]
    with pytest.raises(AcouslicError, match="--folds must be at least 2, not 1"):
        main([f"--raw={tiny_training.release}", "--folds=1", *words])
    assert not (tmp_path / "work").exists()


def test_a_missing_release_is_refused(tiny_training: Any, tmp_path: Path) -> None:
    """The message names the table that is not there."""
    words = tiny_training.fit_arguments(tmp_path / "work")[1:]
    with pytest.raises(AcouslicError, match=r"circumferences.*missing"):
        main([f"--raw={tmp_path}", *words])
