"""Worker processes: as many as the machine allows, none of whose deaths goes unnoticed."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from acouslic.errors import AcouslicError
from evaluation.case_evaluation import CaseTask, evaluate_case
from evaluation.evaluate import evaluate
from evaluation.inputs.ground_truth import find_official
from evaluation.inputs.limits import Limits, read_limits, worker_count
from evaluation.inputs.predictions import Submission, read_platform_predictions

GIB = 1 << 30


@pytest.fixture
def tasks(challenge: Any) -> Callable[..., list[CaseTask]]:
    """Builds the tasks of three cases, a, b and c."""
    for case in "abc":
        challenge.add_truth(case, {50: 1})
        challenge.add_job(case, 50)
    challenge.save()
    sources = find_official(challenge.ground_truth_dir)

    def build(*, lenient: bool) -> list[CaseTask]:
        submissions = read_platform_predictions(challenge.input_dir)
        return [CaseTask(sources[item.case], item, None, lenient, None) for item in submissions]

    return build


def deadly(task: CaseTask) -> CaseTask:
    """The task with a mask that ends the process that looks at it: its suffix is replaced by another program's run."""
    end: Any = SimpleNamespace(suffix=SimpleNamespace(lower=functools.partial(os.execlp, "false", "false")))
    return CaseTask(task.source, Submission(task.source.case, 50, end, None), None, task.lenient, None)


def test_results_come_in_order_with_progress(tasks: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """One line a case on stdout, results in the order of the tasks, the same as without workers."""
    results = evaluate(tasks(lenient=False), workers=2)
    assert [result.case for result in results] == ["a", "b", "c"]
    assert [result.official["wfss"] for result in results] == [1, 1, 1]
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["3 cases, 2 workers", "[1/3] a: scored", "[2/3] b: scored", "[3/3] c: scored"]


def test_a_dead_worker_is_put_down_to_its_case(tasks: Any) -> None:
    """The run fails and names the case at which the worker died; leniently, that case fails and the others score."""
    strict, lenient = tasks(lenient=False), tasks(lenient=True)
    strict[1], lenient[1] = deadly(strict[1]), deadly(lenient[1])
    with pytest.raises(AcouslicError, match="case b: the process that scored it died"):
        evaluate(strict, workers=2)
    results = evaluate(lenient, workers=2)
    assert [result.failure is None for result in results] == [True, False, True]
    assert "died" in str(results[1].failure)
    assert [result.score for result in results] == [results[0].score, 0, results[0].score]


def test_cases_under_way_beside_a_death_are_tried_alone(tasks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the pool dies with two cases begun, the innocent one scores and only the other fails; the third follows."""
    calls: list[list[int]] = []

    def run(tasks: list[CaseTask], indices: list[int], _workers: int, _limit_s: float, results: dict[int, Any]) -> Any:
        calls.append(indices)
        if len(calls) == 1:
            return [0, 1]
        if indices == [1]:
            return [1]
        for index in indices:
            results[index] = evaluate_case(tasks[index])
        return []

    monkeypatch.setattr("evaluation.evaluate._run", run)
    results = evaluate(tasks(lenient=True), workers=2)
    assert calls == [[0, 1, 2], [0], [1], [2]]
    assert [result.failure is None for result in results] == [True, False, True]


def test_a_case_that_never_ends_is_ended(tasks: Any) -> None:
    """A limit on time, here too short for any case, counts as a death."""
    with pytest.raises(AcouslicError, match=r"case a: .*did not end in time"):
        evaluate(tasks(lenient=False)[:1], workers=1, case_limit_s=0.001)


def test_workers_that_cannot_start(tasks: Any) -> None:
    """Where a worker dies before any case the machine is at fault, and no case is blamed."""

    class EndsWhenUnpickled:
        """Unpickling it in a worker ends the worker."""

        def __reduce__(self) -> Any:
            return os.execlp, ("false", "false")

    task = tasks(lenient=True)[0]
    spoilt = CaseTask(task.source, EndsWhenUnpickled(), None, True, None)  # type: ignore[arg-type]
    with pytest.raises(AcouslicError, match="died before they began"):
        evaluate([spoilt], workers=1)


def test_workers_that_die_while_tasks_are_handed_out(tasks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool then refuses the next task, as it does a little later when its result is asked for."""

    def refuse(*_: object) -> None:
        raise BrokenProcessPool

    monkeypatch.setattr(ProcessPoolExecutor, "submit", refuse)
    with pytest.raises(AcouslicError, match="died before they began"):
        evaluate(tasks(lenient=True), workers=1)


def test_the_first_failure_in_order_is_told(tasks: Any, challenge: Any) -> None:
    """With several broken cases the sentence is always about the same one."""
    for case in "cb":
        path = challenge.output_of(case) / "images/fetal-abdomen-segmentation/abc.mha"
        path.write_bytes(b"no image")
    with pytest.raises(AcouslicError, match="case b: the mask"):
        evaluate(tasks(lenient=False), workers=2)


@pytest.mark.parametrize(
    ("cpus", "memory_bytes", "cases", "expected"),
    [
        (8, 64 * GIB, 300, 8),
        (8, 64 * GIB, 3, 3),
        (1.5, 64 * GIB, 300, 1),
        (0.5, 64 * GIB, 300, 1),
        (8, 2 * GIB, 300, 2),
        (8, GIB // 2, 300, 1),
        (8, 0, 300, 1),
    ],
)
def test_worker_count(cpus: float, memory_bytes: int, cases: int, expected: int) -> None:
    """No more than cases, whole cores and 700 MiB of memory each beside half a GiB allow, and at least one."""
    assert worker_count(Limits(cpus, memory_bytes), cases) == expected


def write_files(root: Path, files: dict[str, str]) -> None:
    """A piece of /proc and /sys."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


MEMINFO = {"proc/meminfo": "MemTotal: 99999999 kB\nMemAvailable: 33554432 kB\n"}


@pytest.mark.parametrize(
    ("files", "cpus", "memory_bytes"),
    [
        ({}, None, 32 * GIB),
        ({"sys/fs/cgroup/cpu.max": "max 100000", "sys/fs/cgroup/memory.max": "max"}, None, 32 * GIB),
        ({"sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5, 32 * GIB),
        (
            {"sys/fs/cgroup/memory.max": str(4 * GIB), "sys/fs/cgroup/memory.current": str(GIB)},
            None,
            3 * GIB,
        ),
        # Full of page cache: half of the limit is taken to be there.
        ({"sys/fs/cgroup/memory.max": str(4 * GIB), "sys/fs/cgroup/memory.current": str(4 * GIB)}, None, 2 * GIB),
        (
            {
                "proc/self/cgroup": "0::/jobs/one",
                "sys/fs/cgroup/jobs/cpu.max": "25000 100000",
                "sys/fs/cgroup/jobs/one/cpu.max": "max 100000",
                "sys/fs/cgroup/jobs/one/memory.max": str(2 * GIB),
            },
            0.25,
            2 * GIB,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc",
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "30000",
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": str(1 << 62),
                "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": str(8 * GIB),
            },
            0.3,
            8 * GIB,
        ),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
                "proc/self/cgroup": "1:cpu:/",
            },
            None,
            32 * GIB,
        ),
    ],
)
def test_limits_of_control_groups(tmp_path: Path, files: dict[str, str], cpus: float | None, memory_bytes: int) -> None:
    """Both versions, in the own group or above it; without a quota the cores this process may run on count."""
    write_files(tmp_path, MEMINFO | files)
    limits = read_limits(tmp_path)
    assert limits.cpus == (len(os.sched_getaffinity(0)) if cpus is None else cpus)
    assert limits.memory_bytes == memory_bytes


def test_the_platforms_variables_are_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GRAND_CHALLENGE_MAX_WORKERS says nothing about the machine."""
    write_files(tmp_path, MEMINFO)
    before = read_limits(tmp_path)
    monkeypatch.setenv("GRAND_CHALLENGE_MAX_WORKERS", "99")
    assert read_limits(tmp_path) == before
    assert read_limits().memory_bytes > 0


def test_a_worker_cannot_take_more_memory_than_allowed(repository: Path) -> None:
    """Beyond its share an allocation fails, and the process lives on to say so."""
    program = (
        "import numpy; from evaluation.inputs.limits import limit_own_memory; limit_own_memory(100 << 20)\n"
        "kept = numpy.ones(50 << 20, numpy.uint8)\n"
        "try: numpy.ones(400 << 20, numpy.uint8)\n"
        "except MemoryError: print('refused')"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True)
    assert run.stdout == "refused\n"


def test_an_official_case_fits_its_share_of_memory(repository: Path, tmp_path: Path) -> None:
    """A case of 840 x 562 x 744, reference and prediction decoded, stays far below 700 MB: no whole stack is held."""
    program = """
import sys
from pathlib import Path
import numpy as np
from acouslic.write import write_mask_stack
from evaluation.case_evaluation import CaseTask, evaluate_case
from evaluation.inputs.ground_truth import TruthSource
from evaluation.inputs.predictions import Submission

folder = Path(sys.argv[1])
mask = np.zeros((562, 744), bool)
mask[200:380, 250:460] = True
write_mask_stack(folder / "mask.mha", mask, 75, 840, (0.28, 0.28))
source = TruthSource("a", folder / "mask.mha", (200.0, *[None] * 5), None, None)
result = evaluate_case(CaseTask(source, Submission("a", 75, folder / "mask.mha", None), None, False, None))
# Not ru_maxrss, which starts at what the parent process had.
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(result.official["DiceCoefficient"], int(peak.split()[1]) * 1024)
"""
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=repository, capture_output=True, text=True, check=True
    )
    dice, peak_bytes = map(float, run.stdout.split())
    assert dice == 1
    assert peak_bytes < 400 << 20
