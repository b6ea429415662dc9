"""The ensemble against its members one by one: shared trunk, stacked weights, heads, gate and precision."""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import peft
import pytest
import torch
from torch.nn import functional as F

from acouslic.errors import AcouslicError
from algorithm.engine.ensemble import Ensemble
from algorithm.engine.merged_weights import StackedLinear
from algorithm.engine.outline_start import join
from algorithm.model.artifact import load_artifact
from algorithm.model.heads import Heads, presence_from_mask
from algorithm.model.lora import merge
from algorithm.model.manifest import ScoringConfig
from algorithm.model.networks import DecoderConfig, MemberConfig, TowerConfig
from algorithm.model.tower import tower_from_state
from bench.setting.random_artifact import write_random_artifact

CPU = torch.device("cpu")
EXHAUSTIVE = ScoringConfig()
PLAIN = TowerConfig(56, 14, 32, 4, 4, 64, 16)
EVERYTHING = ("q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj")
DECODER = DecoderConfig((1, 2, 3, 4), 3, filters=4)
FULL = MemberConfig(
    True, True, True, DECODER, presence_temperature=1.7, optimality_temperature=1.2, presence_mask_fraction=0.3
)


@dataclass(frozen=True)
class Scenario:
    """A tower, and for each member its configuration and where its adapter acts (blocks from 0, layers)."""

    members: tuple[tuple[MemberConfig, tuple[range, tuple[str, ...]] | None], ...]
    tower: TowerConfig = PLAIN
    scoring: ScoringConfig = EXHAUSTIVE


BARE = dataclasses.replace(FULL, adapter=False)
ALL = (range(4), EVERYTHING)
LAST = (range(2, 4), ("c_fc", "c_proj"))
SCENARIOS = {
    "all_blocks": Scenario(((FULL, ALL),) * 3),
    "last_blocks": Scenario(((FULL, LAST),) * 3),
    "published_targets": Scenario(((FULL, (range(4), ("c_fc", "c_proj", "out_proj"))),) * 2),
    "different_targets": Scenario(
        (
            (FULL, (range(1, 3), ("v_proj", "c_proj"))),
            (FULL, (range(2, 4), ("q_proj", "k_proj"))),
            (BARE, None),
            (FULL, (range(3, 4), ("out_proj",))),
        )
    ),
    "no_adapter": Scenario(((BARE, None),) * 2),
    "one_member": Scenario(((FULL, LAST),)),
    "heads_missing": Scenario(
        (
            (dataclasses.replace(FULL, optimality=False), LAST),
            (dataclasses.replace(FULL, presence=False), LAST),
            (dataclasses.replace(BARE, presence=False, optimality=False), None),
            (dataclasses.replace(FULL, decoder=None), LAST),
        )
    ),
    "mask_judges_only": Scenario(((dataclasses.replace(FULL, presence=False, optimality=False), ALL),) * 2),
    "layer_scale_no_pre_norm": Scenario(
        ((FULL, ALL), (FULL, LAST)), dataclasses.replace(PLAIN, layer_scale=True, pre_norm=False, norm_eps=1e-3)
    ),
    "average_pool_quick_gelu": Scenario(
        ((FULL, ALL), (FULL, LAST)), dataclasses.replace(PLAIN, pool="avg", activation="quick_gelu")
    ),
    "norm_after_average_pool": Scenario(
        ((FULL, ALL), (FULL, LAST)), dataclasses.replace(PLAIN, pool="avg", norm_after_pool=True)
    ),
    "kept_patches": Scenario(
        ((FULL, ALL), (FULL, LAST)), dataclasses.replace(PLAIN, kept_patches=(1, 2, 5, 6, 9, 10, 14))
    ),
}


def write_scenario(folder: Path, scenario: Scenario):
    """An artifact of random weights as the scenario says."""
    write_random_artifact(folder, scenario.tower, scenario.members, scoring=scenario.scoring, seed=5)
    return load_artifact(folder)


@pytest.fixture(scope="module")
def images():
    """Blobs and speckle, so that frames differ."""
    generator = torch.Generator().manual_seed(9)
    speckle = torch.randn(3, 3, 56, 56, generator=generator)
    return 0.5 * speckle + F.interpolate(torch.randn(3, 1, 7, 7, generator=generator), (56, 56))


@torch.inference_mode()
def one_by_one(artifact, images):
    """Every member on its own, with peft's unmerged adapter from the artifact's folder: presence, optimality, masks."""
    presence, optimality, masks = [], [], []
    for k, (member, state) in enumerate(zip(artifact.manifest.members, artifact.members, strict=True)):
        tower = tower_from_state(artifact.manifest.tower, artifact.tower_state)
        if member.adapter:
            tower = peft.PeftModel.from_pretrained(tower, artifact.folder / "members" / str(k)).eval()
        heads = Heads(member, artifact.manifest.tower).eval()
        heads.load_state_dict(state.heads)
        output = tower(images, taps=member.decoder.taps if member.decoder else ())
        if member.decoder:
            masks.append(heads.decoder(images, output.taps).sigmoid())
        if member.presence:
            logit = heads.presence(output.embedding)[:, 0]
        else:
            logit = presence_from_mask(masks[-1], member.presence_mask_fraction)
        presence.append((logit / member.presence_temperature).sigmoid())
        if member.optimality:
            optimality.append((heads.optimality(output.embedding)[:, 0] / member.optimality_temperature).sigmoid())
    return torch.stack(presence), torch.stack(optimality) if optimality else None, torch.stack(masks)


@pytest.mark.parametrize("order", ["sequential", "batched"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_equals_members_one_by_one(name, order, images, tmp_path):
    """Scores and masks equal each member run alone with peft's unmerged adapter, float32 within 1e-5."""
    artifact = write_scenario(tmp_path / "artifact", SCENARIOS[name])
    presence, optimality, masks = one_by_one(artifact, images)
    ensemble = Ensemble.from_artifact(artifact, CPU, torch.float32, order=order)
    scores = ensemble.score(images)
    assert torch.allclose(scores.presence_probability, presence, atol=1e-5, rtol=0)
    if optimality is None:
        assert scores.optimality_probability.shape == (0, 3)
    else:
        assert torch.allclose(scores.optimality_probability, optimality, atol=1e-5, rtol=0)
    assert torch.allclose(ensemble.segment(images), masks, atol=1e-5, rtol=0)
    assert scores.presence_probability.dtype == torch.float32


@pytest.mark.parametrize("order", ["sequential", "batched"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_outlines_go_on_from_what_scoring_has_kept(name, order, images, tmp_path):
    """The same masks, for any of the images in any order, and the same scores. Where decoders judge frames, or a trunk
    is given, or nothing was asked for, nothing is kept."""
    artifact = write_scenario(tmp_path / "artifact", SCENARIOS[name])
    ensemble = Ensemble.from_artifact(artifact, CPU, torch.float32, order=order)
    plain, kept = ensemble.score(images), ensemble.score(images, keep=True)
    assert plain.start is None
    assert torch.equal(kept.presence_probability, plain.presence_probability)
    trunk = ensemble.trunk(images)
    assert trunk is None or ensemble.score(images, trunk, keep=True).start is None
    if ensemble.mask_judges:
        assert kept.start is None
        return
    masks = ensemble.segment(images)
    torch.testing.assert_close(ensemble.segment(images, kept.start), masks, atol=1e-6, rtol=0)
    backwards = join([kept.start.of_frame(index) for index in (2, 0)])
    chosen = images[[2, 0]]
    torch.testing.assert_close(ensemble.segment(chosen, backwards), masks[:, [2, 0]], atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("order", ["sequential", "batched"])
@pytest.mark.parametrize("name", ["last_blocks", "heads_missing", "different_targets", "layer_scale_no_pre_norm"])
def test_half_precision_stays_close(name, order, dtype, images, tmp_path):
    """Every probability within 0.02 of float32's for heads of about one logit's spread; masks too."""
    artifact = write_scenario(tmp_path / "artifact", SCENARIOS[name])
    exact = Ensemble.from_artifact(artifact, CPU, torch.float32)
    half = Ensemble.from_artifact(artifact, CPU, dtype, order=order)
    expected, scores = exact.score(images), half.score(images)
    assert scores.presence_probability.dtype == torch.float32
    for ours, theirs in (
        (scores.presence_probability[half.presence_members], expected.presence_probability[half.presence_members]),
        (scores.optimality_probability, expected.optimality_probability),
        (half.segment(images), exact.segment(images)),
    ):
        assert torch.allclose(ours, theirs, atol=0.02, rtol=0)
        assert not torch.equal(ours, theirs)


def test_trunk_is_shared_up_to_the_first_adapted_layer(tmp_path):
    """The rows part at the first adapted layer itself, inside its block; only adapted layers are stacked."""
    artifact = write_scenario(tmp_path / "artifact", SCENARIOS["last_blocks"])
    tower = Ensemble.from_artifact(artifact, CPU, torch.float32).tower
    first = tower.steps[tower.parting]
    assert first.block == 3
    assert not any(step.adapted for step in tower.steps[: tower.parting])
    # Normalisation, projection, attention and its output come before c_fc in that block.
    assert sum(step.block == 3 for step in tower.steps[: tower.parting]) == 5
    images = torch.zeros(1, 3, 56, 56)
    assert len(tower.embed_patches(images)) == 1


def test_untouched_projections_are_not_stacked(tmp_path):
    """Where only values are adapted, queries and keys are computed once for all members."""
    scenario = Scenario(((FULL, (range(1, 2), ("v_proj",))),) * 3)
    artifact = write_scenario(tmp_path / "artifact", scenario)
    tower = Ensemble.from_artifact(artifact, CPU, torch.float32).tower
    second = [step for step in tower.steps if step.block == 2]
    assert [step.adapted for step in second].count(True) == 1
    assert tower.steps[tower.parting] is second[2]  # after normalisation and the shared queries and keys


@torch.inference_mode()
def test_every_adapter_tensor_matters(images, tmp_path):
    """Changing any one tensor of any one member's adapter changes that member's score and no other's."""
    artifact = write_scenario(tmp_path / "artifact", Scenario(((FULL, ALL), (FULL, LAST))))
    before = Ensemble.from_artifact(artifact, CPU, torch.float32).score(images).presence_probability
    state = artifact.members[1]
    for name, factors in state.adapter.factors.items():
        for part in ("a", "b"):
            # One row of it: what adds the same to all channels is taken out again by the normalisation.
            tensor = getattr(factors, part).clone()
            tensor[0] += 0.5
            changed = dataclasses.replace(factors, **{part: tensor})
            adapter = dataclasses.replace(state.adapter, factors={**state.adapter.factors, name: changed})
            members = (artifact.members[0], dataclasses.replace(state, adapter=adapter))
            other = Ensemble.from_artifact(dataclasses.replace(artifact, members=members), CPU, torch.float32)
            after = other.score(images).presence_probability
            assert torch.equal(after[0], before[0])
            assert (after[1] - before[1]).abs().max() > 1e-5, (name, part)


@torch.inference_mode()
def test_average_gate_by_hand(images, tmp_path):
    """The gate's logit is the mean head on the tower with the mean of the deltas, calibrations folded in."""
    scenario = Scenario(((FULL, ALL), (FULL, LAST), (BARE, None)), scoring=ScoringConfig(mode="gated"))
    artifact = write_scenario(tmp_path / "artifact", scenario)
    state = dict(artifact.tower_state)
    for name in state:
        layer = name.removesuffix(".weight")
        for member in artifact.members[:2]:
            if layer in member.adapter.factors:
                state[name] = state[name] + member.adapter.factors[layer].delta() / 3
    embedding = tower_from_state(artifact.manifest.tower, state)(images).embedding

    def logits(name, temperature):
        return sum(embedding @ m.heads[f"{name}.weight"][0] + m.heads[f"{name}.bias"] for m in artifact.members) / (
            3 * temperature
        )

    for order in ("sequential", "batched"):
        ensemble = Ensemble.from_artifact(artifact, CPU, torch.float32, order=order)
        gate = ensemble.gate(images)
        assert torch.allclose(gate.presence_probability, logits("presence", 1.7).sigmoid(), atol=1e-5, rtol=0)
        assert torch.allclose(gate.optimality_probability, logits("optimality", 1.2).sigmoid(), atol=1e-5, rtol=0)
        # The gate's row beside the members' changes nothing in their scores.
        presence, _, _ = one_by_one(artifact, images)
        assert torch.allclose(ensemble.score(images).presence_probability, presence, atol=1e-5, rtol=0)


@pytest.mark.parametrize("member", [0, 1, 2])
def test_member_gate_is_that_member(member, images, tmp_path):
    """A member as the gate gives that member's scores, whether it judges by head or by mask."""
    scenario = dataclasses.replace(
        SCENARIOS["heads_missing"], scoring=ScoringConfig(mode="gated", gate="member", gate_member=member)
    )
    artifact = write_scenario(tmp_path / "artifact", scenario)
    ensemble = Ensemble.from_artifact(artifact, CPU, torch.float32)
    gate, scores = ensemble.gate(images), ensemble.score(images)
    assert torch.allclose(gate.presence_probability, scores.presence_probability[member], atol=1e-5, rtol=0)
    if member in ensemble.optimality_members:
        row = ensemble.optimality_members.index(member)
        assert torch.allclose(gate.optimality_probability, scores.optimality_probability[row], atol=1e-5, rtol=0)
    else:
        assert gate.optimality_probability is None
    assert ensemble.tower.rows == 4  # no row for an average that nobody asked for


TRUNK_BLOCKS = {"last_blocks": 2, "one_member": 2, "different_targets": 1, "no_adapter": 3}
"""Of four: those before the first adapter. The rest of SCENARIOS adapts the first block, or judges by masks."""


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_all_share_can_be_handed_over(name, images, tmp_path):
    """Scores from the trunk on are the scores from the images on, to the bit, in both orders; so are the gate's."""
    scenario = SCENARIOS[name]
    if all(member.presence for member, _ in scenario.members):
        scenario = dataclasses.replace(scenario, scoring=ScoringConfig(mode="gated"))
    artifact = write_scenario(tmp_path / "artifact", scenario)
    for order in ("sequential", "batched"):
        ensemble = Ensemble.from_artifact(artifact, CPU, torch.float32, order=order)
        trunk = ensemble.trunk(images)
        assert (trunk is None) == (name not in TRUNK_BLOCKS)
        if trunk is None:
            continue
        assert ensemble.tower.trunk_blocks == TRUNK_BLOCKS[name]
        assert len(trunk) == len(images)
        assert torch.equal(ensemble.trunk(images[1:2]), trunk[1:2])
        # The images themselves are not looked at again.
        nothing = torch.full_like(images, torch.nan)
        for judge in (ensemble.score, ensemble.gate):
            scores, expected = judge(nothing, trunk), judge(images)
            assert torch.equal(scores.presence_probability, expected.presence_probability)
            assert torch.equal(scores.optimality_probability, expected.optimality_probability)


def test_gate_that_cannot_be(images, tmp_path):
    """An average gate without presence heads is refused at load, a gate that nobody asked for when it is used."""
    scenario = dataclasses.replace(SCENARIOS["mask_judges_only"], scoring=ScoringConfig(mode="gated"))
    with pytest.raises(AcouslicError, match=r"scoring\.gate to 'member'"):
        Ensemble.from_artifact(write_scenario(tmp_path / "a", scenario), CPU, torch.float32)
    exhaustive = write_scenario(tmp_path / "b", SCENARIOS["last_blocks"])
    with pytest.raises(AcouslicError, match="has no gate"):
        Ensemble.from_artifact(exhaustive, CPU, torch.float32).gate(images)


@torch.inference_mode()
def test_smaller_masks_are_resized(images, tmp_path):
    """Members whose decoders work on different grids give masks of the larger side, each its own otherwise."""
    small = dataclasses.replace(FULL, decoder=dataclasses.replace(DECODER, grid_size=2))
    artifact = write_scenario(tmp_path / "artifact", Scenario(((FULL, LAST), (small, LAST))))
    masks = Ensemble.from_artifact(artifact, CPU, torch.float32).segment(images)
    assert masks.shape == (2, 3, 48, 48)
    tower_state = {
        name: merge(tensor, artifact.members[1].adapter.factors.get(name.removesuffix(".weight")))
        for name, tensor in artifact.tower_state.items()
    }
    heads = Heads(small, PLAIN).eval()
    heads.load_state_dict(artifact.members[1].heads)
    output = tower_from_state(PLAIN, tower_state)(images, taps=DECODER.taps)
    expected = F.interpolate(heads.decoder(images, output.taps).sigmoid()[None], (48, 48), mode="bilinear")[0]
    assert torch.allclose(masks[1], expected, atol=1e-5, rtol=0)


def test_same_result_twice(images, tmp_path):
    """Two runs of two ensembles of one artifact give the same bits, in half precision too."""
    artifact = write_scenario(tmp_path / "artifact", SCENARIOS["last_blocks"])
    first, second = (Ensemble.from_artifact(artifact, CPU, torch.bfloat16) for _ in range(2))
    expected = first.score(images).presence_probability
    assert torch.equal(first.score(images).presence_probability, expected)
    assert torch.equal(second.score(images).presence_probability, expected)


def test_small_batches_run_all_members_at_once(images, tmp_path, monkeypatch):
    """Below the threshold batched, from it on one after another; so too where memory does not hold all at once."""
    ensemble = Ensemble.from_artifact(
        write_scenario(tmp_path / "artifact", SCENARIOS["last_blocks"]), CPU, torch.float32, order="batched"
    )
    asked, original, full = [], ensemble.tower.run, []

    def run(images, rows, *, order, **more):
        asked.append(order)
        if full and order == "batched":
            raise RuntimeError(full[0])
        return original(images, rows, order=order, **more)

    monkeypatch.setattr(ensemble.tower, "run", run)
    for below, order in ((len(images) + 1, "batched"), (len(images), "sequential")):
        ensemble.batched_below = below
        ensemble.score(images)
        ensemble.segment(images)
        assert asked == [order, order]
        asked.clear()
    ensemble.batched_below = sys.maxsize
    expected = ensemble.score(images).presence_probability
    full.append("CUDA error: out of memory")
    asked.clear()
    assert torch.allclose(ensemble.score(images).presence_probability, expected, atol=1e-5, rtol=0)
    assert asked == ["batched", "sequential"]
    full[0] = "a shape is wrong"
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        ensemble.score(images)


@pytest.mark.gpu
def test_gelu_is_the_same_in_all_orders():
    """A layer of one row, in one kernel or in two, and of several rows: the same GELU."""
    random = torch.Generator().manual_seed(0)
    weights = [torch.randn(64, 32, generator=random).half().cuda() for _ in range(2)]
    bias = torch.randn(64, generator=random).half().cuda()
    x = torch.randn(1, 3, 5, 32, generator=random).half().cuda()
    both = StackedLinear(weights, bias, packed=False)(x, slice(0, 2), "gelu")
    for row, weight in enumerate(weights):
        alone = StackedLinear([weight], bias, packed=False)(x, slice(0, 1), "gelu")
        expected = F.gelu(F.linear(x.double(), weight.double(), bias.double()), approximate="tanh")
        for found in (alone[0], both[row]):
            torch.testing.assert_close(found.double(), expected[0], rtol=2e-3, atol=2e-3)


@pytest.mark.gpu
def test_gpu_equals_cpu(images, tmp_path):
    """On a GPU both orders agree with the CPU in float32, and half precision stays within 0.02."""
    artifact = write_scenario(tmp_path / "artifact", SCENARIOS["different_targets"])
    expected = Ensemble.from_artifact(artifact, CPU, torch.float32).score(images).presence_probability
    device = torch.device("cuda")
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float16, 0.02), (torch.bfloat16, 0.02)):
        for order in ("batched", "sequential", "auto"):
            ensemble = Ensemble.from_artifact(artifact, device, dtype, order=order)
            found = ensemble.score(images.to(device)).presence_probability.cpu()
            assert torch.allclose(found, expected, atol=tolerance, rtol=0), (dtype, order)
