"""What a submission may look like: every form the platform gives, and what comes out for it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from acouslic.errors import AcouslicError
from evaluation.inputs.ground_truth import find_official
from evaluation.inputs.predictions import read_platform_predictions


@pytest.fixture
def one_case(challenge: Any) -> Any:
    """One case whose frame 50 is optimal and chosen, with the reference's own mask."""
    challenge.add_truth("case-a", {50: 1, 60: 2}, sweep_ac_mm=(20.0, 21.0))
    challenge.add_job("case-a", 50)
    return challenge


def test_socket_interface_or_both(one_case: Any) -> None:
    """Old jobs say `interface`, new ones `socket`, those between both: all mean the same."""
    expected = one_case.score()[0].official
    entries = one_case.jobs[0]["inputs"] + one_case.jobs[0]["outputs"]
    for entry in entries:
        entry["interface"] = entry["socket"]
    assert one_case.score()[0].official == expected
    for entry in entries:
        del entry["socket"]
    assert one_case.score()[0].official == expected
    assert expected["DiceCoefficientSoft"] == expected["wfss"] == 1


def test_a_null_value_is_read_from_its_file(one_case: Any) -> None:
    """The frame number's `value` may be null, or missing."""
    value = one_case.jobs[0]["outputs"][0]
    value["value"] = None
    assert one_case.score()[0].frame_number == 50
    del value["value"]
    assert one_case.score()[0].frame_number == 50


def test_cases_are_matched_by_name_in_any_order(challenge: Any) -> None:
    """Jobs come in any order, with pks that say nothing; each is scored against its own reference, sorted by case."""
    for number, case in enumerate(("b", "a", "c.1")):
        challenge.add_truth(case, {10 * number: 1})
        challenge.add_job(case, 10 * number)
    challenge.jobs.reverse()
    challenge.jobs[0]["inputs"][0]["image"]["name"] = "c.1.TIFF"
    challenge.jobs[1]["inputs"][0]["image"]["name"] = "a"
    results = challenge.score()
    assert [(result.case, result.frame_number) for result in results] == [("a", 10), ("b", 0), ("c.1", 20)]
    assert all(result.official["wfss"] == 1 for result in results)


@pytest.mark.parametrize("name", ["mask.mha", "mask.tif", "mask.tiff"])
@pytest.mark.parametrize("single", [False, True])
def test_mask_files(one_case: Any, name: str, single: bool) -> None:
    """MetaImage and TIFF, a whole stack or one 2-D image of the chosen frame, score alike."""
    folder = one_case.output_of("case-a") / "images/fetal-abdomen-segmentation"
    (folder / "abc.mha").unlink()
    stack = one_case.stack({50: one_case.disc()})
    pixels = stack[50] if single else stack
    if name.endswith("mha"):
        one_case.write_image(folder / name, pixels)
    else:
        tifffile.imwrite(folder / name, pixels, photometric="minisblack")
    assert one_case.score()[0].official["DiceCoefficient"] == 1


def test_a_single_2d_mask_without_a_frame_counts_as_none(one_case: Any) -> None:
    """-1 means no mask, whatever the image shows."""
    one_case.write_image(
        one_case.output_of("case-a") / "images/fetal-abdomen-segmentation/abc.mha", one_case.disc().astype(np.uint8)
    )
    one_case.jobs[0]["outputs"][0]["value"] = -1
    result = one_case.score()[0]
    assert result.official["wfss"] == result.official["DiceCoefficientSoft"] == 0
    assert result.undefined_overlap
    assert result.predicted_ac_mm is None


def test_pixels_in_other_frames_do_not_count(one_case: Any) -> None:
    """Only the chosen frame of the submitted stack is looked at."""
    full = np.ones((one_case.rows, one_case.columns), np.uint8)
    path = one_case.output_of("case-a") / "images/fetal-abdomen-segmentation/abc.mha"
    one_case.write_image(path, one_case.stack({50: one_case.disc(), 49: full, 51: full}))
    assert one_case.score()[0].official["DiceCoefficient"] == 1


def test_ground_truth_with_and_without_its_further_folder(one_case: Any, tmp_path: Path) -> None:
    """The archive's own folder `ground_truth/` may be there or not; other files beside the cases do not matter."""
    expected = one_case.score()[0].official
    nested = tmp_path / "nested"
    nested.mkdir()
    one_case.ground_truth_dir.rename(nested / "ground_truth")
    one_case.ground_truth_dir = nested
    (nested / "ground_truth" / "README.txt").write_text("not a case")
    assert one_case.score()[0].official == expected


def test_what_a_mac_leaves_beside_a_label_stack_does_not_count(one_case: Any) -> None:
    """`._name.mha` in an archive that was packed there."""
    (one_case.ground_truth_dir / "case-a/fetal_abdomen_stacked_masks/._case-a.mha").write_bytes(b"Mac OS X")
    assert one_case.score()[0].official["wfss"] == 1


def test_the_input_folder_may_be_a_link(one_case: Any, tmp_path: Path) -> None:
    """The platform's /input can be a symlink."""
    one_case.save()
    link = tmp_path / "link"
    link.symlink_to(one_case.input_dir)
    assert read_platform_predictions(link) == read_platform_predictions(one_case.input_dir)


@pytest.mark.parametrize(
    ("exec_duration", "invoke_duration", "seconds"),
    [
        ("P0DT00H00M42.5S", None, 42.5),
        ("P1DT02H03M04S", None, 93784.0),
        (None, "P0DT00H01M00S", 60.0),
        (None, None, None),
        ("a while", None, None),
    ],
)
def test_durations(one_case: Any, exec_duration: Any, invoke_duration: Any, seconds: float | None) -> None:
    """ISO 8601 as the platform writes it; either may be null, and anything else is no duration."""
    one_case.jobs[0] |= {"exec_duration": exec_duration, "invoke_duration": invoke_duration}
    one_case.save()
    assert read_platform_predictions(one_case.input_dir)[0].exec_duration_s == seconds
    del one_case.jobs[0]["exec_duration"], one_case.jobs[0]["invoke_duration"]
    one_case.save()
    assert read_platform_predictions(one_case.input_dir)[0].exec_duration_s is None


def test_scores_are_read_where_they_are(one_case: Any) -> None:
    """`frame-quality-scores.json` beside the sockets fills the frame probabilities; without it there are none."""
    assert one_case.score()[0].presence_probability is None
    probability = np.linspace(0, 1, one_case.frames)
    content = {
        "schema_version": 1,
        "frames": one_case.frames,
        "thresholds": {"presence": 0.4, "optimality": 0.6},
        "presence_probability": probability.tolist(),
        "optimality_probability": probability[::-1].tolist(),
    }
    (one_case.output_of("case-a") / "frame-quality-scores.json").write_text(json.dumps(content))
    result = one_case.score()[0]
    assert np.array_equal(result.presence_probability, probability)
    assert np.array_equal(result.optimality_probability, probability[::-1])
    assert (result.presence_threshold, result.optimality_threshold) == (0.4, 0.6)


def test_what_is_told_of_a_case(one_case: Any) -> None:
    """Distances within the sweep, circumferences, annotated sweeps and outlines of the result."""
    one_case.jobs[0]["outputs"][0]["value"] = 57
    path = one_case.output_of("case-a") / "images/fetal-abdomen-segmentation/abc.mha"
    one_case.write_image(path, one_case.stack({57: one_case.disc(32, 20)}))
    result = one_case.score()[0]
    assert (result.annotated_distance_frames, result.optimal_distance_frames) == (3, 7)
    assert (result.reference_ac_mm, result.annotated_sweeps) == (20.0, (True, True))
    assert result.reference_outline_frame_number == 50  # as the overlap: the one before, though 60 is nearer
    assert result.predicted_ac_mm == pytest.approx(0.28 * 2 * np.pi * 12.1, rel=0.05)
    (reference,), (predicted,) = result.reference_outline_px, result.predicted_outline_px
    assert (reference.min(axis=0) == (16, 10)).all()
    assert (predicted.min(axis=0) == (18, 10)).all()
    assert (result.rows, result.columns) == (one_case.rows, one_case.columns)


def test_a_mask_of_a_thousand_specks_has_few_outlines(one_case: Any) -> None:
    """Outlines for drawing are bounded, however the mask is torn."""
    specks = np.zeros((one_case.rows, one_case.columns), bool)
    specks[::2, ::2] = True
    path = one_case.output_of("case-a") / "images/fetal-abdomen-segmentation/abc.mha"
    one_case.write_image(path, one_case.stack({50: specks}))
    assert len(one_case.score()[0].predicted_outline_px) <= 10


def test_ground_truth_needs_a_stack_and_circumferences(one_case: Any) -> None:
    """Each case's folder holds both, and names of sweeps are complete."""
    folder = one_case.ground_truth_dir / "case-a"
    assert find_official(one_case.ground_truth_dir)["case-a"].sweep_ac_mm == (20.0, 21.0, None, None, None, None)
    circumferences = folder / "fetal_abdominal_circumference.json"
    for content in ("{}", "[]", '{"sweep_1_ac_mm": "20"}', "nonsense"):
        circumferences.write_text(content)
        with pytest.raises(AcouslicError, match="fetal_abdominal_circumference"):
            find_official(one_case.ground_truth_dir)
    circumferences.unlink()
    with pytest.raises(AcouslicError, match="missing"):
        find_official(one_case.ground_truth_dir)
