"""What is left when the program is stopped at a random moment: a whole result, or none, and one sentence.

    python bench/kills.py [--count 300] [--modes exec,serve,predict,fit] [--seed 0] [--model model/demo]

Each mode is run once undisturbed, which tells how long it takes; then `--count` times, and each time SIGTERM, SIGINT or
SIGKILL comes at a random moment of that time and a little after. Counted as faults:

- an exit code other than 0 with the result complete, 128 + the signal's number with nothing of an incomplete result,
  or the signal itself before the program had begun (and for SIGKILL);
- anything on stderr but the one sentence of a run that was stopped; a traceback anywhere;
- a result in part: exec and serve leave all files or none (after SIGKILL no frame number without the rest), predict a
  whole folder of a case or none, and a table that lists what is complete;
- serve: an answer 201 without the whole result, or an end later than 5 s after SIGTERM;
- fit: a last line that does not say what is kept, or a folder from which the same command does not come to the same
  files, scores and weights, to the bit, as undisturbed. A run is stopped again and again, as a preempted job is, until
  one start of it comes to the end, or ten did not. Four starts of five are forked from a process that has imported
  torch, so that most are stopped while they train.

The stacks are generated and tiny, so that a run takes seconds. The last line is a JSON object with `faults`.
"""

import argparse
import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.setting.command import add_demo_model, add_parts, add_seed, at_least, exit_with
from bench.setting.machine import REPOSITORY, today
from bench.setting.stopped_run import (
    END_S,
    SIGNALS,
    Ended,
    Mode,
    Run,
    check_words,
    files_below,
    hear_interrupts,
    start_process,
    stopped_run,
)
from bench.setting.stopped_training import StoppedTraining
from training.phantom.generate import write_stack

MODES = ("exec", "serve", "predict", "fit")
RESULT_FILES = {
    "fetal-abdomen-frame-number.json",
    "fetal-abdominal-circumference.json",
    "frame-quality-scores.json",
    "images/fetal-abdomen-segmentation/output.mha",
}
_AFTER = 1.1
"""Moments are drawn from so much of the time that a run takes."""
_STARTS_OF_A_RUN = 10
_SAID_EVERY = 25
_FRESH_EVERY = 5
"""Of the starts of `fit`, those that import torch themselves; the others are forked, or nearly all would be stopped
while they import."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the modes; 0 where there was no fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=at_least(1), default=300, help="kills a mode (default: %(default)s)")
    add_parts(parser, "--modes", MODES)
    add_seed(parser, 0)
    add_demo_model(parser)
    options = parser.parse_args(arguments)
    random.seed(options.seed)
    report: dict[str, object] = {"date": today(), "seed": options.seed}
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(Path(folder), options.model)
        for name in options.modes:
            endings, found = setting.kill(name, options.count)
            report[name] = {"kills": options.count, "endings": dict(endings), "faults": len(found)}
            faults += len(found)
            for fault in found:
                print(f"{name}: {fault}")
            print(f"{name}: {options.count} kills, {len(found)} faults, {dict(endings)}", flush=True)
    print(json.dumps(report | {"faults": faults}))
    return 1 if faults else 0


class Setting:
    """The inputs of all modes, generated, in a folder of their own."""

    def __init__(self, root: Path, model: Path) -> None:
        self.root, self.model = root, model
        sweeps = root / "input" / "images" / "stacked-fetal-ultrasound"
        sweeps.mkdir(parents=True)
        self.stacks = root / "stacks"
        self.stacks.mkdir()
        noise = np.random.default_rng(0)
        for path in (sweeps / "a.mha", *(self.stacks / f"{name}.mha" for name in "abc")):
            write_stack(path, noise.integers(0, 256, (24, 60, 80), dtype=np.uint8), 0.28)

    def kill(self, name: str, count: int) -> tuple[Counter[str], list[str]]:
        """How `count` stopped runs of a mode ended, and the faults."""
        if name == "serve":
            return kill_servers(self, count)
        training = StoppedTraining(self.root, self.variables()) if name == "fit" else None
        mode = training.mode() if training else {"exec": self.exec_mode, "predict": self.predict_mode}[name]()

        def start(output: Path, number: int) -> Run:
            forked = training is not None and number % _FRESH_EVERY
            return training.start(output) if training and forked else start_process(mode, self.variables(), output)

        whole_s = [_whole_s(start(self.root / folder, number)) for number, folder in enumerate(("fresh", "whole"))]
        endings: Counter[str] = Counter()
        found = []
        starts = 0
        for number in range(count):
            output = self.root / name
            delay_s = random.random() * _AFTER * whole_s[number % _FRESH_EVERY > 0]
            ended = stopped_run(start(output, number), output, random.choice(SIGNALS), delay_s)
            endings[_ending(ended.code)] += 1
            what = signal.Signals(ended.number).name
            faults = mode.check(ended)
            starts += 1
            goes_on = training and ended.code != 0 and starts < _STARTS_OF_A_RUN and number + 1 < count
            if training and not goes_on:
                faults += training.check_result(output, self.root / "whole")
            found += [f"kill {number} ({what}, exit {ended.code}): {fault}" for fault in faults]
            if not goes_on:
                shutil.rmtree(output, ignore_errors=True)
                starts = 0
            if (number + 1) % _SAID_EVERY == 0:
                print(f"{name}: {number + 1} of {count} kills, {len(found)} faults so far", flush=True)
        return endings, found

    def variables(self) -> dict[str, str]:
        """The environment of a run."""
        threads = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "MODEL_DIR": str(self.model)}
        return dict(os.environ) | threads | {"INPUT_DIR": str(self.root / "input")}

    def exec_mode(self) -> Mode:
        """The platform's: one case into OUTPUT_DIR."""
        return Mode(
            lambda _: [sys.executable, "-m", "algorithm"], check_exec, lambda output: {"OUTPUT_DIR": str(output)}
        )

    def predict_mode(self) -> Mode:
        """Three cases."""
        return Mode(
            lambda output: [sys.executable, "-m", "algorithm", "predict", str(self.stacks), "--output", str(output)],
            check_predict,
            lambda _: {},
        )


def _whole_s(run: Run) -> float:
    """Seconds until an undisturbed run has ended, as it has to: with exit code 0."""
    start = time.monotonic()
    _, stderr = run.communicate()
    if run.returncode:
        raise SystemExit(f"an undisturbed run failed: {stderr}")
    return time.monotonic() - start


def check_exec(ended: Ended) -> list[str]:
    """All files or none."""
    return check_words(ended) + check_whole(ended.output, ended.code, complete=ended.code == 0)


def check_whole(output: Path, code: int, *, complete: bool) -> list[str]:
    """The four files where the run says so, else none; after SIGKILL no frame number without the others."""
    there = files_below(output)
    if complete:
        return [] if there >= RESULT_FILES else [f"not complete: {sorted(there)}"]
    if code == -signal.SIGKILL:
        partial = "fetal-abdomen-frame-number.json" in there and not there >= RESULT_FILES
        return [f"a frame number without the rest: {sorted(there)}"] if partial else []
    return [f"left behind: {sorted(there)}"] if there else []


def check_predict(ended: Ended) -> list[str]:
    """Whole folders, no empty ones, and a table of them."""
    found = check_words(ended)
    if not ended.output.is_dir():
        return found
    folders = [item for item in ended.output.iterdir() if item.is_dir()]
    whole = {"preview.png", "case.json"} | RESULT_FILES
    cases = []
    for folder in folders:
        if folder.name.startswith("."):
            found += [f"left behind: {folder.name}"] if ended.code != -signal.SIGKILL else []
            continue
        cases.append(folder.name)
        if not files_below(folder) >= whole:
            found.append(f"case {folder.name} holds {sorted(files_below(folder))}")
    table = ended.output / "results.csv"
    rows = [line.split(",")[0] for line in table.read_text().splitlines()[1:]] if table.is_file() else []
    agrees = set(rows) <= set(cases) if ended.code == -signal.SIGKILL else sorted(rows) == sorted(cases)
    if not agrees or (ended.code == 0 and sorted(cases) != ["a", "b", "c"]):
        found.append(f"the table lists {rows}, folders are {cases}")
    return found


def kill_servers(setting: Setting, count: int) -> tuple[Counter[str], list[str]]:
    """Servers that are stopped while they start, or while they answer an invoke."""
    endings: Counter[str] = Counter()
    found = []
    undisturbed = Server(setting, setting.root / "serve-whole")
    start_s = undisturbed.ready_s()
    invoke_s = sum(undisturbed.invoke_s() for _ in range(2)) / 2
    undisturbed.stopped(signal.SIGTERM)
    for number in range(count):
        server = Server(setting, setting.root / f"serve-{number}")
        if random.random() < 0.3:
            time.sleep(random.random() * start_s)
        else:
            server.ready_s()
            threading.Thread(target=server.invoke_s, daemon=True).start()
            time.sleep(random.random() * _AFTER * invoke_s)
        ended = server.stopped(random.choice(SIGNALS))
        endings[_ending(ended.code)] += 1
        what = signal.Signals(ended.number).name
        found += [f"kill {number} ({what}, exit {ended.code}): {fault}" for fault in check_served(ended, server.status)]
        shutil.rmtree(ended.output, ignore_errors=True)
    return endings, found


class Server:
    """A process of `serve`, and what it answered."""

    def __init__(self, setting: Setting, output: Path) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.output, self.status = output, 0
        output.mkdir()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "algorithm", "serve", "--port", str(self.port)],
            env=setting.variables() | {"OUTPUT_DIR": str(output)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=hear_interrupts,
        )

    def ask(self, method: str, path: str) -> int:
        """The status of one answer; 0 where there is none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=END_S)
        try:
            connection.request(method, path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def ready_s(self) -> float:
        """Seconds until health says 200."""
        start = time.monotonic()
        while self.ask("GET", "/health") != 200:
            if self.process.poll() is not None or time.monotonic() - start > END_S:
                raise SystemExit("the server did not become ready")
            time.sleep(0.02)
        return time.monotonic() - start

    def invoke_s(self) -> float:
        """Seconds that an invoke takes; its answer is kept in `status`."""
        start = time.monotonic()
        self.status = self.ask("POST", "/invoke")
        return time.monotonic() - start

    def stopped(self, number: int) -> Ended:
        """Send the signal as the platform does, to the group, and wait for the end."""
        stopped_at = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
        _, stderr = self.process.communicate(timeout=END_S)
        return Ended(number, self.process.returncode, time.monotonic() - stopped_at, stderr, self.output)


def check_served(ended: Ended, status: int) -> list[str]:
    """All files or none, all where the answer was 201; an end within 5 s."""
    found = check_words(ended)
    there = files_below(ended.output)
    if there or status == 201:
        complete = status == 201 or (ended.code != -signal.SIGKILL)
        found += check_whole(ended.output, ended.code, complete=complete)
    if ended.seconds > 5 and ended.number != signal.SIGKILL:
        found.append(f"it ended {ended.seconds:.1f} s after the signal")
    return found


def _ending(code: int) -> str:
    return "complete" if code == 0 else "stopped" if code > 0 else f"signal {-code}"


if __name__ == "__main__":
    exit_with(main)
