"""Linear layers on the CPU with the weight in oneDNN's own blocked layout.

`F.linear` reorders a bfloat16 weight in every call; here it is reordered once, and GELU happens while a tile of the
output is still in cache. Measured in bench/LOG.md. The operations are those that
torch.compile emits (torch.ops.mkldnn); they are not public, so `can_pack` tries them before they are relied on.
"""

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from algorithm.model.tower import activate

ROWS_HINT = 2056
"""Rows of the input for which oneDNN chooses the layout: 8 frames of 257 tokens."""


class PackedWeight:
    """One weight (out, in) in oneDNN's layout."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS_HINT)

    def apply(self, x: Tensor, bias: Tensor, activation: str | None) -> Tensor:
        """x (..., in) through the layer, then the activation."""
        if activation == "gelu":
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, bias, "gelu", [], "none")
        y = torch.ops.mkldnn._linear_pointwise(x, self.weight, bias, "none", [], "")
        return y if activation is None else activate(y, activation)


@functools.cache
def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether packed layers work here and agree with plain ones: bfloat16 on a CPU, with a torch that has them."""
    if device.type != "cpu" or dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():
        return False
    x = torch.linspace(-1, 1, 3 * 64).reshape(1, 3, 64).to(dtype)
    weight = torch.linspace(-1, 1, 32 * 64).reshape(32, 64).to(dtype)
    bias = weight[:, 0].contiguous()
    try:
        packed = PackedWeight(weight)
        results = [packed.apply(x, bias, activation) for activation in (None, "gelu")]
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    plain = F.linear(x, weight, bias)
    return all(
        torch.allclose(result.float(), expected.float(), atol=0.05, rtol=0.02)
        for result, expected in zip(results, (plain, F.gelu(plain)), strict=True)
    )
