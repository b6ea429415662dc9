"""The tower's layers in training, with fewer kernels than as they are written, on the very same parameters.

peft's layer casts its input for the frozen product, again for its own, and drops a fraction of a float32 copy; queries,
keys and values do all of it three times. Here an input is cast and dropped once, the frozen products of queries, keys
and values are one, and an adapter's product is added as it is computed. On a CPU dropout draws 16 bits an element, and
attention in bfloat16 is made of products. While a network is only asked, adapters are merged: one product a layer.
Names and values of all parameters stay peft's.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import functional as F

from algorithm.engine.attention import attend_with_one_query
from algorithm.model.tower import Attention

_ADAPTER = "default"
"""peft's name of the only adapter of a network that is trained."""
_MERGED = "merged_weight"
"""A layer's weight with its adapter in it, while there is one."""


def speed_up(tower: nn.Module) -> None:
    """Let a tower's attention and adapted layers compute as described above, from now on.

    A module that another forward was given, or with an adapter that is no plain LoRA, is left alone.
    """
    attentions = [module for module in tower.modules() if isinstance(module, Attention)]
    for attention in attentions:
        # A plain attribute before the class's method: no parameter gets another name.
        attention.__dict__["forward"] = functools.partial(_attend, attention, _Packed())
    for module in tower.modules():
        if isinstance(module, LoraLinear) and _is_plain(module):
            module.__dict__["forward"] = functools.partial(_adapted, module)


@contextmanager
def merged(network: nn.Module) -> Iterator[None]:
    """Inside, adapters are part of the weights, for a network that only forwards. They must not change meanwhile.
    Layers that `speed_up` has not seen stay as they are."""
    layers = [module for module in network.modules() if isinstance(module, LoraLinear) and "forward" in vars(module)]
    try:
        with torch.no_grad():
            for layer in layers:
                weight, _, down, up, scaling = _parts(layer)
                layer.__dict__[_MERGED] = (weight.float() + scaling * (up.float() @ down.float())).to(weight.dtype)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop(_MERGED, None)


@contextmanager
def frozen_in(tower: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside, frozen matrices are held in `dtype`, in which autocast would cast them at every step; afterwards they are
    to the bit what they were, on the CPU where they were moved meanwhile."""
    exact: dict[nn.Parameter, Tensor] = {}
    for module in tower.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad and parameter.dtype == torch.float32 and dtype != torch.float32:
                    exact[parameter] = parameter.data.cpu()
                    parameter.data = parameter.data.to(dtype)
    try:
        yield
    finally:
        for parameter, values in exact.items():
            parameter.data = values.to(parameter.device)


@dataclass
class _Packed:
    """Frozen queries, keys and values of one attention as one product; the three layers hold views of it."""

    weight: Tensor | None = None
    bias: Tensor | None = None

    def of(self, layers: list[nn.Linear]) -> tuple[Tensor, Tensor]:
        """Weight (3 x out, in) and bias (3 x out,) of all three, packed anew once the layers hold others."""
        first = layers[0].weight
        if self.weight is None or self.weight.data_ptr() != first.data_ptr() or self.weight.dtype != first.dtype:
            self.weight = torch.cat([layer.weight.data for layer in layers])
            self.bias = torch.cat([layer.bias.data for layer in layers])
            for layer, weight, bias in zip(layers, self.weight.chunk(3), self.bias.chunk(3), strict=True):
                layer.weight.data, layer.bias.data = weight, bias
        assert self.bias is not None
        return self.weight, self.bias


def _attend(attention: Attention, packed: _Packed, x: Tensor, asking: int | None = None) -> Tensor:
    """As `Attention.forward`; batch and tokens are one dimension until heads are told apart."""
    layers: list[Any] = [attention.q_proj, attention.k_proj, attention.v_proj]
    x = _cast(x)
    if asking is not None:
        q, k, v = (layer(part) for layer, part in zip(layers, (x[:, :asking], x, x), strict=True))
    elif all(isinstance(layer, LoraLinear) and _is_plain(layer) for layer in layers):
        q, k, v = _adapted_three(layers, packed, x)
    elif all(type(layer) is nn.Linear and not layer.weight.requires_grad for layer in layers):
        q, k, v = F.linear(x, *packed.of(layers)).chunk(3, dim=-1)
    else:
        q, k, v = (layer(x) for layer in layers)
    q, k, v = (part.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for part in (q, k, v))
    with torch.autocast(x.device.type, enabled=False):
        if asking == 1:
            attended = attend_with_one_query(q, k, v)
        elif q.device.type == "cpu" and q.dtype == torch.bfloat16:
            attended = ProductAttention.apply(q, k, v)
        else:
            attended = F.scaled_dot_product_attention(q, k, v)
    return attention.out_proj(attended.transpose(1, 2).flatten(2))


class ProductAttention(torch.autograd.Function):
    """Attention of bfloat16 queries, keys and values (batch, heads, tokens, head width) on a CPU, as plain products.

    PyTorch's kernel for this type takes three to four times as long there and back, and rounds gradients as much
    (bench/LOG.md, 55). Scores and softmax are float32, as in that kernel.
    """

    @staticmethod
    def forward(context: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(batch, heads, tokens, head width), bfloat16."""
        weights = ((q.float() * q.shape[-1] ** -0.5) @ k.float().transpose(2, 3)).softmax(-1).to(v.dtype)
        context.save_for_backward(q, k, v, weights)
        return weights @ v

    @staticmethod
    def backward(context: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of queries, keys and values, in their type."""
        q, k, v, weights = context.saved_tensors
        grad_weights = grad @ v.transpose(2, 3)
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype) * q.shape[-1] ** -0.5
        return grad_scores @ k, grad_scores.transpose(2, 3) @ q, weights.transpose(2, 3) @ grad


def _adapted_three(layers: list[LoraLinear], packed: _Packed, x: Tensor) -> tuple[Tensor, ...]:
    parts = [_parts(layer) for layer in layers]
    if _MERGED in vars(layers[0]):
        return tuple(F.linear(x, vars(layer)[_MERGED], part[1]) for layer, part in zip(layers, parts, strict=True))
    if len({(part[4], part[2].shape) for part in parts}) > 1:
        return tuple(layer(x) for layer in layers)
    frozen = F.linear(x, *packed.of([_base(layer) for layer in layers]))
    dropped = dropped_out(layers[0].lora_dropout[_ADAPTER], x)
    hidden = F.linear(dropped, torch.cat([part[2] for part in parts]))
    # (3, rows, width) of both; the adapters' products are added by the one that computes them.
    frozen = frozen.flatten(0, -2).unflatten(-1, (3, -1)).transpose(0, 1)
    hidden = hidden.flatten(0, -2).unflatten(-1, (3, -1)).transpose(0, 1)
    up = torch.stack([upright(part[3], hidden) for part in parts])
    added = torch.baddbmm(frozen, hidden, up, alpha=parts[0][4])
    return tuple(part.unflatten(0, x.shape[:-1]) for part in added.unbind(0))


def _adapted(layer: LoraLinear, x: Tensor) -> Tensor:
    """As peft's layer: frozen product and scaled product of the factors, of the input with dropout."""
    weight, bias, down, up, scaling = _parts(layer)
    x = _cast(x)
    if _MERGED in vars(layer):
        return F.linear(x, vars(layer)[_MERGED], bias)
    frozen = F.linear(x, weight, bias)
    hidden = F.linear(dropped_out(layer.lora_dropout[_ADAPTER], x), down)
    added = torch.addmm(frozen.flatten(0, -2), hidden.flatten(0, -2), upright(up, hidden), alpha=scaling)
    return added.view(frozen.shape)


def upright(up: Tensor, hidden: Tensor) -> Tensor:
    """The factor B (out, rank) as (rank, out) in `hidden`'s type, row by row. Of a transposed view autograd would make
    the gradient as a tall product, which takes a CPU twelve times as long in float32 as the wide one."""
    return up.t().to(hidden.dtype).contiguous()


def dropped_out(dropout: nn.Module, x: Tensor) -> Tensor:
    """As peft's dropout of `x`. On a CPU torch takes 6 ns for each element's random number; here one draw of 64 bits
    decides about four of them, so the probability is rounded to a multiple of 1 / 65,536."""
    if x.device.type != "cpu" or not isinstance(dropout, nn.Dropout) or not dropout.training:
        return dropout(x)
    left_out = round(dropout.p * 2**16)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = draws.view(torch.int16)[: x.numel()].view(x.shape)
    # A comparison that writes the type of `x` is vectorised; one that gives bool, and a product with bool, are not.
    kept = torch.ge(bits, left_out - 2**15, out=torch.empty_like(x, requires_grad=False))
    return x * kept.mul_(2**16 / (2**16 - left_out))


def _parts(layer: LoraLinear) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    """Frozen weight and bias, factors A (rank, in) and B (out, rank), and their scale."""
    base, factors = _base(layer), (layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER])
    down, up = (factor.weight for factor in factors if isinstance(factor, nn.Linear))
    return base.weight, base.bias, down, up, float(layer.scaling[_ADAPTER])


def _base(layer: LoraLinear) -> nn.Linear:
    """The frozen layer within peft's."""
    base = layer.base_layer
    assert isinstance(base, nn.Linear)
    return base


def _is_plain(layer: LoraLinear) -> bool:
    """One adapter, of the kind that `attach_adapter` makes."""
    return (
        list(layer.lora_A) == [_ADAPTER]
        and type(layer.base_layer) is nn.Linear
        and not layer.merged
        and not layer.disable_adapters
        and not layer.lora_variant
    )


def _cast(x: Tensor) -> Tensor:
    """What autocast computes products in, once for all products of `x`."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
