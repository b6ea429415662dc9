"""Scoring queues work and goes on: nothing in it makes the host wait for a GPU."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from algorithm.engine.batches import KeptTrunks
from algorithm.engine.ensemble import Ensemble
from algorithm.frames.preprocess import normalise, resize_by_torch
from algorithm.model.artifact import load_artifact
from algorithm.model.manifest import ScoringConfig

# Operations that, on a GPU, copy from the host what Python holds (a list of indices, a constant) or to the host what
# it asks for (a number, the size of a result).
WAITING = {"lift_fresh", "_local_scalar_dense", "nonzero", "masked_select", "unique", "unique2", "_unique2", "item"}


class Operations(TorchDispatchMode):
    """The names of all operations that run inside."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name().removeprefix("aten::").partition(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.fixture
def ensemble(tiny_model):
    """Two members, a gate, every head; the second member has no presence head and judges by its mask."""
    artifact = load_artifact(tiny_model)
    first, second = artifact.manifest.members
    members = (first, dataclasses.replace(second, presence=False))
    manifest = dataclasses.replace(artifact.manifest, members=members, scoring=ScoringConfig(mode="gated"))
    heads = {name: tensor for name, tensor in artifact.members[1].heads.items() if not name.startswith("presence")}
    states = (artifact.members[0], dataclasses.replace(artifact.members[1], heads=heads))
    return Ensemble.from_artifact(
        dataclasses.replace(artifact, manifest=manifest, members=states), torch.device("cpu"), torch.float32
    )


def test_from_frames_to_probabilities_nothing_waits(ensemble):
    """Resizing as on a GPU, normalising, the gate and all members: only operations that queue."""
    frames = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
    with Operations() as operations, torch.inference_mode():
        preprocessing = ensemble.manifest.preprocessing
        images = normalise(resize_by_torch(frames, 56, preprocessing), preprocessing, torch.float32)
        ensemble.gate(images)
        ensemble.score(images)
    assert len(operations.names) > 10
    assert not operations.names & WAITING


def test_going_on_from_the_gates_trunk_waits_for_nothing(tiny_model):
    """Nor does keeping what the gate computed, completing a batch of it, and scoring from there."""
    ensemble = Ensemble.from_artifact(load_artifact(tiny_model), torch.device("cpu"), torch.float32)
    images = torch.randn(4, 3, 56, 56)
    kept = KeptTrunks()
    with Operations() as operations, torch.inference_mode():
        kept.keep([3, 7], ensemble.trunk(images[:2]))
        scores = ensemble.score(images, kept.of([3, 5, 7, 8], images, ensemble.trunk))
        kept.drop([3])
    assert len(scores.presence_probability[0]) == 4
    assert not operations.names & WAITING


def test_operations_that_wait_would_be_found():
    """The test above can fail: indexing by a list, asking for a number, and a constant are seen."""
    x = torch.zeros(3)
    for wait in (lambda: x[[0, 2]], lambda: float(x[0]), lambda: x.masked_select(x > 0), lambda: torch.tensor([1.0])):
        with Operations() as operations:
            wait()
        assert operations.names & WAITING
