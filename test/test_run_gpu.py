"""The whole path on a GPU, where there is one: results repeat to the bit, and nothing in the loop waits for it."""

import contextlib
import json
import warnings

import numpy as np
import pytest
import torch

from acouslic.stack import read_stack
from algorithm.artifact import load_artifact
from algorithm.batches import KeptTrunks
from algorithm.ensemble import Ensemble
from algorithm.pipeline import Pipeline

pytestmark = pytest.mark.gpu


def results_of(pipeline, case):
    """Everything that a run wrote for a case."""
    (path,) = case.sweep_dir.iterdir()
    pipeline.run(path, case.output_dir, "case 1")
    found = {name.name: json.loads(name.read_text()) for name in case.output_dir.glob("*.json")}
    return found | {"mask": read_stack(case.output_dir / "images/fetal-abdomen-segmentation/output.mha").frames}


def test_results_repeat_to_the_bit(platform_case, speckle, tiny_model):
    """Twice by one pipeline and once by another: the same probabilities, frame, mask and circumference."""
    platform_case.write_sweep(speckle(60))
    first = Pipeline.load(tiny_model, device="cuda")
    runs = [
        results_of(pipeline, platform_case) for pipeline in (first, first, Pipeline.load(tiny_model, device="cuda"))
    ]
    for which, other in zip(("the same pipeline", "another one"), runs[1:], strict=True):
        assert np.array_equal(other.pop("mask"), runs[0]["mask"]), which
        assert other == {name: value for name, value in runs[0].items() if name != "mask"}, which


@contextlib.contextmanager
def waiting_is_an_error():
    """CUDA operations that make the host wait raise inside."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_nothing_in_the_loop_waits(tiny_model):
    """Gate, kept trunks, scores: after a first run, which loads kernels, nothing waits."""
    ensemble = Ensemble.from_artifact(load_artifact(tiny_model), torch.device("cuda"), torch.float16)
    images = torch.randn(4, 3, 56, 56, device="cuda").half()

    def run():
        kept = KeptTrunks()
        kept.keep([3, 7], ensemble.trunk(images[:2]))
        ensemble.score(images, kept.of([3, 5, 7, 8], images, ensemble.trunk))
        ensemble.segment(images)

    run()
    with waiting_is_an_error():
        run()
