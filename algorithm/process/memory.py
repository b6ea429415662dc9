"""Main memory: how much of what is freed stays with the process, and how it knows that there is no more.

No torch: without it no process can have run out of torch's memory.
"""

import contextlib
import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""What glibc's `mallopt` calls them."""
_KEPT_BYTES = 256 << 20
_MOST_BYTES = 32 << 20
"""Of one tensor: larger ones go back to the system at once."""

_OUT_OF_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute this computation",
)
"""What torch's CPU allocator, the driver and the GPU's libraries say, for want of a class of their own. The library of
products says that it is not initialised where there is no room for its workspace, that of convolutions that it found no
way where there is room for none."""


def keep_freed_memory() -> None:
    """Let glibc's `malloc` keep up to 256 MB that are freed, for the next tensors: the system clears every page that it
    gives, which takes half as long as a decoder's convolutions (bench/LOG.md, 64). Another C library does as it likes.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _MOST_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of memory, on the GPU or on the CPU."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(said in str(error) for said in _OUT_OF_MEMORY)
    )
