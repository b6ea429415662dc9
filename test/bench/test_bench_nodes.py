"""The recipe for Slurm in the documentation, with stand-ins for what it calls; `bench/nodes.py` runs it with Ray."""

import os
import sys
import time

from bench.nodes import start_by_slurm
from bench.setting.machines import Machine


class PretendedMachine(Machine):
    """A command for it runs here, and knows for which machine it is."""

    def words(self, command):
        return ["env", f"NODE={self.name}", *command]


def test_the_recipe_for_slurm_starts_ray_everywhere_and_one_run(tmp_path, monkeypatch):
    """The head on the first machine, the others join it under its name and the job's port, and the run joins them, so
    that it goes on where a preempted job stopped. Nothing begins before enough machines have joined."""
    said, programs = tmp_path / "said", tmp_path / "programs"
    programs.mkdir()
    # Asked for the first time nobody has joined, then one machine, one, all.
    asked = tmp_path / "asked"
    python = f"""case "$*" in
*status*) echo x >>{asked}
    for node in $(head -n "$(wc -l <{asked})" {tmp_path}/joined | tail -n 1); do echo " 1 node_$node"; done ;;
*) echo "$NODE $*" >>{said} ;;
esac"""
    (tmp_path / "joined").write_text("\na\na\na b c\n")
    for name, content in {"python": python, "sleep": "exit 0"}.items():
        (programs / name).write_text(f"#!/bin/sh\n{content}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    nodes = [PretendedMachine(f"node{number}", "", 0) for number in (1, 2, 3)]
    with start_by_slurm(nodes, tmp_path / "stacks", tmp_path / "out", tmp_path / "model") as job:
        assert job.wait(60) == 0
    deadline = time.monotonic() + 30
    while (not said.is_file() or len(said.read_text().splitlines()) < 4) and time.monotonic() < deadline:
        time.sleep(0.05)
    joins = "-m ray.scripts.scripts start --address=node1:20007 --num-cpus=1 --block"
    assert sorted(said.read_text().splitlines()) == [
        f"node1 -m algorithm predict {tmp_path}/stacks --output {tmp_path}/out --resume --ray-address node1:20007",
        "node1 -m ray.scripts.scripts start --head --port=20007 --num-cpus=1 --include-dashboard=false --block",
        f"node2 {joins}",
        f"node3 {joins}",
    ]
