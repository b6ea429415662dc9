"""Our side alone, as the platform runs it: one process a case (exec), and a server that is asked twice (invoke)."""

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from acouslic.errors import AcouslicError
from bench.figures.table import number, table
from bench.setting.inputs import platform_input
from bench.setting.machine import REPOSITORY, describe_machine, today, versions
from bench.setting.sides import case_done, python_environment, run_algorithm

PATIENCE_S = 600.0
_PHASES = (
    *("import", "load", "read", "wait", "preprocess"),
    *("gate", "refine", "recheck", "segment", "write", "first_frame", "total"),
)


def measure_modes(model: Path, sweep: Path, work: Path, device: str | None) -> dict[str, Any]:
    """Run the case in both modes, print a table, and return everything as JSON: times by phase and peak memory."""
    machine = describe_machine()
    input_dir = platform_input(work / "modes", sweep)
    exec_run = run_algorithm(input_dir, work / "out-exec", model, device)
    ready_s, invoked = measure_invoke(input_dir, work / "out-invoke", model, device)
    reports = {"exec": exec_run.report, "first invoke": invoked[0], "second invoke": invoked[1]}
    rows = [
        [f"{phase} (s)", *(number(report["timings"][f"{phase}_s"]) for report in reports.values())] for phase in _PHASES
    ]
    peak_gb = [number(report["timings"]["peak_rss_bytes"] / 1e9) for report in reports.values()]
    rows.append(["peak memory (GB)", *peak_gb])
    print(f"{exec_run.report['frames']} frames, {exec_run.report['members']} members, {exec_run.report['precision']}")
    print(table(["", *reports], rows))
    print("import and load happen once a process: before the first case, and before a server is ready.")
    return {
        "date": today(),
        "machine": machine,
        "versions": versions(),
        "frames": exec_run.report["frames"],
        "refined_frames": exec_run.report["refined_frames"],
        "members": exec_run.report["members"],
        "device": exec_run.report["device"],
        "precision": exec_run.report["precision"],
        "exec": {"wall_s": exec_run.wall_s, **exec_run.report["timings"]},
        "invoke": {"ready_s": ready_s, "cases": [report["timings"] for report in invoked]},
        "peak_rss_bytes": max(report["timings"]["peak_rss_bytes"] for report in reports.values()),
    }


def measure_invoke(
    input_dir: Path, output_dir: Path, model: Path, device: str | None, invokes: int = 2
) -> tuple[float, list[dict[str, Any]]]:
    """Seconds until a server is ready, and its account of each of several invokes of the same case."""
    output_dir.mkdir(parents=True, exist_ok=True)
    port = free_port()
    words = ["serve", "--port", str(port), *([] if device is None else ["--device", device])]
    variables = {"INPUT_DIR": str(input_dir), "OUTPUT_DIR": str(output_dir), "MODEL_DIR": str(model)}
    start = time.perf_counter()
    log_path = output_dir.with_name(f"{output_dir.name}.log")
    with log_path.open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "algorithm", *words],
            cwd=REPOSITORY,
            env=python_environment(variables),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_until_ready(server, port, log_path)
            ready_s = time.perf_counter() - start
            reports = []
            for _ in range(invokes):
                _post(f"http://127.0.0.1:{port}/invoke", log_path)
                reports.append(case_done(log_path.read_text()))
        finally:
            server.terminate()
            server.wait(timeout=10)
    return ready_s, reports


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(server: subprocess.Popen[bytes], port: int, log_path: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError):
            pass  # not listening yet, or still loading
        if server.poll() is not None:
            break
        time.sleep(0.05)
    raise AcouslicError(f"the server did not become ready: {log_path.read_text()[-500:]}")


def _post(url: str, log_path: Path) -> None:
    request = urllib.request.Request(url, data=b"", method="POST")
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            if answer.status != 201:
                raise AcouslicError(f"{url} answered {answer.status} instead of 201")
    except urllib.error.URLError as error:
        raise AcouslicError(f"{url} failed ({error}): {log_path.read_text()[-500:]}") from error
