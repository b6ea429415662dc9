"""What a circumference means: the centile by INTERGROWTH-21st, and the age that it suggests alone."""

import csv
import json
import shutil

import pytest

from acouslic.errors import AcouslicError
from algorithm.case_list import find_sweeps
from algorithm.result.growth import (
    GestationalAge,
    age_by_circumference,
    centile_words,
    judge_growth,
    parse_age,
    standard_mm,
    weeks_words,
)


@pytest.mark.parametrize(
    ("text", "days"), [("28w3d", 199), ("28w3", 199), ("28w", 196), ("28+3", 199), (" 9w0d ", 63), ("40w0d", 280)]
)
def test_an_age_is_read(text, days):
    """Weeks and days in the ways that people write them."""
    assert parse_age(text) == GestationalAge(days)


@pytest.mark.parametrize(
    "text", ["", "28", "28.5", "28w7d", "-3w1d", "28d", "w3d", "281w1d", "28w3dx", "28w+3", "٢٨w3d"]
)
def test_what_is_no_age_is_refused(text):
    """A bare number may mean weeks or days, and a week has seven days: one sentence says how to write it."""
    with pytest.raises(AcouslicError, match="is no gestational age: write weeks and days, such as 28w3d"):
        parse_age(text)


def test_an_age_that_no_pregnancy_reaches_is_refused():
    """82 weeks are 28, mistyped."""
    with pytest.raises(AcouslicError, match="not possible"):
        parse_age("82w3d")
    with pytest.raises(AcouslicError, match="below 45w0d"):
        parse_age("45w0d")
    assert str(parse_age("44w6d")) == "44w6d"


def test_the_equations_give_the_published_table(shared):
    """All 27 weeks, from three standard deviations below to three above, to 0.06 mm: the table is rounded to 0.1 mm,
    the coefficients to six digits. The largest difference is 0.055 mm."""
    with (shared / "data" / "intergrowth" / "fetal_ac_mm_by_week.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["weeks"]) for row in rows] == list(range(14, 41))
    for row in rows:
        mean_mm, deviation_mm = standard_mm(float(row["weeks"]))
        columns = ["sd3neg", "sd2neg", "sd1neg", "sd0", "sd1", "sd2", "sd3"]
        for step, column in enumerate(columns, start=-3):
            assert mean_mm + step * deviation_mm == pytest.approx(float(row[column]), abs=0.06)


def test_centiles_of_a_normal_distribution():
    """The median is the 50th centile; 1.2816 standard deviations below it lies the 10th; 1.8808 above it the 97th."""
    mean_mm, deviation_mm = standard_mm(199 / 7)
    age = parse_age("28w3d")
    interval_mm = (mean_mm - 1.2816 * deviation_mm, mean_mm + 1.8808 * deviation_mm)
    growth = judge_growth(mean_mm, interval_mm, age)
    assert growth.centile == pytest.approx(50)
    assert growth.centile_interval == pytest.approx((10, 97), abs=0.01)
    assert (growth.z_score, growth.expected_mm) == (pytest.approx(0), mean_mm)
    assert growth.notes == ()


@pytest.mark.parametrize(("text", "inside"), [("13w6d", False), ("14w0d", True), ("40w0d", True), ("40w1d", False)])
def test_outside_the_standard_there_is_no_number(text, inside):
    """From 14w0d to 40w0d a centile; a day before and a day after none, and the note says why."""
    growth = judge_growth(200.0, (190.0, 210.0), parse_age(text))
    assert (growth.centile is not None) is inside
    assert (growth.centile_interval is not None) is inside
    assert (growth.z_score is not None) is inside
    assert [f"{text} is outside the 14 to 40 weeks" in note for note in growth.notes] == [True] * (not inside)


def test_without_a_circumference_there_is_nothing_to_judge():
    """The age stays, as it was given."""
    growth = judge_growth(None, None, parse_age("28w3d"))
    assert (growth.centile, growth.age_by_circumference_weeks, growth.notes) == (None, None, ())
    assert str(growth.age) == "28w3d"


@pytest.mark.parametrize(
    ("centimetres", "weeks", "error_weeks"),
    [(10.0, 16.03, 1.66), (15.0, 20.245, 2.06), (23.0, 27.3634, 2.18), (26.1, 30.2457, 2.96), (35.3, 39.2069, 3.04)],
)
def test_the_age_that_a_circumference_suggests(centimetres, weeks, error_weeks):
    """8.14 + 0.753 AC + 0.0036 AC^2 worked by hand, with the error of its group; the paper's own table has 15.0 cm at
    20 weeks, 26.1 cm at 30 and 35.3 cm at 40, which the regression meets within a week."""
    suggested = age_by_circumference(10 * centimetres)
    assert suggested == (pytest.approx(weeks, abs=1e-3), error_weeks)


def test_a_circumference_outside_the_paper_suggests_no_age():
    """5 cm and 45 cm lie outside its 14 to 42 weeks; the note says so."""
    assert age_by_circumference(50) is None
    assert age_by_circumference(450) is None
    assert "suggests no age" in judge_growth(450, None, parse_age("39w0d")).notes[-1]


def test_numbers_in_words():
    """No centile is 0 or 100; the nearest day of an age."""
    words = [centile_words(value) for value in (0.4, 1, 2.2, 3, 11, 21.4, 50, 99, 99.4)]
    assert words[0] == "below the 1st centile"
    assert words[1:-1] == [f"{word} centile" for word in ("1st", "2nd", "3rd", "11th", "21st", "50th", "99th")]
    assert words[-1] == "above the 99th centile"
    assert weeks_words(27.999) == "28w0d"


def test_predict_says_it_in_json_table_and_line(platform_case, speckle, tiny_model, run_algorithm, tmp_path):
    """`--gestational-age 28w3d`: the numbers of the JSON are those of the table and of the line of result; without
    the option there are none. A case of 60 mm is too small for any age by Hadlock, and a note says so."""
    path = platform_case.write_sweep(speckle(columns=120, rows=90), spacing_mm=1.9)
    options = ["predict", path, "--model", tiny_model, "--device", "cpu", "--output"]
    ended = run_algorithm(*options, tmp_path / "with", "--gestational-age", "28w3d")
    assert ended.code == 0, ended.stderr
    (measured,) = (tmp_path / "with").glob("*/fetal-abdominal-circumference.json")
    content = json.loads(measured.read_text())
    growth = content["growth"]
    assert (growth["gestational_age"], growth["gestational_age_days"]) == ("28w3d", 199)
    assert growth["not_a_diagnosis"] is True
    with (tmp_path / "with" / "results.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["gestational_age"] == "28w3d"
    expected = judge_growth(content["circumference_mm"], tuple(content["interval_mm"]), parse_age("28w3d"))
    assert growth["centile"] == pytest.approx(expected.centile, abs=0.01)
    assert float(row["centile"]) == pytest.approx(expected.centile, abs=0.1)
    assert f"{centile_words(expected.centile)} at 28w3d" in ended.stdout
    assert growth["age_by_circumference_alone"]["weak"] is True
    assert float(row["age_by_circumference_weeks"]) == pytest.approx(expected.age_by_circumference_weeks, abs=0.1)

    ended = run_algorithm(*options, tmp_path / "without")
    (measured,) = (tmp_path / "without").glob("*/fetal-abdominal-circumference.json")
    assert json.loads(measured.read_text())["growth"] is None
    assert "centile" not in ended.stdout


def test_a_wrong_age_stops_predict_before_it_begins(run_algorithm, tmp_path, capsys):
    """The usage error of a command line: exit code 2 and how an age is written."""
    with pytest.raises(SystemExit) as stopped:
        run_algorithm("predict", tmp_path, "--output", tmp_path / "out", "--gestational-age", "28.5")
    assert stopped.value.code == 2
    assert "write weeks and days, such as 28w3d" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_list_gives_each_case_its_age(platform_case, speckle, tiny_model, run_algorithm, tmp_path):
    """A column `gestational_age`: it goes before the age of all; a changed one is analysed again by `--resume`."""
    shutil.move(platform_case.write_sweep(speckle(), spacing_mm=1.9), tmp_path / "a.mha")
    shutil.copy(tmp_path / "a.mha", tmp_path / "b.mha")
    table = tmp_path / "cases.csv"
    table.write_text("path,gestational_age\na.mha,30+1\nb.mha,\n")
    options = [table, "--output", tmp_path / "out", "--model", tiny_model, "--device", "cpu", "--no-page"]
    options += ["--gestational-age", "28w3d"]

    def ages():
        with (tmp_path / "out" / "results.csv").open(newline="") as file:
            return [row["gestational_age"] for row in csv.DictReader(file)]

    assert run_algorithm("predict", *options).code == 0
    assert ages() == ["30w1d", "28w3d"]
    table.write_text("path,gestational_age\na.mha,31w0d\nb.mha,\n")
    ended = run_algorithm("predict", *options, "--resume")
    assert "1 of 2 cases are complete and are skipped" in ended.stdout
    assert ages() == ["31w0d", "28w3d"]


def test_a_wrong_age_in_a_list_is_named_with_its_row(tmp_path):
    """Before anything is analysed."""
    (tmp_path / "a.mha").touch()
    (tmp_path / "cases.csv").write_text("path,gestational_age\na.mha,30.5\n")
    with pytest.raises(AcouslicError, match=r"cases\.csv: row 1: '30\.5' is no gestational age"):
        find_sweeps([tmp_path / "cases.csv"])
