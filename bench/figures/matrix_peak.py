"""The best rate that torch's plain matrix product reaches on a device, now, in one type.

Several shapes, square ones and those of the tower's layers, so that no share of the peak comes out above one because
the peak was measured badly. On a CPU weights are tried in oneDNN's own layout too, as the algorithm holds them.
"""

import time
from collections.abc import Callable, Sequence

import torch

from algorithm.engine.packed_linear import PackedWeight, can_pack

SHAPES = {
    "cpu": ((2048, 2048, 2048), (2056, 1024, 4096), (2056, 4096, 1024)),
    "cuda": ((8192, 8192, 8192), (32768, 1024, 4096), (32768, 4096, 1024), (16384, 8192, 8192)),
}
"""Rows, inputs, outputs."""
REPEATS = 5


@torch.inference_mode()
def matrix_peak_flop_per_s(
    device: torch.device,
    dtype: torch.dtype,
    shapes: Sequence[tuple[int, int, int]],
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """The highest rate of any of `shapes`, each in its best of several runs after a warm-up, by `clock` in seconds."""
    best = 0.0
    for rows, inputs, outputs in shapes:
        x = torch.randn(rows, inputs, device=device).to(dtype)
        weight = torch.randn(outputs, inputs, device=device).to(dtype)
        bias = torch.zeros(outputs, device=device, dtype=dtype)
        products: list[Callable[[], object]] = [lambda x=x, weight=weight: x @ weight.T]  # type: ignore[misc]
        if can_pack(device, dtype):
            packed = PackedWeight(weight).weight
            products.append(lambda x=x, packed=packed, bias=bias: packed_product(x, packed, bias))  # type: ignore[misc]
        seconds = min(seconds_of(product, device, clock=clock) for product in products)
        best = max(best, 2 * rows * inputs * outputs / seconds)
    return best


def packed_product(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """x (rows, in) by a weight in oneDNN's layout."""
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def seconds_of(
    work: Callable[[], object],
    device: torch.device,
    repeats: int = REPEATS,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """The shortest of `repeats` runs of `work` after one that warms up, the device's work waited for."""
    work()
    times = []
    for _ in range(repeats):
        wait(device)
        start = clock()
        work()
        wait(device)
        times.append(clock() - start)
    return min(times)


def wait(device: torch.device) -> None:
    """Until everything queued on `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
