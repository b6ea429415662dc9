"""`python -m training demo` in small: every step, through the same modules, to an artifact that runs."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from acouslic.release import Release
from algorithm.model.artifact import load_artifact
from algorithm.model.networks import TowerConfig
from algorithm.model.tower import tower_from_state
from bench import parity
from bench.figures.recorded_scores import frame_labels
from training.__main__ import main as training_main
from training.demo import TOWER_CONFIG, DemoPlan, SweepPlan, build_demo
from training.learn.keeping import StoppedError
from training.network.local_attention import STEPS, starting_weights
from training.network.open_clip_weights import tower_config_from_open_clip
from training.phantom import generate
from training.recipe.settings import MachineSettings

SMALL = SweepPlan(seed=3, cases=4, rows=100, sweeps=2, frames_per_sweep=24, folds=2)
PLAN = DemoPlan(pretraining=SMALL, members=replace(SMALL, seed=4), pretraining_epochs=(1, 1), member_epochs=1, jobs=1)
DEMO_BYTES = 8 << 20


def test_the_demo_is_built_and_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tower, two members, artifact; a second call finds every run finished and makes the same artifact."""
    machine = MachineSettings(accelerator="cpu", precision="32-true", threads=1)
    hashes = []
    for name in ("first", "second"):
        build_demo(PLAN, tmp_path / "work", tmp_path / name, machine, "python -m training demo")
        manifest = load_artifact(tmp_path / name).manifest
        hashes.append({file: record.sha256 for file, record in manifest.files.items()})
    assert capsys.readouterr().out.count("finished already") == 4
    assert hashes[0] == hashes[1]
    assert len(manifest.members) == 2
    assert all(member.adapter and member.optimality and member.decoder for member in manifest.members)
    assert manifest.provenance.made_by.startswith("python -m training demo")
    assert manifest.tower.kept_patches is not None


@pytest.mark.usefixtures("restored_process")
@pytest.mark.parametrize("stopped", [StoppedError(15, "kept in /tmp/demo-1"), KeyboardInterrupt(signal.SIGTERM)])
def test_a_stopped_demo_says_that_nothing_is_kept_without_a_folder(
    stopped: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a training kept lay in a temporary folder that is gone."""

    def stop(*_: object) -> None:
        raise stopped

    monkeypatch.setattr("training.demo.build_demo", stop)
    assert training_main(["demo", f"--out={tmp_path / 'model'}"]) == 143
    said = capsys.readouterr().err
    assert "stopped by SIGTERM: without --work nothing is kept" in said
    assert "kept in" not in said


def test_each_head_starts_one_step_away() -> None:
    """In the first block of the starting weights, every head looks at the patch that its step leads to."""
    config = tower_config_from_open_clip(TOWER_CONFIG)
    tower = tower_from_state(config, starting_weights(config, seed=1))
    side = config.grid_size
    with torch.inference_mode():
        noise = torch.randn(8, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(1))
        tokens = tower.embed_patches(noise)
        block = tower.transformer.resblocks[0]
        normalised = block.ln_1(tokens)
        query, key = (
            project(normalised).unflatten(-1, (config.heads, -1)).transpose(1, 2)
            for project in (block.attn.q_proj, block.attn.k_proj)
        )
        looked_at = (query @ key.transpose(-1, -2))[:, :, 1:, 1:].argmax(-1)
    right = []
    for head, (rows, columns) in enumerate(STEPS[0]):
        for row in range(2, side - 2):
            for column in range(2, side - 2):
                wanted = (row + rows) * side + column + columns
                right += (looked_at[:, head, row * side + column] == wanted).tolist()
    # A little noise is part of the start, and moves a fifth of them to the next patch; by chance one in 100 were right.
    assert sum(right) > 0.75 * len(right)


def test_starting_weights_fit_any_small_tower() -> None:
    """More heads or blocks than steps, and few channels: finite, of the right names and shapes, by seed."""
    config = TowerConfig(image_size=32, patch_size=8, width=48, layers=6, heads=6, mlp_width=96, output_dim=8)
    state = starting_weights(config, seed=1)
    tower_from_state(config, state)
    assert all(tensor.isfinite().all() for tensor in state.values())
    again = starting_weights(config, seed=1)
    assert all(torch.equal(tensor, again[name]) for name, tensor in state.items())


def test_the_committed_demo(repository: Path) -> None:
    """`model/demo` loads strictly, has three members with every head, says what it is, and stays small."""
    folder = repository / "model" / "demo"
    manifest = load_artifact(folder).manifest
    assert len(manifest.members) >= 3
    assert all(m.adapter and m.presence and m.optimality and m.decoder for m in manifest.members)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= DEMO_BYTES
    assert "no patient" in manifest.provenance.notes
    assert manifest.provenance.tower_licence == "Apache-2.0"


def test_the_demo_keeps_the_bounds_of_half_precision(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained members on three whole cases that they have not seen: probabilities, order and chosen frame are
    float32's, and most frames are right."""
    assert generate.main([f"--out={tmp_path}", "--seed=60006", "--jobs=2", "--cases=3", "--rows=281"]) == 0
    release = Release(tmp_path)
    sweeps = [str(release.image_path(uuid)) for uuid in release.cases()]
    capsys.readouterr()
    parity.main([*sweeps, f"--model={repository / 'model' / 'demo'}", "--device=cpu", "--precision=bfloat16"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["within_bounds"], found
    labels = [frame_labels(release.mask_path(uuid)) for uuid in release.cases()]
    chosen = [case["float32_frame"] for case in found["cases"]]
    assert sum(bool(label[frame]) for label, frame in zip(labels, chosen, strict=True)) >= 2
