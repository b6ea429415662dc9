"""A batch on a CPU: every core runs a part of it, from the first layer to the last.

Torch divides every layer between the cores, and they wait for each other some hundred times a frame. Where they sleep
meanwhile, a seventh of the time goes; where they spin, they are hopeless on cores that others use too (bench/LOG.md, 13
and 65). Here they meet once a batch.
"""

import functools
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")


def parts_for_cores(count: int, device: torch.device) -> list[slice]:
    """`count` images in as many parts as torch uses cores, the larger ones first. Fewer images are one part, and so are
    all of them on a GPU."""
    cores = torch.get_num_threads() if device.type == "cpu" else 1
    if count < cores:
        return [slice(0, count)]
    each, more = divmod(count, cores)
    ends = list(itertools.accumulate([each + 1] * more + [each] * (cores - more), initial=0))
    return [slice(start, stop) for start, stop in itertools.pairwise(ends)]


def run_side_by_side(network: Callable[[Part], Result], parts: list[Part]) -> list[Result]:
    """`network` on each of `parts`, each in a thread of one core, in order; a single part as torch divides it.

    Raises what the first of them raised that failed, when all have ended.
    """
    if len(parts) == 1:
        return [network(parts[0])]
    futures = [_single_threads(torch.get_num_threads()).submit(network, part) for part in parts]
    wait(futures)
    results = []
    try:
        while futures:
            results.append(futures.pop(0).result())
    finally:
        # What was raised holds this frame. Held by it in turn, a failed batch's tensors would stay until a collection.
        futures.clear()
    return results


@functools.cache
def _single_threads(count: int) -> ThreadPoolExecutor:
    """So many threads, in each of which torch uses one core."""
    all_there = threading.Barrier(count + 1)
    pool = ThreadPoolExecutor(count, thread_name_prefix="core", initializer=_use_one_core)
    for _ in range(count):
        pool.submit(all_there.wait)
    all_there.wait()
    # What a thread sets holds for it, and for all that begin later.
    torch.set_num_threads(count)
    return pool


def _use_one_core() -> None:
    torch.set_num_threads(1)
    # Asked for the first time, torch gives a thread what was set last by any: here, before another sets more.
    torch.get_num_threads()
