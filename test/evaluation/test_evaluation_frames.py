"""`evaluation frames`: scores and labels alone give the same figures and report as a whole evaluation."""

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.__main__ import main
from evaluation.frames import case_result
from evaluation.inputs.frame_table import read_frame_table

FRAMES = 280
NPY = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }".ljust(127) + b"\n" + bytes(8)
"""A single array, as `numpy.save` writes it."""


def columns_of(cases: int = 4) -> dict[str, np.ndarray]:
    """Two sweeps a case, the first with labels; scores that mostly fit them."""
    generator = np.random.default_rng(3)
    columns: dict[str, list[Any]] = {name: [] for name in ("case", "frame", "label", "presence", "optimality", "set")}
    for case in range(cases):
        labels = np.zeros(FRAMES, int)
        labels[40:60], labels[48:52] = 2, 1
        columns["case"] += [f"case {case}"] * FRAMES
        columns["frame"] += range(FRAMES)
        columns["label"] += labels.tolist()
        columns["presence"] += np.clip(0.6 * (labels > 0) + 0.5 * generator.random(FRAMES), 0, 1).tolist()
        columns["optimality"] += np.where(labels == 1, 0.9, 0.1).tolist()
        columns["set"] += [f"fold {case % 2}"] * FRAMES
    return {name: np.array(values) for name, values in columns.items()}


def write_csv(path: Path, columns: dict[str, np.ndarray]) -> Path:
    """The columns as a table."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))
    return path


def test_a_table_gives_figures_and_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """F1 by hand from the columns; a row for each fold; no word of scores or circumferences."""
    columns = columns_of()
    np.savez(tmp_path / "scores.npz", **columns)
    assert main(["frames", str(tmp_path / "scores.npz"), "--output", str(tmp_path / "out"), "--threshold", "0.55"]) == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    truth, called = columns["label"] > 0, columns["presence"] >= 0.55
    f1 = 2 * (truth & called).sum() / (truth.sum() + called.sum())
    assert metrics["frame_f1"]["all_frames"]["at_own_threshold"]["f1"] == pytest.approx(f1)
    in_first = columns["frame"] < 140
    f1 = 2 * (truth & called)[in_first].sum() / (truth.sum() + called[in_first].sum())
    assert metrics["frame_f1"]["annotated_sweeps"]["at_own_threshold"]["f1"] == pytest.approx(f1)
    assert f"{metrics['intervals']['frame_f1_all_frames']['estimate']:.4f}" in capsys.readouterr().out
    assert metrics["wfss"]["mean"] == 1  # presence x optimality is highest in an optimal frame
    assert [entry["set"] for entry in metrics["sets"]] == ["fold 0", "fold 1"]
    assert "score" not in metrics
    report = (tmp_path / "out/report.html").read_text()
    assert "judged by their frames alone" in report
    assert '<svg class="plot precision-recall"' in report
    assert ">fold 1</th>" in report
    assert "Circumference" not in report
    assert report.count('<figure class="case"') == 4
    with (tmp_path / "out/per_case.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["all_frames_own_threshold_tp"]) for row in rows) == (truth & called).sum()


def test_f1_of_a_single_case_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One case has no interval, but an F1: here 2 hits of 4 frames, and no false alarm."""
    columns = {"case": ["a"] * 9, "frame": [*range(9)], "label": [1] * 4 + [0] * 5, "presence": [0.9] * 2 + [0.1] * 7}
    path = write_csv(tmp_path / "scores.csv", {name: np.array(values) for name, values in columns.items()})
    assert main(["frames", str(path), "--output", str(tmp_path / "out")]) == 0
    assert "F1 over all frames of 1 cases: 0.6667" in capsys.readouterr().out


def test_nothing_of_another_kind_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the table itself, where it has the name of an output, nor the page of an analysed case."""
    scores = write_csv(tmp_path / "per_case.csv", columns_of())
    before = scores.read_bytes()
    assert main(["frames", str(scores), "--output", str(tmp_path)]) == 1
    assert "per_case.csv would be replaced by this run's own" in capsys.readouterr().err.splitlines()[-1]
    assert scores.read_bytes() == before
    case = tmp_path / "case"
    case.mkdir()
    for name in ("fetal-abdominal-circumference.json", "report.html"):
        (case / name).write_text("of predict")
    assert main(["frames", str(scores), "--output", str(case)]) == 1
    assert "holds an analysed case" in capsys.readouterr().err.splitlines()[-1]
    assert (case / "report.html").read_text() == "of predict"


def test_a_set_belongs_to_every_case_or_to_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A case without one would be in no figure of the sets."""
    columns = columns_of()
    columns["set"] = np.where(columns["case"] == "case 2", "", columns["set"])
    assert main(["frames", str(write_csv(tmp_path / "s.csv", columns)), "--output", str(tmp_path / "out")]) == 1
    assert "case 'case 2' has no set, others have" in capsys.readouterr().err.splitlines()[-1]


def test_csv_and_npz_say_the_same(tmp_path: Path) -> None:
    """Row order does not count: the frames are sorted by case and number."""
    columns = columns_of(2)
    order = np.random.default_rng(0).permutation(2 * FRAMES)
    np.savez(tmp_path / "scores.npz", **columns)
    written = write_csv(tmp_path / "scores.csv", {name: values[order] for name, values in columns.items()})
    for one, other in zip(read_frame_table(tmp_path / "scores.npz"), read_frame_table(written), strict=True):
        assert (one.case, one.chosen, one.set_name, one.annotated_sweeps) == (
            other.case,
            other.chosen,
            other.set_name,
            other.annotated_sweeps,
        )
        for name in ("labels", "presence", "optimality"):
            assert np.array_equal(getattr(one, name), getattr(other, name))


def test_optional_columns_decide(tmp_path: Path) -> None:
    """The chosen frame, none chosen, the subject, and sweeps that are annotated without a label."""
    columns = columns_of(2)
    columns["chosen"] = (columns["case"] == "case 0") & (columns["frame"] == 200)
    columns["annotated_sweep"] = (columns["frame"] >= 140).astype(int)
    columns["subject"] = np.full(2 * FRAMES, "same")
    np.savez(tmp_path / "scores.npz", **columns)
    first, second = read_frame_table(tmp_path / "scores.npz")
    assert (first.chosen, second.chosen) == (200, -1)
    assert first.annotated_sweeps == (False, True)
    assert first.subject_id == second.subject_id == "same"
    assert case_result(first).annotated_distance_frames is None


@pytest.mark.parametrize("annotated", [0, 1])
def test_frames_without_any_positive_one_are_judged(tmp_path: Path, annotated: int) -> None:
    """Called positive are some: their precision is 0, and there is no recall to draw it over."""
    columns = columns_of() | {"label": np.zeros(4 * FRAMES, int), "annotated_sweep": np.full(4 * FRAMES, annotated)}
    np.savez(tmp_path / "scores.npz", **columns)
    assert main(["frames", str(tmp_path / "scores.npz"), "--output", str(tmp_path / "out")]) == 0
    own = json.loads((tmp_path / "out/metrics.json").read_text())["frame_f1"]["all_frames"]["at_own_threshold"]
    assert own["precision"] == 0
    assert "recall" not in own
    assert (tmp_path / "out/report.html").is_file()


def changed(name: str, index: int, value: Any) -> dict[str, np.ndarray]:
    columns = columns_of(1)
    columns[name] = columns[name].astype(object if isinstance(value, str) else columns[name].dtype)
    columns[name][index] = value
    return columns


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (changed("presence", 3, 1.5), "presence must be a number in 0..1; row 4 has '1.5'"),
        (changed("presence", 3, np.nan), "presence must be a number in 0..1; row 4 has 'nan'"),
        (changed("presence", 3, "high"), "the column presence holds something that is not a number"),
        (changed("label", 0, 3), "label must be a whole number in 0..2; row 1 has '3'"),
        (changed("frame", 5, 4), "case 'case 0': its frames must be 0 to 279, each once"),
        (changed("case", 5, ""), "row 6 names no case"),
        (changed("set", 5, "other"), "case 'case 0': its rows name more than one set"),
        ({"case": np.array(["a"])}, "lacks the column frame"),
        (columns_of(1) | {"area": np.zeros(FRAMES)}, "has the unknown column 'area'"),
        (columns_of(1) | {"chosen": np.ones(FRAMES)}, "280 frames are chosen; at most one can be"),
        (columns_of(1) | {"annotated_sweep": np.arange(FRAMES) % 2}, "annotated_sweep must be the same in all frames"),
    ],
)
def test_a_wrong_table_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], columns: dict[str, np.ndarray], message: str
) -> None:
    """With the row or the case; nothing is written."""
    path = write_csv(tmp_path / "scores.csv", columns)
    assert main(["frames", str(path), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def in_zip(name: str, **fields: int) -> bytes:
    """A sound `.npz` in whose directory of members `fields` are others."""
    np.savez(buffer := io.BytesIO(), **{name: np.zeros(3)})
    with zipfile.ZipFile(buffer, "a") as archive:
        for field, value in fields.items():
            setattr(archive.infolist()[0], field, value)
        archive.comment = b"so that the directory is written anew"
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("case", np.array(["é".encode()] * FRAMES), "the column case holds bytes beyond ASCII; save it as text"),
        ("case", np.zeros(FRAMES, "V4"), "the column case holds neither numbers nor text, but |V4"),
        ("subject", np.full(FRAMES, np.nan), "the column subject holds numbers and NaN"),
        ("presence", np.full(FRAMES, 0.5 + 1j), "presence holds neither numbers nor text, but complex128"),
        ("frame", np.arange(FRAMES).astype("m8[s]"), "frame holds neither numbers nor text, but timedelta64[s]"),
    ],
)
def test_an_array_of_another_kind_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, values: np.ndarray, message: str
) -> None:
    """Nothing of it is dropped in silence."""
    np.savez(tmp_path / "scores.npz", **(columns_of(1) | {name: values}))
    assert main(["frames", str(tmp_path / "scores.npz"), "--output", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        b"\x80\x04K\x01.",
        NPY,
        in_zip("case", flag_bits=1),
        in_zip("case", compress_type=77),
        in_zip("case", extract_version=99),
    ],
)
def test_a_damaged_npz_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    """Nothing is unpickled."""
    (tmp_path / "scores.npz").write_bytes(content)
    assert main(["frames", str(tmp_path / "scores.npz"), "--output", str(tmp_path / "out")]) == 1
    assert "is not a readable .npz file" in capsys.readouterr().err
