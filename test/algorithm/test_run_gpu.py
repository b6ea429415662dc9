"""The whole path on a GPU, where there is one: results repeat to the bit, and nothing in the loop waits for it."""

import contextlib
import warnings

import numpy as np
import pytest
import torch

from algorithm.engine.batches import KeptTrunks
from algorithm.engine.ensemble import Ensemble
from algorithm.model.artifact import load_artifact
from algorithm.pipeline import Pipeline

pytestmark = pytest.mark.gpu


def test_results_repeat_to_the_bit(platform_case, speckle, tiny_model):
    """Twice by one pipeline and once by another: the same probabilities, frame, mask and circumference."""
    path = platform_case.write_sweep(speckle(60))
    first = Pipeline.load(tiny_model, device="cuda")
    pipelines = {"first": first, "the same": first, "another": Pipeline.load(tiny_model, device="cuda")}
    results = {name: pipeline.run(path, platform_case.output_dir, "case 1") for name, pipeline in pipelines.items()}
    expected = results.pop("first")
    for name, found in results.items():
        for what in ("presence_probability", "presence_alone_probability", "optimality_probability", "mask"):
            assert np.array_equal(getattr(found, what), getattr(expected, what)), (name, what)
        for what in ("frame_index", "circumference_mm", "interval_mm"):
            assert getattr(found, what) == getattr(expected, what), (name, what)


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
