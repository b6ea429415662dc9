"""A small training that is stopped at random moments: what it says, and that it goes on to the same member."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

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
        self._words = [f"--cache={cache}", f"--split={split}", "--fold=1", *machine, *sizes, *steps, *tower]

    def mode(self) -> Mode:
        """The command, and what must hold when it was stopped."""
        return Mode(lambda output: [*_training("fit"), *self._words, f"--out={output}"], check_fit, lambda _: {})

    def check_result(self, output: Path, whole: Path) -> list[str]:
        """The same command again, which must finish with what the undisturbed run has in `whole`, to the bit."""
        ended = self._try("fit", *self._words, f"--out={output}")
        if ended.returncode:
            return [f"it does not go on: {ended.stderr}"]
        return compare_runs(output, whole)

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
