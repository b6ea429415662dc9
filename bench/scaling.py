"""How time and memory grow: with the frames of a case, the members of the ensemble, and the frames of a batch.

    python bench/scaling.py                      a small tower, about two minutes on two cores
    python bench/scaling.py --config vit-l-14    as submitted; hours on a CPU, minutes on a GPU

Frames: whole processes (`python -m algorithm exec`, exhaustive) on stacks of speckle in the challenge's frame size.
Time should grow in a straight line, and memory only by the resized frames themselves and what the decoder may be ahead.
Members and batches: scoring alone, in this process, of the same frames. The last line is a JSON object.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from acouslic.geometry import ROWS
from algorithm.engine.device import choose_device, choose_precision, set_cpu_threads
from algorithm.engine.ensemble import Ensemble
from algorithm.frames.frame_stream import MAX_AHEAD_BYTES
from algorithm.judgement.score import score_case
from algorithm.model.artifact import load_artifact
from algorithm.model.manifest import ScoringConfig
from algorithm.model.networks import TowerConfig
from bench.figures.flops import adapted_layers, shared_flop
from bench.figures.table import number, table
from bench.setting.command import add_device, add_work, at_least, exit_with, numbers
from bench.setting.inputs import platform_input, speckle_sweep
from bench.setting.machine import describe_machine, today, versions, warn_if_busy
from bench.setting.random_artifact import TOWERS, alike_members, write_random_artifact
from bench.setting.sides import run_algorithm
from bench.setting.workspace import workspace

SMALL = TowerConfig(image_size=224, patch_size=14, width=192, layers=8, heads=3, mlp_width=768, output_dim=192)
FRAMES = (60, 210, 420, 840, 1680)
MEMBERS = (1, 2, 3, 5, 7, 10)
BATCHES = (1, 2, 4, 8, 16, 32)
SHARE_ADAPTED = 4
"""A quarter of the blocks carries adapters, as 6 of 24."""


@dataclass(frozen=True)
class Line:
    """A straight line through points by least squares."""

    intercept: float
    slope: float
    worst: float
    """The largest distance of a point from the line, as a share of that point's value."""


@dataclass(frozen=True)
class CaseSize:
    """One process."""

    frames: int
    scoring_s: float
    total_s: float
    """Without import and load."""
    peak_rss_bytes: int
    peak_device_bytes: int


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line:
    """The line of least squares through at least two points, none of them of value zero."""
    slope, intercept = np.polyfit(np.asarray(x, dtype=float), np.asarray(y, dtype=float), 1)
    on_line = intercept + slope * np.asarray(x, dtype=float)
    return Line(float(intercept), float(slope), float(np.max(np.abs(on_line / np.asarray(y) - 1))))


def measure_frames(model: Path, work: Path, counts: Sequence[int], rows: int, device: str | None) -> list[CaseSize]:
    """One exhaustive run of a whole process for each number of frames."""
    sizes = []
    for count in counts:
        path = work / f"speckle-{count}-frames-{rows}-rows.mha"
        sweep = path if path.is_file() else speckle_sweep(path, frames=count, rows=rows)
        run = run_algorithm(platform_input(work / f"in-{count}", sweep), work / f"out-{count}", model, device)
        timings = run.report["timings"]
        sizes.append(
            CaseSize(
                frames=count,
                scoring_s=timings["gate_s"] + timings["refine_s"],
                total_s=timings["total_s"] - timings["import_s"] - timings["load_s"],
                peak_rss_bytes=timings["peak_rss_bytes"],
                peak_device_bytes=timings["peak_device_bytes"],
            )
        )
        print(f"{count} frames: {sizes[-1].total_s:.1f} s", flush=True)
    return sizes


def measure_scoring(ensemble: Ensemble, frames: int, batch_frames: int) -> float:
    """Seconds for all members to score this many frames, in the best of three runs after a first."""
    size = ensemble.manifest.tower.image_size
    stack = torch.randint(0, 256, (frames, size, size), dtype=torch.uint8).to(ensemble.device)
    seconds = []
    for _ in range(4):
        begun = time.perf_counter()
        score_case(ensemble, stack, ScoringConfig(), batch_frames=batch_frames)
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:])


def load(model: Path, device: torch.device) -> Ensemble:
    """The ensemble as the algorithm would load it."""
    artifact = load_artifact(model)
    return Ensemble.from_artifact(artifact, device, choose_precision(device, artifact.manifest.half_precision).dtype)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, fit, print."""
    args = _parser().parse_args(arguments)
    config = {**TOWERS, "small": SMALL}[args.config]
    machine = describe_machine()
    with workspace(args.work) as work:
        models = {count: _model(work, args.config, config, count) for count in {*args.members, args.ensemble}}
        sizes = measure_frames(models[args.ensemble], work, args.frames, args.rows, args.device)
        set_cpu_threads()
        device, _ = choose_device(args.device)
        members_s = {}
        for count in args.members:
            members_s[count] = measure_scoring(load(models[count], device), args.scored_frames, args.batch_frames)
        ensemble = load(models[args.ensemble], device)
        batches_s = {
            size: measure_scoring(ensemble, args.scored_frames, size) / args.scored_frames for size in args.batches
        }
        manifest = ensemble.manifest
        flop = shared_flop(config, adapted_layers(models[args.ensemble], manifest))
    result = {
        "date": today(),
        "machine": machine,
        "versions": versions(),
        "device": str(device),
        "precision": str(ensemble.dtype).removeprefix("torch."),
        "model": manifest.name,
        "frames": [asdict(size) for size in sizes],
        "frames_line": asdict(fit_line([size.frames for size in sizes], [size.total_s for size in sizes])),
        "memory_bytes_a_frame": memory_growth(sizes),
        "members_s": members_s,
        "members_line": asdict(fit_line(list(members_s), list(members_s.values()))),
        "members_flop_a_frame": {count: flop.of(count) for count in args.members},
        "batches_s_a_frame": batches_s,
    }
    print(text(result, sizes, machine))
    print(json.dumps(result))
    return 0


def memory_growth(sizes: Sequence[CaseSize]) -> float:
    """Bytes of main memory a frame between the two largest cases."""
    smaller, larger = sorted(sizes, key=lambda size: size.frames)[-2:]
    return (larger.peak_rss_bytes - smaller.peak_rss_bytes) / (larger.frames - smaller.frames)


def text(result: dict, sizes: Sequence[CaseSize], machine: dict) -> str:
    """Three tables."""
    busy = warn_if_busy(machine["load_before"], machine["cores"])
    line, members_line = Line(**result["frames_line"]), Line(**result["members_line"])
    frames_rows = [
        [
            str(size.frames),
            number(size.scoring_s),
            number(size.total_s),
            number(1000 * size.total_s / size.frames),
            number(size.peak_rss_bytes / 1e9),
        ]
        for size in sizes
    ]
    flop = result["members_flop_a_frame"]
    members_rows = [
        [str(count), number(seconds), number(flop[count] / 1e9), number(seconds / flop[count] * 1e12)]
        for count, seconds in result["members_s"].items()
    ]
    batch_rows = [[str(size), number(1000 * seconds)] for size, seconds in result["batches_s_a_frame"].items()]
    return "\n".join(
        [
            *([busy] if busy else []),
            f"{result['model']}, {result['precision']} on {result['device']}, all members on all frames",
            "",
            table(["frames", "scoring (s)", "case (s)", "ms a frame", "peak memory (GB)"], frames_rows),
            f"{number(1000 * line.slope)} ms a frame and {number(line.intercept)} s a case; no point is further than "
            f"{line.worst:.1%} from that line. Memory: {number(result['memory_bytes_a_frame'] / 1e3)} kB a frame "
            f"between the two largest; the decoder may be {MAX_AHEAD_BYTES / 1e6:.0f} MB ahead.",
            "",
            table(["members", "scoring (s)", "GFLOP a frame", "s a TFLOP a frame"], members_rows),
            f"{number(members_line.intercept)} s shared and {number(members_line.slope)} s a member; no point is "
            f"further than {members_line.worst:.1%} from that line.",
            "",
            table(["frames a batch", "ms a frame"], batch_rows),
        ]
    )


def _model(work: Path, name: str, config: TowerConfig, members: int) -> Path:
    folder = work / f"{name}-{members}"
    if not folder.is_dir():
        blocks = max(1, config.layers // SHARE_ADAPTED)
        write_random_artifact(
            folder, config, alike_members(config, members, adapted_blocks=blocks), dtype=torch.float16
        )
    return folder


def _points(words: str) -> list[int]:
    found = numbers(words)
    if len(found) < 2:
        raise argparse.ArgumentTypeError(f"must be two or more numbers, not {words}: a line goes through them")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--config", choices=("small", *sorted(TOWERS)), default="small", help="tower (default: %(default)s)"
    )
    for name, kind, what, default in (
        ("frames", _points, "of a case, two or more numbers", FRAMES),
        ("members", _points, "of the ensemble, two or more numbers", MEMBERS),
        ("batches", numbers, "frames a batch", BATCHES),
    ):
        parser.add_argument(
            f"--{name}",
            type=kind,
            default=",".join(map(str, default)),
            help=f"{what}, comma-separated (default: %(default)s)",
        )
    parser.add_argument(
        "--ensemble",
        type=at_least(1),
        default=5,
        help="members where their number is not what varies (default: %(default)s)",
    )
    parser.add_argument(
        "--scored-frames", type=at_least(1), default=64, help="for members and batches (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-frames", type=at_least(1), default=8, help="where it is not what varies (default: %(default)s)"
    )
    parser.add_argument("--rows", type=at_least(1), default=ROWS, help="of the stacks (default: %(default)s)")
    add_device(parser)
    add_work(parser)
    return parser


if __name__ == "__main__":
    exit_with(main)
