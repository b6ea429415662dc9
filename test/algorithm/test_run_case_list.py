"""What files and folders on the command line stand for: DICOM cases, folders of pictures, stacks of every kind."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from acouslic.errors import AcouslicError
from acouslic.sockets import FRAME_NUMBER_FILE, find_sweep_input
from acouslic.stack import open_stack
from algorithm.case_list import find_sweeps
from algorithm.result.outputs import RECORD_FILE
from algorithm.result.record import Maker, recorded_row, write_record
from algorithm.result.source import source_of
from algorithm.result.table import ResultRow
from test.acouslic.test_acouslic_dicom import SERIES, STUDY, dataset, pictures, saved


def _cases(path: Path) -> list[tuple[str, str]]:
    return [(sweep.path.name, sweep.case) for sweep in find_sweeps([path])]


def test_a_dicom_case_is_called_by_its_uid(tmp_path: Path) -> None:
    """The name of a file may be a patient's: the file's UID, the series', or the study's where it has several."""
    saved(dataset(pictures(), number=1), tmp_path / "Roe_Jane.dcm")
    assert _cases(tmp_path / "Roe_Jane.dcm") == [("Roe_Jane.dcm", "1.2.826.0.1.3680043.8.498.3.1")]
    saved(dataset(pictures(), number=2), tmp_path / "second")
    assert _cases(tmp_path) == [(tmp_path.name, SERIES)]
    saved(dataset(pictures(), number=3, SeriesInstanceUID=f"{SERIES}.5"), tmp_path / "third")
    assert _cases(tmp_path) == [(tmp_path.name, STUDY)]


def test_copies_of_a_dicom_file_are_told_without_their_names(tmp_path: Path) -> None:
    """They may be a patient's, and another name would not help; a name that a list gives is the user's to change."""
    paths = [saved(dataset(pictures(), number=1), tmp_path / f"DOE_JANE{end}.dcm") for end in ("", "_copy")]
    (tmp_path / "folder").mkdir()
    saved(dataset(pictures(), number=1), tmp_path / "folder" / "DOE_JANE")
    for given in (paths, [paths[0], tmp_path / "folder"]):
        with pytest.raises(AcouslicError) as caught:
            find_sweeps(given)
        assert str(caught.value).startswith(
            "2 of the stacks are copies or parts of one DICOM object, 1.2.826.0.1.3680043.8.498.3.1: keep one"
        )
        assert "JANE" not in str(caught.value)
    (tmp_path / "list.csv").write_text("path,case\nDOE_JANE.dcm,A\nfolder,A\n")
    with pytest.raises(AcouslicError, match=r"same folder 'A': .* rename all but one"):
        find_sweeps([tmp_path / "list.csv"])


def test_a_discs_table_of_contents_is_no_sweep(tmp_path: Path) -> None:
    """A `DICOMDIR` is DICOM without pixels: the files beside it are the case, and folders below are looked into."""
    (tmp_path / "series").mkdir()
    for folder in (tmp_path, tmp_path / "series"):
        (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    saved(dataset(pictures(), number=1), tmp_path / "series" / "IM000001")
    expected = [("series", "1.2.826.0.1.3680043.8.498.3.1")]
    assert _cases(tmp_path) == _cases(tmp_path / "series") == expected
    assert open_stack(tmp_path / "series").header.frames == len(pictures())


def test_a_dicom_file_that_may_not_be_read_gives_no_case_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused, alone and among others, instead of analysed under the name of the file or left out."""
    for number, name in enumerate(("Roe_Jane.dcm", "Roe_Jane_2.dcm"), start=1):
        saved(dataset(pictures(), number=number), tmp_path / name)
    opens = Path.open

    def deny(path: Path, *words: Any, **more: Any) -> Any:
        if path.name == "Roe_Jane_2.dcm":
            raise PermissionError(errno.EACCES, "Permission denied")
        return opens(path, *words, **more)

    monkeypatch.setattr(Path, "open", deny)
    for given in (tmp_path / "Roe_Jane_2.dcm", tmp_path):
        with pytest.raises(AcouslicError, match=r"Roe_Jane_2\.dcm could not be read: Permission denied"):
            find_sweeps([given])


def test_a_dicom_case_is_read_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without a suffix that may not be read could be one of its sweeps, or all there is; pictures could not."""
    for number, name in enumerate(("IM1", "IM2"), start=1):
        saved(dataset(pictures(), number=number), tmp_path / name)
    (tmp_path / "notes").touch()
    opens = Path.open

    def deny(path: Path, *words: Any, **more: Any) -> Any:
        if path.name in denied:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opens(path, *words, **more)

    monkeypatch.setattr(Path, "open", deny)
    denied = {"a.png"}
    (tmp_path / "a.png").touch()
    assert _cases(tmp_path) == [(tmp_path.name, SERIES)]
    denied = {"IM2"}
    for read in (lambda: find_sweeps([tmp_path]), lambda: open_stack(tmp_path)):
        with pytest.raises(AcouslicError, match=r"IM2 could not be read: Permission denied"):
            read()
    denied = {"IM3"}
    (tmp_path / "p2").mkdir()
    (tmp_path / "p2" / "IM3").touch()
    for given in (tmp_path, tmp_path / "p2"):
        with pytest.raises(AcouslicError, match=r"p2/IM3 could not be read: Permission denied"):
            find_sweeps([given])


def test_pictures_are_one_sweep_where_there_is_nothing_else(tmp_path: Path) -> None:
    """PNG in a folder are frames; beside stacks they are previews; JPEG are a case each; folders of folders go in."""
    for case in ("a", "b"):
        (tmp_path / case).mkdir()
        for number in range(3):
            cv2.imwrite(str(tmp_path / case / f"{number}.png"), np.zeros((20, 30), np.uint8))
    assert _cases(tmp_path / "a") == [("a", "a")]
    assert _cases(tmp_path) == [("a", "a"), ("b", "b")]
    (tmp_path / "a" / "x.nii.gz").touch()
    assert _cases(tmp_path / "a") == [("x.nii.gz", "x")]
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "one.jpg").touch()
    (tmp_path / "c" / "two.jpg").touch()
    assert _cases(tmp_path / "c") == [("one.jpg", "one"), ("two.jpg", "two")]


@pytest.mark.parametrize("own", ["overview.png", "a.mha", "a.jpg", "IM1"])
@pytest.mark.parametrize("inner", ["late/b.mha", "late/0.png", "late/IM2"])
def test_cases_beside_folders_of_cases_are_refused(tmp_path: Path, own: str, inner: str) -> None:
    """Whichever were taken, the others would be left out."""
    (tmp_path / "late").mkdir()
    for number, name in enumerate((own, inner), start=1):
        (tmp_path / name).touch() if "." in name else saved(dataset(pictures(), number=number), tmp_path / name)
    with pytest.raises(AcouslicError, match=r"holds sweeps or pictures of its own, and so does .*/late: give each"):
        find_sweeps([tmp_path])


@pytest.mark.parametrize("deep", ["p2/series1/b.mha", "p2/study/series1/IM1"])
@pytest.mark.parametrize("other", ["p1/a.mha", "a.mha", "p2/notes.txt"])
def test_a_case_that_lies_deeper_is_refused(tmp_path: Path, deep: str, other: str) -> None:
    """Beside others as alone; the folder to give instead is named."""
    for name in (other, deep):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    if deep.endswith("IM1"):
        saved(dataset(pictures(), number=1), tmp_path / deep)
    folder = (tmp_path / deep).parent
    with pytest.raises(AcouslicError, match=f"{folder} holds sweeps, but lies too deep .* such as {folder.parent} in"):
        find_sweeps([tmp_path])
    assert len(_cases(folder.parent)) == 1


def test_results_and_what_is_hidden_are_no_cases(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Results may lie in the folder of the stacks, of cases or of their folders; that no sweep is there is logged."""
    for name in ("a.mha", "p1/b.mha"):
        given = tmp_path / name
        given.parent.mkdir(exist_ok=True)
        given.touch()
        for folder in (tmp_path / "case", tmp_path / "out" / "case"):
            (folder / "images" / "mask").mkdir(parents=True, exist_ok=True)
            for part in (FRAME_NUMBER_FILE, "preview.png", "segmentation.dcm", "images/mask/output.mha"):
                (folder / part).touch()
        (tmp_path / ".hidden").mkdir(exist_ok=True)
        (tmp_path / ".hidden" / "c.mha").touch()
        assert _cases(tmp_path) == [(given.name, given.stem)]
        given.unlink()
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: 1 of the 2 folders in it hold no sweep and are left out"
    ]


def test_a_folder_may_hold_cases_of_every_layout(tmp_path: Path) -> None:
    """The platform's, the raw release's, DICOM and pictures."""
    names = ("a/images/stacked-fetal-ultrasound/1.mha", "b/images/stacked_fetal_ultrasound/2.mha", "c/0.png", "d/4.nii")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    assert [case for _, case in _cases(tmp_path)] == ["1", "2", "c", "4"]


def test_a_path_that_may_not_be_read_is_not_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two have different sentences."""
    with pytest.raises(AcouslicError, match="does not exist"):
        find_sweeps([tmp_path / "none.mha"])

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "stat", deny)
    with pytest.raises(AcouslicError, match=r"none\.mha could not be read: Permission denied"):
        find_sweeps([tmp_path / "none.mha"])


def test_a_pattern_that_matches_nothing_says_how_to_write_a_bracket(tmp_path: Path) -> None:
    """Those of a folder's own name are a pattern as well, unless they are written as one."""
    folder = tmp_path / "br[1]"
    folder.mkdir()
    (folder / "a.mha").touch()
    with pytest.raises(AcouslicError, match=r"does not exist, .* matches nothing: write a bracket of a name as \[\[\]"):
        find_sweeps([folder / "*.mha"])
    assert _cases(tmp_path / "br[[]1]" / "*.mha") == _cases(folder) == [("a.mha", "a")]
    with pytest.raises(AcouslicError, match="as a pattern it matches nothing: give sweep stacks"):
        find_sweeps([tmp_path / "*.mha"])


@pytest.mark.parametrize("name", ["x.nii.gz", "x.png", "x.dcm", "x.mp4"])
def test_the_platforms_socket_takes_its_own_kinds_alone(tmp_path: Path, name: str) -> None:
    """What people may have beside is not what the platform hands over."""
    folder = tmp_path / "images" / "stacked-fetal-ultrasound"
    folder.mkdir(parents=True)
    (folder / name).touch()
    with pytest.raises(AcouslicError, match=r"expected exactly one image \(\.mha, \.mhd, \.tif, \.tiff\)"):
        find_sweep_input(tmp_path)


def test_a_list_with_a_path_that_cannot_be_is_refused(tmp_path: Path) -> None:
    """A part of it is longer than any file system takes: one sentence that names the row."""
    (tmp_path / "list.csv").write_text(f"path\n{'x' * 300}.mha\n")
    with pytest.raises(AcouslicError, match=r"row 1 names .*(File name too long|does not exist)"):
        find_sweeps([tmp_path / "list.csv"])


def test_a_case_name_that_no_folder_can_have_is_refused(tmp_path: Path) -> None:
    """Before anything is analysed: 255 bytes fit, 256 do not, however few characters they are."""
    (tmp_path / "a.mha").touch()
    for name, fits in (("c" * 255, True), ("c" * 256, False), ("ü" * 128, False)):
        (tmp_path / "list.csv").write_text(f"path,case\na.mha,{name}\n", encoding="utf-8")
        if fits:
            assert _cases(tmp_path / "list.csv") == [("a.mha", name)]
        else:
            with pytest.raises(AcouslicError, match="which no folder can have"):
                find_sweeps([tmp_path / "list.csv"])


@pytest.mark.parametrize("header", ["path, case, gestational_age", "path ,case ,gestational_age "])
def test_a_list_may_have_spaces_beside_its_commas(header: str, tmp_path: Path) -> None:
    """As people write them: no column is left out for its space."""
    (tmp_path / "a.mha").touch()
    (tmp_path / "list.csv").write_text(f"{header}\na.mha, first, 28w3d\n")
    (found,) = find_sweeps([tmp_path / "list.csv"])
    assert (found.path, found.case, found.gestational_age) == (tmp_path / "a.mha", "first", "28w3d")


@pytest.mark.parametrize("column", ["gestational age", "Gestational_Age", "gestational-age"])
def test_a_column_that_is_spelt_otherwise_is_refused(column: str, tmp_path: Path) -> None:
    """An age must not be left out for a space or a capital; other columns may be called as they like."""
    (tmp_path / "a.mha").touch()
    (tmp_path / "list.csv").write_text(f"path,{column},Gestational age group\na.mha,28w3d,late\n")
    with pytest.raises(AcouslicError, match=f"the column '{column}' must be called 'gestational_age': rename it"):
        find_sweeps([tmp_path / "list.csv"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,case\na.mha,Doe,Jane\n", "row 1 has more cells than there are columns"),
        ("path,case,gestational_age\na.mha,a,28w3d,\nb.mha,b,28w3d,x\n", "row 2 has more cells than there are columns"),
        ("path,case, path\na.mha,a,b.mha\n", "has 2 columns 'path': keep one"),
        ("path,case\na.mha,A \nb.mha,A\n", "row 1 names the case 'A ', expected it without spaces around it: 'A'"),
    ],
)
def test_nothing_in_a_list_is_left_out_without_a_word(text: str, said: str, tmp_path: Path) -> None:
    """Cells beyond the columns, unless they are empty; columns of one name; spaces that tell two cases apart."""
    for name in ("a.mha", "b.mha"):
        (tmp_path / name).touch()
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(AcouslicError, match=said):
        find_sweeps([tmp_path / "list.csv"])


@pytest.mark.parametrize("stack", ["c1/images/stacked-fetal-ultrasound/a.mha", "c1/a.mha", "c1/f0.png", "c1/s/IM1"])
def test_a_row_may_name_the_case_of_a_folder(tmp_path: Path, stack: str) -> None:
    """Of every layout that is read without the name, and of a list; several cases cannot have one name."""
    (tmp_path / stack).parent.mkdir(parents=True)
    (tmp_path / stack).touch()
    if stack.endswith("IM1"):
        saved(dataset(pictures(), number=1), tmp_path / stack)
    (tmp_path / "inner.csv").write_text("path,gestational_age\nc1,28w3d\n")
    for name, age in (("c1", ""), ("inner.csv", "28w3d")):
        (tmp_path / "list.csv").write_text(f"path,case\n{name},P1\n")
        (sweep,) = find_sweeps([tmp_path / "list.csv"])
        assert (sweep.case, sweep.gestational_age) == ("P1", age)
        assert sweep.path == find_sweeps([tmp_path / "c1"])[0].path
    (tmp_path / "two").mkdir()
    for name in ("a.mha", "b.mha"):
        (tmp_path / "two" / name).touch()
    (tmp_path / "list.csv").write_text("path,case\ntwo,P1\n")
    with pytest.raises(AcouslicError, match=r"row 1 names one case, 'P1', but .*/two holds 2: give each a row"):
        find_sweeps([tmp_path / "list.csv"])


def test_a_list_that_names_itself_is_refused(tmp_path: Path) -> None:
    """At once, or by way of another list; a list may name others."""
    (tmp_path / "a.mha").touch()
    (tmp_path / "outer.csv").write_text("path\ninner.csv\n")
    (tmp_path / "inner.csv").write_text("path\na.mha\n")
    assert _cases(tmp_path / "outer.csv") == [("a.mha", "a")]
    for name in ("inner.csv", "outer.csv"):
        (tmp_path / "inner.csv").write_text(f"path\n{name}\n")
        with pytest.raises(AcouslicError, match=r"names itself, or a list that names it"):
            find_sweeps([tmp_path / "outer.csv"])


def test_ages_of_a_list_in_a_list_stay(tmp_path: Path) -> None:
    """An age that the outer list gives stands before them; where it gives none, theirs are kept."""
    (tmp_path / "a.mha").touch()
    (tmp_path / "inner.csv").write_text("path,gestational_age\na.mha,28w3d\n")
    for age, expected in (("", "28w3d"), ("30w", "30w0d")):
        (tmp_path / "outer.csv").write_text(f"path,gestational_age\ninner.csv,{age}\n")
        assert [sweep.gestational_age for sweep in find_sweeps([tmp_path / "outer.csv"])] == [expected]


def test_what_nobody_may_look_at_is_one_sentence(tmp_path: Path) -> None:
    """Python's own question whether something is a folder raises there: a folder that may not be entered, a link out of
    it, a case's folder of another user. A link that leads nowhere that can be looked at stands for them."""
    (tmp_path / "images").symlink_to("n" * 300)
    with pytest.raises(AcouslicError, match=r"/images could not be read: File name too long"):
        find_sweeps([tmp_path])
    with pytest.raises(AcouslicError, match=r"/images could not be read: File name too long"):
        open_stack(tmp_path / "images")
    assert source_of(tmp_path / "images")["size_bytes"] is None
    assert recorded_row(tmp_path / "images", tmp_path, Maker("1", "model", "hash", {})) is None


def test_a_record_covers_every_file_of_a_case(tmp_path: Path) -> None:
    """Pictures that are overwritten where they lie, pixels beside a header, one file a frame: a change is seen. What
    else is put into a folder of pictures is none of theirs."""
    folder, output = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    output.mkdir()
    (output / FRAME_NUMBER_FILE).touch()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(b"a picture")
    headers = {
        "a.mhd": "ElementDataFile = a.zraw\n",
        "b.mhd": "ElementDataFile = LIST\nb0.raw\nb1.raw\n",
        "c.mhd": "ElementDataFile = c%d.raw 0 1 1\n",
        "d.nhdr": "NRRD0004\ndata file: d.raw\n\n",
    }
    for name, text in headers.items():
        (tmp_path / name).write_text(text)
    maker, row = Maker("1", "model", "hash", {}), ResultRow("case")
    cases = {"pictures": "pictures/1.png", "a.mhd": "a.zraw", "b.mhd": "b1.raw", "c.mhd": "c1.raw", "d.nhdr": "d.raw"}
    for name, part in cases.items():
        path = tmp_path / name
        (tmp_path / part).write_bytes(b"pixels")
        write_record(output, source_of(path), maker, row)
        (folder / "results.csv").write_text(name)
        assert recorded_row(output, path, maker) == row
        os.utime(tmp_path / part, (1, 1))
        assert recorded_row(output, path, maker) is None, name


def test_a_record_holds_a_path_that_is_not_utf8(tmp_path: Path) -> None:
    """A folder that an old system named: its path stands escaped in the record, which knows the file again."""
    path = tmp_path / os.fsdecode(b"M\xfcller") / "x.mha"
    path.parent.mkdir()
    path.write_bytes(b"a stack")
    maker, row = Maker("1", "model", "hash", {}), ResultRow("case")
    write_record(tmp_path, source_of(path), maker, row)
    (tmp_path / FRAME_NUMBER_FILE).touch()
    assert json.loads((tmp_path / RECORD_FILE).read_text())["source"]["path"].endswith("M\\udcfcller/x.mha")
    assert recorded_row(tmp_path, path, maker) == row


def test_a_note_on_a_file_whose_name_is_not_utf8_can_be_written(tmp_path: Path, platform_case, speckle) -> None:
    """Notes go into results, which are UTF-8."""
    path = platform_case.write_sweep(speckle(4), spacing_mm=1.0).rename(tmp_path / os.fsdecode(b"M\xfcller.mha"))
    note = open_stack(path).header.spacing_note
    assert note is not None
    assert note.startswith("M\\udcfcller.mha states a pixel spacing")


def test_a_record_does_not_hold_the_name_of_a_dicom_file(tmp_path: Path) -> None:
    """It may be a patient's; the record still tells whether the file is the same."""
    path = saved(dataset(pictures()), tmp_path / "Roe_Jane.dcm")
    maker, row = Maker("1", "model", "hash", {}), ResultRow("case")
    write_record(tmp_path, source_of(path), maker, row)
    (tmp_path / FRAME_NUMBER_FILE).touch()

    assert "Roe" not in (tmp_path / RECORD_FILE).read_text()
    assert recorded_row(tmp_path, path, maker) == row
    assert recorded_row(tmp_path, path.rename(tmp_path / "other.dcm"), maker) is None
