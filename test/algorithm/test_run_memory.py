"""Where memory runs out beside the network: while frames are uploaded, and while masks are drawn."""

import contextlib
import dataclasses
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch

from algorithm.engine.ensemble import MemberScores
from algorithm.frames.frame_stream import CHUNK_FRAMES, FrameStream
from algorithm.frames.preprocess import resize_frames
from algorithm.frames.resized_frames import ResizedFrames
from algorithm.judgement.score import score_case
from algorithm.model.manifest import ScoringConfig, read_manifest
from algorithm.model.networks import PreprocessingConfig
from algorithm.process.messages import explain
from algorithm.result.measure import outline_best

FULL = torch.OutOfMemoryError("CUDA out of memory.")
CONFIG = PreprocessingConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class BrightEnsemble:
    """An image is an abdomen as far as it is bright, and so is each of its pixels."""

    dtype = torch.float32

    def __init__(self, model):
        self.manifest = dataclasses.replace(read_manifest(model), preprocessing=CONFIG)

    def trunk(self, images):
        return None

    def score(self, images, trunk=None):
        return MemberScores(images.mean(dim=(1, 2, 3))[None], images.new_empty(0, len(images)))

    def segment(self, images):
        return images[:, :1].transpose(0, 1)


def stack_of_discs(frames=12):
    """Each frame a bright disc, one pixel larger than the last."""
    y, x = np.mgrid[:140, :185]
    return np.stack([np.where(np.hypot(x - 92, y - 70) < 30 + index, 230, 1) for index in range(frames)]).astype(
        np.uint8
    )


@contextlib.contextmanager
def resized(case, stack, size=112, device="cpu"):
    """The square images of a stack that lies in the case's input folder."""
    case.write_sweep(stack)
    (path,) = case.sweep_dir.iterdir()
    with contextlib.closing(FrameStream(path)) as stream:
        yield ResizedFrames(stream, size, CONFIG, torch.device(device))


def failing_once(function, error, when):
    """`function`, but for its call number `when`, which raises."""
    calls = []

    def call(*arguments):
        calls.append(arguments)
        if len(calls) == when:
            raise error
        return function(*arguments)

    return call


def test_frames_that_did_not_fit_are_uploaded_again(platform_case, speckle, tiny_model, monkeypatch):
    """The second chunk fails once: scoring halves its batch and goes on, and every frame is where it belongs."""
    stack = speckle(CHUNK_FRAMES + 5)
    expected = resize_frames(torch.from_numpy(stack), 112, CONFIG)
    monkeypatch.setattr("algorithm.frames.resized_frames.resize_frames", failing_once(resize_frames, FULL, 2))
    with resized(platform_case, stack) as images:
        ensemble, scoring = BrightEnsemble(tiny_model), ScoringConfig()
        scores = score_case(ensemble, images.frames, scoring, batch_frames=8, wait_for=images.fill)
        assert len(scores.presence_probability) == len(stack)
        assert torch.equal(images.frames, expected)
        assert not images.blank().any()


@pytest.mark.parametrize("error", [FULL, RuntimeError("unable to find an engine to execute this computation")])
def test_masks_are_drawn_one_by_one_where_all_at_once_are_too_many(error, tiny_model, platform_case):
    """The neighbours of the chosen frame one after another: the outline and its interval are the same."""

    class Narrow(BrightEnsemble):
        def segment(self, images):
            if len(images) > 1:
                raise error
            return super().segment(images)

    class Broken(BrightEnsemble):
        def segment(self, images):
            raise RuntimeError("a shape is wrong")

    stack = stack_of_discs()
    fov = np.ones(stack.shape[1:], bool)
    with resized(platform_case, stack) as images:
        images.finish()
        whole, narrow = (
            outline_best(ensemble(tiny_model), images.frames, [7], fov, (0.3, 0.3))
            for ensemble in (BrightEnsemble, Narrow)
        )
        assert whole.interval_mm[0] < whole.circumference_mm < whole.interval_mm[1]
        assert (narrow.circumference_mm, narrow.interval_mm) == (whole.circumference_mm, whole.interval_mm)
        with pytest.raises(RuntimeError, match="a shape is wrong"):
            outline_best(Broken(tiny_model), images.frames, [7], fov, (0.3, 0.3))


def test_a_full_gpu_is_not_called_a_bug():
    """The sentence says what to do; the traceback is in the log."""
    for error in (FULL, RuntimeError("CUDA error: out of memory"), RuntimeError("CUDNN_STATUS_ALLOC_FAILED")):
        assert explain(error) == "the GPU's memory does not suffice: free some, or use --device cpu"
    assert explain(RuntimeError("a shape is wrong")).startswith("a bug in this program")


@pytest.mark.gpu
def test_uploaded_frames_are_those_of_the_cpu(platform_case, speckle):
    """Each pinned buffer is used three times while the GPU is busy: no frame differs by more than one grey level."""
    stack = speckle(5 * CHUNK_FRAMES + 7)
    with resized(platform_case, stack, device="cpu") as images:
        images.finish()
        expected = images.frames.int()
    with resized(platform_case, stack, device="cuda") as images:
        busy = torch.randn(4096, 4096, device="cuda")
        for stop in range(1, len(stack) + 1, 9):
            images.fill(stop)
            busy = busy @ busy / 4096
        images.finish()
        assert (images.frames.cpu().int() - expected).abs().max() <= 1


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library does as it likes")
def test_freed_memory_is_kept():
    """Three arrays of 20 MB, made again and again: the system gives their pages once, and without the setting each
    time."""
    program = (
        "import ctypes, resource, sys; import numpy as np; from algorithm.process.memory import keep_freed_memory\n"
        "ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages for this process\n"
        "if sys.argv[1] == 'kept': keep_freed_memory()\n"
        "make = lambda: [np.full(20_000_000, 1, np.uint8) for _ in range(3)]\n"
        "make(); make(); before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(5): make()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    faults = {
        how: int(subprocess.run([sys.executable, "-c", program, how], capture_output=True, check=True).stdout)
        for how in ("kept", "given back")
    }
    assert faults["kept"] < 500
    assert faults["given back"] > 40_000  # of 73,000
