"""The formulas for FLOP, against torch's own counter and against what the stacked tower multiplies."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from acouslic.stack import open_stack
from algorithm.engine.ensemble import Ensemble
from algorithm.model.artifact import load_artifact
from algorithm.model.manifest import ScoringConfig, read_manifest
from algorithm.model.networks import TowerConfig
from algorithm.model.tower import Tower
from bench.figures.case_report import AutocastSide, CaseReport
from bench.figures.flops import (
    adapted_layers,
    case_flop,
    decoder_flop,
    shared_flop,
    straightforward_flop,
    tower_flop,
    tower_steps,
    trunk_flop,
)
from bench.setting.random_artifact import TOWERS, alike_members, write_random_artifact
from bench.setting.sides import SideRun
from training.phantom.generate import write_stack

SMALL = TowerConfig(image_size=28, patch_size=7, width=16, layers=4, heads=2, mlp_width=48, output_dim=8)


def counted(run, device="meta"):
    """FLOP that torch counts; without storage, attention falls apart into products that it knows."""
    with torch.device(device), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("config", [SMALL, TOWERS["vit-l-14"]], ids=["small", "ViT-L/14"])
def test_the_plain_tower_costs_what_torch_counts(config):
    """Patch embedding, linear layers, attention and projection: nothing is missing or counted twice."""
    side = config.image_size
    with torch.device("meta"):
        tower = Tower(config)
    images, last = torch.empty(3, 3, side, side, device="meta"), (config.layers,)
    assert counted(lambda: tower(images, taps=last)) == 3 * tower_flop(config)
    narrow = sum(flop for _, flop in tower_steps(config, class_token_only=True))
    assert counted(lambda: tower(images)) == 3 * narrow
    (*_, (_, projection)) = tower_steps(config)
    of_one = tower_flop(config) - trunk_flop(config, ()) - projection  # the last block again, for one image
    assert counted(lambda: tower(images, last, torch.tensor([1], device="cpu"))) == 3 * narrow + of_one


def test_vit_l_costs_what_is_known_of_it():
    """162 GFLOP a frame is the published figure for FetalCLIP's tower."""
    assert tower_flop(TOWERS["vit-l-14"]) == pytest.approx(162e9, rel=0.005)


@pytest.mark.parametrize("targets", [("c_fc", "c_proj"), ("out_proj",), ("q_proj", "v_proj"), ("c_proj",)])
def test_the_ensemble_costs_its_trunk_once_and_its_tail_for_each_member(tmp_path, targets):
    """The gate and the score of the stacked tower multiply what the formula says, wherever the adapters are."""
    manifest = write_random_artifact(tmp_path / "model", SMALL, alike_members(SMALL, 3, targets=targets))
    adapted = adapted_layers(tmp_path / "model", manifest)
    assert len(adapted) == 2 * len(targets)
    ensemble = Ensemble.from_artifact(
        load_artifact(tmp_path / "model"), torch.device("meta"), torch.float32, order="sequential"
    )
    images = torch.empty(5, 3, 28, 28, device="meta")
    flop = shared_flop(SMALL, adapted)
    for members in (1, 3):
        assert counted(lambda: ensemble.tower.run(images, range(members))) == 5 * flop.of(members)  # noqa: B023
    assert flop.trunk > 0
    assert counted(lambda: ensemble.trunk(images)) == 5 * trunk_flop(SMALL, adapted)
    assert flop.of(1) < tower_flop(SMALL)  # the last block only serves the class token


def test_a_case_is_gate_refinement_and_masks(tiny_model):
    """Masks run the tower up to the last tap for all members, then every decoder; heads are two products a member."""
    manifest = read_manifest(tiny_model)
    adapted = adapted_layers(tiny_model, manifest)
    ensemble = Ensemble.from_artifact(
        load_artifact(tiny_model), torch.device("meta"), torch.float32, order="sequential"
    )
    images = torch.empty(1, 3, 56, 56, device="meta")
    flop = case_flop(manifest, adapted, gate_frames=7, refined_frames=4, reused_frames=2, segmented_frames=3)
    assert flop.segment == 3 * counted(lambda: ensemble.segment(images))
    trunk = counted(lambda: ensemble.tower.run_trunk(images))
    assert flop.refine == 4 * counted(lambda: ensemble.score(images)) - 2 * trunk
    assert flop.gate == 7 * counted(lambda: ensemble.tower.run(images, [0]))
    assert flop.total == flop.gate + flop.refine + flop.segment
    assert decoder_flop(manifest, 0) > 0


def test_fewer_patches_cost_less():
    """Linear layers shrink with the patches kept, attention with their square."""
    half = dataclasses.replace(SMALL, kept_patches=tuple(range(8)))
    assert tower_flop(SMALL) * (9 / 17) ** 2 < tower_flop(half) < tower_flop(SMALL) * 9 / 17 + 1


def test_the_straightforward_side_pays_for_every_member_and_every_adapter(tiny_model):
    """Five percent or so on top of members times tower: two thin products beside every adapted layer."""
    manifest = read_manifest(tiny_model)
    adapted = adapted_layers(tiny_model, manifest)
    tokens = 17
    layers = itertools.product(range(2), [(32, 64), (64, 32)])
    adapters = sum(2 * tokens * 8 * (inputs + outputs) for _, (inputs, outputs) in layers)
    expected = 10 * 2 * (tower_flop(manifest.tower) + adapters)
    assert straightforward_flop(manifest, adapted, rank=8, frames=10) == expected
    # It drops the patches that an artifact leaves out, so its adapters see 9 tokens as well.
    fewer = dataclasses.replace(manifest, tower=dataclasses.replace(manifest.tower, kept_patches=tuple(range(8))))
    expected = 10 * 2 * (tower_flop(fewer.tower) + adapters * 9 // tokens)
    assert straightforward_flop(fewer, adapted, rank=8, frames=10) == expected


@pytest.mark.parametrize(("gate_s", "gates"), [(0.5, True), (0.0, False)])
def test_a_gate_counts_also_where_every_frame_is_refined_after_it(tiny_model, tmp_path, gate_s, gates):
    """A run without a gate takes no time for it; one whose gate lets everything through has paid for both."""
    manifest = read_manifest(tiny_model)
    write_stack(tmp_path / "case.mha", np.zeros((8, 96, 128), np.uint8), 0.28)
    nothing = {name: [] for name in ("float32", "ours", "exhaustive", "kept")}
    report = CaseReport(
        manifest=dataclasses.replace(manifest, scoring=ScoringConfig(mode="gated", stride=4)),
        model=tiny_model,
        random=True,
        header=open_stack(tmp_path / "case.mha").header,
        autocast=AutocastSide("bfloat16", []),
        cold_float32=None,
        cold_ours=None,
        agreement={},
        consequence={},
        peak_flop_per_s={},
        machine={},
        **nothing,
    )
    timings = {"gate_s": gate_s}
    run = SideRun(1.0, {"refined_frames": 8, "reused_frames": 0, "circumference_mm": None, "timings": timings})
    assert (report.b_flop(run).gate > 0) == gates
