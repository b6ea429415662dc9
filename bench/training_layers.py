"""What single layers cost in training on a CPU: PyTorch's own beside those of `training/network/fast_layers.py`.

    python bench/training_layers.py [--repeats 15] [--threads 1]

Attention of 16 frames with 65 tokens and of 8 with 153, dropout of what a block's second linear layer reads, and an
adapter's second factor, each there and back, in one process, in milliseconds of processor time, the least of several.
Of attention also how far the gradients of queries and keys are from float64's, as a share of their length. The last
line is a JSON object.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.figures.table import table
from bench.setting.command import add_threads, at_least
from bench.setting.machine import describe_machine, today, versions
from training.network.fast_layers import ProductAttention, dropped_out, upright

_TOKENS, _WIDTH, _RANK = 16 * 65, 1024, 8


def attention_rows(dtype: torch.dtype, repeats: int) -> list[tuple[str, float, float]]:
    """Of two sizes: name, PyTorch's figure and ours."""
    rows = []
    for batch, heads, tokens in ((16, 4, 65), (8, 6, 153)):
        *given, grad = (torch.randn(batch, heads, tokens, 64).to(dtype) for _ in range(4))
        name = f"attention, {batch} x {heads} x {tokens} x 64"
        sides = (F.scaled_dot_product_attention, ProductAttention.apply)
        rows.append((f"{name}, ms", *(least_ms(side, given, grad, repeats) for side in sides)))
        doubles = [part.double() for part in given]
        exact = gradients(F.scaled_dot_product_attention, doubles, grad.double())[:2]
        errors = (_error(gradients(side, given, grad)[:2], exact) for side in sides)
        rows.append((f"{name}, error of the gradients", *errors))
    return rows


def adapter_rows(dtype: torch.dtype, repeats: int) -> list[tuple[str, float, float]]:
    """Of dropout and of an adapter's second factor: name, PyTorch's ms and ours."""
    x, grad, hidden = (torch.randn(_TOKENS, width).to(dtype) for width in (_WIDTH, _WIDTH, _RANK))
    up, dropout = torch.randn(_WIDTH, _RANK), nn.Dropout(0.1)

    def add_view(hidden: Tensor, up: Tensor) -> Tensor:
        return torch.addmm(x, hidden, up.t().to(dtype), alpha=2.0)

    def add_upright(hidden: Tensor, up: Tensor) -> Tensor:
        return torch.addmm(x, hidden, upright(up, hidden), alpha=2.0)

    both = (least_ms(side, [x], grad, repeats) for side in (dropout, functools.partial(dropped_out, dropout)))
    added = (least_ms(side, [hidden, up], grad, repeats) for side in (add_view, add_upright))
    return [
        (f"dropout, {_TOKENS} x {_WIDTH}, ms", *both),
        (f"second factor, {_TOKENS} x {_RANK} x {_WIDTH}, ms", *added),
    ]


def least_ms(side: Callable[..., Tensor], given: Sequence[Tensor], grad: Tensor, repeats: int) -> float:
    """Processor time there and back, after two that warm up."""
    found = []
    for _ in range(2 + repeats):
        start = time.process_time()
        gradients(side, given, grad)
        found.append(time.process_time() - start)
    return 1e3 * min(found[2:])


def gradients(side: Callable[..., Tensor], given: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    """Of all that a side is given, where its output has the gradient `grad`."""
    leaves = [part.detach().requires_grad_() for part in given]
    return torch.autograd.grad(side(*leaves), leaves, grad)


def _error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    return max(float((one - other).norm() / other.norm()) for one, other in zip(found, expected, strict=True))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--repeats", type=at_least(1), default=15, help="of each layer, after two (default: %(default)s)"
    )
    add_threads(parser)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows = [(f"{name}, bfloat16", *ms) for name, *ms in attention_rows(torch.bfloat16, options.repeats)]
    for dtype in (torch.bfloat16, torch.float32):
        title = str(dtype).removeprefix("torch.")
        rows += [(f"{name}, {title}", *ms) for name, *ms in adapter_rows(dtype, options.repeats)]
    machine = describe_machine()
    print(f"{today()}, {machine['processor']}")
    print(table(["there and back", "PyTorch", "ours"], [[name, f"{a:.3g}", f"{b:.3g}"] for name, a, b in rows]))
    found = {name: {"pytorch": first, "ours": second} for name, first, second in rows}
    print(json.dumps({"layers": found, "machine": machine, "versions": versions()}))


if __name__ == "__main__":
    main()
