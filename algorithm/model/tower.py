"""The visual tower: a CLIP vision transformer in plain PyTorch, loadable from open_clip's weights.

Attention is four real `Linear` layers (`q_proj`, `k_proj`, `v_proj`, `out_proj`) that are called as modules, so an
adapter on any of them acts on the output and gets a gradient. Parameter names are open_clip's, except that its packed
`attn.in_proj_*` is split; `training/network/open_clip_weights.py` maps one to the other. Equal to open_clip 3.3.0
within 1e-4 in float32 (test_training_tower_source.py).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from acouslic.errors import AcouslicError
from algorithm.model.networks import TowerConfig


@dataclass(frozen=True)
class TowerOutput:
    """What the tower says about a batch of images."""

    embedding: Tensor
    """(batch, output_dim): the pooled, projected image embedding. Not normalised to unit length."""
    taps: list[Tensor] = field(default_factory=list)
    """One (batch, 1 + grid x grid, width) tensor a tap asked for, class token first, then the patches row by row.
    Patches that the tower does not keep are zero."""


def activate(x: Tensor, activation: str) -> Tensor:
    """GELU (exact, by erf) or OpenAI's sigmoid approximation of it, elementwise."""
    if activation == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x)


class LayerScale(nn.Module):
    """A learnt factor a channel on what a branch adds to the residual stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to the same shape."""
        return x * self.gamma


class Attention(nn.Module):
    """Multi-head self-attention over tokens (batch, tokens, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, asking: int | None = None) -> Tensor:
        """(batch, tokens, width) to (batch, asking, width): only the first `asking` tokens are queries; None: all."""
        parts = (self.q_proj(x[:, :asking]), self.k_proj(x), self.v_proj(x))
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in parts)
        attended = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.c_fc = nn.Linear(width, hidden)
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to the same shape."""
        return self.c_proj(activate(self.c_fc(x), self.activation))


class Block(nn.Module):
    """One residual attention block, normalised before each branch."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attn = Attention(config.width, config.heads)
        self.ls_1 = LayerScale(config.width) if config.layer_scale else nn.Identity()
        self.ln_2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = Mlp(config.width, config.mlp_width, config.activation)
        self.ls_2 = LayerScale(config.width) if config.layer_scale else nn.Identity()

    def forward(self, x: Tensor, asking: int | None = None) -> Tensor:
        """(batch, tokens, width) to (batch, asking, width), for the first `asking` tokens; None is all of them."""
        x = x[:, :asking] + self.ls_1(self.attn(self.ln_1(x), asking))
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class Transformer(nn.Module):
    """The stack of blocks; a level of its own only because open_clip's names have it."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(config) for _ in range(config.layers))


class Tower(nn.Module):
    """The visual transformer of `config`, randomly initialised, or with nothing but shapes in `without_weights`."""

    kept_patches: Tensor | None

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        width, patches = config.width, config.grid_size**2
        self.conv1 = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(patches + 1, width))
        self.ln_pre = nn.LayerNorm(width, eps=config.norm_eps) if config.pre_norm else nn.Identity()
        self.transformer = Transformer(config)
        self.ln_post = nn.LayerNorm(width, eps=config.norm_eps)
        self.proj = nn.Parameter(torch.empty(width, config.output_dim))
        for parameter in (self.class_embedding, self.positional_embedding, self.proj):
            nn.init.normal_(parameter, std=width**-0.5)
        # Part of the configuration, not of the weights: never in the state dict, and real even on the meta device.
        kept = None if config.kept_patches is None else torch.tensor(config.kept_patches, device="cpu")
        self.register_buffer("kept_patches", kept, persistent=False)

    def forward(self, images: Tensor, taps: Sequence[int] = (), tap_rows: Tensor | None = None) -> TowerOutput:
        """Embed normalised images (batch, 3, image_size, image_size).

        `taps` are block numbers, counted from 1, whose outputs are returned too, in the order asked for; with
        `tap_rows` (their number,) int64 those of these images alone. The last block computes no more than is asked for.
        Raises AcouslicError for images of another shape.
        """
        *blocks, last = self.transformer.resblocks
        tokens = self.embed_patches(images)
        tapped = {}
        for number, block in enumerate(blocks, start=1):
            tokens = block(tokens)
            if number in taps:
                tapped[number] = self.to_full_grid(tokens if tap_rows is None else tokens[tap_rows])
        number = len(blocks) + 1
        of_all = tap_rows is None or len(tap_rows) >= len(images)
        if self.config.pool == "tok" and not (number in taps and of_all):
            if number in taps:
                tapped[number] = self.to_full_grid(last(tokens[tap_rows]))
            tokens = last(tokens, 1)
        else:
            tokens = last(tokens)
            if number in taps:
                tapped[number] = self.to_full_grid(tokens if tap_rows is None else tokens[tap_rows])
        return TowerOutput(self.pool(tokens), [tapped[number] for number in taps])

    def embed_patches(self, images: Tensor) -> Tensor:
        """Tokens before the first block, (batch, 1 + kept patches, width), class token first."""
        size = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise AcouslicError(
                f"the tower takes images of shape (batch, 3, {size}, {size}), not {tuple(images.shape)}"
            )
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        positions = self.positional_embedding[1:]
        if self.kept_patches is not None:
            patches, positions = patches[:, self.kept_patches], positions[self.kept_patches]
        class_token = (self.class_embedding + self.positional_embedding[0]).expand(len(images), 1, -1)
        return self.ln_pre(torch.cat([class_token, patches + positions], dim=1))

    def pool(self, tokens: Tensor) -> Tensor:
        """The projected embedding (batch, output_dim) of the last block's tokens."""
        if self.config.pool == "tok":
            # Normalising before or after picking one token is the same.
            return self.ln_post(tokens[:, 0]) @ self.proj
        if self.config.norm_after_pool:
            return self.ln_post(tokens[:, 1:].mean(dim=1)) @ self.proj
        return self.ln_post(tokens[:, 1:]).mean(dim=1) @ self.proj

    def to_full_grid(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, 1 + kept, width) with every patch in its place; those not kept are zero."""
        if self.kept_patches is None:
            return tokens
        full = tokens.new_zeros(len(tokens), 1 + self.config.grid_size**2, tokens.shape[-1])
        full[:, 0] = tokens[:, 0]
        return full.index_copy(1, self.kept_patches + 1, tokens[:, 1:])


class _NoInitialisation(TorchFunctionMode):
    """Leaves tensors as they are where a module would fill them."""

    FILLING: tuple[Callable[..., Any], ...] = (
        *(Tensor.uniform_, Tensor.normal_, Tensor.fill_, Tensor.zero_),
        *(nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_, nn.init.ones_, nn.init.zeros_),
    )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self.FILLING:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def without_weights() -> Iterator[None]:
    """Modules built inside have names, shapes and types only, on the meta device.

    Initialising meta tensors would import torch._dynamo and 900 modules more: two seconds of a cold start.
    """
    with torch.device("meta"), _NoInitialisation():
        yield


def tower_from_state(config: TowerConfig, state: Mapping[str, Tensor]) -> Tower:
    """The tower of `config` whose parameters are the very tensors of `state`, without a copy or an initialisation.

    Raises AcouslicError naming the first tensor that is missing, unknown or of another shape.
    """
    with without_weights():
        tower = Tower(config)
    check_state(state, tower.state_dict(), "the tower's weights")
    tower.load_state_dict(state, strict=True, assign=True)
    return tower.eval()


def linear_shapes(config: TowerConfig) -> dict[str, tuple[int, int]]:
    """Every linear layer of the tower, all of which adapters can act on: name to (out_features, in_features)."""
    with without_weights():
        modules = dict(Tower(config).named_modules())
    return {
        name: (module.out_features, module.in_features)
        for name, module in modules.items()
        if isinstance(module, nn.Linear)
    }


def check_state(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Raises AcouslicError unless `state` has exactly the names and shapes of `expected`; `where` names its source."""
    missing = sorted(set(expected) - set(state))
    extra = sorted(set(state) - set(expected))
    if missing:
        raise AcouslicError(f"{where}: tensor {missing[0]!r} is missing ({len(missing)} in all)")
    if extra:
        raise AcouslicError(f"{where}: unknown tensor {extra[0]!r} ({len(extra)} in all)")
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            raise AcouslicError(
                f"{where}: tensor {name!r} has shape {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
            )
        if state[name].is_floating_point() != tensor.is_floating_point():
            raise AcouslicError(f"{where}: tensor {name!r} is {state[name].dtype}, expected {tensor.dtype}")
