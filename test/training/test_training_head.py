"""The head of a whole case: what it depends on, what it learns, and that inference sees what training saw."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from acouslic.errors import AcouslicError
from algorithm.judgement.review import load_case_head
from algorithm.judgement.select_frame import FrameJudgement, judge_frames, smooth_in_sweeps
from algorithm.model.artifact import load_artifact, write_artifact
from algorithm.model.file_hashes import hash_file
from algorithm.model.heads import CaseHead
from algorithm.model.manifest import SelectionConfig, read_manifest
from algorithm.model.networks import CaseHeadConfig
from algorithm.pipeline import Pipeline
from bench.setting.random_artifact import TOWERS, write_random_artifact
from training.export.add_case_head import add_case_head, case_examples, main
from training.export.calibrate_artifact import calibrate_artifact
from training.export.distil import main as distil
from training.export.precision import measure_artifact
from training.judge.calibrate import CaseJudgement
from training.judge.case_head import CaseExample, HeadRecipe, fit_case_head, review, review_nested
from training.judge.head_gain import describe_gain, is_won, measure_gain
from training.judge.head_search import judge_recipe, search_recipe
from training.judge.unseen_cases import ask_about, cases_of_members
from training.release.cache import Cache

CPU = torch.device("cpu")
SMALL = CaseHeadConfig(components=4, hidden=8, neighbour_sigma_frames=2.0)
RECIPE = HeadRecipe(SMALL)
WIDTH = 12


def drawn_case(number: int, frames: int = 120) -> CaseExample:
    """A case whose planes lie off its own mean in one direction, by a step that is the same in all cases; the logit
    knows little, and each case has an offset of its own that is far larger."""
    rng = np.random.default_rng(number)
    label = np.zeros(frames, np.uint8)
    start = int(rng.integers(0, frames - 12))
    label[start : start + 12] = 1
    embedding = rng.normal(0, 0.3, (frames, WIDTH)) + rng.normal(0, 4, WIDTH)
    embedding[:, 3] += 2.0 * (label > 0)
    logit = rng.normal(-1.5, 1, frames) + 1.0 * (label > 0)
    return CaseExample(
        uuid=f"case {number}",
        embedding=torch.from_numpy(embedding.astype(np.float32)),
        logit=torch.from_numpy(logit.astype(np.float32)),
        seen=torch.ones(frames, dtype=torch.bool),
        sweeps=[range(frames // 2), range(frames // 2, frames)],
        label=label,
    )


@pytest.fixture(scope="module")
def examples() -> list[CaseExample]:
    """Twelve drawn cases."""
    return [drawn_case(number) for number in range(12)]


@pytest.fixture(scope="module")
def head(examples: list[CaseExample]) -> CaseHead:
    """Learned from them."""
    return fit_case_head(examples, RECIPE, seed=1)


def test_what_is_true_of_a_case_is_learned(examples: list[CaseExample]) -> None:
    """On cases that it has not learned from, the head tells the planes from the rest far better than the logit."""
    reviewed = review_nested(examples, {case.uuid: k % 3 for k, case in enumerate(examples)}, 1, lambda _: RECIPE)

    def right(case: CaseExample, presence: np.ndarray) -> float:
        return float(((presence >= 0.5) == (case.label > 0)).mean())

    before = np.mean([right(case, case.logit.sigmoid().numpy()) for case in examples])
    after = np.mean([right(case, reviewed[case.uuid]) for case in examples])
    assert before < 0.93
    assert after > 0.98


def test_a_nested_review_never_learned_from_the_group(examples: list[CaseExample]) -> None:
    """Other labels of a case change what is said of the other groups, and nothing of its own."""
    groups = {case.uuid: k % 3 for k, case in enumerate(examples)}
    one = examples[4]
    changed = CaseExample(**(vars(one) | {"label": np.roll(one.label, 40)}))
    before = review_nested(examples, groups, 1, lambda _: RECIPE)
    after = review_nested([*examples[:4], changed, *examples[5:]], groups, 1, lambda _: RECIPE)
    for case in examples:
        same = np.array_equal(before[case.uuid], after[case.uuid])
        assert same == (groups[case.uuid] == groups[one.uuid])


def test_a_searched_recipe_is_at_least_as_good_as_the_default(
    examples: list[CaseExample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judged as the search judges, twice the same; and it never sees the group that it is judged on."""
    monkeypatch.setattr("training.judge.case_head._STEPS", 10)  # how well a head learns is tested above
    groups = {case.uuid: k % 3 for k, case in enumerate(examples)}
    seen: list[set[str]] = []

    def find(cases: Sequence[CaseExample]) -> HeadRecipe:
        seen.append({case.uuid for case in cases})
        return search_recipe(cases, groups, 3, seed=1)

    review_nested(examples, groups, 1, find)
    for group, uuids in enumerate(seen):
        assert uuids == {uuid for uuid, number in groups.items() if number != group}
    others = [case for case in examples if groups[case.uuid] != 0]
    found = search_recipe(others, groups, 3, seed=1)
    assert found == search_recipe(others, groups, 3, seed=1)
    by_default, searched = (judge_recipe(others, groups, recipe, 1) for recipe in (HeadRecipe(), found))
    assert searched >= by_default
    assert search_recipe(others, groups, 1, seed=1) == HeadRecipe()


def test_training_twice_gives_the_same_bits(examples: list[CaseExample], head: CaseHead) -> None:
    """The seed decides everything, whatever was drawn before; another seed gives another head."""
    torch.manual_seed(99)
    again, other = fit_case_head(examples, RECIPE, seed=1), fit_case_head(examples, RECIPE, seed=2)
    for name, tensor in head.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert not torch.equal(head.change.weight, other.change.weight)


def test_a_case_of_black_frames_teaches_nothing(examples: list[CaseExample], head: CaseHead) -> None:
    """The head is the one that the other cases make."""
    dark = replace(drawn_case(99), seen=torch.zeros(120, dtype=torch.bool))
    for name, tensor in fit_case_head([*examples, dark], RECIPE, seed=1).state_dict().items():
        assert torch.equal(tensor, head.state_dict()[name])


def test_the_order_of_sweeps_and_cases_does_not_matter(examples: list[CaseExample], head: CaseHead) -> None:
    """A case with its sweeps in another order gets the same answers in that order; a case alone the same as beside
    others: nothing is looked at across cases."""
    case = examples[0]
    first, second = case.sweeps
    turned = np.r_[second, first]
    sweeps = [range(len(second)), range(len(second), len(turned))]
    with torch.inference_mode():
        expected = head(case.embedding, case.logit, case.seen, case.sweeps)
        found = head(case.embedding[turned], case.logit[turned], case.seen[turned], sweeps)
    torch.testing.assert_close(found, expected[turned], rtol=0, atol=1e-5)
    together = review(head, examples)
    for case in examples[::5]:
        np.testing.assert_array_equal(review(head, [case])[case.uuid], together[case.uuid])


@pytest.mark.parametrize("lengths", [(1,), (3,), (140, 1), (7, 30, 2, 1), (5,) * 6])
def test_any_sweeps_of_any_length(lengths: tuple[int, ...], head: CaseHead) -> None:
    """One to six sweeps, also of one frame."""
    ends = np.cumsum(lengths).tolist()
    sweeps = [range(start, stop) for start, stop in zip([0, *ends[:-1]], ends, strict=True)]
    generator = torch.Generator().manual_seed(3)
    embedding, logit = torch.randn(ends[-1], WIDTH, generator=generator), torch.randn(ends[-1], generator=generator)
    with torch.inference_mode():
        found = head(embedding, logit, torch.ones(ends[-1], dtype=torch.bool), sweeps)
    assert found.shape == logit.shape
    assert torch.isfinite(found).all()


def test_black_frames_say_nothing_about_the_case(examples: list[CaseExample], head: CaseHead) -> None:
    """Whatever a network makes of black frames, the others are judged alike; a case of black frames stays as it is."""
    case = examples[0]
    seen = case.seen.clone()
    seen[:20] = False
    wild, logit = case.embedding.clone(), case.logit.clone()
    wild[:20] = 1e3
    logit[:20] = 16.0
    with torch.inference_mode():
        expected = head(case.embedding, case.logit, seen, case.sweeps)
        found = head(wild, logit, seen, case.sweeps)
        untouched = head(case.embedding, case.logit, torch.zeros_like(seen), case.sweeps)
    torch.testing.assert_close(found[20:], expected[20:], rtol=0, atol=1e-5)
    assert torch.equal(untouched, case.logit)


def test_a_new_head_changes_nothing(examples: list[CaseExample]) -> None:
    """Before it has learned anything logits pass as they are."""
    case = examples[0]
    assert torch.equal(CaseHead(SMALL, WIDTH)(case.embedding, case.logit, case.seen, case.sweeps), case.logit)


def test_the_best_frame_is_chosen_without_the_head() -> None:
    """What is called positive follows the head, the choice the members."""
    presence = np.linspace(0.1, 0.9, 140)
    reviewed = presence[::-1].copy()
    judged = judge_frames(presence, None, [range(140)], SelectionConfig(), reviewed)
    assert int(np.argmax(judged.quality)) > 130
    assert int(np.argmax(judged.presence)) < 10
    np.testing.assert_array_equal(
        judged.presence, judge_frames(reviewed, None, [range(140)], SelectionConfig()).presence
    )


def called_case(uuid: str, label: list[int], called: list[int]) -> CaseJudgement:
    """A case whose frames are called as given."""
    values = np.array(called, float)
    frames = FrameJudgement(values, values, None, values)
    return CaseJudgement(uuid, np.array(label, np.uint8), frames, values >= 0, [range(len(values))])


def test_the_gain_by_hand() -> None:
    """Three subjects of two cases: F1 from 6/9 to 12/15, its interval from leaving each subject out; a head that helps
    one patient and harms another has not won."""
    label = [1, 1, 0, 0]
    without = [called_case(f"{k}", label, [1, 0, 0, 0]) for k in range(6)]
    better = [called_case(f"{k}", label, [1, 1, 1, 0]) for k in range(6)]
    subjects = {f"{k}": f"subject {k // 2}" for k in range(6)}
    gain = measure_gain(without, better, subjects)
    assert (gain.cases, gain.f1_without, gain.f1_with) == (6, 0.6667, 0.8)
    assert gain.lower == gain.upper == pytest.approx(0.1333, abs=1e-4)
    assert is_won(gain)
    assert not is_won(measure_gain(better, without, subjects))
    assert "+0.133 (+0.133 to +0.133)" in describe_gain(gain)
    mixed = [*better[:4], *(called_case(f"{k}", label, [0, 0, 0, 0]) for k in (4, 5))]
    unsure = measure_gain(without, mixed, subjects)
    assert unsure.lower < -0.01
    assert not is_won(unsure)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random artifact that takes the frames of the tiny cache."""
    folder = tmp_path_factory.mktemp("headless") / "model"
    write_random_artifact(folder, replace(TOWERS["tiny"], image_size=28), members=2, seed=4)
    artifact = load_artifact(folder)
    preprocessing = replace(artifact.manifest.preprocessing, antialias=True)
    write_artifact(
        folder, replace(artifact.manifest, preprocessing=preprocessing), dict(artifact.tower_state), artifact.members
    )
    return folder


@pytest.fixture(scope="module")
def headed(model: Path, tiny_training: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a head that learned from all cases of the cache."""
    out = tmp_path_factory.mktemp("headed") / "new"
    assert main([str(model), f"--cache={tiny_training.cache}", f"--out={out}", "--device=cpu", "--anyway"]) == 0
    return out


def test_a_head_that_does_not_win_is_not_written(
    model: Path, tiny_training: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random members have nothing to teach: one sentence with the figures before it, and no model."""
    with pytest.raises(AcouslicError, match="the head does not win"):
        main([str(model), f"--cache={tiny_training.cache}", f"--out={tmp_path / 'new'}", "--device=cpu"])
    assert "F1 over all frames of 7 cases" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


def test_a_finished_model_gets_a_head(headed: Path, model: Path) -> None:
    """Beside the head every file stays as it is; manifest and card say what it gained."""
    manifest = read_manifest(headed)
    assert manifest.case_head is not None
    assert manifest.case_head.gain is not None
    assert manifest.case_head.gain.cases == 7
    assert "its case head: python -m training head" in manifest.provenance.made_by
    assert f"| gain.f1_with | {manifest.case_head.gain.f1_with} |" in headed.with_name("new.md").read_text()
    others = {name: record for name, record in manifest.files.items() if name != "case_head.safetensors"}
    assert others == read_manifest(model).files


def test_inference_sees_what_training_saw(headed: Path, tiny_training: Any) -> None:
    """From the release's own file the pipeline reads, smoothed, what the artifact's head makes of the cached frames.

    The head is not fitted again here: it learned from the model without a head, which a CPU with bfloat16 may ask in
    that type where the headed model has to run in float32.
    """
    artifact, cache = load_artifact(headed), Cache(tiny_training.cache)
    manifest, case = artifact.manifest, cache.cases[3]
    uuids = cases_of_members(manifest, cache, None)
    examples = case_examples(ask_about(artifact, cache, uuids, CPU), manifest, cache, uuids)
    head = load_case_head(artifact)
    assert head is not None
    reviewed = review(head, examples)[case.uuid]
    smoothed = smooth_in_sweeps(reviewed, case.sweeps, manifest.selection.smoothing_sigma_frames)
    (path,) = tiny_training.release.glob(f"images/*/{case.uuid}.mha")
    result = Pipeline.load(headed, device="cpu").run(path, None, "case")
    np.testing.assert_allclose(result.presence_alone_probability, smoothed, atol=1e-4)
    without = Pipeline.load(headed, device="cpu")
    plain = replace(without, case_head=None).run(path, None, "case")
    assert result.frame_index == plain.frame_index
    assert np.abs(result.presence_alone_probability - plain.presence_alone_probability).max() > 1e-3


def test_what_half_precision_moves_is_measured_behind_the_head(headed: Path, model: Path, tiny_training: Any) -> None:
    """The head leans on embeddings, so that rounding moves what it says further than what members say: the record of
    the headed model counts that."""
    frames = torch.from_numpy(np.array(Cache(tiny_training.cache).cases[0].frames[:24]))
    without, with_head = (measure_artifact(load_artifact(folder), frames, CPU) for folder in (model, headed))
    assert with_head.bfloat16 is not None
    assert without.bfloat16 is not None
    assert with_head.bfloat16 > 1.5 * without.bfloat16
    assert read_manifest(headed).half_precision.frames > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("change.bias"), "'change.bias' is missing"),
        (lambda state: state.update({"hidden.bias": torch.zeros(3)}), "'hidden.bias' has shape"),
        (lambda state: state["projection.weight"].fill_(float("nan")), "'projection.weight' holds NaN"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    change: Callable[[dict[str, torch.Tensor]], object], message: str, headed: Path, tmp_path: Path
) -> None:
    """As all other weights of an artifact."""
    folder = Path(shutil.copytree(headed, tmp_path / "model"))
    path = folder / "case_head.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][path.name] = {"sha256": hash_file(path), "size_bytes": path.stat().st_size}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(AcouslicError, match=rf"case_head\.safetensors: .*{message}"):
        load_artifact(folder)


def test_a_head_is_not_calibrated_and_not_gated(headed: Path, tiny_training: Any, tmp_path: Path) -> None:
    """What would make the head another one than was judged is refused with what to do instead."""
    cache = Cache(tiny_training.cache)
    with pytest.raises(AcouslicError, match="has a case head, which was made for the calibration"):
        calibrate_artifact(headed, cache, None, CPU, precision_frames=0)
    words = [str(headed), f"--cache={tiny_training.cache}", f"--out={tmp_path / 'fast'}"]
    with pytest.raises(AcouslicError, match="has a case head, which takes what all members see"):
        distil(words)
    manifest = read_manifest(headed)
    with pytest.raises(ValueError, match="must be 'exhaustive'"):
        replace(manifest, scoring=replace(manifest.scoring, mode="gated"))


def test_models_and_cases_without_a_head(model: Path, tiny_training: Any, tmp_path: Path) -> None:
    """A gated model cannot have a head, and a seed is 0 or more: one sentence each, nothing written."""
    artifact, cache = load_artifact(model), Cache(tiny_training.cache)
    gated = replace(artifact.manifest, scoring=replace(artifact.manifest.scoring, mode="gated"))
    with pytest.raises(AcouslicError, match="has a gate"):
        add_case_head(replace(artifact, manifest=gated), cache, None, CPU, tmp_path / "new")
    with pytest.raises(AcouslicError, match="the model itself"):
        main([str(model), f"--cache={tiny_training.cache}", f"--out={model}"])
    with pytest.raises(AcouslicError, match="--seed must be between 0 and"):
        main([str(model), f"--cache={tiny_training.cache}", f"--out={tmp_path / 'new'}", "--seed=-1"])
    assert not (tmp_path / "new").exists()
