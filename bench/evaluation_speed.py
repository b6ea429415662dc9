"""How long the evaluation takes a case, on the golden cases of the official evaluator.

    python bench/evaluation_speed.py --golden ../shared/data/golden [--repeat 300]

Builds the cases in the platform's layout in a temporary folder (compressed stacks of 840 x 562 x 744), packs the ground
truth, measures what one worker does of each case, and runs the whole container: start, workers, report. The official
evaluator no longer runs (its libraries are retired), so its documented 5 to 7 s a case are the yardstick. Seconds a
case are CPU time of one process. The time that passed stands beside it; on an idle machine the two agree. The last line
is JSON.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from zlib_ng import zlib_ng

from acouslic.geometry import COLUMNS, FRAMES_PER_CASE, ROWS, SPACING_MM
from acouslic.reading.metaimage import header_text
from bench.setting.command import at_least, check_there, exit_with
from bench.setting.machine import REPOSITORY
from evaluation.case_evaluation import CaseTask, evaluate_case
from evaluation.inputs.ground_truth import TruthSource, find_official
from evaluation.inputs.limits import read_limits, worker_count
from evaluation.inputs.predictions import read_platform_predictions
from evaluation.pack import pack

OFFICIAL_SECONDS_PER_CASE = (5.0, 7.0)
"""Documented, of the official evaluator; measured elsewhere."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--golden", type=Path, required=True, help="folder with cases.npz and official_metrics.json")
    parser.add_argument(
        "--repeat",
        type=at_least(0),
        default=0,
        help="also run this many cases, the golden ones again and again (default: none)",
    )
    options = parser.parse_args(arguments)
    check_there(options.golden / "cases.npz", options.golden / "official_metrics.json")
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(options.golden, Path(folder), options.repeat)))
    return 0


def measure(golden: Path, folder: Path, repeat: int) -> dict[str, Any]:
    """All figures, printed as a table on the way."""
    cases = json.loads((golden / "official_metrics.json").read_text())["cases"]
    print(f"writing {len(cases)} cases", flush=True)
    in_own_process(write_cases, golden, cases, folder)
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        pack(_sources(folder, cases), folder / "ground_truth.tar.gz")
    pack_s = time.perf_counter() - started
    with tarfile.open(folder / "ground_truth.tar.gz") as archive:
        archive.extractall(folder / "packed", filter="data")
    plain, indexed = run_container(folder, folder / "plain"), run_container(folder, folder / "packed")
    worker = in_own_process(worker_figures, folder)
    low, high = OFFICIAL_SECONDS_PER_CASE
    seconds = worker["seconds_per_case"]
    figures = {
        "cases": len(cases),
        "seconds_per_case": seconds,
        "seconds_per_case_without_index": worker["seconds_per_case_without_index"],
        "wall_seconds_per_case": worker["wall_seconds_per_case"],
        "speedup_over_official_low": low / seconds,
        "speedup_over_official_high": high / seconds,
        "official_seconds_per_case": OFFICIAL_SECONDS_PER_CASE,
        "official_measured_here": False,
        "container_run_s": indexed,
        "container_run_without_index_s": plain,
        "container_seconds_per_case": indexed / len(cases),
        "pack_s": pack_s,
        "peak_rss_bytes_per_worker": worker["peak_rss_bytes"],
        "workers": worker_count(read_limits(), len(cases)),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
    }
    if repeat:
        repeated = repeat_cases(folder, cases, repeat)
        figures |= {"repeated_cases": repeat, "repeated_run_s": repeated}
    for name, value in figures.items():
        print(f"{name:36} {value:,.3f}" if isinstance(value, float) else f"{name:36} {value}")
    return figures


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result from a fresh interpreter: what one step holds in memory is not counted in another."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(function, *arguments).result()


def peak_rss_bytes() -> int:
    """The most memory this process has ever had. Unlike `ru_maxrss`, it does not start at its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def write_cases(golden: Path, cases: list[dict[str, Any]], folder: Path) -> None:
    """The golden cases as the platform has them: `plain/` the ground truth, `input/` the submission."""
    jobs = []
    with np.load(golden / "cases.npz") as arrays:
        for case in cases:
            name = case["case"]
            labels = np.zeros((FRAMES_PER_CASE, ROWS, COLUMNS), np.uint8)
            for frame, packed in zip(arrays[f"{name}_gt_frames"], arrays[f"{name}_gt"], strict=True):
                optimal, suboptimal = np.unpackbits(packed, axis=-1, count=COLUMNS)
                labels[frame] = np.where(optimal, 1, 2 * suboptimal)
            write_stack(folder / "plain" / name / "fetal_abdomen_stacked_masks" / f"{name}.mha", labels)
            circumferences = folder / "plain" / name / "fetal_abdominal_circumference.json"
            circumferences.write_text(json.dumps(case["circumferences"]))
            mask = np.zeros_like(labels)
            if case["frame_number"] >= 0:
                mask[case["frame_number"]] = np.unpackbits(arrays[f"{name}_pred"], axis=-1, count=COLUMNS)
            write_stack(folder / "input" / name / "output/images/fetal-abdomen-segmentation/output.mha", mask)
            jobs.append(job_entry(name, name, case["frame_number"]))
    (folder / "input" / "predictions.json").write_text(json.dumps(jobs))


def job_entry(pk: str, case: str, frame_number: int) -> dict[str, Any]:
    """One job of `predictions.json`."""
    return {
        "pk": pk,
        "inputs": [{"socket": {"slug": "stacked-fetal-ultrasound"}, "image": {"name": f"{case}.mha"}}],
        "outputs": [
            {"socket": {"slug": "fetal-abdomen-frame-number"}, "value": frame_number},
            {
                "socket": {
                    "slug": "fetal-abdomen-segmentation",
                    "relative_path": "images/fetal-abdomen-segmentation",
                }
            },
        ],
        "status": "Succeeded",
    }


def write_stack(path: Path, stack: np.ndarray) -> None:
    """A compressed stack with the official spacing; one deflate stream, as SimpleITK and the platform write it."""
    path.parent.mkdir(parents=True)
    pixels = zlib_ng.compress(stack.data, 6)
    path.write_bytes(header_text(*stack.shape, (SPACING_MM,) * 3, len(pixels)).encode("ascii") + pixels)


def run_container(folder: Path, ground_truth: Path, input_dir: Path | None = None) -> float:
    """Seconds that the entrypoint takes in a process of its own."""
    output = folder / "output"
    shutil.rmtree(output, ignore_errors=True)
    environment = {
        "PATH": os.environ["PATH"],
        "INPUT_DIR": str(input_dir or folder / "input"),
        "OUTPUT_DIR": str(output),
        "GROUND_TRUTH_DIR": str(ground_truth),
    }
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "evaluation"], cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL, check=True
    )
    return time.perf_counter() - started


def worker_figures(folder: Path) -> dict[str, float]:
    """Seconds of one process a case: what a worker does, from files to result, median of three rounds; its memory."""
    figures: dict[str, float] = {}
    for suffix, ground_truth in (("", "packed"), ("_without_index", "plain")):
        sources = find_official(folder / ground_truth)
        tasks = [
            CaseTask(sources[item.case], item, None, False, None)
            for item in read_platform_predictions(folder / "input")
        ]
        rounds = []
        for _ in range(3):
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            for task in tasks:
                evaluate_case(task)
            rounds.append((time.process_time() - cpu_s, time.perf_counter() - wall_s))
        cpu_s, wall_s = np.median(rounds, axis=0) / len(tasks)
        figures |= {f"seconds_per_case{suffix}": float(cpu_s), f"wall_seconds_per_case{suffix}": float(wall_s)}
    return figures | {"peak_rss_bytes": peak_rss_bytes()}


def repeat_cases(folder: Path, cases: list[dict[str, Any]], count: int) -> float:
    """Seconds of a container run of `count` cases: the golden ones again and again, as hard links."""
    phase, jobs = folder / "phase", []
    for number in range(count):
        golden = cases[number % len(cases)]
        name, copy = golden["case"], f"{number:04d}"
        shutil.copytree(folder / "packed/ground_truth" / name, phase / "truth" / copy, copy_function=os.link)
        shutil.copytree(folder / "input" / name, phase / "input" / copy, copy_function=os.link)
        jobs.append(job_entry(copy, copy, golden["frame_number"]))
    (phase / "input" / "predictions.json").write_text(json.dumps(jobs))
    return run_container(folder, phase / "truth", phase / "input")


def _sources(folder: Path, cases: list[dict[str, Any]]) -> dict[str, TruthSource]:
    sources = find_official(folder / "plain")
    return {case["case"]: replace(sources[case["case"]], subject_id=f"subject of {case['case']}") for case in cases}


if __name__ == "__main__":
    exit_with(main)
