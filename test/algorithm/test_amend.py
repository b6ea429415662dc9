"""`amend`: a measurement by hand beside the result that it corrects, checked strictly, whole or not at all."""

import hashlib
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import SimpleITK

from acouslic.ellipse import Ellipse, circumference_mm, draw_ellipse, fit_ellipse
from acouslic.errors import AcouslicError
from acouslic.fov import field_of_view
from acouslic.sockets import SEGMENTATION_FILE
from acouslic.stack import read_stack
from acouslic.write import write_mask_stack
from algorithm.amend import amend
from algorithm.result.growth import judge_growth, parse_age

ENDS = [[[12.0, 22.0], [48.0, 22.0]], [[30.0, 12.0], [30.0, 32.0]]]
"""An upright ellipse of semi-axes 18 and 10 pixels around (30, 22)."""


@pytest.fixture(scope="module")
def results(tmp_path_factory, tiny_model, repository):
    """A case as `predict` writes it, with an age and 0.5 mm."""
    folder = tmp_path_factory.mktemp("amend")
    pixels = np.random.default_rng(0).integers(1, 200, (150, 40, 60), dtype=np.uint8)
    image = SimpleITK.GetImageFromArray(pixels)
    image.SetSpacing((0.5, 0.5, 1.0))
    SimpleITK.WriteImage(image, str(folder / "x.mha"), True)
    command = [sys.executable, "-m", "algorithm", "predict", folder / "x.mha", "--output", folder]
    command += ["--model", tiny_model, "--device", "cpu", "--gestational-age", "14w2d", "--no-page"]
    subprocess.run(command, cwd=repository, check=True, stdout=subprocess.DEVNULL)
    return folder / "x"


@pytest.fixture
def case_dir(results, tmp_path):
    """A copy of it, to be amended."""
    return shutil.copytree(results, tmp_path / "x")


def correction(case_dir, **changes):
    """What the page saves for `ENDS` in frame 145, which is in sweep 2."""
    content = (case_dir / "fetal-abdominal-circumference.json").read_bytes()
    return {
        "schema_version": 1,
        "result_sha256": hashlib.sha256(content).hexdigest(),
        "frame_number": 145,
        "axis_ends_px": ENDS,
        "circumference_mm": round(circumference_mm(Ellipse((30, 22), (18, 10), 0), (0.5, 0.5)), 4),
        "reader": "A.B-1",
        "comment": "the heart was measured",
        "made_at": "2026-11-29T03:00:00.000Z",
    } | changes


def write(tmp_path, content):
    path = tmp_path / "correction.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_correction_is_taken_up_beside_the_original(case_dir, tmp_path, run_algorithm):
    """Frame, sweep, ellipse, circumference, centile, mask and who did it; the original keeps every byte."""
    before = everything(case_dir)
    original = json.loads((case_dir / "fetal-abdominal-circumference.json").read_text())
    ended = run_algorithm("amend", case_dir, write(tmp_path, correction(case_dir)))
    assert (ended.code, ended.stderr) == (0, "")
    folder = case_dir / "amended-1"
    assert str(folder) in ended.stdout
    assert {path: content for path, content in everything(case_dir).items() if folder not in path.parents} == before
    amended = json.loads((folder / "fetal-abdominal-circumference.json").read_text())
    expected_mm = circumference_mm(Ellipse((30, 22), (18, 10), 0), (0.5, 0.5))
    assert amended["circumference_mm"] == pytest.approx(expected_mm, abs=1e-9)
    assert (amended["frame_number"], amended["sweep"], amended["suitable"]) == (145, 2, True)
    assert amended["ellipse"] == {"centre_px": [30.0, 22.0], "semi_axes_px": [18.0, 10.0], "angle_degrees": 0.0}
    assert amended["interval_mm"] is None
    assert amended["growth"]["gestational_age"] == "14w2d"
    assert amended["growth"]["centile"] != original["growth"]["centile"]
    assert amended["notes"][0].startswith("measured by hand by A.B-1")
    assert set(amended) == set(original)
    stack = read_stack(folder / "images/fetal-abdomen-segmentation/output.mha")
    mask = draw_ellipse(Ellipse((30, 22), (18, 10), 0), 40, 60)
    assert np.array_equal(stack.frames[145] != 0, mask)
    assert stack.frames.sum() == mask.sum()
    fitted = fit_ellipse(mask, np.ones_like(mask))
    assert circumference_mm(fitted, (0.5, 0.5)) == pytest.approx(expected_mm, rel=0.02)
    amendment = json.loads((folder / "amendment.json").read_text())
    assert (amendment["reader"], amendment["comment"]) == ("A.B-1", "the heart was measured")
    changed = amendment["changed"]
    assert changed["circumference_mm"] == {"from": original["circumference_mm"], "to": amended["circumference_mm"]}
    assert changed["frame_number"]["from"] == original["frame_number"]


def test_a_second_correction_keeps_the_first(case_dir, tmp_path):
    """Each gets a folder of its own; the higher number is the later one."""
    first = amend(case_dir, write(tmp_path, correction(case_dir)))
    kept = everything(first)
    second = amend(case_dir, write(tmp_path, correction(case_dir, frame_number=7)))
    assert (first.name, second.name) == ("amended-1", "amended-2")
    assert everything(first) == kept
    assert json.loads((second / "fetal-abdomen-frame-number.json").read_text()) == 7


def test_two_corrections_at_once_both_land(case_dir, tmp_path):
    """Of two readers, each with a folder of its own in which everything is that reader's."""
    readers = ["A.B-1", "C.D-2", "E.F-3"]
    paths = []
    for number, reader in enumerate(readers):
        paths.append(tmp_path / f"{reader}.json")
        paths[-1].write_text(json.dumps(correction(case_dir, reader=reader, frame_number=140 + number)))
    with ThreadPoolExecutor(len(paths)) as pool:
        folders = list(pool.map(lambda path: amend(case_dir, path), paths))
    assert sorted(folder.name for folder in folders) == ["amended-1", "amended-2", "amended-3"]
    for number, folder in enumerate(folders):
        assert json.loads((folder / "amendment.json").read_text())["reader"] == readers[number]
        assert json.loads((folder / "fetal-abdomen-frame-number.json").read_text()) == 140 + number
        assert read_stack(folder / SEGMENTATION_FILE).frames[140 + number].any()


def test_what_the_correction_makes_void_goes(case_dir, tmp_path):
    """The model's error says nothing of a measurement by hand; a note of the centile is of the new one."""
    path = case_dir / "fetal-abdominal-circumference.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"circumference_error": 0.08}))
    folder = amend(case_dir, write(tmp_path, correction(case_dir)))
    amended = json.loads((folder / "fetal-abdominal-circumference.json").read_text())
    assert amended["circumference_error"] is None
    changed = json.loads((folder / "amendment.json").read_text())["changed"]
    assert changed["circumference_error"] == {"from": 0.08, "to": None}
    assert {"frame_number", "ellipse", "growth"} <= set(changed)
    age = parse_age(amended["growth"]["gestational_age"])
    assert amended["notes"][1:][: len(judge_growth(amended["circumference_mm"], None, age).notes)] == list(
        judge_growth(amended["circumference_mm"], None, age).notes
    )


def test_the_newest_amendment_has_the_highest_number(case_dir, tmp_path):
    """Also where somebody has removed an earlier one: the gap is not filled, since the highest number counts."""
    path = write(tmp_path, correction(case_dir))
    assert [amend(case_dir, path).name for _ in range(2)] == ["amended-1", "amended-2"]
    shutil.rmtree(case_dir / "amended-1")
    (case_dir / "amended-notes").mkdir()
    assert amend(case_dir, path).name == "amended-3"


def test_a_pixel_size_that_was_given_stays(case_dir, tmp_path):
    """A case of `--spacing-mm 1`, which nobody would believe of a file: the amended mask says 1 mm too."""
    path = case_dir / "fetal-abdominal-circumference.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"spacing_mm": [1.0, 1.0]}))
    write_mask_stack(case_dir / SEGMENTATION_FILE, np.zeros((40, 60), bool), None, 150, (1.0, 1.0))
    measured_mm = round(circumference_mm(Ellipse((30, 22), (18, 10), 0), (1.0, 1.0)), 4)

    folder = amend(case_dir, write(tmp_path, correction(case_dir, circumference_mm=measured_mm)))

    assert SimpleITK.ReadImage(str(folder / SEGMENTATION_FILE)).GetSpacing() == (1.0, 1.0, 1.0)
    amended = json.loads((folder / path.name).read_text())
    assert (amended["spacing_mm"], amended["circumference_mm"]) == ([1.0, 1.0], pytest.approx(measured_mm, abs=1e-4))


def test_the_official_evaluation_reads_an_amended_case(case_dir, tmp_path):
    """The folder is laid out as any case's."""
    from evaluation.inputs.predictions import read_local_prediction

    folder = amend(case_dir, write(tmp_path, correction(case_dir)))
    assert read_local_prediction(case_dir, folder.name).frame_number == 145


def test_the_official_evaluator_measures_an_ellipse_that_the_fan_cuts(case_dir, tmp_path):
    """Of the ellipse as it is drawn it finds none; of the mask that is written it finds one of this size."""
    ends = [[[0.0, 28.0], [20.0, 28.0]], [[10.0, 20.0], [10.0, 36.0]]]
    ellipse, fov = Ellipse((10, 28), (10, 8), 0), field_of_view(40, 60)
    assert fit_ellipse(draw_ellipse(ellipse, 40, 60), fov) is None
    measured_mm = round(circumference_mm(ellipse, (0.5, 0.5)), 4)
    content = correction(case_dir, axis_ends_px=ends, circumference_mm=measured_mm)
    folder = amend(case_dir, write(tmp_path, content))
    fitted = fit_ellipse(read_stack(folder / SEGMENTATION_FILE).frames[145], fov)
    assert circumference_mm(fitted, (0.5, 0.5)) == pytest.approx(measured_mm, rel=0.05)


TILTED = [[[12.0, 22.0], [48.0, 22.0]], [[28.0, 12.0], [32.0, 32.0]]]
APART = [[[12.0, 22.0], [48.0, 22.0]], [[32.0, 12.0], [32.0, 32.0]]]
TINY = [[[28.0, 22.0], [32.0, 22.0]], [[30.0, 20.0], [30.0, 24.0]]]
OUTSIDE = [[[512.0, 522.0], [548.0, 522.0]], [[530.0, 512.0], [530.0, 532.0]]]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema_version": 2}, "schema version 2"),
        ({"schema_version": "1"}, "Expected `int`"),
        ({"result_sha256": "0" * 64}, "made for another result"),
        ({"result_sha256": "x"}, "matching regex"),
        ({"frame_number": 150}, "names frame 150; the last is 149"),
        ({"frame_number": -1}, ">= 0"),
        ({"frame_number": 7.5}, "Expected `int`"),
        ({"axis_ends_px": ENDS[:1]}, "length 2"),
        ({"axis_ends_px": TILTED}, "do not cross at right angles"),
        ({"axis_ends_px": APART}, "do not cross at right angles"),
        ({"axis_ends_px": TINY}, "shorter axis has 4.0 pixels"),
        ({"axis_ends_px": OUTSIDE}, "lies outside the field of view"),
        ({"circumference_mm": 45.0}, "but its ellipse measures"),
        ({"circumference_mm": True}, "Expected `float`"),
        ({"reader": "Jane Doe"}, "matching regex"),
        ({"reader": "AB\n"}, "matching regex"),
        ({"reader": ""}, "matching regex"),
        ({"comment": "x" * 201}, "length <= 200"),
        ({"comment": "a\u001b[31m"}, "its time or its comment"),
        ({"made_at": "yesterday"}, "isoformat"),
        ({"made_at": "2026-11-29T03:00:00"}, "its time or its comment"),
        ({"patient": "Jane Doe"}, "unknown field `patient`"),
    ],
)
def test_what_the_page_does_not_save_is_refused(changes, reason, case_dir, tmp_path):
    """One sentence names what is wrong; the case's folder is as it was."""
    before = everything(case_dir)
    with pytest.raises(AcouslicError, match=reason) as refused:
        amend(case_dir, write(tmp_path, correction(case_dir, **changes)))
    assert "\n" not in str(refused.value)
    assert everything(case_dir) == before
    assert not list(case_dir.glob("*amended*"))


@pytest.mark.parametrize("content", ["", "{}", "[]", "nonsense", '{"schema_version": NaN}', "[" * 5000, " " * 30_000])
def test_a_file_that_is_no_correction_is_refused(content, case_dir, tmp_path):
    """Empty, another kind of JSON, none at all, nested without end, too long."""
    with pytest.raises(AcouslicError, match="is no correction"):
        amend(case_dir, write(tmp_path, content))


def test_missing_files_are_named(case_dir, tmp_path):
    """No correction; a folder that is no case's; a case without its scores."""
    with pytest.raises(AcouslicError, match=r"nowhere\.json could not be read"):
        amend(case_dir, tmp_path / "nowhere.json")
    made = write(tmp_path, correction(case_dir))
    with pytest.raises(AcouslicError, match="name the folder of the case that was corrected"):
        amend(tmp_path, made)
    (case_dir / "frame-quality-scores.json").unlink()
    with pytest.raises(AcouslicError, match=r"frame-quality-scores\.json is missing or damaged"):
        amend(case_dir, made)
    assert not list(case_dir.glob("*amended*"))


def test_a_failure_while_writing_leaves_nothing(case_dir, tmp_path, monkeypatch):
    """The disk is full when the last file is written: no folder, not even a hidden one."""

    def full(path, _):
        raise AcouslicError(f"{path} could not be written: No space left on device")

    monkeypatch.setattr("algorithm.amend.write_json", full)
    before = everything(case_dir)
    with pytest.raises(AcouslicError, match="No space left"):
        amend(case_dir, write(tmp_path, correction(case_dir)))
    assert everything(case_dir) == before
    assert not [path for path in case_dir.iterdir() if "amended" in path.name]
