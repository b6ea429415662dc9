"""How many workers a machine or a cluster bears, and how many cores each has. No torch, no Ray."""

import itertools
import os
from dataclasses import dataclass
from pathlib import Path

from acouslic.errors import AcouslicError

_DRIVER_FOLDER = Path("/proc/driver/nvidia/gpus")
_BY_NAME = ("GPU-", "MIG-")
"""How CUDA_VISIBLE_DEVICES names a device that it does not number."""


@dataclass(frozen=True)
class Node:
    """What one machine has to give."""

    cores: int
    gpus: int


@dataclass(frozen=True)
class Share:
    """The machines divided: so many workers, each with so much of one machine."""

    workers: int
    cores_each: int
    gpus_each: int


def visible_gpus() -> int:
    """How many GPUs of this machine the process may use, without starting a driver or loading torch."""
    there = len(list(_DRIVER_FOLDER.iterdir())) if _DRIVER_FOLDER.is_dir() else 0
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return there
    # As CUDA reads it: what follows a name that no device has is not seen, and a device named twice hides all.
    numbers = {str(number) for number in range(there)}
    names = [name.strip() for name in chosen.split(",")]
    named = list(itertools.takewhile(lambda name: name in numbers or name.startswith(_BY_NAME), names))
    return min(there, len(named)) if len(set(named)) == len(named) else 0


def divide(nodes: list[Node], workers: int | None, device: str | None) -> Share:
    """`workers` on these machines, or as many as there are GPUs, or without one as there are machines.

    A worker takes one GPU, or where there is none (or `device` is "cpu") an equal share of the cores; no core is given
    twice. Raises AcouslicError where there are more workers than GPUs or cores.
    """
    gpus = 0 if device == "cpu" else sum(node.gpus for node in nodes)
    if gpus:
        wanted = gpus if workers is None else workers
        if wanted > gpus:
            raise AcouslicError(f"--workers {wanted}: there are {gpus} GPUs; ask for no more, or use --device cpu")
        return Share(wanted, max(1, min(node.cores // node.gpus for node in nodes if node.gpus)), 1)
    if device == "cuda":
        raise AcouslicError("--device cuda: Ray knows of no GPU on these machines")
    # A head that only directs the others has no core to give.
    wanted = sum(node.cores > 0 for node in nodes) if workers is None else workers
    for cores_each in range(max(node.cores for node in nodes), 0, -1):
        if sum(node.cores // cores_each for node in nodes) >= wanted:
            return Share(wanted, cores_each, 0)
    cores = sum(node.cores for node in nodes)
    raise AcouslicError(f"--workers {wanted}: there are {cores} cores, and no two workers share one; ask for fewer")
