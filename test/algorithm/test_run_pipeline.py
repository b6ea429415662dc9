"""A whole case with an ensemble whose answers can be drawn: chosen frame, mask, circumference, files."""

import contextlib
import dataclasses
import gc
import json
import math
import weakref

import numpy as np
import pytest
import SimpleITK
import torch

from acouslic.ellipse import Ellipse
from acouslic.errors import AcouslicError
from acouslic.fov import field_of_view
from acouslic.sockets import SweepInput
from algorithm.engine.ensemble import GateScores, MemberScores
from algorithm.frames.frame_stream import FrameStream
from algorithm.frames.seen_field import SeenField
from algorithm.model.manifest import HalfWay, ScoringConfig
from algorithm.pipeline import Pipeline
from algorithm.predict import PredictSettings, _read_ahead
from algorithm.result.growth import parse_age
from algorithm.result.measure import interval_around, outline_best, share_beyond
from algorithm.result.table import ResultRow
from bench.setting.plain_manifest import drawn_manifest

MANIFEST = drawn_manifest("drawn", image_size=112)


class DrawnEnsemble:
    """Presence is the median of what is brighter than 0.2, the mask what is brighter than 0.4 (member 1: than 0.2)."""

    dtype = torch.float32
    device = torch.device("cpu")
    members = 2

    def __init__(self, **selection):
        self.manifest = dataclasses.replace(MANIFEST, selection=dataclasses.replace(MANIFEST.selection, **selection))

    def trunk(self, images):
        return None

    def score(self, images, trunk=None):
        assert images.shape[1:] == (3, 112, 112)
        presence = self._presence(images)
        return MemberScores(torch.stack([presence, presence]), torch.empty(0, len(images)))

    def gate(self, images, trunk=None):
        return GateScores(self._presence(images), None)

    def _presence(self, images):
        grey = images[:, 0].flatten(1)
        return torch.where(grey > 0.2, grey, torch.nan).nanmedian(1).values.nan_to_num(0.0)

    def segment(self, images):
        return torch.stack([(images[:, 0] * 1.25).clamp(0, 1), (images[:, 0] * 2.5).clamp(0, 1)])


def run(case, **selection):
    """The case's only stack through a pipeline of a DrawnEnsemble."""
    (path,) = case.sweep_dir.iterdir()
    return Pipeline(DrawnEnsemble(**selection), 8, 0.0, 0.0).run(path, case.output_dir, "case 1")


def drawn_stack(frames=20, rows=140, columns=185, **ellipses):
    """A dark stack (level 1, not black) with a bright ellipse in each frame that is named: f7=(level, x, y, a, b)."""
    stack = np.ones((frames, rows, columns), np.uint8)
    y, x = np.mgrid[:rows, :columns]
    for frame, (level, centre_x, centre_y, a, b) in ellipses.items():
        inside = ((x - centre_x) / a) ** 2 + ((y - centre_y) / b) ** 2 <= 1
        stack[int(frame[1:])][inside] = level
    return stack


def read_json(case, name):
    return json.loads((case.output_dir / name).read_text())


def test_the_brightest_frame_is_found_outlined_and_measured(platform_case):
    """An ellipse of semi-axes 40 and 30 px of 0.5 mm: frame, mask, ellipse, circumference, the interval around it."""
    stack = drawn_stack(f7=(250, 92, 70, 40, 30), f8=(200, 92, 70, 42, 30), f15=(120, 60, 60, 20, 20))
    platform_case.write_sweep(stack, spacing_mm=0.5)
    result = run(platform_case)
    assert (result.frame_index, result.frame_number, result.sweep_number, result.suitable) == (7, 7, 1, True)
    overlap = 2 * (result.mask & (stack[7] == 250)).sum() / (result.mask.sum() + (stack[7] == 250).sum())
    assert overlap > 0.97
    exact_mm = math.pi * (3 * 70 - math.sqrt((3 * 40 + 30) * (40 + 3 * 30))) * 0.5
    assert result.circumference_mm == pytest.approx(exact_mm, rel=0.03)
    low, high = result.interval_mm
    assert low <= result.circumference_mm <= high
    assert high - low > 1
    assert sorted(result.ellipse.semi_axes_px) == pytest.approx([30, 40], abs=1)


def test_the_files_say_what_the_result_says(platform_case):
    """Every field of the two JSON files, the bare frame number, the mask stack's shape, type, spacing and place."""
    platform_case.write_sweep(drawn_stack(frames=150, f7=(250, 92, 70, 40, 30), f145=(140, 60, 60, 20, 20)))
    result = run(platform_case)
    assert (platform_case.output_dir / "fetal-abdomen-frame-number.json").read_text().strip() == "7"
    image = SimpleITK.ReadImage(str(platform_case.output_dir / "images/fetal-abdomen-segmentation/output.mha"))
    pixels = SimpleITK.GetArrayFromImage(image)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (150, 140, 185)
    assert image.GetSpacing() == pytest.approx((0.28, 0.28, 1.0))
    assert np.array_equal(pixels[7], result.mask)
    assert pixels.sum() == result.mask.sum()

    measured = read_json(platform_case, "fetal-abdominal-circumference.json")
    assert measured == {
        "schema_version": 1,
        "suitable": True,
        "frame_number": 7,
        "sweep": 1,
        "circumference_mm": result.circumference_mm,
        "interval_mm": list(result.interval_mm),
        "interval_of": "members and neighbouring frames",
        "circumference_error": None,
        "ellipse": {
            "centre_px": list(result.ellipse.centre_px),
            "semi_axes_px": list(result.ellipse.semi_axes_px),
            "angle_degrees": result.ellipse.angle_degrees,
        },
        "spacing_mm": [0.28, 0.28],
        "growth": None,
        "notes": [],
    }
    scores = read_json(platform_case, "frame-quality-scores.json")
    assert scores["frames"] == len(scores["presence_probability"]) == 150
    assert scores["presence_probability"][7] == pytest.approx(250 / 255, abs=1e-4)
    assert scores["presence_alone_probability"] == scores["presence_probability"], "the artifact reads plainly"
    assert scores["optimality_probability"] is None
    assert scores["thresholds"] == {"presence": 0.5, "optimality": 0.5, "suitable": 0.5}
    assert scores["refined_frames"] == [[0, 149]]
    assert scores["sweeps"] == [
        {
            "sweep": number,
            "first_frame": first,
            "last_frame": last,
            "best_frame": best,
            "best_presence_probability": scores["presence_probability"][best],
            "positive_frames": 1,
            "longest_run": [best, best],
        }
        for number, first, last, best in ((1, 0, 139, 7), (2, 140, 149, 145))
    ]


def test_frames_are_judged_in_their_case_and_the_case_by_itself(platform_case):
    """The best frame's 0.47 is positive beside the dark ones, but that does not make the case suitable."""
    platform_case.write_sweep(drawn_stack(f7=(120, 92, 70, 40, 30), f12=(60, 92, 70, 40, 30)))
    result = run(platform_case, half_way=HalfWay(depth=0.5, top_frames=1))
    assert (result.frame_index, result.suitable) == (7, False)
    assert "0.471, does not reach 0.5" in result.notes[-1]
    logit, other = math.log(120 / 135), math.log(60 / 195)
    scores = read_json(platform_case, "frame-quality-scores.json")
    # The rest shows nothing: this frame is the top, and the median lies between the two.
    threshold = (logit - 0.5 * (logit - (logit + other) / 2)) / 2
    expected = 1 / (1 + math.exp(threshold - logit))
    assert expected > 0.5
    assert scores["presence_probability"][7] == pytest.approx(expected, abs=1e-4)
    assert scores["presence_alone_probability"][7] == pytest.approx(120 / 255, abs=1e-4)
    assert scores["sweeps"][0]["longest_run"] == [7, 7]


def test_a_run_is_repeated_to_the_byte(platform_case):
    """Twice the same case, twice the same four files."""
    platform_case.write_sweep(drawn_stack(f7=(250, 92, 70, 40, 30)))
    contents = []
    for _ in range(2):
        run(platform_case)
        contents.append([(platform_case.output_dir / name).read_bytes() for name in platform_case.written()])
    assert len(contents[0]) == 4
    assert contents[0] == contents[1]


def test_a_frame_without_an_ellipse_is_passed_over(platform_case):
    """The brightest frame is bright up to the fan's edge, so nothing can be fitted: the next candidate is outlined."""
    stack = drawn_stack(f3=(255, 92, 70, 400, 400), f12=(230, 92, 70, 40, 30))
    platform_case.write_sweep(stack)
    assert run(platform_case).frame_index == 12
    # With a single candidate there is nothing to fall back on: its frame is named, and the case is not suitable.
    result = run(platform_case, candidates=1)
    assert (result.frame_index, result.suitable, result.ellipse, result.circumference_mm) == (3, False, None, None)
    assert any("ellipse" in note for note in result.notes)


def test_an_unlikely_frame_is_a_best_guess_or_none(platform_case):
    """Presence 0.47 below 0.5: not suitable; the settings say whether its frame is named and outlined all the same."""
    platform_case.write_sweep(drawn_stack(f7=(121, 92, 70, 40, 30)))
    guess = run(platform_case)
    assert (guess.frame_index, guess.suitable) == (7, False)
    assert guess.circumference_mm is not None
    assert any("0.475" in note for note in guess.notes)
    none = run(platform_case, when_unsuitable="no_frame")
    assert (none.frame_number, none.suitable, none.circumference_mm, none.sweep_number) == (-1, False, None, None)
    assert not none.mask.any()
    measured = read_json(platform_case, "fetal-abdominal-circumference.json")
    assert (measured["frame_number"], measured["ellipse"], measured["interval_mm"]) == (-1, None, None)


@pytest.mark.parametrize(("unseen", "suitable"), [(0.09, True), (0.1, True), (0.11, False)])
def test_a_case_of_which_much_is_unseen_is_not_suitable(unseen, suitable, platform_case, monkeypatch):
    """Up to a tenth of the field of view may lie where the model does not look."""
    monkeypatch.setattr(
        "algorithm.pipeline.see_field", lambda shown, _: SeenField(np.ones_like(shown, bool), unseen, ())
    )
    platform_case.write_sweep(drawn_stack(f7=(250, 92, 70, 40, 30)))
    result = run(platform_case)
    assert result.frame_index == 7
    assert result.suitable is suitable


def test_a_frame_at_the_threshold_is_suitable(platform_case):
    """Exactly as likely as a suitable frame must be is enough, a hair less is not."""
    path = platform_case.write_sweep(drawn_stack(f7=(200, 92, 70, 40, 30)))
    presence = run(platform_case).presence_alone_probability[7]
    for least, suitable in ((presence, True), (np.nextafter(presence, 1.0), False)):
        ensemble = DrawnEnsemble()
        thresholds = dataclasses.replace(ensemble.manifest.thresholds, suitable=float(least))
        ensemble.manifest = dataclasses.replace(ensemble.manifest, thresholds=thresholds)
        result = Pipeline(ensemble, 8, 0.0, 0.0).run(path, None, "case 1")
        assert result.frame_index == 7
        assert result.suitable is suitable


@pytest.mark.parametrize(("when", "number"), [("best_guess", 69), ("no_frame", -1)])
def test_a_black_case_is_valid(when, number, platform_case):
    """840 black frames: not suitable, an empty mask, and the middle of the first sweep or no frame."""
    platform_case.write_sweep(np.zeros((840, 28, 37), np.uint8))
    result = run(platform_case, when_unsuitable=when)
    assert (result.frame_number, result.suitable, result.circumference_mm) == (number, False, None)
    assert "all frames are black" in result.notes
    stack = SimpleITK.ReadImage(str(platform_case.output_dir / "images/fetal-abdomen-segmentation/output.mha"))
    assert stack.GetSize() == (37, 28, 840)
    assert not SimpleITK.GetArrayFromImage(stack).any()


def test_black_frames_beside_others_have_no_probability(platform_case):
    """A network may see something in black padding; the result does not."""
    stack = drawn_stack(f7=(250, 92, 70, 40, 30))
    stack[10:] = 0
    platform_case.write_sweep(stack)

    class Dreamer(DrawnEnsemble):
        def score(self, images, trunk=None):
            presence = 1 - 0.1 * images.amax(dim=(1, 2, 3))
            return MemberScores(presence[None], torch.empty(0, len(images)))

    (path,) = platform_case.sweep_dir.iterdir()
    for half_way in (None, HalfWay(0.3)):
        result = Pipeline(Dreamer(half_way=half_way), 8, 0.0, 0.0).run(path, platform_case.output_dir, "case 1")
        assert (result.presence_probability[10:] == 0).all()
    assert result.frame_index < 10


def test_a_single_outline_has_no_interval(platform_case):
    """One member and one frame: nothing disagrees because nothing is compared, so that there is no interval; with a
    second frame there is one. The line of result leaves it out."""

    class OneMember(DrawnEnsemble):
        members = 1

        def segment(self, images):
            return super().segment(images)[:1]

    stack = drawn_stack(f7=(250, 92, 70, 40, 30), f8=(240, 92, 70, 42, 30))
    for frames, has_interval in ((stack[7:8], False), (stack[7:9], True)):
        path = platform_case.write_sweep(frames)
        result = Pipeline(OneMember(), 8, 0.0, 0.0).run(path, None, "case 1", age=parse_age("28w3d"))
        assert result.circumference_mm is not None
        assert (result.interval_mm is not None) is has_interval
        assert (result.growth.centile_interval is not None) is has_interval
        assert (" mm (" in ResultRow.of(result, 1.0).sentence()) is has_interval
        path.unlink()


def test_black_neighbours_do_not_enter_the_interval(platform_case):
    """A decoder draws a small disc on black: the interval is that of the frames that show something."""

    class DrawsOnBlack(DrawnEnsemble):
        def segment(self, images):
            masks = super().segment(images)
            y, x = torch.meshgrid(torch.arange(112), torch.arange(112), indexing="ij")
            disc = ((y - 56) ** 2 + (x - 56) ** 2 < 10**2).float()
            black = images.flatten(1).amax(1) == images.flatten(1).amin(1)
            return torch.where(black[None, :, None, None], disc, masks)

    stack = drawn_stack(f7=(250, 92, 70, 40, 30), f8=(240, 92, 70, 40, 30))
    stack[[5, 6, 9]] = 0
    path = platform_case.write_sweep(stack)
    result = Pipeline(DrawsOnBlack(), 8, 0.0, 0.0).run(path, None, "case 1")

    assert result.frame_index == 7
    assert result.interval_mm[0] > 0.95 * result.circumference_mm


def test_the_interval_measures_no_frame_of_another_sweep():
    """A much larger body lies next to the chosen frame, but beyond the end of its sweep: the interval is as if there
    were one sweep alone."""
    levels = drawn_stack(10, 112, 112, f4=(250, 56, 56, 30, 20), f5=(250, 56, 56, 50, 45))
    frames, fov = torch.from_numpy(levels), np.ones((112, 112), bool)
    for chosen, sweep in ((4, range(5)), (5, range(5, 10))):
        found = outline_best(DrawnEnsemble(), frames, [chosen], fov, (1.0, 1.0), [range(5), range(5, 10)])
        part = frames[sweep.start : sweep.stop]
        alone = outline_best(DrawnEnsemble(), part, [chosen - sweep.start], fov, (1.0, 1.0), [range(5)])
        assert found.circumference_mm == alone.circumference_mm
        assert found.interval_mm == alone.interval_mm


@pytest.mark.parametrize(("rows", "columns"), [(185, 140), (150, 150), (562, 744)])
def test_any_shape_of_frame(rows, columns, platform_case):
    """Portrait, square and the challenge's own: the mask has the frame's shape and lies where the ellipse was drawn."""
    stack = drawn_stack(6, rows, columns, f3=(250, columns / 2, rows / 2, columns / 4, rows / 4))
    platform_case.write_sweep(stack)
    result = run(platform_case)
    assert result.mask.shape == (rows, columns)
    assert 2 * (result.mask & (stack[3] == 250)).sum() / (result.mask.sum() + (stack[3] == 250).sum()) > 0.97


def test_a_body_that_the_fan_cuts_is_completed_with_a_note(platform_case):
    """A sixth of a disc of radius 90 lies beyond the fan: its whole circumference is measured, and a note says that it
    was not all seen. One inside has no such note."""
    fov = field_of_view()
    stack = drawn_stack(6, *fov.shape, f3=(250, 150, 300, 90, 90))
    beyond = 1 - np.count_nonzero((stack[3] == 250) & fov) / np.count_nonzero(stack[3] == 250)
    stack[:, ~fov] = 0
    platform_case.write_sweep(stack, spacing_mm=0.28)
    result = run(platform_case)
    assert result.circumference_mm == pytest.approx(2 * math.pi * 90 * 0.28, rel=0.03)
    (note,) = result.notes
    said, rest = note.split("% of the ellipse ")
    assert int(said) / 100 == pytest.approx(beyond, abs=0.04)
    assert rest.startswith("lies beyond the field of view")
    assert share_beyond(Ellipse((372, 300), (90, 60), 20), fov) < 0.01


def test_an_implausible_spacing_is_noted(platform_case):
    """A spacing of exactly 1 is silence: 0.28 mm is assumed, and log and result say so."""
    platform_case.write_sweep(drawn_stack(f7=(250, 92, 70, 40, 30)), spacing_mm=1.0)
    result = run(platform_case)
    assert result.header.spacing_mm == (0.28, 0.28)
    (note,) = read_json(platform_case, "fetal-abdominal-circumference.json")["notes"]
    assert "0.28" in note


def test_a_spacing_that_is_given_may_be_any(platform_case):
    """1 mm, which stands for unknown where a file says it, is believed where a person does; the mask says it too."""
    path = platform_case.write_sweep(drawn_stack(f7=(250, 92, 70, 40, 30)))
    with contextlib.closing(FrameStream(path, (1.0, 1.0))) as stream:
        result = Pipeline(DrawnEnsemble(), 8, 0.0, 0.0).run_stream(stream, platform_case.output_dir, "case 1")

    image = SimpleITK.ReadImage(str(platform_case.output_dir / "images/fetal-abdomen-segmentation/output.mha"))
    assert image.GetSpacing() == (1.0, 1.0, 1.0)
    assert read_json(platform_case, "fetal-abdominal-circumference.json")["spacing_mm"] == [1.0, 1.0]
    assert result.circumference_mm == pytest.approx(221, rel=0.03)


def test_gated_names_the_same_frame(platform_case):
    """With a gate at a stride of 3 the same frame comes out, and the output says which frames were refined."""
    platform_case.write_sweep(drawn_stack(60, f30=(250, 92, 70, 40, 30), f31=(240, 92, 70, 40, 30)))
    ensemble = DrawnEnsemble()
    ensemble.manifest = dataclasses.replace(ensemble.manifest, scoring=ScoringConfig(mode="gated", stride=3))
    (path,) = platform_case.sweep_dir.iterdir()
    result = Pipeline(ensemble, 8, 0.0, 0.0).run(path, platform_case.output_dir, "case 1")
    assert result.frame_index == 30
    ((first, last),) = read_json(platform_case, "frame-quality-scores.json")["refined_frames"]
    assert first < 30 < last < 40


def test_results_of_an_earlier_run_do_not_survive_a_failure(platform_case):
    """A good run, then a damaged stack into the same folder: no file is there, old or new, hidden ones neither."""
    path = platform_case.write_sweep(drawn_stack(f7=(250, 92, 70, 40, 30)))
    run(platform_case)
    assert len(platform_case.written()) == 4
    (platform_case.output_dir / "images/fetal-abdomen-segmentation/.output.partial.mha").write_text("killed half-way")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(AcouslicError, match=r"f3a\.mha"):
        run(platform_case)
    assert platform_case.written() == []


def test_a_result_that_does_not_read_back_is_removed(platform_case, monkeypatch):
    """Where the disk gives back something else than what was written, that is a failure, and no file stays."""
    platform_case.write_sweep(drawn_stack(f7=(250, 92, 70, 40, 30)))

    def spoiled(path, mask, _, frames, *__):
        path.parent.mkdir(parents=True, exist_ok=True)
        image = SimpleITK.GetImageFromArray(np.zeros((frames - 1, *mask.shape), np.uint8))
        SimpleITK.WriteImage(image, str(path))

    monkeypatch.setattr("algorithm.result.outputs.write_mask_stack", spoiled)
    with pytest.raises(AcouslicError, match="expected"):
        run(platform_case)
    assert platform_case.written() == []


def test_files_of_the_user_stay(platform_case):
    """A run that is no `predict` writes no page, preview, record or DICOM: what lies there by such a name is not its
    own and stays, whether the run succeeds or fails."""
    own = ["case.json", "measurement-report.dcm", "preview.png", "report.html", "segmentation.dcm"]
    for name in own:
        (platform_case.output_dir / name).write_text("mine")
    path = platform_case.write_sweep(drawn_stack(f7=(250, 92, 70, 40, 30)))
    run(platform_case)
    assert len(platform_case.written()) == 4 + len(own)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(AcouslicError, match=r"f3a\.mha"):
        run(platform_case)
    assert platform_case.written() == own
    assert {(platform_case.output_dir / name).read_text() for name in own} == {"mine"}


def test_a_foreign_image_beside_the_result_is_refused(platform_case):
    """The platform takes exactly one image: another file in that folder is named and not touched."""
    platform_case.write_sweep(drawn_stack(f7=(250, 92, 70, 40, 30)))
    folder = platform_case.output_dir / "images/fetal-abdomen-segmentation"
    folder.mkdir(parents=True)
    (folder / "theirs.mha").write_text("mine")
    with pytest.raises(AcouslicError, match=r"theirs\.mha"):
        run(platform_case)
    assert platform_case.written() == ["images/fetal-abdomen-segmentation/theirs.mha"]


def test_the_interval_contains_its_value():
    """2.5 % and 97.5 % of what was measured, widened to the value; alone, the value itself."""
    measured = list(np.linspace(100, 200, 101))
    low, high = interval_around(150.0, measured)
    assert (low, high) == pytest.approx((102.5, 197.5), abs=0.5)
    assert interval_around(90.0, measured)[0] == 90.0
    assert interval_around(210.0, measured)[1] == 210.0
    assert interval_around(7.0, []) == (7.0, 7.0)
    assert interval_around(190.0, [], 0.05) == pytest.approx((180.5, 200))


def test_the_interval_reaches_as_far_as_the_models_error(platform_case):
    """A model that states its error on validation sweeps: the interval reaches so far either way, and the files say
    what it is."""
    platform_case.write_sweep(drawn_stack(f7=(250, 92, 70, 40, 30)), spacing_mm=0.5)
    result = run(platform_case, circumference_error=0.4)
    assert result.interval_mm == pytest.approx((0.6 * result.circumference_mm, result.circumference_mm / 0.6))
    said = read_json(platform_case, "fetal-abdominal-circumference.json")
    assert said["circumference_error"] == 0.4
    assert said["interval_of"].endswith("the error within which nine of ten validation sweeps lay")


def test_a_stack_is_streamed_in_order(platform_case):
    """All frames come once, in order, as they are in the file."""
    stack = np.random.default_rng(0).integers(0, 256, (50, 20, 30), dtype=np.uint8)
    path = platform_case.write_sweep(stack)
    with contextlib.closing(FrameStream(path)) as stream:
        assert stream.header.frames == 50
        chunks = list(stream.chunks())
        assert [index for indices, _ in chunks for index in indices] == list(range(50))
        assert np.array_equal(np.concatenate([frames for _, frames in chunks]), stack)
        assert stream.read_s > 0


def test_decoding_stays_a_bounded_step_ahead(platform_case, monkeypatch):
    """With room for two chunks, no more than two wait; closing ends the thread although nobody read them."""
    monkeypatch.setattr("algorithm.frames.frame_stream.MAX_AHEAD_BYTES", 1)
    path = platform_case.write_sweep(np.zeros((200, 20, 30), np.uint8))
    stream = FrameStream(path)
    chunks = stream.chunks()
    next(chunks)
    assert len(stream._chunks) <= 2
    stream.close()
    assert not stream._thread.is_alive()


def test_damage_in_a_stack_reaches_its_reader(platform_case):
    """A header that is refused shows at `header`, pixels that are damaged at `chunks`."""
    path = platform_case.write_sweep(np.random.default_rng(0).integers(0, 256, (50, 20, 30), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:-100])
    with (
        contextlib.closing(FrameStream(path.with_name("none.mha"))) as missing,
        pytest.raises(AcouslicError, match="none"),
    ):
        _ = missing.header
    with contextlib.closing(FrameStream(path)) as damaged, pytest.raises(AcouslicError, match="f3a"):
        list(damaged.chunks())


def test_a_closed_stream_keeps_nothing_of_its_damage(platform_case):
    """What was raised holds the frames of whoever read, and so a whole case: it goes when the stream is closed."""
    path = platform_case.write_sweep(drawn_stack())
    path.write_bytes(path.read_bytes()[:-20])
    with contextlib.closing(FrameStream(path)) as stream:
        try:
            for _ in stream.chunks():
                pass
        except AcouslicError as error:
            raised = weakref.ref(error)
    gc.collect()
    assert raised() is None


def test_no_more_streams_are_kept_than_are_read(platform_case, tmp_path):
    """Of many cases the one at hand and the next: what was analysed takes no memory."""
    path = platform_case.write_sweep(drawn_stack(frames=2))
    sweeps = [SweepInput(path, str(number)) for number in range(6)]
    streams = weakref.WeakSet()
    most = 0
    for _, stream in _read_ahead(sweeps, PredictSettings(tmp_path, tmp_path)):
        streams.add(stream)
        gc.collect()
        most = max(most, len(streams))
    assert most <= 2
