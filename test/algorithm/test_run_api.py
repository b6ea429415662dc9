"""The interface for Python programs: `from algorithm import Model`."""

import json
import subprocess
import sys

import numpy as np
import pytest

from acouslic.errors import AcouslicError


@pytest.fixture(scope="module")
def model(tiny_model):
    """The tiny model, loaded once."""
    from algorithm import Model

    return Model.load(tiny_model, device="cpu")


def test_a_file_gives_what_predict_gives(model, tiny_model, platform_case, speckle, run_algorithm, tmp_path):
    """Frame, measurement and every probability of `predict`, from the same file."""
    sweep = platform_case.write_sweep(speckle(), name="case.mha")
    output = tmp_path / "results"
    arguments = ("predict", sweep, "--output", output, "--model", tiny_model, "--device", "cpu")
    assert run_algorithm(*arguments).code == 0
    expected = json.loads((output / "case" / "fetal-abdominal-circumference.json").read_text())
    scores = json.loads((output / "case" / "frame-quality-scores.json").read_text())

    result = model.analyse(sweep)

    assert result.case == "case"
    assert result.frame_number == expected["frame_number"]
    assert result.circumference_mm == expected["circumference_mm"]
    assert result.suitable is expected["suitable"]
    assert list(result.notes) == expected["notes"]
    assert result.presence_probability.tolist() == pytest.approx(scores["presence_probability"], abs=1e-6)


def test_an_array_gives_what_its_file_gives(model, platform_case, speckle):
    """The same pixels and spacing, in memory or on disk, in any memory order, writable or not; the mask too."""
    frames = speckle()
    from_file = model.analyse(str(platform_case.write_sweep(frames, spacing_mm=0.3)))
    turned = np.asfortranarray(frames)
    turned.flags.writeable = False

    result = model.analyse(turned, spacing_mm=(0.3, 0.3), case="mine")

    assert result.case == "mine"
    assert (result.frame_index, result.circumference_mm) == (from_file.frame_index, from_file.circumference_mm)
    assert np.array_equal(result.presence_probability, from_file.presence_probability)
    assert np.array_equal(result.mask, from_file.mask)
    assert result.notes == from_file.notes


def test_an_array_without_spacing_is_noted(model, speckle):
    """0.28 mm is assumed, and the result says so."""
    result = model.analyse(speckle(4))

    assert result.header.spacing_mm == (0.28, 0.28)
    assert "0.28 mm is assumed" in " ".join(result.notes)


def test_a_given_spacing_stands_in_place_of_the_file_s(model, platform_case, speckle):
    """As `predict --spacing-mm`: of a file too, which may state none or another one; a note says where they differ."""
    sweep = platform_case.write_sweep(speckle(4), spacing_mm=0.3)

    result = model.analyse(sweep, spacing_mm=(0.5, 0.5))

    assert result.header.spacing_mm == (0.5, 0.5)
    assert "but 0.5 x 0.5 mm was given and is used" in result.notes[0]


def test_an_age_gives_the_centile(model, platform_case, speckle):
    """As `predict --gestational-age`: from a file and from an array; what is no age is refused."""
    frames = speckle()
    from_file = model.analyse(platform_case.write_sweep(frames), gestational_age="28w3d")
    from_array = model.analyse(frames, spacing_mm=(0.28, 0.28), gestational_age="28w3d")

    assert from_file.growth is not None
    assert from_file.growth.age.days == 28 * 7 + 3
    assert from_array.growth == from_file.growth
    assert model.analyse(frames).growth is None
    with pytest.raises(AcouslicError, match="no gestational age"):
        model.analyse(frames, gestational_age="soon")
    with pytest.raises(AcouslicError, match="gestational_age is 28; expected weeks and days as text"):
        model.analyse(frames, gestational_age=28)


def test_an_age_in_a_list_counts(model, platform_case, speckle, tmp_path):
    """As with `predict`: the age that a list gives its case, also where another one is given for all."""
    sweep = platform_case.write_sweep(speckle(4))
    cases = tmp_path / "cases.csv"
    cases.write_text(f"path,gestational_age\n{sweep},28w3d\n")

    assert model.analyse(cases).growth.age.days == 28 * 7 + 3
    assert model.analyse(cases, gestational_age="30w0d").growth.age.days == 28 * 7 + 3


def test_files_are_written_where_asked(model, platform_case, speckle, tmp_path):
    """With `output_dir` the four files of a result lie there, from a file and from an array; without, nothing does."""
    sweep = platform_case.write_sweep(speckle(4))
    before = sorted(tmp_path.rglob("*"))
    model.analyse(sweep)
    assert sorted(tmp_path.rglob("*")) == before

    model.analyse(sweep, output_dir=str(tmp_path / "of file"))
    model.analyse(speckle(4), output_dir=tmp_path / "of array")

    for folder in ("of file", "of array"):
        assert sorted(path.name for path in (tmp_path / folder).rglob("*") if path.is_file()) == [
            "fetal-abdomen-frame-number.json",
            "fetal-abdominal-circumference.json",
            "frame-quality-scores.json",
            "output.mha",
        ]


@pytest.mark.parametrize(
    ("sweep", "spacing_mm", "said"),
    [
        ("nowhere.mha", None, "nowhere.mha does not exist"),
        ("nowhere.mha", (0.3, 0.0), "expected two numbers from 0.01 to 5"),
        (
            np.zeros((2, 4, 4), np.float32),
            None,
            "float32 (2, 4, 4); expected an array of uint8 (frames, rows, columns)",
        ),
        (np.zeros((4, 4), np.uint8), None, "uint8 (4, 4); expected"),
        (np.zeros((0, 4, 4), np.uint8), None, "uint8 (0, 4, 4); expected"),
        ([[1]], None, "the sweep is list; expected"),
        (np.zeros((2, 4, 4), np.uint8), (0.3, 0.0), "expected two numbers from 0.01 to 5"),
        (np.zeros((2, 4, 4), np.uint8), (0.3, float("nan")), "expected two numbers from 0.01 to 5"),
        (np.zeros((2, 4, 4), np.uint8), (0.3,), "expected two numbers from 0.01 to 5"),
        (np.zeros((2, 4, 4), np.uint8), 0.28, "spacing_mm is 0.28; expected two numbers"),
        (np.zeros((2, 4, 4), np.uint8), (0.00028, 0.00028), "spacing_mm is (0.00028, 0.00028); expected two numbers"),
        (np.zeros((2, 4, 4), np.uint8), "11", "spacing_mm is '11'; expected two numbers"),
    ],
)
def test_what_cannot_be_analysed_is_refused_in_a_sentence(model, sweep, spacing_mm, said, tmp_path):
    """A missing file, another type, shape or spacing: AcouslicError says what was found; no file is written."""
    with pytest.raises(AcouslicError) as refusal:
        model.analyse(sweep, spacing_mm=spacing_mm, output_dir=tmp_path / "out")

    assert said in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_any_pixel_size_of_the_command_line_is_taken(model, speckle, tmp_path):
    """0.01 to 5 mm, and 1 mm, which stands for unknown only in a file; the files are written with it."""
    for spacing_mm in ((0.01, 0.01), (1, 1.0), np.array([5.0, 5.0], np.float32)):
        result = model.analyse(speckle(4), spacing_mm=spacing_mm, output_dir=tmp_path / "out")
        assert result.header.spacing_mm == tuple(map(float, spacing_mm))


def test_a_folder_of_several_sweeps_is_refused(model, platform_case, speckle):
    """One call analyses one sweep; a folder with one is that one."""
    platform_case.write_sweep(speckle(4), name="a.mha")
    assert model.analyse(platform_case.sweep_dir).case == "a"
    platform_case.write_sweep(speckle(4), name="b.mha")

    with pytest.raises(AcouslicError, match="holds 2 sweep stacks"):
        model.analyse(platform_case.sweep_dir)


def test_the_package_is_light_until_a_model_is_asked_for(repository):
    """`import algorithm` loads neither torch nor numpy; `Model` and `CaseResult` are there when they are used."""
    code = (
        "import sys, algorithm\nprint({'torch', 'numpy'} & set(sys.modules))\n"
        "print(algorithm.Model.__name__, algorithm.CaseResult.__name__, 'torch' in sys.modules)\n"
        "print(sorted(algorithm.__all__), hasattr(algorithm, 'Modell'))"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)

    assert ended.stdout.splitlines() == [
        "set()",
        "Model CaseResult True",
        "['AcouslicError', 'CaseResult', 'Model'] False",
    ]
