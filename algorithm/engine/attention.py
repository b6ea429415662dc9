"""Softmax attention at inference: PyTorch's own kernels, except for bfloat16 on a CPU that has no AMX, and for one
query on a GPU."""

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from algorithm.engine.device import cpu_flags


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of queries (batch, heads, N, head width) to keys and values (batch, heads, tokens, head width).

    The result is shaped like the queries. For bfloat16 on a CPU and one query on a GPU scores and softmax are float32;
    elsewhere they are as PyTorch's kernel for the device has them.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and not _multiplies_tiles():
        return _attend_image_by_image(q, k, v)
    if q.device.type == "cuda" and q.shape[2] == 1:
        return attend_with_one_query(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


def attend_with_one_query(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """In float32, as two products. The class token alone asks so in the last block: little work, for which cuDNN's
    kernel divides the keys between several blocks and adds up their parts as they come, so that the last bits change
    from run to run (seen on an H100)."""
    scores = (q.float() * q.shape[3] ** -0.5) @ k.float().transpose(2, 3)
    return (scores.softmax(-1) @ v.float()).to(q.dtype)


def _attend_image_by_image(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One image after another, so that its scores stay in the cache, as three products of all its heads.

    PyTorch's kernel multiplies tiles of 64 queries of one head, too small for oneDNN, and takes 1.4 times as long
    (bench/LOG.md, 21). With AMX, whose products PyTorch's kernel makes itself, it takes half as long (76).
    Scores are multiplied in float32, since a bfloat16 product would be rounded to 8 bits before the softmax.
    """
    batch, heads, queries, width = q.shape
    out = q.new_empty(batch, queries, heads, width)
    nothing = q.new_empty((), dtype=torch.float32)  # beta=0: it is not read
    for index in range(batch):
        scores = torch.baddbmm(nothing, q[index].float(), k[index].float().transpose(1, 2), beta=0, alpha=width**-0.5)
        weights = scores.softmax(-1).to(q.dtype)
        out[index] = (weights @ v[index]).transpose(0, 1)
    return out.transpose(1, 2)


@functools.cache
def _multiplies_tiles() -> bool:
    """Whether this CPU has AMX for bfloat16."""
    return "amx_bf16" in cpu_flags()
