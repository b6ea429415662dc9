"""`python -m training precision`: what half precision costs an artifact, in its manifest, and what follows from it."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from acouslic.errors import AcouslicError
from algorithm.engine.device import choose_precision
from algorithm.engine.ensemble import Ensemble
from algorithm.frames.preprocess import normalise
from algorithm.model.artifact import load_artifact, write_artifact
from algorithm.model.manifest import Consequence, HalfPrecision, manifest_to_json, read_manifest
from algorithm.model.typed_json import check_bounds
from algorithm.pipeline import Pipeline
from training.export.consequence import compare_answers, measure_whole_cases
from training.export.precision import describe, main, measure_half_precision
from training.learn.autocast import autocast_type

CPU = torch.device("cpu")


@pytest.fixture
def model(tiny_model, tmp_path):
    """A copy to write into."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def test_the_largest_difference_of_any_probability(model):
    """As found one by one; presence and optimality of every member count."""
    frames = torch.randint(0, 256, (11, 56, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    measured = measure_half_precision(model, frames, CPU)
    assert measured.frames == 11
    artifact = load_artifact(model)
    for name in ("float16", "bfloat16"):
        said = []
        for dtype in (torch.float32, getattr(torch, name)):
            ensemble = Ensemble.from_artifact(artifact, CPU, dtype)
            scores = ensemble.score(normalise(frames, artifact.manifest.preprocessing, dtype))
            said.append(torch.cat([scores.presence_probability, scores.optimality_probability]))
        assert getattr(measured, name) == pytest.approx(float((said[1] - said[0]).abs().max()), abs=2e-4)
    assert 0 < measured.float16 < measured.bfloat16 < 0.1


def test_what_is_not_a_number_counts_as_one(model, monkeypatch):
    """A type that overflows is never chosen."""
    answers = {torch.float32: 0.5, torch.float16: float("nan"), torch.bfloat16: 0.505}
    monkeypatch.setattr(
        "training.export.precision._probabilities",
        lambda _model, _frames, _device, dtype: torch.full((3, 5), answers[dtype]),
    )
    measured = measure_half_precision(model, torch.zeros(5, 56, 56, dtype=torch.uint8), CPU)
    assert measured.float16 == 1.0
    assert measured.bfloat16 == pytest.approx(0.005, abs=1e-6)
    assert "float16 1.0000 (too much by itself), bfloat16 0.0050" in describe(measured)


def test_the_command_writes_the_manifest(model, platform_case, capsys):
    """What it prints is what the manifest then says; nothing else of it changes, and the artifact still loads."""
    before = read_manifest(model)
    stack = np.random.default_rng(0).integers(0, 256, (30, 40, 60), dtype=np.uint8)
    sweeps = [str(platform_case.write_sweep(stack, name)) for name in ("a.mha", "b.mha")]
    assert main([str(model), *sweeps, "--frames", "9", "--device", "cpu"]) == 0
    after = load_artifact(model).manifest
    assert after.half_precision.frames == 8
    assert f"bfloat16 {after.half_precision.bfloat16:.4f}" in capsys.readouterr().out
    assert (after.members, after.files, after.provenance) == (before.members, before.files, before.provenance)
    with pytest.raises(AcouslicError, match="at least one frame a sweep"):
        main([str(model), *sweeps, "--frames", "1"])


def test_whole_cases_are_not_analysed_where_no_half_type_is_fast(model, monkeypatch, capsys):
    """What was asked for and is not done is said."""
    monkeypatch.setattr("training.export.consequence.half_types", lambda _: ((), "the CPU has none"))
    measured = HalfPrecision(8, 0.1, 0.1)
    assert measure_whole_cases(measured, load_artifact(model), [], CPU) == measured
    assert "no whole case is analysed: cpu is fast in no half type (the CPU has" in capsys.readouterr().out


def test_whole_cases_are_compared(model, platform_case, capsys, monkeypatch):
    """With --whole-cases the manifest also says what the device's half type changes in the answers to the sweeps, until
    it is measured anew."""
    monkeypatch.setattr("algorithm.engine.device.cpu_flags", lambda: {"avx512_bf16"})
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    stack = np.random.default_rng(0).integers(0, 256, (12, 40, 60), dtype=np.uint8)
    sweeps = [str(platform_case.write_sweep(stack, name)) for name in ("a.mha", "b.mha")]
    assert main([str(model), *sweeps, "--frames", "4", "--device", "cpu", "--whole-cases"]) == 0
    found = load_artifact(model).manifest.half_precision
    assert found.bfloat16_consequence.cases == 2
    assert found.float16_consequence is None
    assert "bfloat16 in 2 whole cases: it chooses another frame in" in capsys.readouterr().out
    # Frames alone, and whole cases on a device that is fast in another type, leave it as it is.
    assert main([str(model), *sweeps, "--frames", "2", "--device", "cpu"]) == 0
    again = load_artifact(model).manifest.half_precision
    assert (again.frames, again.bfloat16_consequence) == (2, found.bfloat16_consequence)
    assert "stays as it was recorded" in capsys.readouterr().out
    monkeypatch.setattr("training.export.consequence.half_types", lambda _: ((), "none"))
    assert main([str(model), *sweeps, "--frames", "2", "--device", "cpu", "--whole-cases"]) == 0
    assert load_artifact(model).manifest.half_precision == again


def test_a_type_that_overflows_in_whole_cases(model, platform_case, capsys, monkeypatch):
    """It ends no measurement: it is written down as the furthest off, whatever it was on single frames, and others are
    measured all the same."""
    monkeypatch.setattr(
        "training.export.consequence.half_types", lambda _: ((torch.float16, torch.bfloat16), "as on a GPU")
    )
    artifact = load_artifact(model)
    steep = {
        name: tensor * 1e5 if name.endswith("mlp.c_fc.weight") else tensor
        for name, tensor in ((name, artifact.tower_state[name].float()) for name in artifact.tower_state)
    }
    write_artifact(model, artifact.manifest, steep, artifact.members)
    sweep = str(platform_case.write_sweep(np.random.default_rng(0).integers(0, 256, (6, 56, 56), dtype=np.uint8)))
    few = HalfPrecision(2, 0.001, 0.001)
    monkeypatch.setattr("training.export.precision.measure_half_precision", lambda *_: few)
    assert main([str(model), sweep, "--frames", "2", "--device", "cpu", "--whole-cases"]) == 0
    found = read_manifest(model).half_precision
    assert found.float16 == 1.0
    assert found.float16_consequence is found.float16_rechecked_consequence is None
    assert found.bfloat16 == 0.001
    assert found.bfloat16_consequence.cases == 1
    assert "float16 overflows in whole cases: it is not used" in capsys.readouterr().out.splitlines()


def test_what_holds_when_frames_are_measured_again(model, platform_case):
    """What half precision changes with frames asked again goes where fewer would be, and stays where more would."""
    same = Consequence(5, 0, 100, 0, 0.0)
    stack = np.random.default_rng(0).integers(0, 256, (12, 40, 60), dtype=np.uint8)
    sweep = str(platform_case.write_sweep(stack))
    for recorded, stays in ((0.9, False), (1e-9, True)):
        manifest = read_manifest(model)
        half = HalfPrecision(64, recorded, recorded, bfloat16_consequence=same, bfloat16_rechecked_consequence=same)
        (model / "manifest.json").write_text(manifest_to_json(dataclasses.replace(manifest, half_precision=half)))
        assert main([str(model), sweep, "--frames", "2", "--device", "cpu"]) == 0
        found = read_manifest(model).half_precision
        assert found.bfloat16_consequence == same
        assert (found.bfloat16_rechecked_consequence == same) == stays


def test_a_type_that_changes_something_is_tried_with_frames_asked_again(model, platform_case, capsys, monkeypatch):
    """Where whole cases differ by themselves, they are analysed once more with decisions in float32; both are written
    down, and told."""
    monkeypatch.setattr("algorithm.engine.device.cpu_flags", lambda: {"avx512_bf16"})
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    changed, same = Consequence(5, 1, 100, 9, 0.3), Consequence(5, 0, 100, 0, 0.0)
    asked = []

    def answers(_artifact, _cases, _device, precision):
        asked.append((precision.dtype, precision.recheck_margin))
        return [len(asked)]

    monkeypatch.setattr("training.export.consequence._answers", answers)
    monkeypatch.setattr("training.export.consequence.compare_answers", lambda _, half: changed if half == [2] else same)
    stack = np.random.default_rng(0).integers(0, 256, (12, 40, 60), dtype=np.uint8)
    sweep = str(platform_case.write_sweep(stack))
    monkeypatch.setattr("training.export.precision.measure_half_precision", lambda *_: HalfPrecision(2, 0.001, 0.03))
    assert main([str(model), sweep, "--frames", "2", "--device", "cpu", "--whole-cases"]) == 0
    assert asked == [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, pytest.approx(0.12))]
    found = read_manifest(model).half_precision
    assert (found.bfloat16_consequence, found.bfloat16_rechecked_consequence) == (changed, same)
    told = capsys.readouterr().out
    assert "bfloat16 in 5 whole cases: it chooses another frame in 1, calls 9 of 100 frames otherwise" in told
    assert "bfloat16, frames near a decision in float32, in 5 whole cases: it chooses another frame in 0" in told
    assert told.count("it may be used") == 1
    # A type that moves a probability too far for it is not tried again.
    monkeypatch.setattr("training.export.precision.measure_half_precision", lambda *_: HalfPrecision(2, 0.001, 0.3))
    asked.clear()
    assert main([str(model), sweep, "--frames", "2", "--device", "cpu", "--whole-cases"]) == 0
    assert len(asked) == 2
    assert read_manifest(model).half_precision.bfloat16_rechecked_consequence is None


def test_what_differs_between_two_answers(model, platform_case):
    """Frames, calls and millimetres of two cases, one of which loses its circumference."""
    stack = np.random.default_rng(0).integers(0, 256, (12, 40, 60), dtype=np.uint8)
    answer = Pipeline.load(model, device="cpu").run(platform_case.write_sweep(stack), None, "case")
    calls = np.array([0.9] * 4 + [0.1] * 8)
    thresholds = dataclasses.replace(answer.thresholds, presence=0.5)
    answer = dataclasses.replace(
        answer, frame_index=3, circumference_mm=250.0, presence_probability=calls, thresholds=thresholds
    )
    moved = dataclasses.replace(answer, circumference_mm=250.25, presence_probability=np.roll(calls, 1))
    lost = dataclasses.replace(answer, circumference_mm=None)
    assert compare_answers([answer], [answer]) == Consequence(1, 0, 8, 0, 0.0)
    assert compare_answers([answer, answer], [moved, lost]) == Consequence(2, 1, 16, 2, 0.25)
    other = dataclasses.replace(answer, frame_index=4)
    assert compare_answers([answer], [other]).other_frames == 1
    assert compare_answers([answer], [moved]).frame_f1 == 0.75  # three of four in common


def test_the_algorithm_obeys_the_manifest(model, monkeypatch):
    """An artifact that bfloat16 takes too far from float32 runs in float32."""
    monkeypatch.setattr("algorithm.engine.device.cpu_flags", lambda: {"avx512_bf16"})
    text = (model / "manifest.json").read_text()
    for bfloat16, dtype in (("0.01", torch.bfloat16), ("0.011", torch.float32)):
        record = f'"frames": 64, "float16": 0.001, "bfloat16": {bfloat16},'
        empty = '"frames": 0,\n    "float16": null,\n    "bfloat16": null,'
        assert empty in text
        (model / "manifest.json").write_text(text.replace(empty, record))
        assert Pipeline.load(model, device="cpu").ensemble.dtype == dtype


@pytest.mark.parametrize(
    "fields",
    [
        {"frames": -1},
        {"frames": 5},
        {"frames": 5, "float16": 0.1},
        {"float16": 0.1, "bfloat16": 0.1},
        {"frames": 5, "float16": 1.5, "bfloat16": 0.1},
    ],
)
def test_a_record_that_cannot_be(fields):
    """No numbers without frames, nor frames without numbers, nor differences of more than one."""
    with pytest.raises(ValueError, match=r"float16|frames"):
        check_bounds(HalfPrecision(**fields))


def test_training_prefers_range(monkeypatch):
    """bfloat16 where both are fast, whatever inference takes; what there is elsewhere."""
    for capability, training, inference in (((9, 0), "bfloat16", "float16"), ((7, 5), "float16", "float16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, capability=capability: capability)
        assert autocast_type(torch.device("cuda"))[0] == getattr(torch, training)
        assert choose_precision(torch.device("cuda"))[0] == getattr(torch, inference)
    monkeypatch.setattr("algorithm.engine.device.cpu_flags", lambda: set())
    assert autocast_type(CPU)[0] == torch.float32
