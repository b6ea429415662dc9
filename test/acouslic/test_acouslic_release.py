"""The raw release: its table of circumferences and its folders."""

from pathlib import Path

import pytest

from acouslic.errors import AcouslicError
from acouslic.release import CaseCircumferences, Release, read_circumferences, write_circumferences

HEADER = "uuid,subject_id,sweep_1_ac_mm,sweep_2_ac_mm,sweep_3_ac_mm,sweep_4_ac_mm,sweep_5_ac_mm,sweep_6_ac_mm"
CASES = [
    CaseCircumferences("b", "007", (280.1234567890123, None, None, 300.0, None, None)),
    CaseCircumferences("a", "007", (None,) * 6),
]


def test_table_is_read_back_as_written(tmp_path: Path) -> None:
    """Order, leading zeros of subjects, empty sweeps and every digit survive."""
    path = tmp_path / "table.csv"

    write_circumferences(path, CASES)

    assert list(read_circumferences(path).items()) == [("b", CASES[0]), ("a", CASES[1])]


def test_released_table_has_its_published_numbers(shared: Path) -> None:
    """300 cases of 281 subjects with 237/135/90/31/47/13 values a sweep."""
    cases = read_circumferences(shared / "data/acouslic/fetal_abdominal_circumferences_per_sweep.csv")

    assert len(cases) == 300
    assert len({case.subject_id for case in cases.values()}) == 281
    values = zip(*(case.sweep_ac_mm for case in cases.values()), strict=True)
    assert [sum(value is not None for value in sweep) for sweep in values] == [237, 135, 90, 31, 47, 13]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "column uuid is missing"),
        (HEADER.replace("sweep_6_ac_mm", "sweep_7_ac_mm"), "column sweep_6_ac_mm is missing"),
        (f"{HEADER}\na,1,1,,,,,\na,1,1,,,,,", "line 3: uuid a is there twice"),
        (f"{HEADER}\na,1,1,,,,", "line 2: expected 8 values"),
        (f"{HEADER}\na,1,1,,,,,,", "line 2: expected 8 values"),
        (f"{HEADER}\n,1,1,,,,,", "line 2: uuid"),
        (f"{HEADER}\na,1,1,,three,,,", "line 2, sweep_3_ac_mm: expected a circumference in mm, got 'three'"),
        (f"{HEADER}\na,1,1,,,,,-3", "line 2, sweep_6_ac_mm: expected a positive"),
        (f"{HEADER}\na,1,nan,,,,,", "line 2, sweep_1_ac_mm: expected a positive"),
        (f"{HEADER}\na,1,0,,,,,", "line 2, sweep_1_ac_mm: expected a positive"),
        (f'{HEADER}\na,1,"1,,,,,', "not a readable csv"),
    ],
)
def test_damaged_table_is_refused_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    """Each damage has its own sentence, with the file and the line."""
    path = tmp_path / "table.csv"
    path.write_text(text)

    with pytest.raises(AcouslicError, match=message) as caught:
        read_circumferences(path)
    assert str(path) in str(caught.value)


def test_missing_table_is_an_error(tmp_path: Path) -> None:
    """A folder that is not a release says which file is expected."""
    with pytest.raises(AcouslicError, match=r"per_sweep\.csv is missing: expected"):
        Release(tmp_path).cases()


def test_release_lists_cases_in_the_tables_order(tmp_path: Path) -> None:
    """The order is the table's; a case without its image or its mask is an error."""
    release = Release(tmp_path)
    write_circumferences(release.circumferences_path, CASES)
    for uuid in ("a", "b"):
        for path in (release.image_path(uuid), release.mask_path(uuid)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    assert release.cases() == ["b", "a"]

    release.mask_path("a").unlink()
    with pytest.raises(AcouslicError, match=r"a\.mha is missing"):
        release.cases()
