"""The student: its network against plain functions, its place in the artifact and in the ensemble."""

import dataclasses
import json
import shutil
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from acouslic.errors import AcouslicError
from algorithm.engine.device import Precision
from algorithm.engine.ensemble import Ensemble
from algorithm.engine.stacked_tower import StackedTower
from algorithm.model.artifact import load_artifact
from algorithm.model.file_hashes import hash_file
from algorithm.model.manifest import ScoringConfig
from algorithm.model.networks import Agreement, StudentConfig
from algorithm.model.student import student_from_state
from algorithm.pipeline import Pipeline
from bench.setting.random_artifact import TOWERS, random_student, write_random_artifact

CPU = torch.device("cpu")
CONFIG = StudentConfig(width=4, blocks=(1, 0, 2))
GATED = ScoringConfig(mode="gated", gate="student", stride=1)
FILE = "student.safetensors"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """An artifact with a student as its gate, not to be changed."""
    folder = tmp_path_factory.mktemp("sound") / "artifact"
    write_random_artifact(folder, TOWERS["tiny"], members=2, scoring=GATED, student=CONFIG)
    return folder


@pytest.fixture
def artifact(sound, tmp_path):
    """A copy of it."""
    return shutil.copytree(sound, tmp_path / "artifact")


def change_manifest(folder, **sections):
    """Write other values into the manifest, and the records of the files as they are now."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) | sections
    for name in manifest["files"]:
        manifest["files"][name] = {"sha256": hash_file(folder / name), "size_bytes": (folder / name).stat().st_size}
    path.write_text(json.dumps(manifest))


def images(count, side=56, seed=1):
    """Normalised images whose channels are one grey, as those of frames."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 1, 9, 9, generator=generator)
    return F.interpolate(coarse, (side, side), mode="bicubic").expand(-1, 3, -1, -1).contiguous()


def plain(state, x):
    """What the network is, in functions, for CONFIG."""
    x = x[:, :1].unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))

    def convolve(x, name, stride=1):
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride=stride, padding=1)

    for stage, blocks in enumerate(CONFIG.blocks):
        x = convolve(x, f"stages.{stage}.halve", 2).clamp(min=0)
        for block in range(blocks):
            root = f"stages.{stage}.blocks.{block}"
            x = (x + convolve(convolve(x, f"{root}.first").clamp(min=0), f"{root}.second")).clamp(min=0)
    x = x.mean((2, 3))
    return [x @ state[f"{head}.weight"][0] + state[f"{head}.bias"] for head in ("presence", "optimality")]


@pytest.mark.parametrize("side", [56, 57, 28, 2])
def test_it_is_what_it_says(side):
    """Halved by area, convolutions of side 3 with residuals, mean over positions, two linear heads; an odd last row is
    left out, and only the first channel counts."""
    state = random_student(CONFIG, 56, torch.Generator().manual_seed(0))
    student = student_from_state(CONFIG, state, CPU, torch.float32)
    x = images(5, side)
    x[:, 1:] = torch.randn(5, 2, side, side)
    for found, expected in zip(student(x), plain(state, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_frames_do_not_depend_on_their_batch():
    """Nine together are as nine one by one."""
    state = random_student(CONFIG, 56, torch.Generator().manual_seed(0))
    student = student_from_state(CONFIG, state, CPU, torch.float32)
    x = images(9)
    together = student(x)
    for head in range(2):
        alone = torch.cat([student(one)[head] for one in x.split(1)])
        torch.testing.assert_close(together[head], alone, rtol=0, atol=1e-5)
        assert alone.std() > 0.1


def test_half_precision_is_near():
    """In bfloat16 a probability is within 0.02 of float32's, and the heads' answers are float32."""
    state = random_student(StudentConfig(), 56, torch.Generator().manual_seed(0))
    exact, half = (student_from_state(StudentConfig(), state, CPU, dtype) for dtype in (torch.float32, torch.bfloat16))
    x = images(9)
    for found, expected in zip(half(x.bfloat16()), exact(x), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.sigmoid(), expected.sigmoid(), rtol=0, atol=0.02)


def test_beside_decisions_in_float32_it_stays_in_half_precision(sound):
    """What it says is the same as where half precision has the last word; the frames come to it in that type."""
    loaded, x = load_artifact(sound), images(3).bfloat16()
    mixed, half = (
        Pipeline.of_artifact(loaded, CPU, Precision(torch.bfloat16, "", recheck_margin=margin)).ensemble
        for margin in (0.2, None)
    )
    assert torch.equal(mixed.gate(x).presence_probability, half.gate(x).presence_probability)
    exact = Ensemble.from_artifact(loaded, CPU, torch.float32)
    assert not torch.equal(mixed.gate(x).presence_probability, exact.gate(x.float()).presence_probability)


def test_it_is_the_ensembles_gate(sound):
    """The gate's probabilities are its, whatever the trunk; an exhaustive ensemble does not have it."""
    loaded = load_artifact(sound)
    ensemble = Ensemble.from_artifact(loaded, CPU, torch.float32)
    x = images(3)
    presence, optimality = plain(loaded.student, x)
    scores = ensemble.gate(x, ensemble.trunk(x))
    torch.testing.assert_close(scores.presence_probability, presence.sigmoid(), rtol=0, atol=1e-5)
    torch.testing.assert_close(scores.optimality_probability, optimality.sigmoid(), rtol=0, atol=1e-5)
    exhaustive = dataclasses.replace(loaded, manifest=dataclasses.replace(loaded.manifest, scoring=ScoringConfig()))
    with pytest.raises(AcouslicError, match="no gate"):
        Ensemble.from_artifact(exhaustive, CPU, torch.float32).gate(x)


def test_it_judges_while_the_members_are_merged(sound, monkeypatch):
    """The gate answers before the members are ready; their score waits for them, and says what merging says."""
    loaded, may_merge, merged = load_artifact(sound), threading.Event(), []

    class Slow(StackedTower):
        def __init__(self, *arguments, **options):
            assert may_merge.wait(60)
            super().__init__(*arguments, **options)
            merged.append(True)

    x = images(3)
    expected = Ensemble.from_artifact(loaded, CPU, torch.float32).score(x)
    monkeypatch.setattr("algorithm.engine.ensemble.StackedTower", Slow)
    ensemble = Ensemble.from_artifact(loaded, CPU, torch.float32)
    assert ensemble.gate(x).presence_probability.shape == (3,)
    assert not merged
    may_merge.set()
    assert torch.equal(ensemble.score(x).presence_probability, expected.presence_probability)

    def fails(*_, **__):
        raise AcouslicError("no weights")

    monkeypatch.setattr("algorithm.engine.ensemble.StackedTower", fails)
    with pytest.raises(AcouslicError, match="no weights"):
        Ensemble.from_artifact(loaded, CPU, torch.float32).score(x)


def test_without_optimality_it_has_one_head(tmp_path):
    """Then the gate has no opinion of it."""
    config = dataclasses.replace(CONFIG, optimality=False)
    write_random_artifact(tmp_path / "model", TOWERS["tiny"], members=1, scoring=GATED, student=config)
    loaded = load_artifact(tmp_path / "model")
    assert not [name for name in loaded.student if name.startswith("optimality")]
    assert Ensemble.from_artifact(loaded, CPU, torch.float32).gate(images(2)).optimality_probability is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("presence.bias"), "'presence.bias' is missing"),
        (lambda state: state.update(more=torch.zeros(1)), "unknown tensor 'more'"),
        (lambda state: state.update({"presence.bias": torch.zeros(2)}), "'presence.bias' has shape"),
        (lambda state: state["stages.0.halve.weight"].fill_(float("nan")), "'stages.0.halve.weight' holds NaN"),
        (lambda state: state.update({"presence.bias": torch.zeros(1, dtype=torch.int32)}), r"is torch\.int32"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(change, message, artifact):
    """Names, shapes, kinds and values, as those of all other weights."""
    state = load_file(artifact / FILE)
    change(state)
    save_file(state, artifact / FILE)
    change_manifest(artifact)
    with pytest.raises(AcouslicError, match=rf"student\.safetensors: .*{message}"):
        load_artifact(artifact)


def test_a_file_that_is_damaged_missing_or_not_announced_is_refused(artifact):
    """By its hash, its absence, or because the manifest knows no student."""
    content = bytearray((artifact / FILE).read_bytes())
    content[-1] ^= 1
    (artifact / FILE).write_bytes(content)
    with pytest.raises(AcouslicError, match=r"student\.safetensors: its sha256"):
        load_artifact(artifact)
    (artifact / FILE).unlink()
    with pytest.raises(AcouslicError, match=r"student\.safetensors is missing"):
        load_artifact(artifact)
    manifest = json.loads((artifact / "manifest.json").read_text())
    (artifact / "manifest.json").write_text(json.dumps(manifest | {"student": None}))
    with pytest.raises(AcouslicError, match=r"scoring\.gate is 'student', but there is no student"):
        load_artifact(artifact)
    scoring = manifest["scoring"] | {"gate": "average"}
    (artifact / "manifest.json").write_text(json.dumps(manifest | {"student": None, "scoring": scoring}))
    with pytest.raises(AcouslicError, match=r"'student\.safetensors' is listed but not part of an artifact"):
        load_artifact(artifact)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 129}, "student.width must be an integer <= 128, not 129"),
        ({"blocks": []}, "student.blocks must be an array of length >= 1"),
        ({"blocks": [1, 17]}, r"student.blocks\[1\] must be an integer <= 16, not 17"),
        ({"depth": 3}, "unknown field 'depth' in student"),
        ({"agreement": {"cases": 0}}, "student.agreement.cases must be an integer >= 1, not 0"),
    ],
)
def test_a_student_that_makes_no_sense_is_refused_by_field(fields, message, artifact):
    """Bounds and fields of the manifest's section."""
    manifest = json.loads((artifact / "manifest.json").read_text())
    change_manifest(artifact, student=manifest["student"] | fields)
    with pytest.raises(AcouslicError, match=message):
        load_artifact(artifact)


def test_a_student_looks_at_every_frame(artifact):
    """A stride belongs to the other gates."""
    manifest = json.loads((artifact / "manifest.json").read_text())
    change_manifest(artifact, scoring=manifest["scoring"] | {"stride": 4})
    with pytest.raises(AcouslicError, match="a student looks at every frame: stride must be 1, not 4"):
        load_artifact(artifact)


def test_a_manifest_of_schema_3_has_no_student(tiny_model, tmp_path):
    """It is read as it was meant; one that says schema 3 and has a student is not."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    manifest = json.loads((model / "manifest.json").read_text())
    manifest["schema_version"] = 3
    (model / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(AcouslicError, match="schema_version is 3, this program reads 9"):
        load_artifact(model)
    del manifest["student"], manifest["case_head"]
    del manifest["scoring"]["rounds"], manifest["scoring"]["scale_frames"]
    for name in ("float16", "bfloat16"):
        del manifest["half_precision"][f"{name}_rechecked_consequence"]
    for name in ("one_run_a_sweep", "most_positive_frames", "circumference_error"):
        del manifest["selection"][name]
    (model / "manifest.json").write_text(json.dumps(manifest))
    assert load_artifact(model).manifest == load_artifact(tiny_model).manifest


def test_what_an_agreement_says():
    """Three frames of twelve calls changed: F1 0.75; 1 where nothing is called."""
    assert Agreement(2, 0, 12, 3, 0.1).frame_f1 == 0.75
    assert Agreement(2, 0, 0, 0, 0.1).frame_f1 == 1.0


@pytest.mark.parametrize("mask_threshold", [0.5, 1.0])
def test_outlines_are_the_same_with_and_without_what_refinement_has_computed(
    mask_threshold, tmp_path, monkeypatch, platform_case
):
    """A case's mask, outline and interval do not depend on how much of the tower's work is kept, with an ellipse in the
    first candidate and in none."""
    scoring = dataclasses.replace(GATED, refine_ratio=0.0, max_refined_fraction=1.0)
    write_random_artifact(tmp_path / "model", TOWERS["tiny"], members=2, scoring=scoring, student=CONFIG)
    change_manifest(
        tmp_path / "model", thresholds={"suitable": 0.5, "presence": 0.5, "optimality": 0.5, "mask": mask_threshold}
    )
    discs = np.zeros((40, 80, 100), np.uint8)
    y, x = np.ogrid[:80, :100]
    for number, frame in enumerate(discs):
        frame[np.hypot(x - 50, y - 40) < 5 + number] = 40 + 3 * number
    sweep = platform_case.write_sweep(discs)
    pipeline = Pipeline.load(tmp_path / "model", device="cpu")
    asked = []
    segment = Ensemble.segment

    def watched(self, images, start=None):
        """A blob whose edge is where the decoders say."""
        asked.append(start is not None)
        masks = segment(self, images, start)
        y, x = torch.meshgrid(*[torch.linspace(-1, 1, masks.shape[-1])] * 2, indexing="ij")
        return 0.7 * torch.exp(-3 * (x**2 + y**2)) + 0.3 * masks

    monkeypatch.setattr(Ensemble, "segment", watched)
    monkeypatch.setattr("algorithm.judgement.score.OUTLINED_FRAMES", 40)
    with_starts = pipeline.run(sweep, None, "case")
    assert all(asked)
    asked.clear()
    monkeypatch.setattr("algorithm.judgement.score.OUTLINED_FRAMES", 0)
    without = pipeline.run(sweep, None, "case")
    assert not any(asked)
    assert (with_starts.ellipse is None) == (mask_threshold == 1.0)
    assert with_starts.frame_index == without.frame_index
    assert np.array_equal(with_starts.mask, without.mask)
    assert with_starts.circumference_mm == pytest.approx(without.circumference_mm)
    assert with_starts.interval_mm == pytest.approx(without.interval_mm)
