"""Everything that is to be known of the algorithm on one GPU, in one command: `bench/gpu.sh` calls it.

    python bench/gpu.py                                              five-member ViT-L/14 with random weights
    python bench/gpu.py --device cpu --config tiny --case-frames 60 --rows 96       the same code without a GPU

Parity of half precision with float32 on the device, and of float32 there with the CPU, resizing included (on frames
that differ more than a case's); the share of its own measured matrix peak that the tower reaches; a whole case in a
process that is loaded (as in invoke mode), exhaustive and gated; and a whole case in a new process (as in exec mode).
The last line is a JSON object; the exit code is 1 where parity fails or runs differ, whatever the speed.
"""

import argparse
import contextlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acouslic.errors import AcouslicError
from algorithm.engine.batches import choose_batch_frames
from algorithm.engine.device import (
    choose_device,
    choose_precision,
    half_types,
    keep_exact_sums,
    set_cpu_threads,
)
from algorithm.engine.ensemble import Ensemble
from algorithm.engine.fused_norm import prepare
from algorithm.engine.stacked_tower import RowOrder
from algorithm.frames.frame_stream import FrameStream
from algorithm.frames.resized_frames import ResizedFrames
from algorithm.model.artifact import load_artifact
from algorithm.model.manifest import read_manifest
from algorithm.pipeline import Pipeline
from algorithm.process.memory import is_out_of_memory
from bench.figures.flops import adapted_layers, shared_flop
from bench.figures.gpu_report import GpuReport, ScoredTower, TowerRate
from bench.figures.matrix_peak import SHAPES, matrix_peak_flop_per_s, seconds_of
from bench.figures.parity import CaseParity, compare, score_exhaustively, summary
from bench.setting.command import add_case_size, add_keep_share, add_sizes, add_work, at_least, exit_with, numbers
from bench.setting.inputs import (
    generated_sweep,
    platform_input,
    random_model,
    scoring_of,
    shortened,
    varied_sweep,
    with_scoring,
)
from bench.setting.machine import describe_machine
from bench.setting.random_artifact import TOWERS
from bench.setting.sides import SideRun, case_done, drop_page_cache, run_algorithm
from bench.setting.workspace import workspace

CPU_FRAMES = 8
FLOAT32_BOUND = 1e-4


@dataclass(frozen=True)
class Setting:
    """What is run, and where."""

    device: torch.device
    dtype: torch.dtype
    random: Path
    """The artifact as it was made."""
    models: dict[str, Path]
    """It with the settings of a mode, by mode."""
    sweep: Path
    """The case that is timed."""
    varied: Path
    """The stack that precisions are compared on: its frames differ more than a case's."""


def measure(args: argparse.Namespace, work: Path) -> GpuReport:
    """Everything. Raises AcouslicError where no GPU can be used and the CPU was not asked for."""
    begun = time.monotonic()
    machine = describe_machine()
    threads, _ = set_cpu_threads()
    keep_exact_sums()
    setting = prepare_setting(args, work)
    device, dtype = setting.device, setting.dtype
    _say("matrix peak")
    peaks = matrix_peaks(device, dtype)
    _say("parity")
    parity = case_parity(setting.random, setting.varied, device, dtype)
    _say("the device against the CPU")
    against_cpu = device_parity(setting.random, setting.varied, work, device)
    _say("tower")
    tower = measure_tower(setting.random, device, dtype, max(peaks.values()), args.batches)
    _empty_cache(device)
    warm, repeatable = {}, True
    for mode, model in setting.models.items():
        _say(f"warm, {mode}")
        warm[mode], same = warm_cases(model, setting.sweep, work / f"out-{mode}", args.device, args.repeats)
        repeatable = repeatable and same
    _empty_cache(device)
    _say("a new process")
    cold, emptied = new_process(
        setting.models["exhaustive"], setting.sweep, work, args.device, empty_page_cache=not args.keep_page_cache
    )
    return GpuReport(
        machine=machine | {"threads": threads},
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        precision=str(dtype).removeprefix("torch."),
        model=read_manifest(setting.random).name,
        frames=args.case_frames,
        matrix_peak_flop_per_s=peaks,
        parity=parity,
        against_cpu=against_cpu,
        tower=tower,
        warm=warm,
        repeatable=repeatable,
        cold=cold,
        page_cache_emptied=emptied,
        seconds_in_all=time.monotonic() - begun,
    )


def prepare_setting(args: argparse.Namespace, work: Path) -> Setting:
    """The device, the case and the artifact in both modes; errors as of `measure`."""
    device, reason = choose_device(args.device)
    if device.type != "cuda" and args.device != "cpu":
        raise AcouslicError(f"no GPU can be used ({reason}): --device cpu measures the same on the CPU, in hours")
    dtype = choose_precision(device).dtype
    _say(f"{device} ({reason}), {dtype}; making the artifact and the case")
    sweep = generated_sweep(work, frames=args.case_frames, rows=args.rows)
    sizes = {"config": args.config, "members": args.members, "adapted_blocks": args.adapted_blocks}
    # Frames of one case look alike to random weights, and no precision keeps the order of what they hardly tell apart.
    varied = varied_sweep(work / f"varied-{args.parity_frames}.mha", frames=args.parity_frames, rows=args.rows)
    random = random_model(work, varied, keep_share=args.keep_share, device=args.device, **sizes)
    models = {}
    for mode in ("exhaustive", "gated"):
        models[mode] = with_scoring(random, work / mode, scoring_of(random, random=True, mode=mode))
    return Setting(device, dtype, random, models, sweep, varied)


def matrix_peaks(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """FLOP/s of plain products in every half type that the device is fast in, or in `dtype` where there is none."""
    return {
        str(each).removeprefix("torch."): matrix_peak_flop_per_s(device, each, SHAPES[device.type])
        for each in half_types(device)[0] or (dtype,)
    }


def measure_tower(
    model: Path, device: torch.device, dtype: torch.dtype, peak_flop_per_s: float, batches: Sequence[int]
) -> ScoredTower:
    """Batches of these sizes, and of the one that the algorithm chooses.

    Raises AcouslicError where memory does not hold that one.
    """
    ensemble = Ensemble.from_artifact(load_artifact(model), device, dtype)
    manifest = ensemble.manifest
    flop = shared_flop(manifest.tower, adapted_layers(model, manifest)).of(ensemble.members)
    batch_frames = choose_batch_frames(manifest.tower, ensemble.members, device, dtype)
    tower = ScoredTower(
        flop_a_frame=flop,
        batched_below=ensemble.batched_below,
        one_pass_norm=prepare(device, dtype, manifest.tower.width),
        batch_frames=batch_frames,
        rates=tower_rates(ensemble, flop, peak_flop_per_s, sorted({*batches, batch_frames})),
    )
    if tower.share_of_peak is None:
        raise AcouslicError(f"the memory of {device} does not hold a batch of {batch_frames} frames: free some")
    return tower


def tower_rates(
    ensemble: Ensemble, flop_a_frame: int, peak_flop_per_s: float, batches: Sequence[int]
) -> list[TowerRate]:
    """Both orders of the members, for batches of these sizes; those that memory does not hold are left out."""
    rates = []
    size, rows = ensemble.manifest.tower.image_size, range(ensemble.members)
    orders: tuple[RowOrder, ...] = ("sequential",) if ensemble.tower.packed else ("batched", "sequential")
    for count in batches:
        images = torch.randn(count, 3, size, size, device=ensemble.device).to(ensemble.dtype)
        for order in orders:
            try:
                with torch.inference_mode():
                    seconds = seconds_of(
                        lambda images=images, order=order: ensemble.tower.run(images, rows, order=order),  # type: ignore[misc]
                        ensemble.device,
                        repeats=5,
                    )
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                continue
            share = count * flop_a_frame / seconds / peak_flop_per_s
            rates.append(TowerRate(order, count, 1000 * seconds / count, share))
    return rates


def warm_cases(
    model: Path, sweep: Path, output_dir: Path, device: str | None, repeats: int
) -> tuple[list[dict[str, Any]], bool]:
    """The log's account of each of `repeats` runs in one process, after a first one that is not counted, and whether
    all of them came to the same probabilities, frame and mask, to the bit."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("algorithm.case")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        pipeline = Pipeline.load(model, device=device)
        found, results = [], []
        for _ in range(1 + repeats):
            results.append(pipeline.run(sweep, output_dir, "case"))
            found.append(case_done("\n".join(lines)))
    finally:
        log.removeHandler(handler)
    first = results[0]
    same = all(
        np.array_equal(result.presence_probability, first.presence_probability)
        and np.array_equal(result.optimality_probability, first.optimality_probability)
        and (result.frame_index, result.circumference_mm) == (first.frame_index, first.circumference_mm)
        and np.array_equal(result.mask, first.mask)
        for result in results
    )
    return found[1:], same


def new_process(
    model: Path, sweep: Path, work: Path, device: str | None, *, empty_page_cache: bool
) -> tuple[SideRun, bool]:
    """One case in exec mode, and whether the page cache was emptied before, which takes root."""
    emptied = False
    if empty_page_cache:
        with contextlib.suppress(AcouslicError):
            drop_page_cache()
            emptied = True
    return run_algorithm(platform_input(work / "in", sweep), work / "out-exec", model, device), emptied


def case_parity(model: Path, sweep: Path, device: torch.device, dtype: torch.dtype) -> dict[str, object]:
    """Half precision against float32 on every frame of the stack."""
    ((exact, blank),) = score_exhaustively(model, [sweep], device, torch.float32)
    ((half, _),) = score_exhaustively(model, [sweep], device, dtype)
    selection = load_artifact(model, verify_hashes=False).manifest.selection
    case: CaseParity = compare(str(sweep), exact, half, blank, selection)
    return summary([case], str(dtype).removeprefix("torch."), str(device))


def device_parity(model: Path, sweep: Path, work: Path, device: torch.device) -> dict[str, object]:
    """Float32 on the device against float32 on the CPU: all frames as they are resized, and the members' judgement of
    a few, spread over the stack so that every upload buffer has been used again."""
    manifest = read_manifest(model)
    resized = []
    for where in (device, torch.device("cpu")):
        with contextlib.closing(FrameStream(sweep)) as stream:
            frames = ResizedFrames(stream, manifest.tower.image_size, manifest.preprocessing, where)
            frames.finish()
            resized.append(frames.frames.cpu().int())
    count = len(resized[0])
    few = min(CPU_FRAMES, count)
    short = shortened(sweep, work / f"{few}-of-{sweep.name}", few)
    ((there, _),) = score_exhaustively(model, [sweep], device, torch.float32)
    ((here, _),) = score_exhaustively(model, [short], torch.device("cpu"), torch.float32)
    of_few = [index * count // few for index in range(few)]
    grey_levels = int((resized[0] - resized[1]).abs().max())
    probability = float(np.abs(there.member_presence[:, of_few] - here.member_presence).max())
    return {
        "grey_level_difference": grey_levels,
        "probability_difference": probability,
        "frames": few,
        "within_bounds": grey_levels <= 1 and probability <= FLOAT32_BOUND,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    args = _parser().parse_args(arguments)
    with workspace(args.work) as work:
        report = measure(args, work)
    print(report.text())
    print(json.dumps(report.to_json()))
    return 0 if report.holds else 1


def _empty_cache(device: torch.device) -> None:
    """Before something else in this process or another needs the GPU's memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _say(text: str) -> None:
    print(f"{text} ...", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_sizes(parser, TOWERS)
    add_keep_share(parser)
    add_case_size(parser)
    parser.add_argument(
        "--parity-frames",
        type=at_least(1),
        default=128,
        help="of the stack that precisions are compared on (default: %(default)s)",
    )
    parser.add_argument(
        "--batches",
        type=numbers,
        default="16,32,64,128,256",
        help="frames a batch of the tower, comma-separated (default: %(default)s)",
    )
    parser.add_argument("--repeats", type=at_least(1), default=3, help="of each warm case (default: %(default)s)")
    parser.add_argument("--keep-page-cache", action="store_true", help="do not empty it before the new process")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: the GPU; cpu measures the same without one, in hours"
    )
    add_work(parser)
    return parser


if __name__ == "__main__":
    exit_with(main)
