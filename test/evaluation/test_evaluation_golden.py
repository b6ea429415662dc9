"""The official evaluator's own results on constructed cases, reproduced to 1e-9."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from zlib_ng import zlib_ng

from acouslic.fov import field_of_view
from acouslic.reading.metaimage import header_text
from acouslic.write import write_mask_stack
from evaluation.case_evaluation import CaseTask, evaluate_case
from evaluation.inputs.case_truth import CaseTruth
from evaluation.inputs.ground_truth import TruthSource
from evaluation.inputs.predictions import Submission
from evaluation.metrics import official

ROWS, COLUMNS, FRAMES = 562, 744, 840


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    """`official_metrics.json` of the golden cases."""
    return json.loads((shared / "data" / "golden" / "official_metrics.json").read_text())


@pytest.fixture(scope="module")
def cases(shared: Path, golden: dict[str, Any]) -> list[tuple[dict[str, Any], CaseTruth, np.ndarray]]:
    """Each golden case with its reference and its predicted mask."""
    with np.load(shared / "data" / "golden" / "cases.npz") as arrays:
        return [(case, *_truth_and_mask(arrays, case)) for case in golden["cases"]]


def _truth_and_mask(arrays: Any, case: dict[str, Any]) -> tuple[CaseTruth, np.ndarray]:
    name = case["case"]
    frames = arrays[f"{name}_gt_frames"].astype(np.int64)
    optimal, suboptimal = arrays[f"{name}_gt"][:, 0], arrays[f"{name}_gt"][:, 1]
    labels = np.zeros(FRAMES, np.uint8)
    labels[frames[suboptimal.any(axis=(1, 2))]] = 2
    labels[frames[optimal.any(axis=(1, 2))]] = 1
    truth = CaseTruth(
        case=name,
        subject_id=None,
        frame_labels=labels,
        sweep_ac_mm=tuple(case["circumferences"][f"sweep_{number}_ac_mm"] for number in range(1, 7)),
        rows=ROWS,
        columns=COLUMNS,
        spacing_mm=(0.28, 0.28),
        annotated_frames=frames,
        packed_masks=optimal | suboptimal,
    )
    mask = np.unpackbits(arrays[f"{name}_pred"], axis=-1, count=COLUMNS).astype(bool)
    return truth, mask if case["frame_number"] >= 0 else np.zeros_like(mask)


@pytest.fixture(scope="module")
def scored(cases: list[tuple[dict[str, Any], CaseTruth, np.ndarray]]) -> list[official.OfficialCase]:
    """Our numbers for each golden case."""
    return [official.score_case(truth, case["frame_number"], mask) for case, truth, mask in cases]


def _same(ours: float, theirs: float) -> bool:
    return ours == theirs or math.isclose(ours, theirs, rel_tol=0, abs_tol=1e-9)


def test_every_metric_of_every_golden_case_agrees(golden: dict[str, Any], scored: list[official.OfficialCase]) -> None:
    """All metrics of all cases agree to 1e-9, infinite and 1.797e308 ones exactly, under the same names and order."""
    assert len(scored) == 45
    for case, ours in zip(golden["cases"], scored, strict=True):
        assert list(ours.values) == list(case["official"])
        wrong = {
            name: (value, case["official"][name])
            for name, value in ours.values.items()
            if not _same(value, case["official"][name])
        }
        assert not wrong, (case["case"], case["kind"], wrong)


def test_aggregates_agree_where_the_official_ones_are_finite(
    golden: dict[str, Any], scored: list[official.OfficialCase]
) -> None:
    """Mean and std of every metric and the score, raw, are the official code's, infinities and NaN included."""
    with np.errstate(all="ignore"):
        ours = official.aggregate([case.values for case in scored])
    assert set(ours) == set(golden["aggregate"])
    for name, statistics in golden["aggregate"].items():
        for statistic, value in statistics.items():
            got = ours[name][statistic]
            assert _same(got, value) or (math.isnan(got) and math.isnan(value)), (name, statistic, got, value)


def test_undefined_values_become_zero_and_everything_is_finite(
    golden: dict[str, Any], scored: list[official.OfficialCase]
) -> None:
    """Infinite and 1.797e308 values are 0 in what is reported; all others are left as they are."""
    for case, ours in zip(golden["cases"], scored, strict=True):
        for name, value in ours.finite().items():
            theirs = case["official"][name]
            assert value == 0 if theirs > 1e300 else _same(value, theirs)
    assert sum(bool(case.undefined()) for case in scored) == 9
    assert sum(case.both_empty for case in scored) == 4


def test_hausdorff_in_a_box_is_the_uncropped_one(cases: list[tuple[dict[str, Any], CaseTruth, np.ndarray]]) -> None:
    """Cropping to the box around both masks changes no bit of the Hausdorff distance."""
    fov = field_of_view(ROWS, COLUMNS)
    compared = 0
    for _, truth, mask in cases:
        predicted = mask & fov
        if not predicted.any() or not len(truth.annotated_frames):
            continue
        reference = truth.mask(int(truth.annotated_frames[0]))
        whole = SimpleITK.HausdorffDistanceImageFilter()
        whole.Execute(*(SimpleITK.GetImageFromArray(item.astype(np.uint8)) for item in (reference, predicted)))
        assert official.hausdorff_distance_px(reference, predicted) == whole.GetHausdorffDistance()
        compared += 1
    assert compared > 20


@pytest.mark.parametrize("number", [0, 3, 5])
def test_golden_cases_agree_through_their_files(
    cases: list[tuple[dict[str, Any], CaseTruth, np.ndarray]], tmp_path: Path, number: int
) -> None:
    """From compressed stacks of full size to the result: a hit, a near miss, and "no frame"."""
    case, truth, mask = cases[number]
    labels = np.zeros((FRAMES, ROWS, COLUMNS), np.uint8)
    for frame in truth.annotated_frames:
        labels[frame] = truth.mask(frame) * truth.frame_labels[frame]
    pixels = zlib_ng.compress(labels.data, 1)
    reference = tmp_path / "reference.mha"
    reference.write_bytes(header_text(*labels.shape, (0.28, 0.28, 0.28), len(pixels)).encode("ascii") + pixels)
    frame_number = case["frame_number"]
    frame_index = None if frame_number == -1 else frame_number
    write_mask_stack(tmp_path / "mask.mha", mask, frame_index, FRAMES, (0.28, 0.28))
    source = TruthSource(case["case"], reference, truth.sweep_ac_mm, None, None)
    submission = Submission(case["case"], frame_number, tmp_path / "mask.mha", None)
    result = evaluate_case(CaseTask(source, submission, None, False, None))
    for name, value in result.official.items():
        theirs = case["official"][name]
        assert value == 0 if theirs > 1e300 else _same(value, theirs)
