"""The official metrics, worked by hand on masks of 10 x 10 pixels."""

import numpy as np
import pytest
import SimpleITK
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies

from acouslic.fov import field_of_view
from evaluation.inputs.case_truth import CaseTruth
from evaluation.metrics import official

FRAMES, ROWS, COLUMNS = 300, 10, 10
PIXELS = ROWS * COLUMNS


def square(row: int, column: int, size: int = 2) -> np.ndarray:
    """A filled square."""
    mask = np.zeros((ROWS, COLUMNS), dtype=bool)
    mask[row : row + size, column : column + size] = True
    return mask


def make_truth(
    labels: dict[int, int],
    mask: np.ndarray | None = None,
    sweep_ac_mm: tuple[float | None, ...] = (None,) * 6,
    frames: int = FRAMES,
) -> CaseTruth:
    """A reference with the same mask in all of its annotated frames."""
    mask = square(0, 0) if mask is None else mask
    frame_labels = np.zeros(frames, np.uint8)
    for frame, label in labels.items():
        frame_labels[frame] = label
    annotated = np.array(sorted(labels), dtype=np.int64)
    packed = np.packbits(mask, axis=-1)
    return CaseTruth(
        case="case",
        subject_id=None,
        frame_labels=frame_labels,
        sweep_ac_mm=sweep_ac_mm,
        rows=mask.shape[0],
        columns=mask.shape[1],
        spacing_mm=(0.28, 0.28),
        annotated_frames=annotated,
        packed_masks=np.repeat(packed[None], len(annotated), axis=0),
    )


EMPTY = np.zeros((ROWS, COLUMNS), dtype=bool)


@pytest.mark.parametrize(
    ("labels", "frame_number", "expected"),
    [
        ({}, 7, 0.0),
        ({}, -1, 0.0),
        ({5: 1, 6: 2}, -1, 0.0),
        ({5: 1, 6: 2}, 5, 1.0),
        ({5: 1, 6: 2}, 6, 0.6),
        ({200: 1, 6: 2}, 6, 0.6),
        ({6: 2}, 6, 1.0),
        ({5: 1, 6: 2}, 7, 0.0),
        ({FRAMES - 1: 1}, -1, 0.0),
    ],
)
def test_frame_selection_score(labels: dict[int, int], frame_number: int, expected: float) -> None:
    """Optimal 1, suboptimal 0.6 or, where no frame of the whole case is optimal, 1; everything else 0."""
    assert official.score_case(make_truth(labels), frame_number, EMPTY).values["wfss"] == expected


def test_overlap_of_two_squares() -> None:
    """2 x 2 squares that share one column of 2 pixels: every overlap measure as a fraction."""
    values = official.score_case(make_truth({5: 1}, square(0, 0)), 5, square(0, 1)).values
    assert values["DiceCoefficient"] == values["MeanOverlap"] == 2 * 2 / (4 + 4)
    assert values["JaccardCoefficient"] == values["UnionOverlap"] == 2 / 6
    assert values["VolumeSimilarity"] == 0
    # SimpleITK is given the reference as source: the false negatives are those of the prediction.
    assert values["FalseNegativeError"] == 2 / 4
    assert values["FalsePositiveError"] == 2 / (PIXELS - 4)
    assert values["DiceCoefficientNearestFrame"] == values["DiceCoefficientSoft"] == 0.5
    assert values["NearestAnnotatedFrame"] == 5
    assert values["HausdorffDistance"] == 1


def test_volume_similarity_of_unequal_masks() -> None:
    """4 reference against 16 predicted pixels: 2 (4 - 16) / 20."""
    values = official.score_case(make_truth({5: 1}, square(0, 0)), 5, square(0, 0, 4)).values
    assert values["VolumeSimilarity"] == pytest.approx(2 * (4 - 16) / 20, abs=1e-15)


def test_both_images_empty_is_undefined_and_reported_as_zero() -> None:
    """Nothing predicted where nothing is: SimpleITK's infinities, which become 0 and are marked."""
    case = official.score_case(make_truth({200: 1}), 5, EMPTY)
    assert case.values["DiceCoefficient"] == case.values["DiceCoefficientSoft"] == float("inf")
    assert case.values["JaccardCoefficient"] == np.finfo(float).max
    assert case.both_empty
    assert {"DiceCoefficient", "DiceCoefficientSoft", "JaccardCoefficient"} <= set(case.undefined())
    assert case.finite()["DiceCoefficientSoft"] == case.finite()["JaccardCoefficient"] == 0
    assert case.finite()["HausdorffDistance"] == COLUMNS * 15


def test_an_empty_prediction_of_an_annotated_frame() -> None:
    """Dice 0 as computed, the largest Hausdorff distance; only the false negative error divides by nothing."""
    case = official.score_case(make_truth({5: 1}), 5, EMPTY)
    assert case.values["DiceCoefficient"] == case.values["DiceCoefficientSoft"] == 0
    assert case.values["HausdorffDistance"] == COLUMNS * 15
    assert case.undefined() == ("FalseNegativeError",)
    assert not case.both_empty


def test_no_frame_looks_at_the_last_one() -> None:
    """-1 is scored against the last frame of the reference: annotated, Dice is 0; else it is undefined."""
    annotated = official.score_case(make_truth({FRAMES - 1: 1}), -1, EMPTY)
    assert annotated.values["DiceCoefficient"] == 0
    assert annotated.values["NearestAnnotatedFrame"] == -1
    assert annotated.values["nae_circumference"] == 1
    assert official.score_case(make_truth({5: 1}), -1, EMPTY).values["DiceCoefficient"] == float("inf")


@pytest.mark.parametrize(
    ("labels", "frame_number", "expected"),
    [
        ({40: 1, 51: 1}, 50, 40),  # the previous one although the next one is closer
        ({51: 1}, 50, 51),
        ({35: 1}, 50, 35),
        ({34: 1}, 50, None),
        ({65: 1}, 50, 65),
        ({66: 1}, 50, None),
        ({34: 1, 60: 1}, 50, 60),  # a previous one beyond reach is none
        ({139: 1}, 140, None),  # another sweep
        ({140: 1}, 139, None),
        ({42: 1, 47: 2}, 50, 47),  # the last of the previous ones, whatever its label
        ({53: 1, 58: 1}, 50, 53),
    ],
)
def test_nearest_annotated_frame(labels: dict[int, int], frame_number: int, expected: int | None) -> None:
    """Within 15 frames of the same sweep, the previous one wherever there is one, else the next one."""
    values = official.score_case(make_truth(labels), frame_number, square(0, 1)).values
    if expected is None:
        assert values["NearestAnnotatedFrame"] == frame_number
        assert values["DiceCoefficientSoft"] == values["DiceCoefficientNearestFrame"] == 0
        assert values["HausdorffDistance"] == COLUMNS * 15
    else:
        distance = expected - frame_number
        assert values["NearestAnnotatedFrame"] == expected
        assert values["DiceCoefficient"] == 0
        assert values["DiceCoefficientNearestFrame"] == 0.5
        assert values["DiceCoefficientSoft"] == 0.5 * (1 - abs(distance) / 15)
        assert values["HausdorffDistance"] == 1.0 * distance  # signed


def test_the_field_of_view_masks_all_but_the_nearest_frames_reference() -> None:
    """Pixels outside the fan count for neither mask in the chosen frame; the nearest frame's reference keeps them."""
    fov = field_of_view(281, 372)
    inside = np.zeros_like(fov)
    inside[150:160, 180:190] = True
    outside = np.zeros_like(fov)
    outside[:10, :10] = True
    assert fov[inside].all()
    assert not fov[outside].any()
    truth = make_truth({5: 1}, inside | outside)
    assert official.score_case(truth, 5, inside).values["DiceCoefficient"] == 1
    assert official.score_case(truth, 5, inside | outside).values["DiceCoefficient"] == 1
    near = official.score_case(truth, 6, inside | outside).values
    assert near["DiceCoefficientNearestFrame"] == 2 * 100 / (200 + 100)
    corner = np.hypot(150, 180)  # from the fan's square to the farthest reference pixel, (0, 0)
    assert near["HausdorffDistance"] == pytest.approx(-corner)


def test_a_reference_outside_the_field_of_view_counts_as_empty() -> None:
    """Where the chosen frame's reference has no pixel inside the fan, the nearest other frame is looked for."""
    fov = field_of_view(281, 372)
    outside, inside = np.zeros_like(fov), np.zeros_like(fov)
    outside[:10, :10] = True
    inside[150:160, 180:190] = True
    values = official.score_case(make_truth({5: 1, 8: 1}, outside), 5, inside).values
    assert values["NearestAnnotatedFrame"] == 8


@pytest.mark.parametrize(
    ("reference", "predicted", "expected"),
    [
        (None, 200.0, 1.0),
        (200.0, None, 1.0),
        (None, None, 1.0),
        (200.0, 100.0, 0.5),
        (100.0, 200.0, 0.5),
        (5.0, 5.0, 0),
    ],
)
def test_circumference_error(reference: float | None, predicted: float | None, expected: float) -> None:
    """|reference - predicted| over the larger; 1 where one is missing."""
    assert official.normalised_absolute_error(reference, predicted) == expected


def test_the_reference_circumference_is_that_of_the_chosen_sweep() -> None:
    """Each sweep has its own; none where no frame was chosen."""
    truth = make_truth({5: 1}, sweep_ac_mm=(100.0, None, 300.0, None, None, None))
    found = [official.reference_circumference_mm(truth, frame) for frame in (0, 139, 140, 280, -1)]
    assert found == [100.0, 100.0, None, 300.0, None]


def test_a_perfect_prediction_scores_exactly_one() -> None:
    """The reference mask in an optimal frame, with the circumference of its own ellipse: 1, not nearly 1."""
    rows, columns = np.mgrid[:60, :100]
    disc = ((columns - 40) / 25) ** 2 + ((rows - 30) / 18) ** 2 <= 1
    measured = official.score_case(make_truth({5: 1}, disc), 5, disc).predicted_ac_mm
    assert measured == pytest.approx(0.28 * 2 * np.pi * 21.2, rel=0.01)
    truth = make_truth({5: 1}, disc, sweep_ac_mm=(measured, None, None, None, None, None))
    values = official.score_case(truth, 5, disc).values
    assert official.aggregate([values])["score"]["mean"] == 1


def test_a_mask_that_is_a_line_measures_the_same_again() -> None:
    """OpenCV fits an ellipse to points on a line with the help of chance."""
    line = np.zeros((60, 80), dtype=bool)
    line[30, 25:55] = True
    measured = {official.score_case(make_truth({5: 1}, line), 5, line).predicted_ac_mm for _ in range(5)}
    assert len(measured) == 1
    assert measured != {None}


def test_aggregates_are_mean_and_population_deviation() -> None:
    """Two cases by hand; the score's "std" is the official formula, which gives 0.75 where no case differs."""
    worst = dict.fromkeys(official.CASE_METRICS, 0.0) | {"nae_circumference": 1.0}
    best = dict.fromkeys(official.CASE_METRICS, 0.0) | {"wfss": 1.0, "DiceCoefficientSoft": 1.0}
    summary = official.aggregate([worst, best])
    assert summary["wfss"] == {"mean": 0.5, "std": 0.5}
    assert summary["score"] == {"mean": 0.5, "std": 0.5 * (1 - 0.5) + 0.25 * 0.5 + 0.25 * 0.5}
    assert official.aggregate([best])["score"] == {"mean": 1.0, "std": 0.5}
    assert "NearestAnnotatedFrame" not in summary


@pytest.mark.parametrize("frame_number", [-2, FRAMES, 10**6])
def test_a_frame_outside_the_stack_is_an_error(frame_number: int) -> None:
    """Only -1 and the stack's own frames can be scored."""
    with pytest.raises(ValueError, match="outside"):
        official.score_case(make_truth({5: 1}), frame_number, EMPTY)


# An empty or a full mask leaves some measure undefined.
masks = numpy_strategies.arrays(bool, (ROWS, COLUMNS)).filter(lambda mask: bool(mask.any() and not mask.all()))


@given(masks, masks)
@settings(max_examples=60, deadline=None)
def test_swapping_the_masks(first: np.ndarray, second: np.ndarray) -> None:
    """Dice, Jaccard and Hausdorff do not change, the volume similarity changes its sign, the two errors swap sides."""
    there, back = official.label_overlap(first, second), official.label_overlap(second, first)
    for name in ("DiceCoefficient", "MeanOverlap", "JaccardCoefficient", "UnionOverlap"):
        assert there[name] == back[name]
        assert 0 <= there[name] <= 1
    assert there["VolumeSimilarity"] == -back["VolumeSimilarity"]
    assert there["FalseNegativeError"] == pytest.approx((second & ~first).sum() / second.sum())
    assert official.hausdorff_distance_px(first, second) == official.hausdorff_distance_px(second, first)


@given(masks)
@settings(max_examples=60, deadline=None)
def test_a_mask_and_itself(mask: np.ndarray) -> None:
    """Full overlap, no error, no distance."""
    overlap = official.label_overlap(mask, mask)
    assert overlap["DiceCoefficient"] == overlap["JaccardCoefficient"] == 1
    assert overlap["FalseNegativeError"] == overlap["FalsePositiveError"] == overlap["VolumeSimilarity"] == 0
    assert official.hausdorff_distance_px(mask, mask) == 0


@given(masks, masks)
@settings(max_examples=60, deadline=None)
def test_hausdorff_is_the_largest_of_the_smallest_distances(first: np.ndarray, second: np.ndarray) -> None:
    """Against all pairs of pixels, on masks anywhere in the image: the box around them changes nothing."""
    a, b = np.argwhere(first), np.argwhere(second)
    distances = np.hypot(*np.moveaxis(a[:, None] - b[None], -1, 0))
    expected = max(distances.min(axis=1).max(), distances.min(axis=0).max())
    assert official.hausdorff_distance_px(first, second) == pytest.approx(expected, abs=1e-5)


@given(st.integers(0, 139), masks, masks)
@settings(max_examples=25, deadline=None)
def test_farther_frames_never_score_more(annotated: int, reference: np.ndarray, predicted: np.ndarray) -> None:
    """With one annotated frame the soft Dice falls, or stays, with every frame of distance, and is 0 from 15 on."""
    assume((reference & predicted).any())
    truth = make_truth({annotated: 1}, reference)
    soft = [
        official.score_case(truth, frame, predicted).values["DiceCoefficientSoft"]
        for frame in range(annotated, min(annotated + 20, 140))
    ]
    assert soft[0] == official.label_overlap(reference, predicted)["DiceCoefficient"]
    assert soft == sorted(soft, reverse=True)
    assert all(value == 0 for value in soft[15:])


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_circumference_error_is_symmetric_and_bounded(first: float, second: float) -> None:
    """The same in both directions, 0 for equal values, below 1 for positive ones."""
    error = official.normalised_absolute_error(first, second)
    assert error == official.normalised_absolute_error(second, first)
    assert 0 <= error < 1
    assert official.normalised_absolute_error(first, first) == 0


PIXEL_ROWS = st.tuples(st.integers(1, 12), st.integers(1, 12))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), shape=PIXEL_ROWS)
def test_overlap_and_hausdorff_distance_are_simpleitks(data: st.DataObject, shape: tuple[int, int]) -> None:
    """Any two masks, empty and full ones among them: the filters' own values, to the last digit."""
    masks = numpy_strategies.arrays(np.bool_, shape, elements=st.booleans(), fill=st.booleans())
    reference, predicted = data.draw(masks), data.draw(masks)
    images = [SimpleITK.GetImageFromArray(mask.astype(np.uint8)) for mask in (reference, predicted)]
    overlap, hausdorff = SimpleITK.LabelOverlapMeasuresImageFilter(), SimpleITK.HausdorffDistanceImageFilter()

    overlap.Execute(*images)

    theirs = {name: getattr(overlap, f"Get{name}")() for name in official.OVERLAP_METRICS}
    assert official.label_overlap(reference, predicted) == pytest.approx(theirs, rel=4e-16, abs=0)
    if reference.any() and predicted.any():
        hausdorff.Execute(*images)
        assert official.hausdorff_distance_px(reference, predicted) == hausdorff.GetHausdorffDistance()
