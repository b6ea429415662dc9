"""Members merged into weights: in float32, one layer at a time, cast once, stacked where members differ.

LayerScale is folded into the layer before it.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from algorithm.engine.packed_linear import PackedWeight
from algorithm.model.lora import LoraAdapter
from algorithm.model.networks import TowerConfig
from algorithm.model.tower import activate

RESIDUAL_DTYPE = torch.float32
"""Of the residual stream, beside half precision too: bfloat16's 8 bits would lose most of what is lost in all
(bench/LOG.md), and float16 ends at 65,504, which one stray channel could pass."""

Row = Sequence[tuple[float, LoraAdapter | None]]
"""Adapters with their share; None is the bare tower."""


class StackedLinear:
    """A linear layer of all rows: its weight (rows or 1, out, in) and its shared bias (out,)."""

    def __init__(self, weights: Sequence[Tensor], bias: Tensor, *, packed: bool) -> None:
        self.adapted = len(weights) > 1
        self.bias = bias
        self.packed = [PackedWeight(weight) for weight in weights] if packed else None
        self.stack = None if packed else _stack(weights)

    def __call__(self, x: Tensor, rows: slice, activation: str | None = None) -> Tensor:
        """Apply the layer of `rows`, and the activation, to x (rows or 1, batch, tokens, in)."""
        if self.packed is not None:
            (packed,) = self.packed[rows] if self.adapted else self.packed
            return packed.apply(x, self.bias, activation)
        assert self.stack is not None
        weight = self.stack[rows] if self.adapted else self.stack
        by_tanh = activation == "gelu" and x.device.type == "cuda" and x.dtype != torch.float32
        if len(weight) == 1:
            if by_tanh and hasattr(torch, "_addmm_activation"):
                return _linear_gelu(x, weight[0], self.bias)
            y = F.linear(x, weight[0], self.bias)
        else:
            flat = x.flatten(1, -2).expand(len(weight), -1, -1)
            y = torch.baddbmm(self.bias, flat, weight.transpose(1, 2)).unflatten(1, x.shape[1:-1])
        if by_tanh:
            return F.gelu(y, approximate="tanh")
        return y if activation is None else activate(y, activation)


class MergedWeights:
    """The weights of `rows` out of a tower's state, on `device` in `dtype`; it holds none itself."""

    def __init__(
        self,
        config: TowerConfig,
        state: Mapping[str, Tensor],
        rows: Sequence[Row],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.config, self.state, self.rows, self.device, self.dtype = config, state, rows, device, dtype
        self.adapted = {name for row in rows for _, adapter in row if adapter is not None for name in adapter.factors}

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """A tensor of the tower on the device. It goes there as it lies in the file: torch would convert before it
        copies, on the CPU, and then copy twice the bytes."""
        return self.state[name].to(self.device).to(dtype)

    def norm(self, name: str) -> tuple[Tensor, Tensor]:
        """Weight and bias (width,) of a normalisation, in the type of the residual stream that it reads."""
        return self.tensor(f"{name}.weight", RESIDUAL_DTYPE), self.tensor(f"{name}.bias", RESIDUAL_DTYPE)

    def fused_groups(self, root: str, is_last: bool) -> list[list[str]]:
        """Which of queries, keys and values are computed in one product.

        Those that are adapted and those that are not stay apart, so that the latter are computed once for all rows;
        in the last block the queries stay apart, since only the class token's may be needed.
        """
        groups = []
        for parts in (["q"], ["k", "v"]) if is_last else (["q", "k", "v"],):
            adapted = [part for part in parts if f"{root}attn.{part}_proj" in self.adapted]
            groups += [[part for part in parts if part not in adapted], adapted]
        return sorted(filter(None, groups), key=lambda group: f"{root}attn.{group[0]}_proj" in self.adapted)

    def linear(self, names: Sequence[str], layer_scale: str | None, *, packed: bool) -> StackedLinear:
        """The layers `names`, adapted all or none, fused into one along their outputs."""
        gamma = None if layer_scale is None else self.tensor(layer_scale, torch.float32)
        bias = torch.cat([self.tensor(f"{name}.bias", torch.float32) for name in names])
        rows = self.rows if names[0] in self.adapted else [()]
        if rows == [()] and gamma is None:
            # As it lies in the file to its place: the way through float32 would end in the same bits.
            weights = [torch.cat([self.tensor(f"{name}.weight", self.dtype) for name in names])]
            return StackedLinear(weights, bias.to(self.dtype), packed=packed)
        base = torch.cat([self.tensor(f"{name}.weight", torch.float32) for name in names])
        scratch = torch.empty_like(base)
        weights = []
        for row in rows:
            self._merge_into(scratch, base, names, row)
            merged = scratch if gamma is None else scratch.mul_(gamma[:, None])
            weights.append(merged.to(self.dtype, copy=True))
        return StackedLinear(weights, (bias if gamma is None else bias * gamma).to(self.dtype), packed=packed)

    def _merge_into(self, merged: Tensor, base: Tensor, names: Sequence[str], row: Row) -> None:
        """Fill `merged` with the float32 weights `base` of the layers `names`, one below the other, and the row's
        adapters added in. One buffer for all rows: fresh memory costs more than the sums."""
        merged.copy_(base)
        height = len(base) // len(names)
        for share, adapter in row:
            for index, name in enumerate(names):
                factors = None if adapter is None else adapter.factors.get(name)
                if factors is not None:
                    a, b = factors.a.to(self.device, torch.float32), factors.b.to(self.device, torch.float32)
                    merged[index * height : (index + 1) * height].addmm_(b, a, alpha=factors.scaling * share)


def _linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer and GELU in one kernel of the GPU's library, which spares a pass over the hidden layer.

    The library has GELU by tanh alone, up to 5e-4 away from the one by erf, as far as float16 rounds near 1
    (bench/LOG.md, 28). So that all batches agree, half precision on a GPU takes it by tanh everywhere.
    """
    return torch._addmm_activation(bias, x.flatten(0, -2), weight.T, use_gelu=True).unflatten(0, x.shape[:-1])


def _stack(weights: Sequence[Tensor]) -> Tensor:
    return weights[0][None] if len(weights) == 1 else torch.stack(list(weights))
