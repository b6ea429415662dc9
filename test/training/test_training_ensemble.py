"""`python -m training ensemble`: from a raw release to an archive in two commands."""

from pathlib import Path
from typing import Any

import pytest

from acouslic.errors import AcouslicError
from algorithm.model.artifact import load_artifact
from training.ensemble import main
from training.export.write_artifact import main as export


def test_a_release_becomes_an_archive_in_two_commands(tiny_training: Any, tmp_path: Path) -> None:
    """Prepare, split and two folds by the first, artifact and archive by the second."""
    work, model, archive = tmp_path / "work", tmp_path / "model", tmp_path / "model.tar.gz"
    words = tiny_training.fit_arguments(work, "--optimiser.epochs=1")[1:]
    assert main([f"--raw={tiny_training.release}", "--folds=2", *words]) == 0
    names = ["--tower=t", "--tower_licence=l", "--training_data=d", "--training_data_licence=m"]
    assert export([str(work), f"--out={model}", f"--pack={archive}", *names]) == 0
    assert len(load_artifact(model).manifest.members) == 2
    assert archive.stat().st_size > 1000


def test_a_missing_release_is_refused(tiny_training: Any, tmp_path: Path) -> None:
    """The message names the table that is not there."""
    words = tiny_training.fit_arguments(tmp_path / "work")[1:]
    with pytest.raises(AcouslicError, match=r"circumferences.*missing"):
        main([f"--raw={tmp_path}", *words])
