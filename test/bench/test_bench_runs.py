"""The benchmark scripts from end to end, on a tower and a case so small that only their own code is tested."""

import dataclasses
import importlib.metadata
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from acouslic.errors import AcouslicError
from acouslic.sockets import SWEEP_FOLDER
from acouslic.stack import read_stack
from algorithm.model.manifest import ScoringConfig, read_manifest
from algorithm.model.networks import StudentConfig
from bench import case, gpu, scaling
from bench.figures.gpu_report import GOALS
from bench.setting.inputs import platform_input, shortened, stack_name, with_scoring
from bench.setting.modes import measure_invoke
from bench.setting.random_artifact import TOWERS, alike_members, write_random_artifact
from bench.setting.sides import SideRun
from bench.setting.straightforward import BATCH_FRAMES
from training.network.student import student_flop
from training.phantom.generate import write_stack

SIZES = ["--config", "tiny", "--members", "2", "--adapted-blocks", "2", "--rows", "96", "--device", "cpu"]
KEYS = ["speedup", "speedup_over_autocast", "selected_frame_agrees", "peak_rss_bytes", "seconds_per_case", "phases"]
KEYS += ["first_frame_s", "flop_per_case", "share_of_peak", "refined_frames", "device", "precision", "date", "versions"]


@pytest.fixture
def sweep(tmp_path, speckle):
    """A stack of 24 frames."""
    write_stack(tmp_path / "speckle.mha", speckle(24), 0.28)
    return tmp_path / "speckle.mha"


@pytest.fixture(autouse=True)
def one_core(monkeypatch):
    """Processes that these tests start take one core: they compute next to nothing, and other tests run beside."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
    yield
    os.sched_setaffinity(0, allowed)


def last_json(captured):
    """The last line of what was printed; and it is one object."""
    found = json.loads(captured.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def test_a_case_by_both_sides(sweep, tmp_path, capsys, monkeypatch):
    """One round with a random student: the table says what was extrapolated, and every figure that the README wants is
    in the JSON, with what the gate costs and changes beside what the precision does."""
    monkeypatch.setattr("bench.case.matrix_peaks", lambda _: {"float32": 1e11, "bfloat16": 4e11})
    words = ["--config", "tiny", "--members", "2", "--adapted-blocks", "2", "--kept-patches", "--student"]
    words += ["--sweep", str(sweep), "--mode", "gated", "--refined-fraction", "0.2"]
    words += ["--frames", "8", "--autocast-frames", "2", "--work", str(tmp_path / "work"), "--device", "cpu"]
    assert case.main(words) == 0
    printed = capsys.readouterr().out
    found = last_json(printed)
    assert not set(KEYS) - set(found)
    assert found["frames"] == 24
    assert found["mode"] == "gated"
    gate = found["gate"]
    assert (gate["kind"], gate["stride"], gate["frames"]) == ("student", 1, 24)
    assert gate["refined_frames"] == found["refined_frames"]
    assert gate["student"]["width"] == 32
    assert gate["flop"] == found["flop_by_phase"]["gate"] == 24 * student_flop(StudentConfig(), 56)
    assert set(gate["against_exhaustive"]) == set(found["consequence"]) - {"frames", "precision", "against"}
    assert "gate: student at a stride of 1" in printed
    assert "What the gate does to it, against all members on every frame" in printed
    assert found["precision_used"] == found["precision"]
    assert found["consequence"]["against"] == "float32"
    assert found["consequence"]["same_frame"] in (True, False)
    assert 1 <= found["refined_frames"] <= 0.2 * 24
    assert found["agreement"]["float32_probability_difference"] < 1e-4
    assert found["agreement"]["float32_optimality_difference"] < 1e-4
    assert found["kept_patches"]["seconds_per_case"] > 0
    assert "On the patches inside the fan alone" in printed
    assert set(found["agreement"]["circumference_mm"]) == {"A float32", "B exhaustive", "B gated"}
    assert found["agreement"]["first_candidate"]["A float32"] == found["agreement"]["first_candidate"]["B float32"]
    side_a = found["straightforward"]["float32"]
    assert found["speedup"] == pytest.approx(side_a["seconds_per_case"] / found["seconds_per_case"])
    assert side_a["extrapolated"] is True
    assert side_a["measured_frames"] == BATCH_FRAMES
    assert found["flop_per_case"] == sum(found["flop_by_phase"].values())
    assert "EXTRAPOLATED" in printed


def test_an_artifact_with_all_that_is_trained(sweep, tmp_path, capsys, monkeypatch):
    """Adapters on attention and patches left out: both sides agree, with the same figures as for a random artifact."""
    monkeypatch.setattr("bench.case.matrix_peaks", lambda _: {"float32": 1e11, "bfloat16": 4e11})
    tower = dataclasses.replace(TOWERS["tiny"], kept_patches=(1, 2, 5, 6, 9, 10, 14))
    targets = ("q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj")
    write_random_artifact(tmp_path / "model", tower, alike_members(tower, 1, targets=targets))
    words = ["--model", str(tmp_path / "model"), "--sweep", str(sweep), "--frames", "8", "--autocast-frames", "2"]
    assert case.main([*words, "--work", str(tmp_path / "work"), "--device", "cpu"]) == 0
    found = last_json(capsys.readouterr().out)
    assert not {*KEYS, "precision_used", "gate", "consequence"} - set(found)
    assert found["trained"] is True
    assert found["gate"] is None
    assert found["agreement"]["float32_probability_difference"] < 1e-4
    assert found["selected_frame_agrees_exhaustive"]


def test_ours_alone_in_both_modes(tiny_model, sweep, tmp_path, capsys):
    """Exec once and invoke twice: the model is loaded once, and every phase is there."""
    words = ["--ours-only", "--model", str(tiny_model), "--sweep", str(sweep), "--work", str(tmp_path / "work")]
    assert case.main([*words, "--device", "cpu"]) == 0
    found = last_json(capsys.readouterr().out)
    first, second = found["invoke"]["cases"]
    for timings in (found["exec"], first, second):
        assert {"import_s", "load_s", "read_s", "preprocess_s", "gate_s", "refine_s", "segment_s", "write_s"} <= set(
            timings
        )
        assert timings["peak_rss_bytes"] > 50e6
    assert found["frames"] == 24
    assert found["invoke"]["ready_s"] > first["load_s"]
    assert second["total_s"] < found["exec"]["total_s"]


def test_everything_on_one_device(tmp_path, capsys, monkeypatch):
    """The GPU script with the CPU as its device: parity, rates, warm and new processes, goals."""
    monkeypatch.setattr("bench.gpu.SHAPES", {"cpu": ((64, 64, 64),)})
    words = ["--case-frames", "12", "--batches", "2", "--repeats", "1", "--keep-page-cache", "--work", str(tmp_path)]
    words += ["--parity-frames", "8"]
    gpu.main([*SIZES, *words])
    found = last_json(capsys.readouterr().out)
    assert set(found["goals"]) == set(GOALS)
    assert found["new_process"]["page_cache_emptied"] is False
    assert found["parity"]["cases"][0]["probability_difference"] >= 0
    assert found["against_cpu"] == {
        "grey_level_difference": 0,
        "probability_difference": 0.0,
        "frames": 8,
        "within_bounds": True,
    }
    assert {rate["batch_frames"] for rate in found["tower"]} == {2, 8}
    assert (
        found["warm"]["gated"]["runs"][0]["refined_frames"] < found["warm"]["exhaustive"]["runs"][0]["refined_frames"]
    )


def test_the_gpu_script_does_not_measure_a_cpu_unasked(monkeypatch):
    """Without a usable GPU it says why, at once, instead of running for hours."""
    monkeypatch.setattr("bench.gpu.choose_device", lambda _: (torch.device("cpu"), "no GPU was found"))
    with pytest.raises(AcouslicError, match=r"^no GPU can be used \(no GPU was found\): --device cpu"):
        gpu.main([])


def test_scaling_fits_lines(tmp_path, capsys):
    """Two sizes of everything: slopes, memory a frame and the FLOP that more members cost."""
    words = ["--config", "tiny", "--rows", "96", "--device", "cpu", "--work", str(tmp_path), "--scored-frames", "4"]
    words += ["--frames", "6,12", "--members", "1,3", "--batches", "1,2", "--ensemble", "3"]
    assert scaling.main(words) == 0
    found = last_json(capsys.readouterr().out)
    assert [size["frames"] for size in found["frames"]] == [6, 12]
    assert found["members_flop_a_frame"]["3"] > found["members_flop_a_frame"]["1"]
    assert found["members_flop_a_frame"]["3"] < 3 * found["members_flop_a_frame"]["1"]
    assert set(found["batches_s_a_frame"]) == {"1", "2"}


def test_a_shortened_stack_is_spread_over_the_whole(tmp_path):
    """Four of ten frames are the first, and every second or third after it; the spacing stays."""
    stack = np.arange(10, dtype=np.uint8)[:, None, None] * np.ones((1, 8, 9), np.uint8)
    write_stack(tmp_path / "whole.mha", stack, 0.31)
    short = read_stack(shortened(tmp_path / "whole.mha", tmp_path / "short.mha", 4))
    assert short.frames[:, 0, 0].tolist() == [0, 2, 5, 7]
    assert short.header.spacing_mm == (0.31, 0.31)


def test_an_artifact_with_other_settings_is_the_same_but_for_them(tiny_model, tmp_path):
    """Weights are linked, not copied, and the artifact itself is not changed; the result loads with every check."""
    from algorithm.model.artifact import load_artifact

    scoring = ScoringConfig(mode="gated", stride=4)
    changed = with_scoring(tiny_model, tmp_path / "changed", scoring)
    assert load_artifact(changed).manifest.scoring == scoring
    assert read_manifest(tiny_model).scoring == ScoringConfig()
    assert (changed / "tower.safetensors").is_symlink()


def test_an_input_folder_is_laid_out_as_the_platforms(tmp_path):
    """The one stack is found where the algorithm looks for it, and can be replaced."""
    from acouslic.sockets import find_sweep_input

    for name in ("a", "b"):
        write_stack(tmp_path / name / "case.mha", np.zeros((2, 8, 9), np.uint8), 0.28)
        folder = platform_input(tmp_path / "input", tmp_path / name / "case.mha")
        assert find_sweep_input(folder).path.resolve() == (tmp_path / name / "case.mha").resolve()


def test_a_kept_folder_takes_another_model_and_another_case(tiny_model, tmp_path):
    """`--work`: what is left of an earlier run is in nobody's way, and no model is replaced by links to itself."""
    from acouslic.sockets import find_sweep_input
    from algorithm.model.artifact import load_artifact

    write_random_artifact(tmp_path / "one", TOWERS["tiny"], members=1, student=StudentConfig(4, (1, 1)))
    for model in (tmp_path / "one", tiny_model, tmp_path / "one"):
        changed = with_scoring(model, tmp_path / "changed", ScoringConfig(stride=3))
        assert len(load_artifact(changed).manifest.members) == len(read_manifest(model).members)
    with pytest.raises(AcouslicError, match="name another --work"):
        with_scoring(changed, tmp_path / "changed", ScoringConfig())
    assert load_artifact(changed).manifest.scoring.stride == 3
    for name in ("a.mha", "b.mha"):
        write_stack(tmp_path / name, np.zeros((2, 8, 9), np.uint8), 0.28)
        assert find_sweep_input(platform_input(tmp_path / "input", tmp_path / name)).path.name == name


def test_a_kept_folder_does_not_mistake_cases_of_one_name(tiny_model, tmp_path, monkeypatch):
    """Generated cases all have one, whatever their size: what was cut out of one is not taken for another, and a stack
    of other rows is drawn anew."""
    stacks = []
    for rows in (8, 12):
        sweep = tmp_path / str(rows) / "case.mha"
        write_stack(sweep, np.zeros((4, rows, 9), np.uint8), 0.28)
        header = read_stack(sweep).header
        setting = case.Setting(
            tiny_model, read_manifest(tiny_model), sweep, stack_name(sweep), header, tmp_path, None, None
        )
        stacks.append(read_stack(case._short(setting, 2)).frames.shape)
    assert stacks == [(2, 8, 9), (2, 12, 9)]

    def run(input_dir, *_):
        (link,) = (input_dir / SWEEP_FOLDER).iterdir()
        stacks.append(read_stack(link).header.rows)
        timings = dict.fromkeys(("gate_s", "refine_s", "total_s", "import_s", "load_s", "peak_rss_bytes"), 1)
        return SideRun(1.0, {"timings": timings | {"peak_device_bytes": 0}})

    monkeypatch.setattr("bench.scaling.run_algorithm", run)
    for rows in (16, 24):
        scaling.measure_frames(tiny_model, tmp_path, [3], rows, "cpu")
    assert stacks[2:] == [16, 24]


def test_a_server_that_does_not_start_says_why(sweep, tmp_path):
    """Not that there is no such process any more."""
    input_dir = platform_input(tmp_path / "input", sweep)
    with pytest.raises(AcouslicError, match=r"did not become ready: .*manifest\.json is missing"):
        measure_invoke(input_dir, tmp_path / "out", tmp_path / "nowhere", "cpu")


def test_the_gpu_script_looks_for_what_it_imports(repository):
    """`gpu.sh` uses a Python as it is only where it has every package that `gpu.py` needs: else it installs them."""
    listed = re.search(r'^needed="(.*)"$', (repository / "bench" / "gpu.sh").read_text(), re.MULTILINE)
    code = "import sys, bench.gpu; print(*{name.partition('.')[0] for name in sys.modules})"
    imported = set(
        subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True).stdout.split()
    )
    pinned = {
        line.partition("==")[0].partition("[")[0]
        for name in ("base", "algorithm")
        for line in (repository / "requirements" / f"{name}.txt").read_text().splitlines()
    }
    packages = importlib.metadata.packages_distributions()
    ours = {name for name in imported if pinned & set(packages.get(name, []))}
    assert {"cv2", "safetensors"} <= ours
    assert ours <= set(listed[1].split(", "))
