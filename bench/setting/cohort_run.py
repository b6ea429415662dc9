"""A run of `predict` on many small cases: what it is given, how it is started, what it leaves behind."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bench.setting.machine import REPOSITORY
from training.phantom.generate import write_stack

TINY = (12, 60, 80)
"""Frames, rows, columns."""
RAY_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
"""Nothing is reported; who may join is not what is measured here."""


def start(
    stacks: Path,
    output: Path,
    model: Path,
    workers: int,
    cores: Sequence[int] | None = None,
    more: Sequence[str] = (),
) -> subprocess.Popen[str]:
    """`predict` on so many workers; on these cores alone where they are given. A worker has one thread."""
    command = [sys.executable, "-m", "algorithm", "predict", str(stacks), "--output", str(output)]
    command += ["--model", str(model), "--device", "cpu", "--workers", str(workers), *more]
    environment = os.environ | RAY_ENVIRONMENT | {"PYTHONPATH": str(REPOSITORY)}
    if workers == 1:
        environment["OMP_NUM_THREADS"] = "1"
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=None if cores is None else lambda: os.sched_setaffinity(0, cores),
    )


def lines_of(process: subprocess.Popen[str]) -> Iterator[str]:
    """What it prints, as it comes, until it has ended."""
    with process:
        assert process.stdout is not None
        yield from process.stdout


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for its end, and be sure that it went well."""
    said = list(lines_of(process))
    if process.returncode:
        raise SystemExit(f"a run failed: {''.join(said[-3:])}")


def make_stacks(folder: Path, cases: int, shape: tuple[int, int, int]) -> Path:
    """So many different stacks of noise with a brighter disc."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    frames, rows, columns = shape
    y, x = np.ogrid[:rows, :columns]
    disc = ((x - columns / 2) / (columns * 0.3)) ** 2 + ((y - rows / 2) / (rows * 0.35)) ** 2 <= 1
    for number in range(cases):
        stack = noise.integers(0, 120, shape, dtype=np.uint8)
        stack[frames // 3 : 2 * frames // 3, disc] += 100
        write_stack(folder / f"case{number:04d}.mha", stack, 0.28)
    return folder


def case_folders(output: Path) -> list[Path]:
    """The complete ones."""
    return sorted(path.parent for path in output.glob("*/fetal-abdomen-frame-number.json"))


def rows_of(output: Path) -> dict[str, dict[str, object]]:
    """What the records of the cases say."""
    return {folder.name: json.loads((folder / "case.json").read_text())["row"] for folder in case_folders(output)}


def mask_of(output: Path, case: str) -> bytes:
    """The file of the mask."""
    return (output / case / "images/fetal-abdomen-segmentation/output.mha").read_bytes()


def compare_results(output: Path, undisturbed: Path) -> list[str]:
    """Faults of a run whose workers died: each case once in the table, with the row and the mask of the other run, and
    nothing left behind."""
    faults = []
    expected, got = rows_of(undisturbed), rows_of(output)
    listed = [line.split(",")[0] for line in (output / "results.csv").read_text().splitlines()[1:]]
    if listed != sorted(expected):
        faults.append(f"the table lists {len(listed)} cases, {len(set(listed))} of them different")
    for case, row in expected.items():
        if {**row, "seconds": 0} != {**got.get(case, {}), "seconds": 0}:
            faults.append(f"{case}: {got.get(case)}, but undisturbed {row}")
        elif mask_of(output, case) != mask_of(undisturbed, case):
            faults.append(f"{case}: another mask than undisturbed")
    faults += [f"left behind: {item.name}" for item in output.iterdir() if item.name.startswith(".")]
    return faults
