"""Many cases at once by Ray: how much faster, at what cost a case, and what dying workers do to the results.

    python bench/cohort.py [--parts speed,overhead,kills,metrics] [--cases 300] [--kills 100] [--model model/demo]

speed     two workers on two cores against one of one core, in turns, on `--speed-cases` cases of 840 frames: cases a
          second between the first and the last result, so that start and loading do not count (goal: at least 1.8)
overhead  1,000 tiny cases on two workers: what a case takes of its worker's time beyond the analysis itself
          (goal: under 50 ms)
kills     `--cases` tiny cases while `--kills` times a random worker gets SIGKILL: afterwards every case has one row and
          one whole folder, with the same frame, mask and circumference as without kills
metrics   16 tiny cases and a damaged one on a Ray of their own, with Ray's exporter for Prometheus: what it says
          afterwards against the records of the cases; needs `ray[default]`, and is made only where it is asked for

The last line is a JSON object with `faults`. Sides share the machine with whatever else runs there.
"""

import argparse
import contextlib
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from acouslic.errors import AcouslicError
from bench.setting.cohort_run import (
    RAY_ENVIRONMENT,
    TINY,
    case_folders,
    compare_results,
    finish,
    lines_of,
    make_stacks,
    rows_of,
    start,
)
from bench.setting.command import add_demo_model, add_parts, add_seed, at_least, exit_with
from bench.setting.machine import describe_machine, today

_LARGE = (140, 281, 372)
_OVERHEAD_CASES = 1000
_METRICS_S = 300
"""A busy machine takes that long to start Ray's exporter."""
_OURS = re.compile(r"(ray_acouslic_(?:cases_total|case_seconds_bucket))\{")
_WORKER = re.compile(r"^worker (\d+) on ")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was asked for; 0 where there was no fault."""
    parts = {"speed": measure_speed, "overhead": measure_overhead, "kills": kill_workers, "metrics": scrape_metrics}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_parts(parser, "--parts", list(parts), default=("speed", "overhead", "kills"))
    parser.add_argument("--cases", type=at_least(1), default=300, help="tiny ones for kills (default: %(default)s)")
    parser.add_argument(
        "--kills", type=at_least(1), default=100, help="how many workers are killed (default: %(default)s)"
    )
    parser.add_argument(
        "--speed-cases", type=at_least(2), default=12, help="of 840 frames for speed (default: %(default)s)"
    )
    parser.add_argument(
        "--overhead-cases",
        type=at_least(2),
        default=_OVERHEAD_CASES,
        help="tiny ones for overhead (default: %(default)s)",
    )
    add_seed(parser, 0)
    add_demo_model(parser)
    options = parser.parse_args(arguments)
    random.seed(options.seed)
    report: dict[str, object] = {"date": today(), "machine": describe_machine()}
    faults: list[str] = []
    for name in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            figures, found = parts[name](Path(folder), options)
            # Removing thousands of folders takes its time.
            print(f"{name}: {figures}", *found, sep="\n  ", flush=True)
        report[name] = figures
        faults += found
    print(json.dumps(report | {"faults": len(faults)}))
    return 1 if faults else 0


def measure_speed(root: Path, options: argparse.Namespace) -> tuple[dict[str, object], list[str]]:
    """Two workers of one core each against one worker of one core. Raises AcouslicError on a machine of one core."""
    if len(os.sched_getaffinity(0)) < 2:
        raise AcouslicError("speed compares two cores with one, and only one may be used here: leave it out of --parts")
    stacks = make_stacks(root / "stacks", options.speed_cases, _LARGE)
    cores = sorted(os.sched_getaffinity(0))[:2]
    rates: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(2):
        for workers in (1, 2):
            output = root / f"out-{turn}-{workers}"
            finish(start(stacks, output, options.model, workers, cores=cores[:workers]))
            done_at = sorted((folder / "case.json").stat().st_mtime for folder in case_folders(output))
            rates[workers].append((len(done_at) - 1) / (done_at[-1] - done_at[0]))
    ratio = statistics.mean(rates[2]) / statistics.mean(rates[1])
    return {"cases_a_second": rates, "ratio": round(ratio, 3)}, []


def measure_overhead(root: Path, options: argparse.Namespace) -> tuple[dict[str, object], list[str]]:
    """What two workers spend a case beyond `seconds`, the analysis with its files."""
    stacks = make_stacks(root / "stacks", options.overhead_cases, TINY)
    output = root / "out"
    finish(start(stacks, output, options.model, 2))
    done_at = sorted((folder / "case.json").stat().st_mtime for folder in case_folders(output))
    seconds = [row["seconds"] for row in rows_of(output).values()]
    a_case = 2 * (done_at[-1] - done_at[0]) / (len(done_at) - 1)
    overhead_ms = 1000 * (a_case - statistics.mean(seconds))
    return {"cases": len(done_at), "worker_s_a_case": round(a_case, 4), "overhead_ms": round(overhead_ms, 1)}, []


def kill_workers(root: Path, options: argparse.Namespace) -> tuple[dict[str, object], list[str]]:
    """Random workers get SIGKILL while they work; then everything is compared with an undisturbed run."""
    stacks = make_stacks(root / "stacks", options.cases, TINY)
    undisturbed, output = root / "undisturbed", root / "out"
    finish(start(stacks, undisturbed, options.model, 1))
    alive: list[int] = []
    killed = done = 0
    process = start(stacks, output, options.model, 2)
    for line in lines_of(process):
        if found := _WORKER.match(line):
            alive.append(int(found[1]))
        done += ": frame " in line or ": no frame" in line
        # Spread over the run, and never a worker that is not at work.
        due = min(options.kills, options.kills * (done + 1) / options.cases)
        if alive and killed < due:
            time.sleep(random.random() * 0.1)
            victim = alive.pop(random.randrange(len(alive)))
            os.kill(victim, signal.SIGKILL)
            killed += 1
    faults = [] if process.returncode == 0 else [f"exit code {process.returncode}"]
    return {"cases": options.cases, "kills": killed}, faults + compare_results(output, undisturbed)


def scrape_metrics(root: Path, options: argparse.Namespace) -> tuple[dict[str, object], list[str]]:
    """What Ray's exporter says of a small cohort, and where that is not what its records say."""
    stacks, output = make_stacks(root / "stacks", 16, TINY), root / "out"
    (stacks / "damaged.mha").write_bytes(b"no image")
    with ray_with_exporter(root / "ray") as (address, url):
        said = list(lines_of(start(stacks, output, options.model, 2, more=["--ray-address", address])))
        seconds = [float(row["seconds"]) for row in rows_of(output).values()]
        if not seconds:
            raise SystemExit(f"the run failed: {''.join(said[-3:])}")
        # The exporter has them some seconds later.
        deadline = time.monotonic() + _METRICS_S
        while (faults := wrong_metrics(read_metrics(url) or {}, seconds)) and time.monotonic() < deadline:
            time.sleep(1)
        exported = read_metrics(url)
    return {"exported": exported}, faults


def wrong_metrics(exported: dict[str, float], seconds: Sequence[float]) -> list[str]:
    """What is exported otherwise than 16 good cases of so many seconds and a damaged one make it.

    Not the histogram's sum, which Ray makes of the middles of the buckets.
    """
    bounds = {*re.findall(r'_bucket\{le="([^"]+)"', " ".join(exported)), "+Inf"}
    expected = {'ray_acouslic_cases_total{outcome="done"}': 16, 'ray_acouslic_cases_total{outcome="failed"}': 1}
    for bound in bounds:
        within = sum(second <= float(bound) for second in seconds)
        expected[f'ray_acouslic_case_seconds_bucket{{le="{bound}"}}'] = within
    return [f"{name} is {exported.get(name)}, not {n}" for name, n in expected.items() if exported.get(name) != n]


@contextlib.contextmanager
def ray_with_exporter(folder: Path) -> Iterator[tuple[str, str]]:
    """A Ray of two cores on this machine: its address, and where its exporter answers."""
    port, exporter = free_port(), free_port()
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--temp-dir={folder}"]
    command += [f"--port={port}", "--num-cpus=2", "--include-dashboard=false", f"--metrics-export-port={exporter}"]
    url = f"http://127.0.0.1:{exporter}/metrics"
    with Path(f"{folder}.log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | RAY_ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + _METRICS_S
        while read_metrics(url) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                said = Path(f"{folder}.log").read_text(errors="replace")
                raise SystemExit(f"no exporter of metrics: is ray[default] installed? {said[-300:]}")
            time.sleep(1)
        yield f"127.0.0.1:{port}", url
    finally:
        process.terminate()
        process.wait()


def read_metrics(url: str) -> dict[str, float] | None:
    """Our counts by name and outcome or bucket; None where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return None
    found = {}
    for line in text.splitlines():
        if match := _OURS.match(line):
            (label,) = re.findall(r'\b(?:outcome|le)="[^"]+"', line)
            found[f"{match[1]}{{{label}}}"] = float(line.rpartition(" ")[2])
    return found


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


if __name__ == "__main__":
    exit_with(main)
