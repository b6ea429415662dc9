"""The two sides of a comparison, each a process of its own that is timed from outside, and what their figures mean."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from acouslic.errors import AcouslicError
from bench.setting.inputs import last_line
from bench.setting.machine import REPOSITORY

FIXED_PHASES = ("import_s", "load_s", "segment_s")
"""Of side A: the same for any number of frames."""
PROPORTIONAL_PHASES = ("read_s", "preprocess_s", "write_s")


@dataclass(frozen=True)
class SideRun:
    """One process."""

    wall_s: float
    """From its start to its end."""
    report: dict[str, Any]
    """The JSON it printed."""


@dataclass(frozen=True)
class Extrapolated:
    """Side A on a whole case, from its run on a few frames."""

    phases_s: dict[str, float]
    measured_frames: int

    @property
    def total_s(self) -> float:
        """All phases, one after another."""
        return sum(self.phases_s.values())


def run_straightforward(sweep: Path, model: Path, output_dir: Path, precision: str, device: str | None) -> SideRun:
    """Side A on every frame of `sweep`, where `device` is None on a GPU if there is one."""
    options: dict[str, object] = {"--sweep": sweep, "--model": model, "--output": output_dir, "--precision": precision}
    if device is not None:
        options["--device"] = device
    words = [str(word) for pair in options.items() for word in pair]
    return _run("bench.setting.straightforward", words, {}, lambda stdout: json.loads(stdout.splitlines()[-1]))


def run_algorithm(input_dir: Path, output_dir: Path, model: Path, device: str | None) -> SideRun:
    """Side B: `python -m algorithm exec`, as the platform starts it."""
    variables = {"INPUT_DIR": str(input_dir), "OUTPUT_DIR": str(output_dir), "MODEL_DIR": str(model)}
    words = ["exec"] if device is None else ["exec", "--device", device]
    return _run("algorithm", words, variables, case_done)


def case_done(log: str) -> dict[str, Any]:
    """The algorithm's own account of its last case in a log of it."""
    for line in reversed(log.splitlines()):
        if line.startswith("{"):
            with contextlib.suppress(json.JSONDecodeError):
                found = json.loads(line)
                if isinstance(found, dict) and found.get("event") == "case done":
                    return found
    raise AcouslicError("the algorithm's log holds no line of JSON with its timings")


def extrapolate(run: SideRun, members: int, frames: int) -> Extrapolated:
    """Side A on `frames` frames.

    What is done once counts once; reading, preparing and writing grow with the frames; scoring is members x frames
    times the median time a frame of its passes, those of full batches where there are any. The median leaves out the
    slow first pass, in favour of A.
    """
    report = run.report
    measured = report["frames"]
    full = max(count for count, _ in report["passes"])
    frame_s = median(seconds / count for count, seconds in report["passes"] if count == full)
    phases = {name: report[name] for name in FIXED_PHASES}
    phases |= {name: report[name] * frames / measured for name in PROPORTIONAL_PHASES}
    phases["score_s"] = members * frames * frame_s
    named = (*FIXED_PHASES, *PROPORTIONAL_PHASES, "score_s")
    phases["end_s"] = max(0.0, run.wall_s - sum(report[name] for name in named))
    return Extrapolated(phases, measured)


def drop_page_cache() -> None:
    """Make the system forget the files it holds in memory, as on a machine that has just been started.

    Raises AcouslicError without the right to do so.
    """
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1\n")
    except OSError as error:
        raise AcouslicError(f"the page cache cannot be emptied ({error.strerror}): run as root, or warm") from error


def python_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that imports this repository.

    Waiting threads sleep, on both sides: the algorithm asks for that itself, and where cores are shared a side whose
    threads spin would be measured slower than it is.
    """
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    own = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return {**os.environ, **own, **variables}


def _run(module: str, words: list[str], variables: Mapping[str, str], read: Any) -> SideRun:
    start = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=REPOSITORY,
        env=python_environment(variables),
        capture_output=True,
        text=True,
        check=False,
    )
    wall_s = time.perf_counter() - start
    if ended.returncode:
        raise AcouslicError(f"python -m {module} failed: {last_line(ended.stderr)}")
    return SideRun(wall_s, read(ended.stdout))
