"""On a CPU every core runs a part of a batch."""

import contextlib
import gc
import threading
import time
import weakref

import numpy as np
import pytest
import torch

from algorithm.engine.batches import CPU_BATCH_FRAMES, Batches, choose_batch_frames
from algorithm.engine.ensemble import Ensemble
from algorithm.engine.side_by_side import run_side_by_side
from algorithm.model.artifact import load_artifact

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    """So many cores, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def frames(count):
    """Noise as the tiny tower takes it, uint8."""
    return torch.randint(0, 256, (count, 56, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def scored(folder, count, batch_frames):
    """What all members say of so many frames."""
    ensemble = Ensemble.from_artifact(load_artifact(folder), CPU, torch.float32)
    run = Batches(ensemble, frames(count), batch_frames, lambda _: None)
    return run.score(np.arange(count), lambda _: None)


@pytest.mark.parametrize("count", [1, 2, 7, 16])
def test_any_number_of_cores_says_the_same(count, threads, tiny_model):
    """Batches of 7 in one, two or three parts, and rests that are smaller than the cores are many: every frame has its
    own probabilities, in its own place."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = scored(tiny_model, count, 1)
    torch.set_num_threads(threads)
    together = scored(tiny_model, count, 7)
    np.testing.assert_allclose(together.presence, alone.presence, atol=1e-6)
    np.testing.assert_allclose(together.optimality, alone.optimality, atol=1e-6)
    assert torch.get_num_threads() == before == threads


def test_each_part_has_a_core_of_its_own(threads):
    """Parts are under way at the same time, each in a thread where torch uses one core; results keep their order."""
    all_under_way = threading.Barrier(threads)

    def network(part):
        all_under_way.wait(timeout=60)
        return part, torch.get_num_threads()

    cores = threads if threads == 1 else 1
    assert run_side_by_side(network, list(range(threads))) == [(part, cores) for part in range(threads)]
    assert torch.get_num_threads() == threads


def test_what_one_part_raises_is_raised_when_all_have_ended(threads):
    """The first failure in order; no part runs on behind the caller's back."""
    ended = []

    def network(part):
        if part == threads - 1:
            raise torch.OutOfMemoryError(f"no room for part {part}")
        ended.append(part)

    with pytest.raises(torch.OutOfMemoryError, match=f"part {threads - 1}"):
        run_side_by_side(network, list(range(threads)))
    assert sorted(ended) == list(range(threads - 1))


@pytest.mark.parametrize(("cores", "batch"), [(1, 8), (2, 8), (4, 16), (16, 64), (96, 64)])
def test_more_cores_have_larger_batches(cores, batch, monkeypatch, tiny_model):
    """Four frames for each, up to what memory is meant to hold."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    tower = load_artifact(tiny_model).manifest.tower
    assert choose_batch_frames(tower, 5, CPU, torch.bfloat16) == batch >= CPU_BATCH_FRAMES


def test_a_failed_part_leaves_nothing_behind(threads):
    """Its tensors are free once the error has been handled, without a collection: the next batch needs the room."""
    seen = []

    def network(part):
        tensor = torch.zeros(10)
        seen.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError(f"no room for part {part} of {len(tensor)}")

    gc.disable()
    try:
        with contextlib.suppress(torch.OutOfMemoryError):
            run_side_by_side(network, list(range(threads)))
        deadline = time.monotonic() + 10
        while any(kept() is not None for kept in seen) and time.monotonic() < deadline:
            time.sleep(0.01)  # a thread lets go of its last part a moment later
        assert [kept() for kept in seen] == [None] * threads
    finally:
        gc.enable()
