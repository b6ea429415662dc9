"""CUDA C++ compiled when it is first needed, by the compiler library (NVRTC) that a torch with CUDA brings along.

Nothing is needed beyond torch and the driver, and a small kernel takes 0.4 s, most of it to load the compiler.
`torch.compile` and Triton would take seconds in every cold container, and need a C compiler there.
"""

import ctypes
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

Argument = ctypes.c_void_p | ctypes.c_uint | ctypes.c_float


class CudaKernel:
    """The function `name` of `source`, compiled for `device`. Raises RuntimeError, or OSError without the libraries."""

    def __init__(self, source: str, name: str, device: torch.device, options: Sequence[str] = ()) -> None:
        major, minor = torch.cuda.get_device_capability(device)
        binary = _compile(source, name, [f"--gpu-architecture=sm_{major}{minor}", *options])
        self._device, self._driver = device, ctypes.CDLL("libcuda.so.1")
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        with torch.cuda.device(device):
            torch.zeros(1, device=device)  # makes the device's context current in this thread
            self._check(self._driver.cuModuleLoadData(ctypes.byref(self._module), binary))
            self._check(self._driver.cuModuleGetFunction(ctypes.byref(self._function), self._module, name.encode()))

    def launch(self, blocks: int, threads: int, arguments: Sequence[Argument]) -> None:
        """Queue it on torch's current stream. `arguments` are of the C types of the kernel's parameters, at least one
        block; the calling thread has used the device before."""
        pointers = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        grid, block = (blocks, 1, 1), (threads, 1, 1)
        with torch.cuda.device(self._device):
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            self._check(self._driver.cuLaunchKernel(self._function, *grid, *block, 0, stream, pointers, None))

    def _check(self, status: int) -> None:
        if status:
            told = ctypes.c_char_p()
            self._driver.cuGetErrorString(status, ctypes.byref(told))
            raise RuntimeError(f"CUDA error: {(told.value or b'unknown').decode()}")


def _compile(source: str, name: str, options: Sequence[str]) -> bytes:
    """Machine code of `source`."""
    nvrtc = _library()
    program = ctypes.c_void_p()
    if nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), f"{name}.cu".encode(), 0, None, None):
        raise RuntimeError("NVRTC makes no program")
    try:
        words = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if nvrtc.nvrtcCompileProgram(program, len(options), words):
            raise RuntimeError(f"NVRTC: {_text(nvrtc, program)}")
        size = ctypes.c_size_t()
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        binary = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, binary)
        return binary.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _text(nvrtc: ctypes.CDLL, program: ctypes.c_void_p) -> str:
    """What the compiler says."""
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    return log.value.decode(errors="replace").strip()


def _library() -> ctypes.CDLL:
    """NVRTC of torch's own CUDA version: the one among its packages, or else one that the system knows."""
    if torch.version.cuda is None:
        raise OSError("this torch is built without CUDA")
    name = f"libnvrtc.so.{torch.version.cuda.partition('.')[0]}"
    for candidate in (*_in_packages(name), name):
        try:
            return ctypes.CDLL(candidate)
        except OSError:
            continue
    raise OSError(f"{name} was not found")


def _in_packages(name: str) -> Iterator[str]:
    """Where NVIDIA's Python packages, which torch's wheels depend on, keep the library."""
    packages = importlib.util.find_spec("nvidia")
    for folder in (packages and packages.submodule_search_locations) or ():
        yield from map(str, sorted(Path(folder).glob(f"*/lib/{name}")))
