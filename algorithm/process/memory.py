"""How the program knows that memory ran out. No torch: without it no process can have run out of torch's memory."""

import sys

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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of memory, on the GPU or on the CPU."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(said in str(error) for said in _OUT_OF_MEMORY)
    )
