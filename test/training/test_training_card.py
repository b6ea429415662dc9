"""`acouslic train card`: the page that lies beside an artifact."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from acouslic.errors import AcouslicError
from algorithm.model.artifact import load_artifact
from algorithm.model.manifest import MANIFEST_FILE, read_manifest
from training.export.model_card import card_path, main, renew_card_beside, write_card_beside
from training.export.pack import write_archive


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, with room beside it."""
    return Path(shutil.copytree(tiny_model, tmp_path / "ours"))


def test_a_card_says_what_the_manifest_says(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Name, provenance, licences, members and every setting are in it; it lies beside the folder, not inside."""
    assert main([str(model)]) == 0
    path = model.with_name("ours.md")
    assert capsys.readouterr().out == f"{path}\n"
    text = path.read_text()
    manifest = read_manifest(model)
    origin = manifest.provenance
    for value in (manifest.name, origin.tower, origin.tower_licence, origin.training_data, origin.made_by):
        assert value in text
    assert f"An ensemble of {len(manifest.members)} members" in text
    for section in (manifest.thresholds, manifest.scoring, manifest.preprocessing):
        for field in dataclasses.fields(section):
            assert f"| {field.name} | {getattr(section, field.name)}" in text
    assert "not a medical device" in text
    assert "TO FILL IN" in text


def test_a_card_does_not_lie_in_the_model(model: Path) -> None:
    """The folder holds the artifact alone: with a further file the model would be refused."""
    before = sorted(model.iterdir())
    with pytest.raises(AcouslicError, match="lies in the model's own folder"):
        main([str(model), "--out", str(model / "README.md")])
    with pytest.raises(AcouslicError, match="lies in the model's own folder"):
        write_archive(model, model / "manifest.json")
    assert sorted(model.iterdir()) == before
    load_artifact(model)


def test_a_card_is_renewed_with_its_manifest(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where one lies beside the model; else none is made."""
    renew_card_beside(model)
    assert not card_path(model).exists()
    write_card_beside(model)
    before = card_path(model).read_text()
    path = model / MANIFEST_FILE
    path.write_text(path.read_text().replace('"suitable": ', '"suitable":  '))
    renew_card_beside(model)
    assert card_path(model).read_text() != before
    capsys.readouterr()


def test_text_of_a_manifest_stays_text(model: Path) -> None:
    """A name with markup neither opens a tag nor a cell."""
    path = model / MANIFEST_FILE
    content = json.loads(path.read_text()) | {"name": "<script>|x|</script>"}
    path.write_text(json.dumps(content))
    assert main([str(model)]) == 0
    text = card_path(model).read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;\\|x\\|" in text


def test_results_come_from_an_evaluation(model: Path, tmp_path: Path) -> None:
    """`--metrics` shows the means and the number of cases; a file of another kind is refused and no card is written."""
    metrics = {"score": {"mean": 0.51}, "wfss": {"mean": 0.25, "std": 1.0}, "case_count": 7, "cases": []}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    out = tmp_path / "card.md"
    assert main([str(model), "--metrics", str(tmp_path / "metrics.json"), "--out", str(out)]) == 0
    assert "| score | 0.5100 |" in out.read_text()
    assert "| wfss | 0.2500 |" in out.read_text()
    assert "`metrics.json`, 7 cases" in out.read_text()

    for content in ("{}", "[", '{"score": 1}'):
        (tmp_path / "metrics.json").write_text(content)
        with pytest.raises(AcouslicError, match=r"metrics\.json"):
            main([str(model), "--metrics", str(tmp_path / "metrics.json")])
    assert not card_path(model).exists()


def test_what_somebody_filled_in_is_never_replaced(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An untouched card is written again; one that was changed by a letter stays, at export and by the command."""
    write_card_beside(model)
    path = card_path(model)
    first = path.read_text()
    content = json.loads((model / MANIFEST_FILE).read_text()) | {"name": "another"}
    (model / MANIFEST_FILE).write_text(json.dumps(content))
    write_card_beside(model)
    assert "Model card: another" in path.read_text() != first

    filled = path.read_text().replace("**TO FILL IN:** who uses it", "We use it", 1)
    path.write_text(filled)
    capsys.readouterr()
    write_card_beside(model)
    assert "stays as it is" in capsys.readouterr().out
    with pytest.raises(AcouslicError, match="has been filled in"):
        main([str(model)])
    assert path.read_text() == filled


def test_a_folder_is_no_card(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command it is refused; an export, whose model is written by then, says that it stays."""
    with pytest.raises(AcouslicError, match="is no file: move it away"):
        main([str(model), "--out", str(tmp_path)])
    card_path(model).mkdir()
    write_card_beside(model)
    assert "is no file and stays as it is" in capsys.readouterr().out
