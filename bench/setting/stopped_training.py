"""A small training that is stopped at random moments: what it says, and that it goes on to the same member."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import numpy as np

from bench.setting.stopped_run import Ended, Mode, files_below

_LOGS = ("logs/", "tensorboard/", "checkpoints/")
"""Times stand in them, and parts of TensorBoard's that each go with one start."""


class StoppedTraining:
    """A tower of four blocks and two epochs on seven generated cases of 2 x 24 frames at 28 pixels."""

    def __init__(self, root: Path, variables: dict[str, str]) -> None:
        self._variables = variables
        release, cache, split = root / "release", root / "cache", root / "split.json"
        vision = {"image_size": 28, "patch_size": 14, "width": 16, "layers": 4, "head_width": 8}
        (root / "tower.json").write_text(json.dumps({"embed_dim": 8, "vision_cfg": vision}))
        table = release / "circumferences" / "fetal_abdominal_circumferences_per_sweep.csv"
        self._run("generate", f"--out={release}", "--cases=7", "--rows=120", "--sweeps=2", "--frames-per-sweep=24")
        self._run("prepare", f"--raw={release}", f"--out={cache}", "--image-size=28", "--antialias")
        self._run("split", "--protocol=subject", "--folds=3", f"--csv={table}", f"--cache={cache}", f"--out={split}")
        sizes = ["--adapter.rank=2", "--adapter.last_blocks=2", "--heads.filters=1", "--sampling.min_positive_pixels=1"]
        steps = ["--machine.threads=1", "--optimiser.batch_size=8", "--optimiser.epochs=2", "--augment.clahe=0"]
        machine = ["--machine.accelerator=cpu", "--machine.precision=32-true"]
        tower = [f"--tower.config={root / 'tower.json'}", "--tower.random_init=true"]
        self._zygote = Zygote(variables, root)
        self._words = [f"--cache={cache}", f"--split={split}", "--fold=1", *machine, *sizes, *steps, *tower]

    def start(self, output: Path) -> "ForkedRun":
        """A run in a process that has imported what it needs."""
        return self._zygote.start(self._fit(output))

    def mode(self) -> Mode:
        """The command, and what must hold when it was stopped."""
        return Mode(lambda output: [*_training("fit"), *self._fit(output)[1:]], check_fit, lambda _: {})

    def check_result(self, output: Path, whole: Path) -> list[str]:
        """The same command again, which must finish with what the undisturbed run has in `whole`, to the bit."""
        run = self.start(output)
        _, stderr = run.communicate()
        return [f"it does not go on: {stderr}"] if run.returncode else compare_runs(output, whole)

    def _fit(self, output: Path) -> list[str]:
        return ["fit", *self._words, f"--out={output}"]

    def _run(self, *words: str) -> None:
        ended = self._try(*words)
        if ended.returncode:
            raise SystemExit(f"{words[0]} failed: {ended.stderr}")

    def _try(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*_training(words[0]), *words[1:]],
            env=self._variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )


class Zygote:
    """The process that forks runs; see `training_zygote.py`."""

    def __init__(self, variables: dict[str, str], folder: Path) -> None:
        command = [sys.executable, "-m", "bench.setting.training_zygote"]
        self._process = subprocess.Popen(
            command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self._stderr = folder / "stderr.txt"

    def start(self, words: list[str]) -> "ForkedRun":
        """A run of `python -m training` with these words; the one before it has ended."""
        self._stderr.write_text("")
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"words": words, "stderr": str(self._stderr)}) + "\n")
        self._process.stdin.flush()
        return ForkedRun(int(self._process.stdout.readline()), self._process.stdout, self._stderr)


class ForkedRun:
    """A child of the zygote, with what `stopped_run` needs of a process."""

    def __init__(self, number: int, answers: IO[str], stderr: Path) -> None:
        self._number, self._answers, self._stderr = number, answers, stderr
        self._code: int | None = None

    @property
    def returncode(self) -> int:
        """Once it has ended; of a signal the number, negative."""
        assert self._code is not None
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code. Raises TimeoutExpired where it goes on for longer."""
        if self._code is None:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a forked run", timeout or 0.0)
            self._code = int(self._answers.readline())
        return self._code

    def send_signal(self, number: int) -> None:
        """Nothing where it has ended."""
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._number, number)

    def kill(self) -> None:
        """At once."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[None, str]:
        """Wait for the end; the second is what stood on stderr."""
        self.wait(timeout)
        return None, self._stderr.read_text()


def check_fit(ended: Ended) -> list[str]:
    """One sentence that says what is kept, as the last line; no traceback."""
    if ended.code in (-signal.SIGKILL, 0):
        return []
    if "Traceback" in ended.stderr:
        return [f"a traceback: {ended.stderr}"]
    if ended.code == -ended.number:  # Python's own start: no code of ours has run
        return []
    if ended.code != 128 + ended.number:
        return [f"exit code {ended.code}: {ended.stderr}"]
    last = ended.stderr.splitlines()[-1] if ended.stderr.strip() else ""
    says = last.startswith(f"stopped by {signal.Signals(ended.number).name}") and "the same command" in last
    return [] if says else [f"it does not say what is kept: {ended.stderr}"]


def compare_runs(run: Path, whole: Path) -> list[str]:
    """Two finished runs: the same files, and in the member and the scores the same bits."""
    names = [{name for name in files_below(folder) if not name.startswith(_LOGS)} for folder in (run, whole)]
    if names[0] != names[1]:
        return [f"other files than undisturbed: {sorted(names[0] ^ names[1])}"]
    found = [
        f"{name} is not what it is undisturbed"
        for name in sorted(names[0])
        if name.startswith("member/") and (run / name).read_bytes() != (whole / name).read_bytes()
    ]
    scores = [dict(np.load(folder / "out_of_fold.npz")) for folder in (run, whole)]
    if any(not np.array_equal(scores[0][name], scores[1][name]) for name in scores[1]):
        found.append("out_of_fold.npz is not what it is undisturbed")
    records: list[dict[str, Any]] = [json.loads((folder / "run.json").read_text()) for folder in (run, whole)]
    found += [f"run.json has another `{key}`" for key in ("kept", "epochs") if records[0][key] != records[1][key]]
    return found


def _training(command: str) -> list[str]:
    return [sys.executable, "-m", "training", command]
