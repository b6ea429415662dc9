"""A cohort on several machines, one of which is lost in the middle, tried on one machine. As root, with Ray.

    python -m bench.nodes [--nodes 3] [--cases 60] [--parts killed,cut,slurm] [--model model/demo]

The machines are network namespaces, of one core each (`bench/setting/machines.py`). `ray start --head` runs on the
first and `predict --ray-address` beside it; `ray start --address` on the others. Once a quarter of the cases is done,
the last machine is lost:

killed   all its processes get SIGKILL at once
cut      its cable is pulled: it works on, but nobody hears of it, until Ray gives it up
slurm    nothing is lost: the recipe for Slurm in docs/cohorts.md runs as it stands, with stand-ins for `srun` and
         `scontrol` that start commands on these machines

Afterwards every case must have one row and one whole folder, with the same frame, mask and circumference as from one
process, and every machine must have had a worker. The last line is a JSON object with `faults`.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.setting.cohort_run import TINY, compare_results, finish, make_stacks, start
from bench.setting.command import add_demo_model, add_parts, at_least, exit_with
from bench.setting.machine import REPOSITORY, describe_machine, today
from bench.setting.machines import Machine, machines

PARTS = ("killed", "cut", "slurm")
_PORT = 6379
_WORKER = re.compile(r"^worker \d+ on (\S+):")
_CASE = re.compile(r": (no )?frame ")
_RECIPE = re.compile(r"### Slurm\n\n```\n(.*?)```", re.S)
_SRUN = """\
#!/usr/bin/env python3
import os, subprocess, sys
if "start" in sys.argv:  # what goes on in the background would hold the run's output open
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
machines, words, chosen = {machines!r}, sys.argv[1:], None
while words[0].startswith("--"):
    name, _, value = words.pop(0).partition("=")
    if name == "--nodelist":
        chosen = [value]
    elif name == "--exclude":
        chosen = [machine for machine in machines if machine != value]
started = [subprocess.Popen(machines[machine] + words) for machine in chosen]
sys.exit(max(process.wait() for process in started))
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; 0 where there was no fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=at_least(2), default=3, help="machines (default: %(default)s)")
    parser.add_argument("--cases", type=at_least(1), default=60, help="tiny ones for each part (default: %(default)s)")
    add_parts(parser, "--parts", PARTS)
    add_demo_model(parser)
    options = parser.parse_args(arguments)
    report: dict[str, object] = {"date": today(), "machine": describe_machine(), "nodes": options.nodes}
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        stacks = make_stacks(root / "stacks", options.cases, TINY)
        finish(start(stacks, root / "undisturbed", options.model, 1))
        for part in options.parts:
            with machines([f"node{number}" for number in range(1, options.nodes + 1)]) as nodes:
                figures, found = run_part(part, nodes, stacks, root / part, options)
            found += compare_results(root / part, root / "undisturbed")
            print(f"{part}: {figures}", *found, sep="\n  ", flush=True)
            report[part] = figures
            faults += [f"{part}: {fault}" for fault in found]
    print(json.dumps(report | {"faults": len(faults)}))
    return 1 if faults else 0


def run_part(
    part: str, nodes: Sequence[Machine], stacks: Path, output: Path, options: argparse.Namespace
) -> tuple[dict[str, object], list[str]]:
    """One run on all machines; figures and faults."""
    started_at, lost_at, noticed_after_s, done = time.monotonic(), 0.0, None, 0
    workers: list[str] = []
    if part == "slurm":
        driver = start_by_slurm(nodes, stacks, output, options.model)
    else:
        driver = start_by_hand(nodes, stacks, output, options.model)
    assert driver.stdout is not None
    for line in driver.stdout:
        if found := _WORKER.match(line):
            workers.append(found[1])
        done += _CASE.search(line) is not None
        if lost_at and noticed_after_s is None and line.startswith("a worker has died"):
            noticed_after_s = round(time.monotonic() - lost_at, 1)
        if part != "slurm" and not lost_at and nodes[-1].name in workers and done >= options.cases / 4:
            lost_at = time.monotonic()
            (nodes[-1].kill if part == "killed" else nodes[-1].cut)()
    figures = {"cases": done, "workers": workers, "seconds": round(time.monotonic() - started_at)}
    faults = [] if driver.wait() == 0 else [f"exit code {driver.returncode}"]
    faults += [f"{node.name} had no worker" for node in nodes if node.name not in workers]
    if part != "slurm":
        figures["noticed_after_s"] = noticed_after_s
        faults += [] if noticed_after_s is not None else ["no loss was noticed"]
    return figures, faults


def start_by_hand(nodes: Sequence[Machine], stacks: Path, output: Path, model: Path) -> subprocess.Popen[str]:
    """Ray on each machine, then `predict` on the first."""
    first = f"{nodes[0].address}:{_PORT}"
    # The dashboard's packages are no part of `ray[data]`; Ray would wait a minute for it on a busy machine.
    head = [f"--port={_PORT}", "--head", "--include-dashboard=false"]
    for together in (nodes[:1], nodes[1:]):
        joining = []
        for node in together:
            role = head if node is nodes[0] else ["--address", first]
            words = [*_ray("start"), *role, f"--node-ip-address={node.address}", "--num-cpus=1"]
            joining.append(subprocess.Popen(node.words(words), env=_variables(), stdout=subprocess.DEVNULL))
        if max(process.wait() for process in joining):
            raise SystemExit("Ray did not start on every machine: see its messages above")
    predict = [sys.executable, "-m", "algorithm", "predict", str(stacks), "--output", str(output)]
    predict += ["--model", str(model), "--ray-address", first]
    return subprocess.Popen(nodes[0].words(predict), env=_variables(), stdout=subprocess.PIPE, text=True)


def start_by_slurm(nodes: Sequence[Machine], stacks: Path, output: Path, model: Path) -> subprocess.Popen[str]:
    """The recipe as a job's script, with what it calls; its `acouslic` runs on the first machine."""
    names = " ".join(node.name for node in nodes)
    programs = stacks.parent / "bin"
    programs.mkdir()
    for name, content in {
        "srun": _SRUN.format(machines={node.name: node.words([]) for node in nodes}),
        "scontrol": f"#!/bin/sh\nprintf '%s\\n' {names}\n",
        "ray": f'#!/bin/sh\nexec {shlex.join(_ray())} "$@"\n',
        "acouslic": f'#!/bin/sh\nexec {shlex.join(nodes[0].words([sys.executable, "-m", "algorithm"]))} "$@"\n',
    }.items():
        (programs / name).write_text(content)
        (programs / name).chmod(0o755)
    (recipe,) = _RECIPE.findall((REPOSITORY / "docs" / "cohorts.md").read_text())
    job = stacks.parent / "job.sh"
    places = {"LIST": str(stacks), "RESULTS": str(output)}
    job.write_text(re.sub(r"\b(LIST|RESULTS)\b", lambda found: places[found[0]], recipe))
    job_variables = {"JOB_NODELIST": names, "JOB_NUM_NODES": str(len(nodes)), "JOB_ID": "7", "CPUS_PER_TASK": "1"}
    variables = _variables() | {f"SLURM_{name}": value for name, value in job_variables.items()}
    variables |= {"MODEL_DIR": str(model), "PATH": f"{programs}:{os.environ['PATH']}"}
    return subprocess.Popen(["bash", str(job)], env=variables, stdout=subprocess.PIPE, text=True)


def _ray(*words: str) -> list[str]:
    return [sys.executable, "-m", "ray.scripts.scripts", *words]


def _variables() -> dict[str, str]:
    # A Ray of one machine leaves a token behind, which `ray start --head` would ask the others for.
    small = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": "80000000",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    return os.environ | small | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    exit_with(main)
