"""Strangers' outputs: each is refused with one sentence that names the case and the cause; nothing is read outside."""

import json
import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from acouslic.errors import AcouslicError

SECRET_MM = 123.456789


@pytest.fixture
def phase(challenge: Any) -> Any:
    """Two cases, one of them good, one called `victim` that the tests spoil."""
    for case in ("good", "victim"):
        challenge.add_truth(case, {50: 1, 60: 2}, sweep_ac_mm=(SECRET_MM,))
        challenge.add_job(case, 50)
    return challenge


def refusal(phase: Any) -> str:
    """The sentence with which the submission is refused; one line, without a value of the reference."""
    with pytest.raises(AcouslicError) as caught:
        phase.score()
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert str(SECRET_MM)[:6] not in sentence
    assert len(sentence) < 2000
    return sentence


def victim(phase: Any) -> dict[str, Any]:
    """The job to spoil."""
    return next(job for job in phase.jobs if job["pk"] == "job-of-victim")


def mask_path(phase: Any) -> Path:
    """The mask to spoil."""
    return phase.output_of("victim") / "images/fetal-abdomen-segmentation/abc.mha"


def scores_path(phase: Any) -> Path:
    """The score file to spoil."""
    return phase.output_of("victim") / "frame-quality-scores.json"


def good_scores(phase: Any) -> dict[str, Any]:
    """A score file's content with nothing wrong."""
    return {
        "schema_version": 1,
        "frames": phase.frames,
        "thresholds": {"presence": 0.5, "optimality": 0.5},
        "presence_probability": [0.5] * phase.frames,
        "optimality_probability": None,
    }


def test_the_unspoilt_phase_scores(phase: Any) -> None:
    """What the other tests spoil is good."""
    scores_path(phase).write_text(json.dumps(good_scores(phase)))
    assert [result.official["wfss"] for result in phase.score()] == [1, 1]


@pytest.mark.parametrize(
    "pk", ["../job-of-good", "/etc", "..", ".", "", "a/b", "a\\b", "a\0b", "a\nb", "x" * 300, None, 7, ["pk"], "\ud800"]
)
def test_a_pk_that_is_no_folder_name(phase: Any, pk: Any) -> None:
    """A job's pk names one folder of the input, nothing else."""
    victim(phase)["pk"] = pk
    assert "victim: the job's pk" in refusal(phase)


@pytest.mark.parametrize(
    "path",
    [
        "../../job-of-good/output/images/fetal-abdomen-segmentation",
        "/etc",
        "images/../../x",
        "images//fetal",
        ".",
        "",
        "a\0b",
        "a\\b",
        "\x1b[2J",
        None,
        5,
        "x/" * 600,
    ],
)
@pytest.mark.parametrize("output", [0, 1])
def test_a_relative_path_that_leaves_the_job(phase: Any, path: Any, output: int) -> None:
    """A relative_path stays in the job's own folder, by its text already."""
    entry = victim(phase)["outputs"][output]
    entry["value"] = None
    entry["socket"]["relative_path"] = path
    assert re.search("victim: relative_path of fetal-abdomen-(segmentation|frame-number)", refusal(phase))


def link_mask_file(phase: Any, target: Path) -> None:
    """The mask itself is a link."""
    mask_path(phase).unlink()
    mask_path(phase).symlink_to(target)


def link_mask_folder(phase: Any, target: Path) -> None:
    """The mask's folder is a link."""
    folder = mask_path(phase).parent
    mask_path(phase).unlink()
    folder.rmdir()
    folder.symlink_to(target.parent)


def link_job(phase: Any, target: Path) -> None:
    """The job's folder is a link."""
    job = phase.input_dir / "job-of-victim"
    job.rename(phase.input_dir.parent / "moved")
    job.symlink_to(target.parents[3])


def link_number(phase: Any, target: Path) -> None:
    """The frame number's file is a link."""
    victim(phase)["outputs"][0]["value"] = None
    path = phase.output_of("victim") / "fetal-abdomen-frame-number.json"
    path.unlink()
    path.symlink_to(target.parents[2] / path.name)


def link_scores(phase: Any, target: Path) -> None:
    """The score file is a link."""
    scores_path(phase).symlink_to(target.parents[2] / scores_path(phase).name)


@pytest.mark.parametrize("link", [link_mask_file, link_mask_folder, link_job, link_number, link_scores])
@pytest.mark.parametrize("where", ["another job", "outside"])
def test_links_out_of_the_job(phase: Any, tmp_path: Path, link: Callable[..., None], where: str) -> None:
    """A link to another job's output or out of the input is refused, wherever it sits."""
    target = phase.output_of("good") / "images/fetal-abdomen-segmentation/abc.mha"
    (phase.output_of("good") / "frame-quality-scores.json").write_text(json.dumps(good_scores(phase)))
    if where == "outside":
        outside = tmp_path / "outside"
        (phase.input_dir / "job-of-good").rename(outside)
        target = outside / target.relative_to(phase.input_dir / "job-of-good")
        phase.jobs.pop(0)
        (phase.ground_truth_dir / "good").rename(tmp_path / "unused")
    assert target.is_file()
    link(phase, target)
    sentence = refusal(phase)
    assert "victim" in sentence
    assert "leads out of" in sentence


def test_links_in_a_circle(phase: Any) -> None:
    """A link to itself is an error, not a hang."""
    mask_path(phase).unlink()
    mask_path(phase).symlink_to(mask_path(phase).name)
    assert "victim" in refusal(phase)


@pytest.mark.parametrize("name", ["mask", "number", "scores"])
def test_a_pipe_is_not_waited_for(phase: Any, name: str) -> None:
    """A named pipe that nobody writes to would block a reader for ever."""
    victim(phase)["outputs"][0]["value"] = None
    number = phase.output_of("victim") / "fetal-abdomen-frame-number.json"
    path = {"mask": mask_path(phase), "number": number, "scores": scores_path(phase)}[name]
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    assert "victim" in (sentence := refusal(phase))
    assert "not a regular file" in sentence


NO_FRAME_NUMBERS = ["1" + "0" * 5000, "1" * 39, "150", "840", "-2", "3.0", "50.5", "1e300", "1e999", '"50"', '""',
                    "[50]", '{"value": 50}', "true", "NaN", "Infinity", "-Infinity"]  # fmt: skip


@pytest.mark.parametrize("text", NO_FRAME_NUMBERS, ids=[text[:10] for text in NO_FRAME_NUMBERS])
@pytest.mark.parametrize("in_file", [False, True])
def test_frame_numbers_that_are_none(phase: Any, text: str, in_file: bool) -> None:
    """A frame number is an integer from -1 to the last frame; 50.0, "50" and true are not."""
    victim(phase)["outputs"][0]["value"] = None if in_file else "HERE"
    if in_file:
        (phase.output_of("victim") / "fetal-abdomen-frame-number.json").write_text(text)
    content = json.dumps(phase.jobs).replace('"HERE"', text)
    phase.save = lambda: (phase.input_dir / "predictions.json").write_text(content)
    assert "victim" in (sentence := refusal(phase)) or (not in_file and "the list of jobs" in sentence)


@pytest.mark.parametrize("content", ["", "null", "nonsense", "50 50", "\xff", "[" * 100_000, "5" * 5000, " " * 5000])
def test_frame_number_files_that_are_no_number(phase: Any, content: str) -> None:
    """Empty, no JSON, not UTF-8, nested a hundred thousand times, too long."""
    victim(phase)["outputs"][0]["value"] = None
    (phase.output_of("victim") / "fetal-abdomen-frame-number.json").write_text(content, encoding="latin-1")
    assert "victim" in refusal(phase)


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]", "nonsense", "[1]", "[[]]", "[null]", '[{"inputs": 5}]', "[" * 100_000, '[{"a": NaN}]', "1" * 5000],
)
def test_predictions_that_are_no_list_of_jobs(phase: Any, content: str) -> None:
    """The list itself may be broken in any way."""
    path = phase.input_dir / "predictions.json"
    phase.save = lambda: path.write_text(content)
    assert "predictions.json" in refusal(phase)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" * 50, "0." + "1" * 50])
def test_numbers_that_are_none_anywhere(phase: Any, number: str) -> None:
    """Also where nobody looks at it, a number that is not finite or absurdly long makes the file no JSON."""
    victim(phase)["further"] = "HERE"
    content = json.dumps(phase.jobs).replace('"HERE"', number)
    phase.save = lambda: (phase.input_dir / "predictions.json").write_text(content)
    assert "the list of jobs" in refusal(phase)


def test_a_gigabyte_of_json_is_not_read(phase: Any) -> None:
    """1 GiB of predictions, frame number or scores is refused by its size, before a byte of it is read."""
    victim(phase)["outputs"][0]["value"] = None
    number = phase.output_of("victim") / "fetal-abdomen-frame-number.json"
    content = number.read_bytes()
    for path in (number, scores_path(phase), phase.input_dir / "predictions.json"):
        phase.save()
        with path.open("wb") as file:
            file.truncate(1 << 30)  # sparse: it takes no room on the disk
        if path.name == "predictions.json":
            phase.save = lambda: None
        assert "1,073,741,824 bytes" in refusal(phase)
        path.unlink()
        if path == number:
            path.write_bytes(content)


@pytest.mark.parametrize("status", ["Failed", "Cancelled", "Executing", "", None, 5])
def test_jobs_that_did_not_succeed(phase: Any, status: Any) -> None:
    """Only a succeeded job has an output to score."""
    victim(phase)["status"] = status
    assert "victim: its job did not succeed" in refusal(phase)


def test_duplicate_missing_and_unknown_cases(phase: Any) -> None:
    """Every case once: not twice, not none, no other."""
    jobs = list(phase.jobs)
    phase.jobs = [*jobs, jobs[1]]
    assert "case victim is there twice" in refusal(phase)
    phase.jobs = jobs[:1]
    assert "case victim is missing" in refusal(phase)
    phase.jobs = [*jobs]
    phase.add_job("stranger", 5)
    assert "case stranger is not one of the 2 cases" in refusal(phase)


@pytest.mark.parametrize(
    "name", ["../victim.mha", "a/victim.mha", "", "..", ".mha/", "\n", "\ud800.mha", None, 5, "x" * 999]
)
def test_case_names_that_are_no_name(phase: Any, name: Any) -> None:
    """The input image's name is text from outside too; the job is then named by its place."""
    victim(phase)["inputs"][0]["image"]["name"] = name
    assert "job 1 of predictions.json" in refusal(phase)


def test_sockets_that_are_missing_or_there_twice(phase: Any) -> None:
    """A job without one of its sockets, or with two of it, names the case and the socket."""
    outputs = victim(phase)["outputs"]
    victim(phase)["outputs"] = outputs[:1]
    assert "victim: expected one entry for fetal-abdomen-segmentation" in refusal(phase)
    victim(phase)["outputs"] = [*outputs, outputs[0]]
    assert "victim: expected one entry for fetal-abdomen-frame-number" in refusal(phase)
    victim(phase)["outputs"] = "none"
    assert "victim: outputs must be a list" in refusal(phase)


def wrong_masks(phase: Any) -> dict[str, Any]:
    """Images that are no mask of the case, by what is wrong with them."""
    good = phase.stack({50: phase.disc()})
    return {
        "two frames": good[:2],
        "ten thousand frames": np.zeros((10_000, phase.rows, phase.columns), np.uint8),
        "one frame fewer": good[:-1],
        "other rows": good[:, 1:],
        "other columns": good[:, :, 1:],
        "transposed": np.ascontiguousarray(good.transpose(2, 1, 0)),
        "2-D of another size": good[50, 1:],
        "value 2": good * 2,
        "value 255": good * 255,
        "value 2 in another frame": good + 2 * phase.stack({3: phase.disc()}),
        "int16": good.astype(np.int16),
        "uint16": good.astype(np.uint16),
        "float32": good.astype(np.float32),
        "float with NaN": np.full(good.shape, np.nan, np.float32),
        "4-D": good[None],
    }


WRONG_MASKS = [
    "two frames", "ten thousand frames", "one frame fewer", "other rows", "other columns", "transposed",
    "2-D of another size", "value 2", "value 255", "value 2 in another frame", "int16", "uint16", "float32",
    "float with NaN", "4-D",
]  # fmt: skip


@pytest.mark.parametrize("what", WRONG_MASKS)
def test_masks_of_wrong_shape_type_or_values(phase: Any, what: str) -> None:
    """Shape and type are read off the header; values are checked in every frame, as the official evaluator does."""
    masks = wrong_masks(phase)
    assert list(masks) == WRONG_MASKS
    phase.write_image(mask_path(phase), masks[what])
    sentence = refusal(phase)
    assert sentence.startswith("case victim: the mask")
    expected = {"value": "other values than 0 and 1", "int": "type", "uint": "type", "float": "type", "4-D": "channel"}
    assert (
        any(word in sentence for start, word in expected.items() if what.startswith(start)) or "frames of" in sentence
    )


def test_a_colour_image(phase: Any) -> None:
    """Three channels are no mask."""
    colour = SimpleITK.GetImageFromArray(np.zeros((4, phase.rows, phase.columns, 3), np.uint8), isVector=True)
    SimpleITK.WriteImage(colour, str(mask_path(phase)))
    assert "case victim: the mask" in refusal(phase)


@pytest.mark.parametrize("spacing", [0.3, 1.0, 28.0])
def test_masks_of_wrong_spacing(phase: Any, spacing: float) -> None:
    """The mask must have the input's spacing; 1 mm is what writers put that know nothing."""
    phase.write_image(mask_path(phase), phase.stack({50: phase.disc()}), spacing_mm=spacing)
    assert "case victim: the mask abc.mha must have the input's pixel spacing" in refusal(phase)


@pytest.mark.parametrize(
    "spacing", ["nan nan nan", "0 0 0", "-0.28 -0.28 1", "0.28", "x y z", "inf inf inf", "1e999 1 1"]
)
def test_spacings_that_are_none(phase: Any, spacing: str) -> None:
    """NaN, zero, negative, missing or no numbers."""
    rewrite_header(mask_path(phase), "ElementSpacing", spacing)
    assert "case victim: the mask" in refusal(phase)


def rewrite_header(path: Path, key: str, value: str) -> None:
    """Replace one line of a MetaImage's header, the pixels kept."""
    header, separator, pixels = path.read_bytes().partition(b"ElementDataFile = LOCAL\n")
    lines = (header + separator).decode("latin-1").splitlines()
    changed = [f"{key} = {value}" if line.startswith(f"{key} ") else line for line in lines]
    assert changed != lines
    path.write_bytes(("\n".join(changed) + "\n").encode("latin-1") + pixels)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DimSize", "60 40 0"),
        ("DimSize", "60 40 -150"),
        ("DimSize", "60 40 99999999999999999999"),
        ("DimSize", "9" * 5000 + " 40 150"),
        ("DimSize", "60 40"),
        ("NDims", "9" * 5000),
        ("NDims", "0"),
        ("ElementType", "MET_STRING"),
        ("ElementType", "\x1b[31m"),
        ("CompressedDataSize", "9" * 5000),
        ("CompressedDataSize", "-1"),
        ("CompressedData", "Maybe"),
        ("ElementDataFile", "/etc/passwd"),
        ("ElementDataFile", "../../../../job-of-good/output/images/fetal-abdomen-segmentation/abc.mha"),
        ("ElementDataFile", "abc.mha"),
        ("ElementDataFile", "LIST"),
        ("ElementDataFile", "other.raw"),
    ],
)
def test_headers_that_lie(phase: Any, key: str, value: str) -> None:
    """Impossible sizes and types, and pixels that lie in another file."""
    raw = phase.output_of("victim") / "images/fetal-abdomen-segmentation/other.raw"
    raw.write_bytes(phase.stack({50: phase.disc()}).tobytes())
    if key == "ElementDataFile":
        rewrite_header(mask_path(phase), "CompressedData", "False")
    rewrite_header(mask_path(phase), key, value)
    assert "case victim: the mask" in refusal(phase)


@pytest.mark.parametrize("inflated_bytes", [100_000_000, 10])
def test_compressed_data_that_inflates_to_more_or_less(phase: Any, inflated_bytes: int) -> None:
    """A bomb is not inflated past what the header announces; data that ends early is refused."""
    header = mask_path(phase).read_bytes().partition(b"ElementDataFile = LOCAL\n")
    pixels = zlib.compress(bytes(inflated_bytes), 9)
    mask_path(phase).write_bytes(header[0] + header[1] + pixels)
    rewrite_header(mask_path(phase), "CompressedDataSize", str(len(pixels)))
    assert "case victim: the mask cannot be read" in refusal(phase)


@pytest.mark.parametrize(
    "content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"\0" * 5000, b"ObjectType = Image\n" * 9]
)
@pytest.mark.parametrize("suffix", [".mha", ".tif"])
def test_masks_that_are_no_image(phase: Any, content: bytes, suffix: str) -> None:
    """A file with an image's name and other content."""
    mask_path(phase).unlink()
    mask_path(phase).with_suffix(suffix).write_bytes(content)
    assert "case victim: the mask cannot be read" in refusal(phase)


def test_a_truncated_mask(phase: Any) -> None:
    """Half a file."""
    content = mask_path(phase).read_bytes()
    mask_path(phase).write_bytes(content[: len(content) - 20])
    assert "case victim: the mask cannot be read" in refusal(phase)


def test_a_tiff_that_announces_a_huge_page(phase: Any) -> None:
    """Sizes of a TIFF are held against the case before its pages are decoded."""
    mask_path(phase).unlink()
    entries = [(256, 4, 1, 60_000), (257, 4, 1, 60_000), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
               (277, 3, 1, 1), (278, 4, 1, 60_000), (279, 4, 1, 100)]  # fmt: skip
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    content = b"II*\0" + struct.pack("<I", 8) + directory + b"\0" * 104
    mask_path(phase).with_suffix(".tif").write_bytes(content)
    assert "case victim: the mask" in refusal(phase)


@pytest.mark.parametrize("number", [0, 2])
def test_no_mask_or_two(phase: Any, number: int) -> None:
    """Exactly one image lies in the socket's folder."""
    mask_path(phase).unlink()
    for index in range(number):
        phase.write_image(mask_path(phase).with_name(f"{index}.mha"), phase.stack({}))
    assert "victim: images/fetal-abdomen-segmentation must hold exactly one image" in refusal(phase)


def test_a_mask_of_two_files(phase: Any) -> None:
    """A `.mhd` names a second file; the platform never gives one."""
    mask_path(phase).unlink()
    phase.write_image(mask_path(phase).with_suffix(".mhd"), phase.stack({}))
    assert "must hold exactly one image" in refusal(phase)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("presence_probability", [0.5] * 149),
        ("presence_probability", [0.5] * 151),
        ("presence_probability", []),
        ("presence_probability", None),
        ("presence_probability", "0.5"),
        ("presence_probability", [float("nan")] * 150),
        ("presence_probability", [float("inf")] * 150),
        ("presence_probability", [1.0001] * 150),
        ("presence_probability", [-0.1] * 150),
        ("presence_probability", ["0.5"] * 150),
        ("presence_probability", [True] * 150),
        ("presence_probability", [[0.5]] * 150),
        ("optimality_probability", [2] * 150),
        ("optimality_probability", {}),
        ("thresholds", None),
        ("thresholds", {}),
        ("thresholds", {"presence": "high", "optimality": 0.5}),
        ("frames", 151),
        ("frames", "150"),
        ("schema_version", 2),
    ],
)
def test_score_files_that_cannot_be_used(phase: Any, field: str, value: Any) -> None:
    """Wrong length, NaN, outside of [0, 1], wrong types: the run fails, nothing is clipped or filled in."""
    scores_path(phase).write_text(json.dumps(good_scores(phase) | {field: value}))
    assert "case victim" in refusal(phase)


@pytest.mark.parametrize("content", ["", "[]", "nonsense", "[" * 50_000, '{"a":' * 50_000, "\xff\xfe"])
def test_score_files_that_are_no_object(phase: Any, content: str) -> None:
    """Anything that is no JSON object."""
    scores_path(phase).write_text(content, encoding="latin-1")
    assert "case victim" in refusal(phase)


def test_nothing_but_the_input_is_written_or_read(phase: Any, tmp_path: Path) -> None:
    """Scoring in the container leaves input and ground truth as they were."""

    def listing() -> list[tuple[str, int, int]]:
        files = [*phase.input_dir.rglob("*"), *phase.ground_truth_dir.rglob("*")]
        return sorted((str(path.relative_to(tmp_path)), path.stat().st_size, path.stat().st_mtime_ns) for path in files)

    phase.save()
    before = listing()
    phase.save = lambda: None
    phase.score()
    assert listing() == before
