"""`predict`: many cases for people, and the picture of each."""

import csv
import dataclasses
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from acouslic.ellipse import Ellipse
from acouslic.errors import AcouslicError
from acouslic.interrupts import Interrupts
from acouslic.stack import StackHeader
from algorithm.case_list import find_sweeps
from algorithm.model.manifest import Thresholds
from algorithm.predict import PredictSettings, predict
from algorithm.result.outputs import CaseResult
from algorithm.result.preview import draw_preview
from algorithm.result.source import source_of, without_name
from algorithm.result.table import ResultRow


@pytest.fixture
def folder_of_stacks(platform_case, speckle, tmp_path):
    """Two good stacks, `a` and `c`, and a damaged one between them, `b`."""
    folder = tmp_path / "stacks"
    folder.mkdir()
    for seed, name in enumerate("abc"):
        shutil.move(platform_case.write_sweep(speckle(seed=seed)), folder / f"{name}.mha")
    content = (folder / "b.mha").read_bytes()
    (folder / "b.mha").write_bytes(content[:-100])
    return folder


def test_a_bad_case_does_not_stop_the_others(folder_of_stacks, tiny_model, run_algorithm, tmp_path):
    """Two good cases and a damaged one: results and pictures of two, a line of result each, exit code 1, a list."""
    output = tmp_path / "results"
    ended = run_algorithm("predict", folder_of_stacks, "--output", output, "--model", tiny_model, "--device", "cpu")
    assert ended.code == 1
    lines = ended.stderr.splitlines()
    assert lines[0].startswith("b: ")
    assert "b.mha" in lines[0]
    assert lines[-1].startswith("1 of 3 cases failed")
    assert lines[-1].endswith(": b")
    assert [line.split(":")[0] for line in ended.stdout.splitlines() if line[1:3] == ": "] == ["a", "b", "c"]
    assert '"event"' not in ended.stdout
    for case in "ac":
        names = {path.relative_to(output / case).as_posix() for path in (output / case).rglob("*") if path.is_file()}
        assert names == {
            "fetal-abdomen-frame-number.json",
            "fetal-abdominal-circumference.json",
            "frame-quality-scores.json",
            "images/fetal-abdomen-segmentation/output.mha",
            "preview.png",
            "report.html",
            "case.json",
        }
        picture = cv2.imread(str(output / case / "preview.png"))
        assert picture.shape[1] == 1000
    assert not (output / "b").exists()
    index = (output / "index.html").read_text()
    assert all(f'href="{case}/report.html"' in index for case in "ac")
    assert 'href="b/report.html"' not in index
    with (output / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["a", "b", "c"]
    assert [bool(row["error"]) for row in rows] == [False, True, False]
    assert rows[0]["suitable"] in ("true", "false")
    assert 0 <= int(rows[0]["frame_number"]) < 24


def test_pages_are_left_out_where_nobody_wants_them(folder_of_stacks, tiny_model, run_algorithm, tmp_path):
    """`--no-page`: the other files as ever, no page of the case and none of all cases."""
    output = tmp_path / "results"
    options = ["--output", output, "--model", tiny_model, "--device", "cpu", "--no-page"]
    assert run_algorithm("predict", folder_of_stacks / "a.mha", *options).code == 0
    assert (output / "a" / "preview.png").is_file()
    assert list(output.rglob("*.html")) == []


def test_resume_says_that_finished_cases_have_no_page(folder_of_stacks, tiny_model, run_algorithm, tmp_path):
    """They are not analysed again for it. With a page, or where none is wanted, nothing is said."""
    words = ["predict", folder_of_stacks / "a.mha", "--output", tmp_path / "results", "--model", tiny_model]
    assert run_algorithm(*words, "--no-page").code == 0
    assert "have no page" not in run_algorithm(*words, "--resume", "--no-page").stdout
    said = run_algorithm(*words, "--resume").stdout
    assert "1 of 1 cases are complete and are skipped" in said
    assert "1 of them have no page, as after --no-page: for one, do them again without --resume" in said
    assert run_algorithm(*words).code == 0
    assert "have no page" not in run_algorithm(*words, "--resume").stdout


def test_no_page_of_all_cases_stays_that_contradicts_the_table(folder_of_stacks, tiny_model, run_algorithm, tmp_path):
    """The page and the Parquet of an earlier run are gone after one that writes none, with other pixels."""
    output = tmp_path / "results"
    options = ["--output", output, "--model", tiny_model, "--device", "cpu"]
    run_algorithm("predict", folder_of_stacks / "a.mha", *options)
    assert (output / "index.html").exists()
    (output / "results.parquet").write_bytes(b"of an earlier run")
    run_algorithm("predict", folder_of_stacks / "a.mha", *options, "--no-page", "--spacing-mm", "0.3")
    assert sorted(path.name for path in output.iterdir()) == ["a", "results.csv"]


def test_the_page_and_the_preview_share_one_reading(folder_of_stacks, tiny_model, run_algorithm, tmp_path, monkeypatch):
    """Where a page is written the preview's frame comes from there, and it is the picture that it is without a page."""
    from algorithm.result import preview

    read, readings = preview._read_frame, []
    monkeypatch.setattr(preview, "_read_frame", lambda *words: (readings.append(words), read(*words))[1])
    pictures = []
    for name, more in (("with", ()), ("without", ("--no-page",))):
        run_algorithm("predict", folder_of_stacks / "a.mha", "--output", tmp_path / name, "--model", tiny_model, *more)
        pictures.append((len(readings), (tmp_path / name / "a" / "preview.png").read_bytes()))
    assert [count for count, _ in pictures] == [0, 1]
    assert pictures[0][1] == pictures[1][1]


def test_a_stack_that_changes_meanwhile_has_no_result(
    folder_of_stacks, tiny_model, run_algorithm, tmp_path, monkeypatch
):
    """Page and preview would show other frames than were judged."""
    from algorithm import predict as module

    stack, whole = folder_of_stacks / "a.mha", module.write_case_page

    def after_an_exchange(*words):
        shutil.copy(folder_of_stacks / "c.mha", stack)
        return whole(*words)

    monkeypatch.setattr(module, "write_case_page", after_an_exchange)
    ended = run_algorithm("predict", stack, "--output", tmp_path / "results", "--model", tiny_model)
    assert ended.code == 1
    assert f"{stack} was changed while it was analysed: analyse it again" in ended.stderr
    assert not (tmp_path / "results" / "a").exists()


def test_results_may_lie_in_a_folder_of_any_name(folder_of_stacks, tiny_model, run_algorithm, tmp_path):
    """Also in one that is not UTF-8; its page has the thumbnails."""
    output = tmp_path / "o\udcffut"
    run_algorithm("predict", folder_of_stacks / "a.mha", "--output", output, "--model", tiny_model)
    assert "data:image/jpeg;base64," in (output / "index.html").read_text()


def test_a_sentence_does_not_name_a_dicom_file(tmp_path):
    """Its name may be the patient's; that of another file helps to find it."""
    hidden, shown = tmp_path / "Roe_Jane.dcm", tmp_path / "x.mha"
    for path in (hidden, shown):
        path.write_bytes(bytes(128) + b"DICM")
    sentence = without_name(f"{hidden} does not exist; Roe_Jane.dcm is gone", hidden, source_of(hidden), "7")
    assert sentence == "the file of case 7 does not exist; the file of case 7 is gone"
    shown.write_bytes(b"ObjectType = Image")
    assert without_name(f"{shown} is cut off", shown, source_of(shown), "7") == f"{shown} is cut off"
    shown.unlink()
    assert without_name(f"{shown} is gone", shown, source_of(shown), "7") == f"{shown} is gone"


def test_a_name_is_hidden_where_it_is_named_and_nowhere_else(tmp_path):
    """A number, a word and a letter are parts of others; what is put in is not looked at again; what the case is called
    is no secret, but what it lies in may be."""
    damaged = "its frame 1 (counted from 0) of 10 is damaged at 1.2.3"
    for name, case in (("1", "1.2.3.1"), ("s", "s1"), ("DOE", "DOE.7")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "IM1").write_bytes(bytes(128) + b"DICM")
        hidden = without_name(f"{folder}/IM1 in {name}/IM1: {damaged}", folder, source_of(folder), case)
        assert hidden == f"the file of case {case}/IM1 in the file of case {case}/IM1: {damaged}"
    assert without_name(f"DOE. {damaged}", folder, source_of(folder), case) == f"the file of case DOE.7. {damaged}"
    for name in ("0", "frame", "s1"):
        source = {"path": "hash", "size_bytes": 1}
        sentence = "f0.png: expected one grey channel, got colour in frame 0 of case s10"
        assert without_name(f"{name}/{sentence}", Path(name), source, name) == f"{name}/{sentence}"
        inner = tmp_path / name
        assert without_name(f"{inner}/{sentence}", inner, source, name) == f"the file of case {name}/{sentence}"


def test_a_stack_is_known_however_its_path_is_spelled(folder_of_stacks, monkeypatch):
    """What was made of `stacks/a.mha` is not made again of `$PWD/stacks/a.mha`; sentences name it as given."""
    monkeypatch.chdir(folder_of_stacks.parent)
    given = Path("stacks/a.mha")
    assert source_of(given) == source_of(folder_of_stacks / "a.mha") == source_of(Path("stacks/../stacks/a.mha"))
    assert source_of(Path("stacks")) == source_of(folder_of_stacks)
    assert source_of(given)["path"] == str(folder_of_stacks / "a.mha")
    assert without_name(f"{given} is cut off", given, source_of(given), "7") == "stacks/a.mha is cut off"


def test_the_model_folder_is_the_environments_by_default(folder_of_stacks, tiny_model, run_algorithm, tmp_path):
    """One good file and no `--model`: MODEL_DIR's model, exit code 0, nothing on stderr, timings with `--verbose`."""
    ended = run_algorithm(
        "predict", folder_of_stacks / "a.mha", "--output", tmp_path / "out", "--verbose", MODEL_DIR=tiny_model
    )
    assert (ended.code, ended.stderr) == (0, "")
    assert '"event": "case done"' in ended.stdout


def test_two_cases_of_one_name_are_refused_before_anything_runs(folder_of_stacks, tiny_model, run_algorithm, tmp_path):
    """`a.mha` twice, in different folders: exit code 1, both paths named, no folder made."""
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(folder_of_stacks / "a.mha", other / "a.mha")
    ended = run_algorithm("predict", folder_of_stacks, other, "--output", tmp_path / "out", "--model", tiny_model)
    assert ended.code == 1
    assert str(folder_of_stacks / "a.mha") in ended.stderr
    assert str(other / "a.mha") in ended.stderr
    assert not (tmp_path / "out").exists()


def test_a_stack_given_twice_is_refused(folder_of_stacks):
    """By name and with its folder: there is nothing to rename."""
    with pytest.raises(AcouslicError, match=r"a\.mha is given twice"):
        find_sweeps([folder_of_stacks / "a.mha", folder_of_stacks])


@pytest.mark.parametrize("name", ["b\udcff.mha", "two\nlines.mha"])
def test_a_name_that_no_table_can_hold_is_refused(name, folder_of_stacks):
    """Bytes that are no UTF-8, and line ends, before anything runs, instead of in the middle of a batch."""
    (folder_of_stacks / "b.mha").rename(folder_of_stacks / name)
    with pytest.raises(AcouslicError, match="characters that cannot be written out: rename the file"):
        find_sweeps([folder_of_stacks])


def test_a_damaged_model_leaves_the_earlier_table(folder_of_stacks, tiny_model, run_algorithm, tmp_path):
    """A run that fails before it analyses anything takes nothing away and leaves nothing behind."""
    output, damaged = tmp_path / "results", tmp_path / "damaged"
    output.mkdir()
    (output / "results.csv").write_text("case,suitable\nearlier,true\n")
    shutil.copytree(tiny_model, damaged)
    (damaged / "tower.safetensors").write_bytes(b"no weights")
    for model in (damaged, tmp_path / "nowhere"):
        for folder in (output, tmp_path / "new"):
            ended = run_algorithm("predict", folder_of_stacks / "a.mha", "--output", folder, "--model", model)
            assert ended.code == 1
    assert [path.name for path in output.iterdir()] == ["results.csv"]
    assert (output / "results.csv").read_text() == "case,suitable\nearlier,true\n"
    assert not list(tmp_path.glob("new/*"))


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_is_stopped_while_the_model_loads_leaves_the_earlier_table(
    resume, folder_of_stacks, tiny_model, run_algorithm, tmp_path, monkeypatch
):
    """Nothing was analysed yet: the results of an earlier run are there as they were, and so are their table, with the
    row of the case that failed, and their page."""
    from algorithm.pipeline import Pipeline

    def stopped(*_, **__):
        raise KeyboardInterrupt

    output = tmp_path / "results"
    run_algorithm("predict", folder_of_stacks, "--output", output, "--model", tiny_model)
    earlier = {path: path.read_bytes() for path in (output / "results.csv", output / "index.html")}
    assert b"\nb," in earlier[output / "results.csv"]
    monkeypatch.setattr(Pipeline, "load", stopped)
    settings = PredictSettings(output_dir=output, model_dir=tiny_model, resume=resume)
    with pytest.raises(KeyboardInterrupt):
        predict([folder_of_stacks], settings, Interrupts())
    assert {path: path.read_bytes() for path in earlier} == earlier


def test_the_line_of_result_says_what_was_assumed():
    """A circumference from an assumed pixel size says so, in a suitable case too."""
    row = ResultRow("x", True, 3, 1, 0.9, 0.8, 250.0, 240.0, 260.0, 1.0, notes="0.28 mm is assumed")
    assert row.sentence() == (
        "x: frame 3 (sweep 1), circumference 250.0 mm (240.0 to 260.0), suitable: 0.28 mm is assumed, 1.0 s"
    )


def test_what_files_and_folders_stand_for(platform_case, speckle, folder_of_stacks, tmp_path):
    """A stack, a folder of stacks, the raw release, a case of the platform (named by its `inputs.json`)."""
    assert [sweep.case for sweep in find_sweeps([folder_of_stacks / "c.mha"])] == ["c"]
    assert [sweep.case for sweep in find_sweeps([folder_of_stacks])] == ["a", "b", "c"]
    release = tmp_path / "release"
    shutil.copytree(folder_of_stacks, release / "images" / "stacked_fetal_ultrasound")
    assert [sweep.case for sweep in find_sweeps([release])] == ["a", "b", "c"]
    platform_case.write_sweep(speckle(), case="uploaded.mha")
    (sweep,) = find_sweeps([platform_case.input_dir])
    assert (sweep.case, sweep.path.name) == ("uploaded", "f3a.mha")


def test_results_never_go_among_the_files_of_a_sweep(folder_of_stacks, tiny_model, run_algorithm, tmp_path):
    """A folder of pictures, or of the one stack that is called as the folder: refused before anything is written."""
    pictures = tmp_path / "s1"
    pictures.mkdir()
    cv2.imwrite(str(pictures / "0.png"), np.zeros((40, 60), np.uint8))
    alone = tmp_path / "a"
    alone.mkdir()
    shutil.copy(folder_of_stacks / "a.mha", alone)
    for folder in (pictures, alone):
        before = sorted(tmp_path.rglob("*"))
        ended = run_algorithm("predict", folder, "--output", tmp_path, "--model", tiny_model)
        assert ended.code == 1
        assert ended.stderr.count("\n") == 1
        assert f"would go into {folder}, among the files of the sweep" in ended.stderr
        assert sorted(tmp_path.rglob("*")) == before


def test_results_are_never_read_as_cases(folder_of_stacks, tiny_model, run_algorithm, tmp_path):
    """Not in a folder of case folders, where the next run would take that of a result for one of pictures; but a folder
    of stacks takes its results, and so does one beside the folders of cases."""
    inner = tmp_path / "D"
    for case, name in (("c1", "a"), ("c2", "c")):
        (inner / case).mkdir(parents=True)
        shutil.copy(folder_of_stacks / f"{name}.mha", inner / case)
    before = sorted(tmp_path.rglob("*"))
    ended = run_algorithm("predict", inner, "--output", tmp_path / "stacks" / ".." / "D", "--model", tiny_model)
    assert (ended.code, ended.stderr.count("\n")) == (1, 1)
    assert "each folder of which is read as a case, and the next run would read them too" in ended.stderr
    assert sorted(tmp_path.rglob("*")) == before
    (folder_of_stacks / "b.mha").unlink()
    for folder, output in ((folder_of_stacks, folder_of_stacks), (inner, inner / "out")):
        for _ in range(2):
            ended = run_algorithm("predict", folder, "--output", output, "--model", tiny_model, "--resume", "--no-page")
            assert (ended.code, ended.stderr) == (0, "")
        assert "2 of 2 cases are complete" in ended.stdout


def test_paths_that_hold_nothing(tmp_path):
    """A path that does not exist and a folder without stacks are named."""
    with pytest.raises(AcouslicError, match="does not exist"):
        find_sweeps([tmp_path / "nowhere"])
    with pytest.raises(AcouslicError, match="holds no sweep stack"):
        find_sweeps([tmp_path])


def result_to_draw(tmp_path, **changes):
    """A result of 840 frames of 60 x 80 with a mask and an ellipse in frame 317."""
    presence = np.exp(-(((np.arange(840) - 317) / 9.0) ** 2))
    y, x = np.ogrid[:60, :80]
    result = CaseResult(
        case="Fötus",
        header=StackHeader(tmp_path / "x.mha", 840, 60, 80, "MET_UCHAR", spacing_mm=(0.28, 0.28), spacing_note=None),
        frame_index=317,
        suitable=True,
        mask=((x - 40) / 20) ** 2 + ((y - 30) / 15) ** 2 <= 1,
        ellipse=Ellipse((40.0, 30.0), (20.0, 15.0), 0.0),
        circumference_mm=271.3,
        interval_mm=(264.0, 279.1),
        presence_probability=presence,
        presence_alone_probability=presence,
        optimality_probability=None,
        refined=np.ones(840, bool),
        thresholds=Thresholds(),
        notes=(),
    )
    return dataclasses.replace(result, **changes)


def test_the_picture_shows_frame_mask_ellipse_and_chart(tmp_path):
    """Orange dashes lie on the ellipse, nothing of it elsewhere in the frame; the chart marks frame 317's column."""
    frame = np.full((60, 80), 100, np.uint8)
    picture = draw_preview(result_to_draw(tmp_path), frame, 317)
    orange = (np.abs(picture.astype(int) - (80, 190, 255)) < 40).all(2)
    scale, top, left = 944 / 80, 118, 28
    rows, columns = np.nonzero(orange[top : top + round(60 * scale)])
    x, y = (columns - left + 0.5) / scale - 0.5, (rows + 0.5) / scale - 0.5
    distance = np.hypot((x - 40) / 20, (y - 30) / 15)
    assert len(rows) > 300
    assert np.abs(distance - 1).max() < 0.05
    marked = np.nonzero(orange[-100:].all(0) | (orange[-100:].sum(0) > 40))[0]
    assert abs(marked.mean() - (62 + 910 * 317.5 / 840)) < 3


@pytest.mark.parametrize("shape", [(60, 80), (80, 60), (562, 744), (2000, 300)])
def test_a_picture_without_a_frame_of_any_shape(shape, tmp_path):
    """No frame was chosen: the picture says so and has no outline; it stays 1000 pixels wide and readable in height."""
    nothing = {"frame_index": None, "suitable": False, "ellipse": None, "circumference_mm": None, "interval_mm": None}
    result = result_to_draw(tmp_path, mask=np.zeros(shape, bool), **nothing)
    picture = draw_preview(result, np.full(shape, 100, np.uint8), 317)
    assert picture.shape[1] == 1000
    assert picture.shape[0] < 1300
