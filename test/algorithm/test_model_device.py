"""Device, precision and threads, each with its reason."""

import dataclasses
import os
import warnings

import pytest
import torch

from acouslic.errors import AcouslicError
from algorithm.engine.device import (
    choose_device,
    choose_precision,
    cpu_flags,
    recheck_margin,
    set_cpu_threads,
)
from algorithm.model.manifest import Consequence, HalfPrecision
from algorithm.process.cores import cgroup_cpus
from algorithm.process.memory import is_out_of_memory


def test_no_gpu_is_the_cpu_with_a_reason(monkeypatch):
    """A torch built for CUDA that finds no GPU takes the CPU and says so."""
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device, reason = choose_device()
    assert device == torch.device("cpu")
    assert reason == "no GPU was found"


def test_old_driver_goes_into_the_reason(monkeypatch):
    """torch's warning about a driver that is too old becomes the reason, not a warning on stderr."""

    def too_old():
        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old (found 12020).", stacklevel=1)
        return False

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", too_old)
    device, reason = choose_device()
    assert device == torch.device("cpu")
    assert "too old (found 12020)" in reason


def test_gpu_without_kernels_is_the_cpu(monkeypatch):
    """A card that this torch has no kernels for fails at the first product: CPU, with the error in the reason."""

    def no_kernel(*_, **__):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore lines")

    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla K80")
    monkeypatch.setattr(torch, "ones", no_kernel)
    device, reason = choose_device()
    assert device == torch.device("cpu")
    assert reason.startswith("Tesla K80 cannot be used by this torch: CUDA error: no kernel image")
    assert "\n" not in reason


def test_gpu_that_is_taken_is_the_cpu(monkeypatch):
    """A card that is counted but cannot be set up ends on the CPU too; where it is wanted that is an error."""

    def busy():
        raise RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable\nmore lines")

    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", busy)
    device, reason = choose_device()
    assert device == torch.device("cpu")
    assert reason.endswith("busy or unavailable")
    with pytest.raises(AcouslicError, match="a GPU was asked for but cannot be used: the GPU cannot be used by"):
        choose_device("cuda")


def test_wanted_cpu_is_taken():
    """Whatever else is there."""
    assert choose_device("cpu") == (torch.device("cpu"), "cpu was asked for")


def test_want_of_memory_is_known_by_what_is_said():
    """torch's own class and the libraries' sentences; not any error, nor a sentence in another kind of error."""
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    for said in (
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "GET was unable to find an engine to execute this computation",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
    ):
        assert is_out_of_memory(RuntimeError(said))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))


def test_precision_by_capability(monkeypatch):
    """float16 on every card that has it, float32 on cards without half precision."""
    for capability in ((7, 5), (8, 0), (9, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, capability=capability: capability)
        assert choose_precision(torch.device("cuda"))[0] == torch.float16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (5, 2))
    assert choose_precision(torch.device("cuda"))[0] == torch.float32


def test_precision_that_an_artifact_bears(monkeypatch):
    """A type that was measured to be too far from float32 is left alone, and the reason says so."""
    monkeypatch.setattr("algorithm.engine.device.cpu_flags", lambda: {"avx512_bf16"})
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    good, rounded, overflowing, neither = (
        HalfPrecision(frames=64, float16=float16, bfloat16=bfloat16)
        for float16, bfloat16 in ((0.002, 0.01), (0.004, 0.036), (1.0, 0.009), (1.0, 0.011))
    )
    for measured, on_gpu, on_cpu in (
        (None, torch.float16, torch.bfloat16),
        (HalfPrecision(), torch.float16, torch.bfloat16),
        (good, torch.float16, torch.bfloat16),
        (rounded, torch.float16, torch.float32),
        (overflowing, torch.bfloat16, torch.bfloat16),
        (neither, torch.float32, torch.float32),
    ):
        assert choose_precision(torch.device("cuda"), measured)[0] == on_gpu
        assert choose_precision(torch.device("cpu"), measured)[0] == on_cpu
    told = choose_precision(torch.device("cpu"), rounded)[1]
    assert told == "the CPU has avx512_bf16; bfloat16 is 0.036 off for this artifact, more than 0.01"
    assert "within 0.0100 of float32" in choose_precision(torch.device("cpu"), good)[1]
    assert "was not measured" in choose_precision(torch.device("cpu"))[1]


SAME = Consequence(cases=5, other_frames=0, positive_frames=2000, changed_frames=1, circumference_difference_mm=0.1)


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        ({}, True),
        ({"cases": 4}, False),
        ({"other_frames": 1}, False),
        ({"changed_frames": 2}, False),
        ({"positive_frames": 0, "changed_frames": 0}, True),
        ({"circumference_difference_mm": 0.11}, False),
    ],
)
def test_precision_by_what_it_changes(change, allowed, monkeypatch):
    """A type that moves a probability too far is taken where it changed nothing in whole cases, and the reason says
    which of the two it was."""
    monkeypatch.setattr("algorithm.engine.device.cpu_flags", lambda: {"avx512_bf16"})
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    consequence = dataclasses.replace(SAME, **change)
    measured = HalfPrecision(frames=64, float16=0.001, bfloat16=0.03, bfloat16_consequence=consequence)
    dtype, told, margin = choose_precision(torch.device("cpu"), measured)
    assert dtype == (torch.bfloat16 if allowed else torch.float32)
    assert margin is None
    assert (f"gives the answers of float32 in {consequence.cases} cases" in told) == allowed
    assert ("bfloat16 is 0.030 off" in told) != allowed


def test_precision_with_decisions_in_float32(monkeypatch):
    """Where a type changes something by itself and nothing with the frames near a decision asked again, it is taken so;
    where it moves a probability too far for that, or changes something then too, it is not."""
    monkeypatch.setattr("algorithm.engine.device.cpu_flags", lambda: {"avx512_bf16"})
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    other = dataclasses.replace(SAME, changed_frames=30)
    measured = HalfPrecision(64, 0.001, 0.03, bfloat16_consequence=other, bfloat16_rechecked_consequence=SAME)
    dtype, told, margin = choose_precision(torch.device("cpu"), measured)
    assert dtype == torch.bfloat16
    assert margin == pytest.approx(0.12)
    assert told == (
        "the CPU has avx512_bf16; bfloat16, with the frames near a decision in float32, gives the answers of float32 "
        "in 5 cases of this artifact"
    )
    # By itself, where that is enough.
    dtype, told, margin = choose_precision(
        torch.device("cpu"), dataclasses.replace(measured, bfloat16_consequence=SAME)
    )
    assert (dtype, margin) == (torch.bfloat16, None)
    for change in ({"bfloat16": 0.11}, {"bfloat16_rechecked_consequence": other}):
        dtype, told, margin = choose_precision(torch.device("cpu"), dataclasses.replace(measured, **change))
        assert (dtype, margin) == (torch.float32, None)
        assert "in 5 cases bfloat16 chooses another frame in 0, calls 30 of 2000 frames otherwise" in told


def test_how_near_a_decision_is_asked_again():
    """Four times the probability's difference; not at all where none was found, or one that is too large."""
    assert recheck_margin(0.05) == pytest.approx(0.2)
    assert [recheck_margin(difference) for difference in (None, 0.0, 0.11)] == [None] * 3


def test_precision_of_a_cpu(monkeypatch, tmp_path):
    """bfloat16 only where the CPU has the instructions and torch has oneDNN."""
    cpu = torch.device("cpu")
    for flags, dtype in (({"avx512_bf16"}, torch.bfloat16), ({"amx_bf16"}, torch.bfloat16), ({"avx2"}, torch.float32)):
        monkeypatch.setattr("algorithm.engine.device.cpu_flags", lambda flags=flags: flags)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
        assert choose_precision(cpu)[0] == dtype
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert choose_precision(cpu)[0] == torch.float32
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx512_bf16\n\nprocessor\t: 1\n")
    assert cpu_flags(tmp_path / "cpuinfo") == {"fpu", "avx512_bf16"}
    assert cpu_flags(tmp_path / "none") == set()


def test_cgroup_quota(tmp_path):
    """Quotas of both cgroup versions in CPUs; none where unlimited, absent or unreadable."""
    v2, v1 = tmp_path / "cpu.max", tmp_path / "cpu.cfs_quota_us"
    assert cgroup_cpus((v2, v1)) is None
    (tmp_path / "cpu.cfs_period_us").write_text("100000\n")
    v1.write_text("150000\n")
    assert cgroup_cpus((v2, v1)) == 1.5
    v1.write_text("-1\n")
    assert cgroup_cpus((v2, v1)) is None
    v2.write_text("400000 100000\n")
    assert cgroup_cpus((v2, v1)) == 4
    v2.write_text("max 100000\n")
    assert cgroup_cpus((v2, v1)) is None


def test_threads_follow_quota_and_affinity(monkeypatch):
    """As many threads as the process may use cores, at least one; fewer where the user asks for fewer, never more."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    try:
        for quota, threads in ((None, 8), (4.0, 4), (2.5, 2), (0.5, 1), (64.0, 8)):
            monkeypatch.setattr("algorithm.process.cores.cgroup_cpus", lambda quota=quota: quota)
            assert set_cpu_threads()[0] == threads
            assert torch.get_num_threads() == threads
        for asked, threads in (("3", 3), ("64", 8), ("0", 8), ("many", 8), ("", 8)):
            monkeypatch.setenv("OMP_NUM_THREADS", asked)
            assert set_cpu_threads()[0] == threads
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert "OMP_NUM_THREADS" in set_cpu_threads()[1]
    finally:
        torch.set_num_threads(before)
