"""Splits: the published one to the case, folds by subject, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acouslic.errors import AcouslicError
from acouslic.release import CaseCircumferences, read_circumferences, write_circumferences
from training.__main__ import main as training_main
from training.fit import check_split_of_cache
from training.release.cache import Cache
from training.release.split import (
    PAPER_SEED,
    Split,
    check_split,
    main,
    read_split,
    split_as_paper,
    split_by_subject,
    write_split,
)


def make_rows(count: int, *, subjects: int | None = None) -> list[CaseCircumferences]:
    """Cases case-000, case-001, ...; every third has two sweeps with a value, the others one."""
    return [
        CaseCircumferences(
            f"case-{index:03d}",
            f"subject-{index % (subjects or count):03d}",
            (200.0 + index, 250.0 if index % 3 == 0 else None, None, None, None, None),
        )
        for index in range(count)
    ]


def write_runs(path: Path, rows: list[CaseCircumferences]) -> Path:
    """Runs of 4 suboptimal frames in sweep 1 of every case and 3 optimal ones in every second."""
    lines = ["filestem,has_opt,opt_seq,subopt_seq"]
    for index, row in enumerate(rows):
        lines.append(f'{row.uuid},{index % 2 == 0},"{[(50, 52)] if index % 2 == 0 else []}","[(46, 49)]"')
    path.write_text("\n".join(lines) + "\n")
    return path


def write_table(path: Path, rows: list[CaseCircumferences]) -> Path:
    """The table of circumferences."""
    write_circumferences(path, rows)
    return path


def test_the_paper_split_of_the_release_has_the_published_counts(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """210/30/60 cases, 375/61/117 sweeps, 52,500/8,540/16,380 frames, 4,402/739/1,464 positives; 6 test cases leak."""
    table = shared / "data/acouslic/fetal_abdominal_circumferences_per_sweep.csv"
    runs = shared / "data/acouslic/frame_label_runs.csv"
    out = tmp_path / "split.json"
    arguments = ["split", "--protocol", "paper", "--csv", str(table), "--runs", str(runs), "--out", str(out)]
    assert training_main(arguments) == 0
    printed = capsys.readouterr()
    counts = json.loads(printed.out)
    expected = {
        "cases": (210, 30, 60),
        "sweeps": (375, 61, 117),
        "frames": (52500, 8540, 16380),
        "positives": (4402, 739, 1464),
    }
    for name, values in expected.items():
        assert tuple(counts[part][name] for part in ("train", "validation", "test")) == values, name
    assert counts["shared_subject_cases"]["test"] == 6
    assert "6 test cases are of a subject who is also in an earlier part" in printed.err
    assert read_split(out).sha256() == counts["sha256"]


def test_subject_folds_of_the_release_share_no_subject_and_are_balanced(shared: Path) -> None:
    """Five folds of 300 cases with their 187 optimal ones spread evenly."""
    rows = read_circumferences(shared / "data/acouslic/fetal_abdominal_circumferences_per_sweep.csv")
    lines = (shared / "data/acouslic/frame_label_runs.csv").read_text().splitlines()[1:]
    optimal = {line.split(",")[0]: line.split(",")[1] == "True" for line in lines}
    split = split_by_subject(list(rows.values()), [optimal[uuid] for uuid in rows], folds=5, seed=1)
    assert not any(check_split(split, rows).values())
    for fold in split.parts.values():
        assert 55 <= len(fold) <= 65
        assert 35 <= sum(optimal[uuid] for uuid in fold) <= 40


@pytest.mark.parametrize("uuid", ["..", ".", "../escaped", "/tmp/escaped", "a/b", "a\0b"])
def test_an_id_names_no_other_folder(uuid: str, tmp_path: Path) -> None:
    """A cache removes and makes folders by it."""
    table = write_table(tmp_path / "table.csv", [replace(make_rows(1, subjects=1)[0], uuid=uuid)])
    with pytest.raises(AcouslicError, match=r"table\.csv, line 2: .* is no uuid"):
        read_circumferences(table)


def test_the_paper_split_of_made_up_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The permutation is numpy's with the published seed; counts are worked out by hand from the made-up runs."""
    rows = make_rows(30, subjects=29)
    table, runs = write_table(tmp_path / "table.csv", rows), write_runs(tmp_path / "runs.csv", rows)
    assert main(["--protocol", "paper", "--csv", str(table), "--runs", str(runs)]) == 0
    printed = capsys.readouterr()
    counts = json.loads(printed.out)
    order = np.random.default_rng(9872398152123123767126).permutation(30)
    for part, numbers in (("train", order[:21]), ("validation", order[21:24]), ("test", order[24:])):
        sweeps = sum(2 if number % 3 == 0 else 1 for number in numbers)
        optimal = sum(3 for number in numbers if number % 2 == 0)
        assert counts[part]["cases"] == len(numbers)
        assert counts[part]["sweeps"] == sweeps
        assert counts[part]["frames"] == 140 * sweeps
        assert counts[part]["positives"] == 4 * len(numbers) + optimal
        assert counts[part]["optimal"] == optimal
    # The first and the last case are of one subject; where they part is fixed by the published seed.
    part_of = {
        number: part for part, numbers in enumerate((order[:21], order[21:24], order[24:])) for number in numbers
    }
    assert part_of[0] != part_of[29]
    assert sum(counts["shared_subject_cases"].values()) == 1
    assert "1 " in printed.err


def test_the_order_of_the_table_decides_the_paper_split() -> None:
    """The same ids in another order give another split."""
    ids = [f"case-{index}" for index in range(40)]
    assert split_as_paper(ids).parts != split_as_paper(ids[::-1]).parts
    assert split_as_paper(ids) == split_as_paper(ids)
    assert split_as_paper(ids).seed == PAPER_SEED


@pytest.mark.parametrize("count", [0, 1, 6])
def test_too_few_cases_for_the_paper_split_are_refused(count: int) -> None:
    """A part without a case is an error, not an empty list."""
    with pytest.raises(AcouslicError, match="too few"):
        split_as_paper([f"case-{index}" for index in range(count)])


def test_without_runs_the_paper_split_has_no_positives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The split needs the table alone; what it cannot know is null. Nothing is said on stderr without a leak."""
    table = write_table(tmp_path / "table.csv", make_rows(20))
    assert main(["--protocol", "paper", "--csv", str(table)]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["test"] == {
        "cases": 4,
        "subjects": 4,
        "sweeps": json.loads(printed.out)["test"]["frames"] // 140,
        "frames": json.loads(printed.out)["test"]["frames"],
        "positives": None,
        "optimal": None,
        "suboptimal": None,
        "cases_with_optimal": None,
    }
    assert printed.err == ""


def test_subject_folds_keep_subjects_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """30 cases of 12 subjects in 3 folds, by command; members train on what they do not validate on."""
    rows = make_rows(30, subjects=12)
    table, runs = write_table(tmp_path / "table.csv", rows), write_runs(tmp_path / "runs.csv", rows)
    arguments = ["--protocol", "subject", "--csv", str(table), "--runs", str(runs), "--folds", "3"]
    out = tmp_path / "split.json"
    assert main([*arguments, "--seed", "5", "--out", str(out)]) == 0
    counts = json.loads(capsys.readouterr().out)
    split = read_split(out)
    assert split.members == 3
    assert list(split.parts) == ["fold_1", "fold_2", "fold_3"]
    assert counts["shared_subject_cases"] == {"fold_2": 0, "fold_3": 0}
    assert sum(counts[fold]["cases"] for fold in split.parts) == 30
    subject_of = {row.uuid: row.subject_id for row in rows}
    for member in range(3):
        train, validation = split.training_cases(member), split.validation_cases(member)
        assert sorted(train + validation) == sorted(subject_of)
        assert not {subject_of[uuid] for uuid in train} & {subject_of[uuid] for uuid in validation}
    assert split.test_cases() == ()
    assert main([*arguments, "--seed", "6"]) == 0
    assert json.loads(capsys.readouterr().out)["sha256"] != counts["sha256"]


def test_few_optimal_cases_are_said_and_spread_as_far_as_they_go(capsys: pytest.CaptureFixture[str]) -> None:
    """Two cases with an optimal frame in three folds: a warning, no failure."""
    rows = make_rows(12)
    split = split_by_subject(rows, [index < 2 for index in range(12)], folds=3, seed=1)
    assert [len(fold) for fold in split.parts.values()] == [4, 4, 4]
    assert "folds differ" in capsys.readouterr().err
    assert split_by_subject(rows, [False] * 12, folds=3, seed=1).members == 3


def test_more_folds_than_subjects_are_refused() -> None:
    """Each fold needs a subject; what is said to do can be done."""
    for folds in (5, 1):
        with pytest.raises(AcouslicError, match=f"4 subjects cannot make {folds} folds; choose --folds of 2 to 4"):
            split_by_subject(make_rows(20, subjects=4), [True] * 20, folds=folds, seed=1)
    with pytest.raises(AcouslicError, match="two subjects at least: the table has 1"):
        split_by_subject(make_rows(3, subjects=1), [True] * 3, folds=2, seed=1)


def test_a_leak_by_subject_is_an_error_and_for_the_paper_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    """A made-up split that puts one subject on both sides."""
    rows = {row.uuid: row for row in make_rows(4, subjects=3)}
    halves = (("case-000", "case-001"), ("case-002", "case-003"))
    with pytest.raises(AcouslicError, match="1 cases of the split are of a subject who is also in another fold"):
        check_split(Split("subject", 1, {"fold_1": halves[0], "fold_2": halves[1]}), rows)
    parts = {"train": halves[0], "validation": halves[1][:1], "test": halves[1][1:]}
    assert check_split(Split("paper", PAPER_SEED, parts), rows) == {"validation": 0, "test": 1}
    assert "warning: 1 test cases are of a subject" in capsys.readouterr().err


def test_training_notices_a_leak_that_the_split_file_does_not_show(tiny_training: Any, tmp_path: Path) -> None:
    """Folds made from another table: the cache knows whose cases they are."""
    shutil.copytree(tiny_training.cache, tmp_path, dirs_exist_ok=True)
    cache = Cache(tmp_path)
    first, second, *_ = (case.uuid for case in cache.cases)
    split = Split("subject", 1, {"fold_1": (first,), "fold_2": (second,)})
    check_split_of_cache(split, cache)

    with pytest.raises(AcouslicError, match="holds no case nobody"):
        check_split_of_cache(replace(split, parts={"fold_1": (first,), "fold_2": ("nobody",)}), cache)
    for record in (tmp_path / "cases").glob("*/case.json"):
        record.write_text(json.dumps(json.loads(record.read_text()) | {"subject_id": "one for all"}))
    with pytest.raises(AcouslicError, match="1 cases of the split are of a subject who is also in another fold"):
        check_split_of_cache(split, Cache(tmp_path))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((("case-000", "case-001"), ("case-002", "case-009")), "case-009 is not in the table"),
        ((("case-000", "case-001"), ("case-002", "case-001")), "case-001 in more than one place"),
        ((("case-000", "case-001"), ("case-002",)), "case-003 of the table .* is in no part"),
    ],
)
def test_a_split_of_another_table_is_refused(parts: tuple[tuple[str, ...], ...], message: str) -> None:
    """Cases unknown, twice, or left out."""
    rows = {row.uuid: row for row in make_rows(4)}
    with pytest.raises(AcouslicError, match=message):
        check_split(Split("subject", 1, {"fold_1": parts[0], "fold_2": parts[1]}), rows)


def test_a_split_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    """Its hash is what an artifact will name."""
    split = split_as_paper([f"case-{index}" for index in range(10)])
    path = tmp_path / "split.json"
    write_split(path, split)
    assert read_split(path) == split
    path.write_text(path.read_text().replace("case-3", "case-33"))
    with pytest.raises(AcouslicError, match="was changed after it was written"):
        read_split(path)
    for text in ("{", "[]", '{"schema_version": 1}', '{"schema_version": 2, "protocol": "paper"}'):
        path.write_text(text)
        with pytest.raises(AcouslicError, match="split file"):
            read_split(path)
    with pytest.raises(AcouslicError, match="is missing"):
        read_split(tmp_path / "none.json")
    with pytest.raises(AcouslicError, match="fold 2 is not there"):
        Split("subject", 1, {"fold_1": ("a",)}).training_cases(1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("filestem,opt_seq\n", "column subopt_seq is missing"),
        ("filestem,opt_seq,subopt_seq\n", "no line for case case-000"),
        ('filestem,opt_seq,subopt_seq\ncase-000,"[(3, 9)","[]"\n', "expected runs such as"),
        ('filestem,opt_seq,subopt_seq\ncase-000,"[3]","[]"\n', "expected runs such as"),
        ('filestem,opt_seq,subopt_seq\ncase-000,"[(830, 840)]","[]"\n', "leave the frames"),
        ('filestem,opt_seq,subopt_seq\ncase-000,"[(9, 3)]","[]"\n', "leave the frames"),
    ],
)
def test_a_damaged_csv_of_runs_is_refused(tmp_path: Path, content: str, message: str) -> None:
    """Each with the file's name."""
    table = write_table(tmp_path / "table.csv", make_rows(20))
    (tmp_path / "runs.csv").write_text(content)
    with pytest.raises(AcouslicError, match=message):
        main(["--protocol", "paper", "--csv", str(table), "--runs", str(tmp_path / "runs.csv")])


def test_what_a_split_needs_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table without a column, a split by subject without labels, a seed that is none: the last line of stderr says
    so."""
    table = write_table(tmp_path / "table.csv", make_rows(20))
    assert training_main(["split", "--protocol", "subject", "--csv", str(table)]) == 1
    assert "give --runs or --cache" in capsys.readouterr().err
    for seed in ("-1", "4294967296"):
        assert training_main(["split", "--protocol", "subject", "--csv", str(table), "--seed", seed]) == 1
        assert f"--seed must be between 0 and 4294967295, not {seed}" in capsys.readouterr().err
    table.write_text(table.read_text().replace("sweep_4_ac_mm", "sweep_4"))
    assert training_main(["split", "--protocol", "paper", "--csv", str(table)]) == 1
    assert "column sweep_4_ac_mm is missing" in capsys.readouterr().err.splitlines()[-1]
