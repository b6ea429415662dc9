"""Adding to the residual stream and normalising the sum: one pass over memory on a GPU, two plain operations elsewhere.

The stream is float32 beside half precision (`merged_weights.RESIDUAL_DTYPE`). Torch has no kernel that reads float32
and writes normalised half precision, so adding, normalising and casting move 24 bytes a value where 12 suffice: on an
H100 29 % of the tower's time against 16 % (bench/LOG.md, 27).
"""

import ctypes
import functools
import logging

import torch
from torch import Tensor
from torch.nn import functional as F

from algorithm.engine.cuda_kernel import CudaKernel
from algorithm.process.memory import is_out_of_memory

_WARP = 32
_ROWS_A_BLOCK = 4
_CHANNELS_A_STEP = 4 * _WARP
"""Each thread of a warp takes four channels at a time, 16 bytes."""
_MOST_CHANNELS = 2048
"""A row stays in the registers of its warp."""

_SOURCE = r"""
typedef unsigned short half_bits;

__device__ __forceinline__ float to_float(half_bits value) {
#ifdef BFLOAT16
    return __uint_as_float((unsigned)value << 16);
#else
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value));
    return result;
#endif
}

__device__ __forceinline__ half_bits to_half(float value) {
    half_bits result;
#ifdef BFLOAT16
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result) : "f"(value));
#else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result) : "f"(value));
#endif
    return result;
}

__device__ __forceinline__ float sum_of_warp(float value) {
#pragma unroll
    for (int offset = 16; offset; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

// One warp a row of WIDTH channels. x and branch may have fewer rows, which then repeat. No branch: nothing is added
// and no sum written.
extern "C" __global__ void __launch_bounds__(32 * ROWS) add_and_normalise(
    const float4* x, const ushort4* branch, const float4* weight, const float4* bias, float4* sum, ushort4* normalised,
    unsigned rows, unsigned x_rows, unsigned branch_rows, float eps) {
    constexpr int STEPS = WIDTH / 128;
    const unsigned row = blockIdx.x * ROWS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const size_t out = (size_t)row * (WIDTH / 4) + lane;
    const size_t in = (size_t)(row % x_rows) * (WIDTH / 4) + lane;
    float4 values[STEPS];
#pragma unroll
    for (int step = 0; step < STEPS; step++) values[step] = x[in + 32 * step];
    if (branch) {
        const size_t more = (size_t)(row % branch_rows) * (WIDTH / 4) + lane;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            const ushort4 added = branch[more + 32 * step];
            values[step].x += to_float(added.x);
            values[step].y += to_float(added.y);
            values[step].z += to_float(added.z);
            values[step].w += to_float(added.w);
            sum[out + 32 * step] = values[step];
        }
    }
    float total = 0.0f;
#pragma unroll
    for (int step = 0; step < STEPS; step++)
        total += (values[step].x + values[step].y) + (values[step].z + values[step].w);
    const float mean = sum_of_warp(total) / WIDTH;
    float squares = 0.0f;
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        values[step].x -= mean;
        values[step].y -= mean;
        values[step].z -= mean;
        values[step].w -= mean;
        squares += (values[step].x * values[step].x + values[step].y * values[step].y) +
                   (values[step].z * values[step].z + values[step].w * values[step].w);
    }
    const float scale = rsqrtf(sum_of_warp(squares) / WIDTH + eps);
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        const float4 w = weight[lane + 32 * step], b = bias[lane + 32 * step];
        ushort4 result;
        result.x = to_half(values[step].x * scale * w.x + b.x);
        result.y = to_half(values[step].y * scale * w.y + b.y);
        result.z = to_half(values[step].z * scale * w.z + b.z);
        result.w = to_half(values[step].w * scale * w.w + b.w);
        normalised[out + 32 * step] = result;
    }
}
"""

log = logging.getLogger(__name__)


def add_and_normalise(
    x: Tensor, branch: Tensor | None, norm: tuple[Tensor, Tensor], eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The residual stream with `branch` added, in float32, and that normalised over its channels, in `dtype`.

    `x` is float32 and `branch` `dtype`, both (rows or 1, batch, tokens, width), or `branch` is None where there is
    nothing to add; `norm` are the weight and bias (width,) in float32. Empty tensors stay empty.
    """
    kernel = _kernel(x.device, dtype, x.shape[-1]) if x.device.type == "cuda" else None
    if kernel is None or not x.numel():
        x = x if branch is None else x + branch
        return x, F.layer_norm(x, (x.shape[-1],), *norm, eps).to(dtype)
    assert x.dtype == torch.float32
    assert branch is None or (branch.dtype == dtype and branch.shape[1:] == x.shape[1:])
    x = x.contiguous()
    branch = None if branch is None else branch.contiguous()
    shape = x.shape if branch is None or len(branch) == 1 else branch.shape
    normalised = torch.empty(shape, dtype=dtype, device=x.device)
    added = x if branch is None else torch.empty(shape, dtype=torch.float32, device=x.device)
    weight, bias = norm
    tensors = (x, branch, weight, bias, added, normalised)
    counts = [tensor.shape[:-1].numel() for tensor in (normalised, x, x if branch is None else branch)]
    arguments = [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]
    blocks = -(-counts[0] // _ROWS_A_BLOCK)
    kernel.launch(blocks, _WARP * _ROWS_A_BLOCK, [*arguments, *map(ctypes.c_uint, counts), ctypes.c_float(eps)])
    return added, normalised


def prepare(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Compile what `add_and_normalise` will need, so that its first call does not have to; whether there is a kernel.
    Raises as torch does where the GPU has no memory."""
    if device.type != "cuda":
        return False
    if device.index is None:  # the one that tensors on it will name
        device = torch.device("cuda", torch.cuda.current_device())
    return _kernel(device, dtype, width) is not None


@functools.cache
def _kernel(device: torch.device, dtype: torch.dtype, width: int) -> CudaKernel | None:
    """The kernel for rows of this width, None where there is none: the plain operations then do the same."""
    if dtype not in (torch.bfloat16, torch.float16) or width % _CHANNELS_A_STEP or width > _MOST_CHANNELS:
        return None
    try:
        return CudaKernel(_SOURCE, "add_and_normalise", device, _options(dtype, width))
    except (OSError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        log.info("adding and normalising take two steps: %s", str(error).partition("\n")[0])
        return None


def _options(dtype: torch.dtype, width: int) -> list[str]:
    """What the source needs to be told."""
    return [f"-DWIDTH={width}", f"-DROWS={_ROWS_A_BLOCK}", *(["-DBFLOAT16"] if dtype == torch.bfloat16 else [])]
