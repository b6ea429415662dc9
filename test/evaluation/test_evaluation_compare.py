"""The paired comparison of two evaluated runs."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from acouslic.errors import AcouslicError
from acouslic.geometry import FRAMES_PER_CASE
from evaluation.compare import compare_runs, main, read_run
from evaluation.frames import main as judge_frames
from evaluation.metrics.case_result import CaseResult
from evaluation.metrics.frame_f1 import ConfusionCounts, case_counts
from evaluation.metrics.intervals import mean_interval, paired_f1_interval, units_of
from evaluation.outputs import write_outputs

Build = Callable[..., CaseResult]


def build_cases(make_case_result: Build, seed: int, noise: float, count: int = 12) -> list[CaseResult]:
    """The same references for every seed, other predictions."""
    references, predictions = np.random.default_rng(0), np.random.default_rng(seed)
    results = []
    for number in range(count):
        start = int(references.integers(0, 120))
        labels = np.zeros(FRAMES_PER_CASE, np.uint8)
        labels[start : start + 12] = 2
        presence = np.clip((labels > 0) * 0.8 + noise * predictions.random(FRAMES_PER_CASE), 0, 1)
        results.append(
            make_case_result(
                case=f"case {number:02}",
                subject_id=f"subject {number // 2}",
                labels=labels,
                frame_number=start + int(predictions.integers(0, 20)),
                annotated_sweeps=(True,) + (False,) * 5,
                presence_probability=presence,
                presence_threshold=0.5,
                official={
                    "wfss": float(predictions.integers(0, 2)),
                    "DiceCoefficientSoft": float(predictions.random()),
                    "nae_circumference": float(predictions.random() * 0.1),
                },
            )
        )
    return results


def write_run(folder: Path, results: Sequence[CaseResult]) -> Path:
    """A run as the evaluation writes it."""
    folder.mkdir()
    write_outputs(folder, results, {})
    return folder


def test_the_differences_are_those_of_the_cases(make_case_result: Build, tmp_path: Path) -> None:
    """Score, NAE and F1: B - A, with the paired interval over subjects."""
    first, second = build_cases(make_case_result, 1, noise=0.6), build_cases(make_case_result, 2, noise=0.55)
    run_a, run_b = read_run(write_run(tmp_path / "a", first)), read_run(write_run(tmp_path / "b", second))
    found = {item.name: item for item in compare_runs(run_a, run_b, resamples=100)}
    units = units_of([result.subject_id for result in first])
    counts_a, counts_b = (
        [case_counts(result, "presence", "own_threshold", "all_frames") or ConfusionCounts() for result in results]
        for results in (first, second)
    )
    item = found["frame_f1_all_frames"]
    f1 = paired_f1_interval(counts_a, counts_b, units)
    assert f1 is not None
    assert (item.difference, item.lower, item.upper) == pytest.approx((f1.estimate, f1.lower, f1.upper), abs=1e-12)
    assert item.value_a == pytest.approx(sum(counts_a, ConfusionCounts()).f1, abs=1e-12)
    gains = np.array([b.score - a.score for a, b in zip(first, second, strict=True)])
    item = found["score"]
    mean = mean_interval(gains, units, 100)
    assert mean is not None
    assert (item.difference, item.lower, item.upper) == pytest.approx((gains.mean(), mean.lower, mean.upper), abs=1e-12)
    assert (item.better, item.worse) == (int((gains > 0).sum()), int((gains < 0).sum()))
    nae = np.array(
        [b.official["nae_circumference"] - a.official["nae_circumference"] for a, b in zip(first, second, strict=True)]
    )
    assert found["nae_circumference"].better == int((nae < 0).sum())
    expected = ["score", "wfss", "DiceCoefficientSoft", "nae_circumference"]
    expected += ["frame_f1_annotated_sweeps", "frame_f1_all_frames"]
    expected += ["selection_f1_annotated_sweeps", "selection_f1_all_frames"]
    assert [name for name in found if not name.startswith("selection_optimal")] == expected


def test_a_run_does_not_differ_from_itself(make_case_result: Build, tmp_path: Path) -> None:
    """Every difference and its interval is exactly 0."""
    run = read_run(write_run(tmp_path / "a", build_cases(make_case_result, 1, noise=0.6)))
    for item in compare_runs(run, run):
        assert (item.difference, item.lower, item.upper) == (0, 0, 0), item.name
        assert (item.better or 0, item.worse or 0) == (0, 0)


def test_swapping_the_runs_turns_every_sign(make_case_result: Build, tmp_path: Path) -> None:
    """A against B is minus B against A, interval included."""
    run_a = read_run(write_run(tmp_path / "a", build_cases(make_case_result, 1, noise=0.6)))
    run_b = read_run(write_run(tmp_path / "b", build_cases(make_case_result, 2, noise=0.6)))
    for there, back in zip(compare_runs(run_a, run_b), compare_runs(run_b, run_a), strict=True):
        assert there.difference == pytest.approx(-back.difference, abs=1e-12)
        assert (there.lower, there.upper) == pytest.approx((-back.upper, -back.lower), abs=1e-12)
        assert (there.better, there.worse) == (back.worse, back.better)


def test_f1_is_over_the_cases_with_scores_in_both(make_case_result: Build, tmp_path: Path) -> None:
    """And its name says so; where one run has no scores at all it is left out."""
    first, second = build_cases(make_case_result, 1, noise=0.6), build_cases(make_case_result, 2, noise=0.6)
    partial = [replace(second[0], presence_probability=None), *second[1:]]
    bare = [replace(result, presence_probability=None) for result in second]
    run_a = read_run(write_run(tmp_path / "a", first))
    found = {item.name: item for item in compare_runs(run_a, read_run(write_run(tmp_path / "partial", partial)))}
    assert found["frame_f1_all_frames_of_scored_cases"].cases == 11
    assert "frame_f1_all_frames" not in found
    none = [item.name for item in compare_runs(run_a, read_run(write_run(tmp_path / "bare", bare)))]
    assert not any(name.startswith("frame_f1") for name in none)
    assert "selection_f1_all_frames" in none


def test_the_command_prints_a_table_and_json(make_case_result: Build, tmp_path: Path) -> None:
    """The last line is JSON with the same figures."""
    for name, seed in (("a", 1), ("b", 2)):
        write_run(tmp_path / name, build_cases(make_case_result, seed, noise=0.6))
    lines: list[str] = []
    main([str(tmp_path / "a"), str(tmp_path / "b"), "--resamples", "50"], say=lines.append)
    document = json.loads(lines[-1])
    assert (document["cases"], document["units"], document["resamples"]) == (12, 6, 50)
    score = document["differences"]["score"]
    assert score["difference"] == pytest.approx(score["b"] - score["a"])
    assert f"{score['difference']:+8.4f}" in lines[0]
    assert "annotated" in lines[0]


def test_other_cases_are_an_error_that_names_a_few(make_case_result: Build, tmp_path: Path) -> None:
    """At most five names and how many there are on each side."""
    results = build_cases(make_case_result, 1, noise=0.6)
    run_a = read_run(write_run(tmp_path / "a", results))
    run_b = read_run(write_run(tmp_path / "b", results[:4]))
    with pytest.raises(AcouslicError, match=r"8 only in .*a, 0 only in .*'case 04', .*'case 08', \.\.\.$"):
        compare_runs(run_a, run_b)
    with pytest.raises(AcouslicError, match="0 only in"):
        compare_runs(run_b, run_a)


def test_other_references_are_an_error(make_case_result: Build, tmp_path: Path) -> None:
    """Other labels or another subject under the same case name are not the same case."""
    results = build_cases(make_case_result, 1, noise=0.6)
    run = read_run(write_run(tmp_path / "a", results))
    labels = results[3].frame_labels.copy()
    labels[800] = 2
    moved = np.roll(results[3].frame_labels, 1)
    for name, changed in (
        ("moved", replace(results[3], frame_labels=moved)),
        ("labels", replace(results[3], frame_labels=labels)),
        ("sweeps", replace(results[3], annotated_sweeps=(True, True) + (False,) * 4)),
        ("subject", replace(results[3], subject_id="somebody else")),
        ("circumference", replace(results[3], reference_ac_mm=(results[3].reference_ac_mm or 250.0) + 1.0)),
    ):
        other = read_run(write_run(tmp_path / name, [*results[:3], changed, *results[4:]]))
        with pytest.raises(AcouslicError, match="'case 03' was scored against different references"):
            compare_runs(run, other)


def test_damaged_runs_are_refused(make_case_result: Build, tmp_path: Path) -> None:
    """Missing files, repeated cases, text for numbers, files of two runs: one sentence each."""
    results = build_cases(make_case_result, 1, noise=0.6)
    good = write_run(tmp_path / "good", results)
    text = (good / "per_case.csv").read_text()
    lines = text.splitlines()
    score = f"{results[0].score!r}"

    def refused(name: str, changed: str | None, metrics: str | None, message: str) -> None:
        folder = tmp_path / name
        shutil.copytree(good, folder)
        for file, content in (("per_case.csv", changed), ("metrics.json", metrics)):
            if content is None:
                (folder / file).unlink()
            else:
                (folder / file).write_text(content)
        with pytest.raises(AcouslicError, match=message):
            compare_runs(read_run(folder), read_run(good))

    metrics = (good / "metrics.json").read_text()
    refused("no csv", None, metrics, "per_case.csv is missing")
    refused("no metrics", text, None, "metrics.json is missing")
    refused("other metrics", text, '{"score": {"mean": 0.5}}', "evaluate the run again")
    refused("flat metrics", text, '{"score": "high"}', "evaluate the run again")
    refused("twice", "\n".join([*lines, lines[1]]), metrics, "'case 00' is there twice")
    refused("short row", "\n".join([*lines, "case 99,3"]), metrics, "row 14 does not fit the header")
    refused("long row", "\n".join([*lines, lines[1] + ",1"]), metrics, "does not fit the header")
    refused("empty", lines[0] + "\n", metrics, "has no cases")
    refused("text", text.replace(score, "high", 1), metrics, "case 00, score: expected a finite number, got 'high'")
    refused("nan", text.replace(score, "nan", 1), metrics, "expected a finite number")
    refused("no score", text.replace(score, "", 1), metrics, "'case 00' has no score")
    refused("no column", text.replace("all_frames_selection_tp", "x", 1), metrics, "column .*selection_tp is missing")
    refused("no case column", text.replace("case,", "name,", 1), metrics, "must have a column case")


def test_runs_of_frames_alone_are_refused_as_what_they_are(tmp_path: Path) -> None:
    """`evaluate frames` gives no score, and evaluating again would give none either."""
    rows = [f"a,{frame},{int(frame == 3)},{frame / 20}" for frame in range(12)]
    (tmp_path / "scores.csv").write_text("\n".join(["case,frame,label,presence", *rows]))
    judge_frames([str(tmp_path / "scores.csv"), "--output", str(tmp_path / "run")])
    with pytest.raises(AcouslicError, match=r"run has frames alone, .*: compare runs with masks"):
        read_run(tmp_path / "run")
