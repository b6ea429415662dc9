"""Whole runs: the container's, and `local` for people; what they write and what they say."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acouslic.errors import AcouslicError
from acouslic.release import CaseCircumferences, write_circumferences
from acouslic.write import write_json, write_mask_stack
from evaluation.__main__ import main, one_line
from evaluation.case_evaluation import CaseTask, evaluate_case
from evaluation.inputs.ground_truth import find_official
from evaluation.metrics.official import AGGREGATED_METRICS, CASE_METRICS
from evaluation.outputs import check_metrics

OUTPUT_FILES = ["metrics.json", "per_case.csv", "report.html"]


def run_container(challenge: Any, repository: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The container's entrypoint in a process of its own, with nothing but its folders in the environment."""
    challenge.save()
    return subprocess.run(
        [sys.executable, "-m", "evaluation"],
        cwd=repository,
        env={"PATH": os.environ["PATH"]} | challenge.environment() | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def disc_circumference_mm(challenge: Any) -> float:
    """What the official ellipse measures of the disc."""
    challenge.add_truth("probe", {0: 1})
    challenge.add_job("probe", 0)
    measured = challenge.score()[0].predicted_ac_mm
    challenge.jobs.clear()
    (challenge.ground_truth_dir / "probe").rename(challenge.output_dir.parent / "probe")
    return float(measured)


def test_a_perfect_submission_scores_exactly_one(challenge: Any, repository: Path) -> None:
    """Container run: the reference itself as the prediction gives score 1, all files, and nothing on stderr."""
    measured = disc_circumference_mm(challenge)
    for number, case in enumerate(("c", "a", "b")):
        challenge.add_truth(case, {50 + number: 1, 60: 2}, sweep_ac_mm=(measured,))
        challenge.add_job(case, 50 + number)
    run = run_container(challenge, repository)
    assert (run.returncode, run.stderr) == (0, "")
    assert [line for line in run.stdout.splitlines() if line.startswith("[3/3]")] == ["[3/3] c: scored"]
    assert sorted(path.name for path in challenge.output_dir.iterdir()) == OUTPUT_FILES
    metrics = json.loads((challenge.output_dir / "metrics.json").read_text())
    assert metrics["score"]["mean"] == 1
    assert metrics["DiceCoefficientSoft"] == {"mean": 1.0, "std": 0.0}
    assert metrics["nae_circumference"] == {"mean": 0.0, "std": 0.0}
    assert [case["case"] for case in metrics["cases"]] == ["a", "b", "c"]
    assert metrics["undefined_overlap_cases"] == 0
    assert [case["exec_duration_s"] for case in metrics["cases"]] == [42.5] * 3


def test_metrics_and_table_of_a_mixed_submission(challenge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hit, a near miss and "no frame": official names everywhere, finite numbers, aggregates that are the means."""
    for case in ("hit", "miss", "none"):
        challenge.add_truth(case, {50: 1, 60: 2})
    challenge.add_job("none", -1)
    challenge.add_job("hit", 50)
    challenge.add_job("miss", 45)
    challenge.save()
    for name, value in challenge.environment().items():
        monkeypatch.setenv(name, value)
    assert main([]) == 0
    metrics = json.loads((challenge.output_dir / "metrics.json").read_text())
    check_metrics(metrics)
    assert set(AGGREGATED_METRICS) < set(metrics)
    with (challenge.output_dir / "per_case.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header[: 2 + len(CASE_METRICS)]) == ("case", "frame_number", *CASE_METRICS)
    table = [dict(zip(header, row, strict=True)) for row in rows]
    assert [(row["case"], row["frame_number"]) for row in table] == [("hit", "50"), ("miss", "45"), ("none", "-1")]
    for name in AGGREGATED_METRICS:
        values = [float(row[name]) for row in table]
        assert metrics[name]["mean"] == pytest.approx(np.mean(values), abs=1e-12)
        assert metrics[name]["std"] == pytest.approx(np.std(values), abs=1e-12)
        assert all(map(math.isfinite, values))
    assert [float(row["wfss"]) for row in table] == [1, 0, 0]
    assert float(table[1]["DiceCoefficientSoft"]) == pytest.approx(1 - 5 / 15)
    assert metrics["undefined_overlap_cases"] == metrics["both_empty_cases"] == 1
    case = metrics["cases"][0]
    assert [name for name in case if name in CASE_METRICS] == list(CASE_METRICS)
    assert "reference_ac_mm" not in case


def test_a_refused_submission_leaves_nothing(challenge: Any, repository: Path) -> None:
    """Exit code 1, the sentence as the last line of stderr, no file in the output."""
    challenge.add_truth("a", {50: 1})
    challenge.add_job("a", 50)
    (challenge.output_of("a") / "images/fetal-abdomen-segmentation/abc.mha").write_bytes(b"nonsense")
    run = run_container(challenge, repository)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("case a: the mask cannot be read")
    assert "Traceback" not in run.stderr
    assert not list(challenge.output_dir.iterdir())


def test_missing_folders_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """No ground truth, or an empty one: what to do about it."""
    monkeypatch.setenv("GROUND_TRUTH_DIR", str(tmp_path / "none"))
    assert main([]) == 1
    assert "extract the ground truth there" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    assert main([]) == 1
    assert "holds no case" in capsys.readouterr().err


@pytest.fixture
def release(challenge: Any, tmp_path: Path) -> Path:
    """A raw release of the cases a, b and c, each optimal in frame 50."""
    raw = tmp_path / "raw"
    for case in "abc":
        challenge.write_image(
            raw / "masks/stacked_fetal_abdomen" / f"{case}.mha", challenge.stack({50: challenge.disc()})
        )
    (raw / "circumferences").mkdir()
    rows = [CaseCircumferences(case, f"subject-{case}", (20.0, *[None] * 5)) for case in "abc"]
    write_circumferences(raw / "circumferences/fetal_abdominal_circumferences_per_sweep.csv", rows)
    return raw


@pytest.fixture
def predictions(challenge: Any, tmp_path: Path) -> Path:
    """Outputs as `algorithm predict` writes them, for the cases a, b and c, frame 50 chosen."""
    folder = tmp_path / "predictions"
    for case in "abc":
        path = folder / case / "images/fetal-abdomen-segmentation/output.mha"
        write_mask_stack(path, challenge.disc(), 50, challenge.frames, (0.28, 0.28))
        write_json(folder / case / "fetal-abdomen-frame-number.json", 50)
        write_json(
            folder / case / "frame-quality-scores.json",
            {
                "schema_version": 1,
                "frames": challenge.frames,
                "thresholds": {"presence": 0.5, "optimality": 0.5},
                "presence_probability": [float(frame == 50) for frame in range(challenge.frames)],
                "optimality_probability": None,
            },
        )
    (folder / "results.csv").write_text("case,frame\n")
    (folder / ".hidden").mkdir()
    return folder


def local(predictions: Path, release: Path, output: Path, *more: str) -> int:
    """`python -m evaluation local` in this process."""
    return main(["local", "--predictions", str(predictions), "--raw", str(release), "--output", str(output), *more])


def read_metrics(output: Path) -> dict[str, Any]:
    """What a run wrote."""
    return json.loads((output / "metrics.json").read_text())


def test_local_scores_a_folder_of_predictions(predictions: Path, release: Path, tmp_path: Path) -> None:
    """The raw release and the outputs of `predict` are all it needs; the index of the reference lies in the output."""
    output = tmp_path / "results"
    assert local(predictions, release, output) == 0
    metrics = read_metrics(output)
    assert metrics["wfss"]["mean"] == metrics["DiceCoefficientSoft"]["mean"] == 1
    assert metrics["cases_with_presence_scores"] == 3
    assert "subject-a" in (output / "per_case.csv").read_text()
    assert sorted(path.name for path in output.iterdir()) == sorted([*OUTPUT_FILES, "ground_truth_index"])


def test_another_pixel_size_is_warned_of(
    challenge: Any, predictions: Path, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The official procedure measures with 0.28 mm whatever the files state, so such a case's score says nothing."""
    assert local(predictions, release, tmp_path / "results") == 0
    assert "warning" not in capsys.readouterr().out
    assert "pixel size" not in (tmp_path / "results" / "report.html").read_text(encoding="utf-8")
    reference = release / "masks/stacked_fetal_abdomen/b.mha"
    challenge.write_image(reference, challenge.stack({50: challenge.disc()}), spacing_mm=0.56)
    mask = predictions / "b/images/fetal-abdomen-segmentation/output.mha"
    write_mask_stack(mask, challenge.disc(), 50, challenge.frames, (0.56, 0.56))
    assert local(predictions, release, tmp_path / "results") == 0
    assert "warning: the pixel size is another than 0.28 mm in 1 of 3 cases" in capsys.readouterr().out
    page = (tmp_path / "results" / "report.html").read_text(encoding="utf-8")
    assert '<p class="notice">The pixel size is another than 0.28 mm in 1 of 3 cases; ' in page


def test_local_follows_a_link_to_a_case(predictions: Path, release: Path, tmp_path: Path) -> None:
    """A folder of predictions may be put together from those of several runs."""
    (predictions / "b").rename(tmp_path / "another run")
    (predictions / "b").symlink_to(tmp_path / "another run")
    assert local(predictions, release, tmp_path / "results") == 0
    assert read_metrics(tmp_path / "results")["wfss"]["mean"] == 1


def test_an_output_that_is_a_file_is_named(
    predictions: Path, release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Results need a folder; no word of an earlier run, of which there was none."""
    assert local(predictions, release, predictions / "results.csv") == 1
    assert "results.csv is no folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", [".", "scores"])
def test_results_among_the_predictions_are_no_case(predictions: Path, release: Path, name: str) -> None:
    """What a run leaves in the folder of predictions, or in a folder within it, does not stop the next one."""
    for _ in range(2):
        assert local(predictions, release, predictions / name) == 0
    metrics = read_metrics(predictions / name)
    assert metrics["case_count"] == 3
    assert "cases_left_out" not in metrics


@pytest.mark.parametrize("option", [[], ["--subset"]])
def test_local_wants_every_case_or_a_subset(
    predictions: Path, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    """A case without prediction is an error, unless a subset was asked for."""
    (predictions / "b").rename(tmp_path / "moved")
    code = local(predictions, release, tmp_path / "results", *option)
    if option:
        assert code == 0
        assert [case["case"] for case in read_metrics(tmp_path / "results")["cases"]] == ["a", "c"]
    else:
        assert code == 1
        assert "case b is missing from the submission" in capsys.readouterr().err


def test_local_refuses_what_is_broken(
    predictions: Path, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown case, a frame number that is none, a missing mask: one sentence each, before any case is scored."""
    (predictions / "stranger").mkdir()
    (predictions / "stranger/file").touch()
    assert local(predictions, release, tmp_path / "results") == 1
    assert "case stranger is not one of the 3 cases" in capsys.readouterr().err
    (predictions / "stranger/file").unlink()
    (predictions / "stranger").rmdir()
    (predictions / "b/fetal-abdomen-frame-number.json").write_text("NaN")
    assert local(predictions, release, tmp_path / "results") == 1
    assert "case b" in capsys.readouterr().err
    (predictions / "a/images/fetal-abdomen-segmentation/output.mha").unlink()
    assert local(predictions, release, tmp_path / "results") == 1
    assert "case a" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_lenient_scores_broken_cases_worst_and_lists_them(
    predictions: Path, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing case and a broken mask count as "no frame"; an unknown case is named; the good one keeps its score."""
    (predictions / "b").rename(predictions / "stranger")
    (predictions / "c/images/fetal-abdomen-segmentation/output.mha").write_bytes(b"nonsense")
    assert local(predictions, release, tmp_path / "results", "--lenient") == 0
    metrics = read_metrics(tmp_path / "results")
    good, missing, broken = metrics["cases"]
    assert good["failure"] is None
    assert "case b has no prediction" in missing["failure"]
    assert "case c: the mask cannot be read" in broken["failure"]
    for case in (missing, broken):
        assert case["score"] == case["wfss"] == case["DiceCoefficientSoft"] == 0
        assert case["nae_circumference"] == 1
        assert case["HausdorffDistance"] == 60 * 15
    assert metrics["cases_failed"] == 2
    assert metrics["ignored_predictions"] == ["stranger"]
    assert metrics["score"]["mean"] == pytest.approx(good["score"] / 3)
    assert capsys.readouterr().out.count("failed: case") == 2


def test_an_empty_folder_is_no_prediction(
    predictions: Path, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a stopped run leaves it: of a case, that case is missing; of none, it is named and does not stop the run."""
    (predictions / "stranger").mkdir()
    assert local(predictions, release, tmp_path / "results") == 0
    assert "ignored: stranger is no case of" in capsys.readouterr().out
    assert read_metrics(tmp_path / "results")["ignored_predictions"] == ["stranger"]
    shutil.rmtree(predictions / "b")
    (predictions / "b").mkdir()
    assert local(predictions, release, tmp_path / "results") == 1
    assert "case b is missing from the submission" in capsys.readouterr().err
    assert local(predictions, release, tmp_path / "results", "--subset") == 0
    assert "left out: case b: its folder is empty" in capsys.readouterr().out


def test_complete_scores_what_is_complete_and_names_what_is_not(
    predictions: Path, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty folder and a missing mask are left out, in the output, in the metrics and in the report."""
    shutil.rmtree(predictions / "b")
    (predictions / "b").mkdir()
    (predictions / "c/images/fetal-abdomen-segmentation/output.mha").unlink()
    output = tmp_path / "results"
    assert local(predictions, release, output, "--complete") == 0
    metrics, printed = read_metrics(output), capsys.readouterr().out
    assert [case["case"] for case in metrics["cases"]] == ["a"]
    assert metrics["wfss"]["mean"] == 1
    assert [case["case"] for case in metrics["cases_left_out"]] == ["b", "c"]
    report = (output / "report.html").read_text()
    for case in metrics["cases_left_out"]:
        assert f"left out: {case['reason']}" in printed
        assert f"<li>{case['reason']}</li>" in report
    (predictions / "a/fetal-abdomen-frame-number.json").unlink()
    assert local(predictions, release, output, "--complete") == 1
    assert "holds no complete prediction" in capsys.readouterr().err
    (predictions / "stranger").mkdir()
    (predictions / "stranger/file").touch()
    assert local(predictions, release, output, "--complete") == 1
    assert "case stranger is not one of" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--lenient", "--complete"])
def test_reasons_may_name_a_folder_that_is_no_utf8(
    predictions: Path, release: Path, tmp_path: Path, option: str
) -> None:
    """Why a case failed or was left out, escaped, in every file."""
    predictions = predictions.rename(tmp_path / os.fsdecode(b"F\xf6tus"))
    (predictions / "b/fetal-abdomen-frame-number.json").write_text("[")
    assert local(predictions, release, tmp_path / "results", option) == 0
    metrics = read_metrics(tmp_path / "results")
    reason = metrics["cases"][1]["failure"] if option == "--lenient" else metrics["cases_left_out"][0]["reason"]
    assert "F\\udcf6tus/b/fetal-abdomen-frame-number.json is not JSON" in reason
    assert "F\\udcf6tus" in (tmp_path / "results/report.html").read_text()


@pytest.mark.parametrize("wrong", ["no release", "a damaged mask"])
def test_a_run_that_fails_leaves_no_figures_of_another(
    predictions: Path, release: Path, tmp_path: Path, wrong: str
) -> None:
    """Results of an earlier run would be taken for those of the one that failed."""
    output = tmp_path / "results"
    assert local(predictions, release, output) == 0
    (output / "notes.txt").write_text("mine")
    if wrong == "no release":
        assert local(predictions, tmp_path / "nowhere", output) == 1
    else:
        (predictions / "a/images/fetal-abdomen-segmentation/output.mha").write_bytes(b"nonsense")
        assert local(predictions, release, output) == 1
    assert sorted(path.name for path in output.iterdir()) == ["ground_truth_index", "notes.txt"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_with_one_sentence(
    predictions: Path, release: Path, tmp_path: Path, repository: Path, number: signal.Signals
) -> None:
    """To all processes, as from a terminal, while the workers start: one sentence, no figures, nobody left."""
    folders = ("--predictions", predictions, "--raw", release, "--output", tmp_path / "results")
    command = [sys.executable, "-m", "evaluation", "local", *map(str, folders)]
    with subprocess.Popen(
        command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline().startswith("3 cases, ")
        os.killpg(run.pid, number)
        _, errors = run.communicate(timeout=60)
    assert run.returncode == 128 + number
    assert errors == ("stopped by a signal before the result was complete; nothing of an incomplete result was kept\n")
    assert not set(OUTPUT_FILES) & {path.name for path in tmp_path.glob("results/*")}


def test_results_that_cannot_all_be_written_are_not_kept(
    predictions: Path, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full at the second file leaves no first one."""

    def full(*_: object) -> None:
        assert (tmp_path / "results/per_case.csv").is_file()
        raise AcouslicError("no room")

    monkeypatch.setattr("evaluation.report.page.write_report", full)
    assert local(predictions, release, tmp_path / "results") == 1
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["ground_truth_index"]


def test_what_a_run_says_of_itself_and_its_sets(predictions: Path, release: Path, tmp_path: Path) -> None:
    """`suitable`, interval and confidence are read beside the outputs; a table names the set of each case."""
    for case, suitable, probability in (("a", True, 0.9), ("b", False, 0.2), ("c", True, 0.8)):
        judgement = {"schema_version": 1, "suitable": suitable, "interval_mm": [19.0, 21.0] if suitable else None}
        write_json(predictions / case / "fetal-abdominal-circumference.json", judgement)
        path = predictions / case / "frame-quality-scores.json"
        scores = json.loads(path.read_text())
        write_json(path, scores | {"presence_alone_probability": [probability] * len(scores["presence_probability"])})
    (predictions / "b/fetal-abdomen-frame-number.json").write_text("60")
    (tmp_path / "sets.csv").write_text("case,set\na,home\nb,away\nc,home\nz,away\n")
    output = tmp_path / "results"
    assert local(predictions, release, output, "--sets", str(tmp_path / "sets.csv")) == 0
    metrics = read_metrics(output)
    own = metrics["suitability"]
    assert (own["cases_judged"], own["cases_suitable"], own["interval_cases"], own["interval_coverage"]) == (3, 2, 2, 1)
    assert own["coverage"] == pytest.approx(2 / 3)
    assert own["mean_score_of_suitable"] > own["mean_score"]
    away, home = metrics["sets"]
    assert (away["set"], away["cases"], home["set"], home["cases"]) == ("away", 1, "home", 2)
    assert (away["share_suitable"], home["share_suitable"]) == (0, 1)
    assert home["mean_wfss"] == home["f1"] == 1
    report = (output / "report.html").read_text()
    assert "It calls 2 of 3 cases suitable" in report
    assert '<svg class="plot risk"' in report
    assert ">By set, presence over all frames<" in report


@pytest.mark.parametrize(
    ("judgement", "message"),
    [
        ("[]", "must be an object with schema_version 1"),
        ('{"schema_version": 1, "suitable": 1}', "suitable must be true or false, not 1"),
        ('{"schema_version": 1, "suitable": true, "interval_mm": [3]}', "must be two lengths in mm or null"),
        ('{"schema_version": 1, "suitable": true, "interval_mm": [3, true]}', "must be two lengths in mm or null"),
        ('{"schema_version": 1, "suitable": true, "interval_mm": [3, 2]}', "must be in ascending order"),
    ],
)
def test_a_damaged_judgement_is_refused(
    predictions: Path, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], judgement: str, message: str
) -> None:
    """The file is a stranger's, like the others: the sentence names case and field."""
    (predictions / "b/fetal-abdominal-circumference.json").write_text(judgement)
    assert local(predictions, release, tmp_path / "results", "--workers", "1") == 1
    error = capsys.readouterr().err
    assert error.startswith("case b: ")
    assert message in error


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("case,site\na,x\n", "must have the columns case,set"),
        ("case,set\na,x\nb,x\n", "lacks case 'c'"),
        ("case,set\na,x\na,y\n", "line 3 names case 'a' again"),
        ("case,set\na,\n", "line 2 must have a case and a set"),
        ("case,set\na,x,y\n", "line 2 must have a case and a set"),
    ],
)
def test_a_wrong_table_of_sets_is_refused(
    predictions: Path, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], table: str, message: str
) -> None:
    """Before any case is scored, with the line."""
    (tmp_path / "sets.csv").write_text(table)
    assert local(predictions, release, tmp_path / "results", "--sets", str(tmp_path / "sets.csv")) == 1
    assert message in capsys.readouterr().err


def test_a_local_run_equals_the_containers(predictions: Path, release: Path, tmp_path: Path, challenge: Any) -> None:
    """The same case scores the same through both ways in."""
    challenge.add_truth("a", {50: 1})
    challenge.add_job("a", 50)
    expected = challenge.score()[0]
    assert local(predictions, release, tmp_path / "results") == 0
    found = read_metrics(tmp_path / "results")["cases"][0]
    assert {name: found[name] for name in CASE_METRICS} == expected.official


def test_commands_that_do_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Help for whoever asks, and for whoever mistypes."""
    assert main(["--help"]) == 0
    assert "pack" in capsys.readouterr().out
    assert main(["scroe"]) == 2
    assert "unknown command scroe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("message", "expected"),
    [("plain", "plain"), ("two\nlines", "two\\nlines"), ("\x1b[2J", "\\x1b[2J"), ("\udcff", "\\udcff"), ("é", "é")],
)
def test_messages_are_one_printable_line(message: str, expected: str) -> None:
    """Whatever a stranger's name puts into a message, the platform gets one line of valid text."""
    assert one_line(message) == expected
    assert len(one_line("x" * 10_000)) == 2000


@pytest.mark.parametrize("value", [{"a.b": 1}, {"a": float("nan")}, {"a": [{"b": float("inf")}]}, {5: 1}])
def test_metrics_are_checked_before_they_are_written(value: Any) -> None:
    """A key with a dot or a number that is not finite never reaches the leaderboard."""
    with pytest.raises(ValueError, match="metrics"):
        check_metrics(value)


def test_a_case_that_failed_before_is_scored_without_its_files(challenge: Any) -> None:
    """The worst scores need the reference alone."""
    challenge.add_truth("a", {50: 1})
    source = find_official(challenge.ground_truth_dir)["a"]
    result = evaluate_case(CaseTask(source, None, "case a: gone", True, None))
    assert (result.failure, result.frame_number, result.score) == ("case a: gone", -1, 0)
    assert result.presence_probability is None
