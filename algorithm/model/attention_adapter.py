"""peft's adapters on `nn.MultiheadAttention`, as `target_modules=["attn"]` makes them on open_clip's towers.

peft (0.14 and later) adapts such a module by one pair of factors for queries, keys and values together, and by one for
its output. Here both become plain LoRA on the four layers that this tower has in its place, which act the same: the
three share the first factor and split the rows of the second. Equal to peft 0.21.2 (test_model_lora.py).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from acouslic.errors import AcouslicError
from acouslic.strict_json import shown

LAST_DOUBLING_VERSION = (0, 21, 2)
"""peft's merge, which its forward uses too, adds the output's update twice (peft#3774): an adapter was trained as
W + 2 dW there. Versions before 0.17 or so do not say which they are: they did."""
_ATTENTION_TENSOR = re.compile(
    r"base_model\.model\.(?P<module>.+\.attn)(?P<output>\.base_layer\.out_proj)?\.lora_(?P<part>[AB])\.weight"
)


def is_of_attention(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these tensors, by peft's names, adapt an `nn.MultiheadAttention`."""
    return any(_ATTENTION_TENSOR.fullmatch(name) for name in tensors)


def doubles_output(peft_version: str | None) -> bool:
    """Whether the peft of this version adds the update of `out_proj` twice."""
    found = re.match(r"(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?", peft_version or "")
    return found is None or tuple(int(part or 0) for part in found.groups()) <= LAST_DOUBLING_VERSION


def split_factors(tensors: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], set[str]]:
    """The tensors with plain LoRA's names on `q_proj`, `k_proj`, `v_proj` and `out_proj`, and the attention modules.

    Raises AcouslicError, naming the tensor, where one of a module's four is missing or its rows are not three parts.
    """
    split: dict[str, Tensor] = {}
    modules: set[str] = set()
    for name, tensor in tensors.items():
        found = _ATTENTION_TENSOR.fullmatch(name)
        if found is None:
            split[name] = tensor
            continue
        module, part = found["module"], found["part"]
        modules.add(module)
        if found["output"]:
            split[f"base_model.model.{module}.out_proj.lora_{part}.weight"] = tensor
            continue
        if part == "B" and (tensor.ndim != 2 or tensor.shape[0] % 3):
            raise AcouslicError(f"{path}: tensor {shown(name)} is {tuple(tensor.shape)}, expected three parts of rows")
        for index, letter in enumerate("qkv"):
            third = tensor.chunk(3)[index] if part == "B" else tensor
            split[f"base_model.model.{module}.{letter}_proj.lora_{part}.weight"] = third
    for module in sorted(modules):
        for end in ("", ".base_layer.out_proj"):
            for part in "AB":
                name = f"base_model.model.{module}{end}.lora_{part}.weight"
                if name not in tensors:
                    raise AcouslicError(f"{path}: tensor {shown(name)} is missing")
    return split, modules


def plain_config(
    config: Mapping[str, Any], plain: Mapping[str, tuple[int, float]], others: list[str]
) -> dict[str, Any]:
    """The configuration of plain LoRA on the layers `plain`, name to (rank, alpha), and on `others` as `config` says.

    The layers are named one by one, ahead of the patterns that there are, so that these keep their meaning.
    """
    rank_pattern = {name: rank for name, (rank, _) in plain.items()}
    alpha_pattern = {name: alpha for name, (_, alpha) in plain.items()}
    selecting = ("exclude_modules", "layers_to_transform", "layers_pattern")
    return {
        **{name: value for name, value in config.items() if name not in selecting},
        "target_modules": [*plain, *others],
        "rank_pattern": rank_pattern | dict(config.get("rank_pattern") or {}),
        "alpha_pattern": alpha_pattern | dict(config.get("alpha_pattern") or {}),
    }
