"""The tower for several members at once: merged weights stacked, everything before the first adapter shared.

A layer that some member adapts holds one merged weight a row, (rows, out, in); any other layer holds one for all. A
row is a member or a mixture of members. Activations carry a leading row axis that stays 1 until the first stacked
weight: so whole blocks before the first adapter, and in an adapted block whatever does not depend on it, are computed
once, exactly. From there on the rows run batched (one product for all) or one after another.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from algorithm.engine.attention import attend
from algorithm.engine.fused_norm import add_and_normalise, prepare
from algorithm.engine.merged_weights import RESIDUAL_DTYPE, MergedWeights, StackedLinear
from algorithm.engine.packed_linear import can_pack

RowOrder = Literal["batched", "sequential"]


@dataclass(frozen=True)
class StackedOutput:
    """What the rows say about a batch of images."""

    embedding: Tensor | None
    """(rows, batch, output_dim) float32; None where only taps were asked for."""
    taps: list[dict[int, Tensor]]
    """One a row: block number to (batch, 1 + grid x grid, width), as `tower.TowerOutput.taps`."""
    before_last: Sequence[Tensor] = ()
    """One a row: the residual stream before the last block (batch, tokens, width), where it was asked for."""


@dataclass(frozen=True)
class _State:
    """Activations between two steps; each has a leading row axis of its own, 1 while it is shared."""

    x: Tensor
    """The residual stream (rows, batch, tokens, width), in the tower's residual type."""
    class_token_only: bool
    """Only the class token's output of the last block is wanted."""
    pending: Tensor | None = None
    """What is still to be added to the residual stream, which happens when that is normalised next."""
    branch: Tensor | None = None
    q: Tensor | None = None
    k: Tensor | None = None
    v: Tensor | None = None

    def stream(self) -> Tensor:
        """The residual stream with nothing left to add."""
        return self.x if self.pending is None else self.x + self.pending


@dataclass(frozen=True)
class _Step:
    """One operation on the state. The first adapted step is where the rows part."""

    block: int
    """Number of its block, from 1."""
    ends_block: bool
    adapted: bool
    apply: Callable[[_State, slice], _State]
    begins_block: bool = False


class StackedBlock:
    """One block's weights, and its operations as steps."""

    def __init__(self, number: int, weights: MergedWeights, *, packed: bool) -> None:
        config = weights.config
        self.number, self.heads = number, config.heads
        self.eps, self.activation = config.norm_eps, config.activation
        self.is_last = number == config.layers
        root = f"transformer.resblocks.{number - 1}."
        self.dtype = weights.dtype
        self.norms = [weights.norm(f"{root}{name}") for name in ("ln_1", "ln_2")]
        self.projections: list[tuple[list[str], StackedLinear]] = []
        for group in weights.fused_groups(root, self.is_last):
            names = [f"{root}attn.{part}_proj" for part in group]
            self.projections.append((group, weights.linear(names, None, packed=packed)))
        ls_1, ls_2 = (f"{root}{name}.gamma" if config.layer_scale else None for name in ("ls_1", "ls_2"))
        self.out_proj = weights.linear([f"{root}attn.out_proj"], ls_1, packed=packed)
        self.c_fc = weights.linear([f"{root}mlp.c_fc"], None, packed=packed)
        self.c_proj = weights.linear([f"{root}mlp.c_proj"], ls_2, packed=packed)

    def steps(self) -> list[_Step]:
        """The block's operations in order."""
        steps = [_Step(self.number, False, False, self._normalise_attention, begins_block=True)]
        for group, linear in self.projections:
            steps.append(_Step(self.number, False, linear.adapted, self._projection(group, linear)))
        steps.append(_Step(self.number, False, False, self._attend))
        steps.append(_Step(self.number, False, self.out_proj.adapted, self._project_attention))
        steps.append(_Step(self.number, False, False, self._normalise_mlp))
        steps.append(_Step(self.number, False, self.c_fc.adapted, self._expand))
        steps.append(_Step(self.number, True, self.c_proj.adapted, self._contract))
        return steps

    def _normalise_attention(self, state: _State, rows: slice) -> _State:  # noqa: ARG002 - every step's signature
        return self._normalise(state, 0)

    def _projection(self, group: list[str], linear: StackedLinear) -> Callable[[_State, slice], _State]:
        """The step that computes the queries, keys or values of `group` in one product."""

        def project(state: _State, rows: slice) -> _State:
            assert state.branch is not None
            narrow = self.is_last and state.class_token_only and group == ["q"]
            y = linear(state.branch[:, :, :1] if narrow else state.branch, rows)
            parts = dict(zip(group, y.chunk(len(group), dim=-1), strict=True))
            return replace(state, q=parts.get("q", state.q), k=parts.get("k", state.k), v=parts.get("v", state.v))

        return project

    def _attend(self, state: _State, rows: slice) -> _State:  # noqa: ARG002 - every step's signature
        assert state.q is not None
        assert state.k is not None
        assert state.v is not None
        parts = (state.q, state.k, state.v)
        count, batch = max(len(part) for part in parts), state.q.shape[1]
        q, k, v = (
            part.expand(count, -1, -1, -1).flatten(0, 1).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in parts
        )
        attended = attend(q, k, v).transpose(1, 2).flatten(2).unflatten(0, (count, batch))
        return replace(state, branch=attended, q=None, k=None, v=None)

    def _project_attention(self, state: _State, rows: slice) -> _State:
        assert state.branch is not None
        x = state.x[:, :, :1] if self.is_last and state.class_token_only else state.x
        return replace(state, x=x, pending=self.out_proj(state.branch, rows), branch=None)

    def _normalise_mlp(self, state: _State, rows: slice) -> _State:  # noqa: ARG002 - every step's signature
        return self._normalise(state, 1)

    def _expand(self, state: _State, rows: slice) -> _State:
        assert state.branch is not None
        return replace(state, branch=self.c_fc(state.branch, rows, self.activation))

    def _contract(self, state: _State, rows: slice) -> _State:
        assert state.branch is not None
        return replace(state, pending=self.c_proj(state.branch, rows), branch=None)

    def _normalise(self, state: _State, index: int) -> _State:
        x, branch = add_and_normalise(state.x, state.pending, self.norms[index], self.eps, self.dtype)
        return replace(state, x=x, pending=None, branch=branch)


class StackedTower:
    """The tower of `weights`, for its rows, on its device in its type.

    `packed` keeps weights in oneDNN's blocked layout, which only the sequential order can use.
    """

    def __init__(self, weights: MergedWeights, *, packed: bool) -> None:
        config, state, device, dtype = weights.config, weights.state, weights.device, weights.dtype
        self.config, self.rows, self.device, self.dtype = config, len(weights.rows), device, dtype
        packed = packed and can_pack(device, dtype)
        self.packed = packed
        kept = config.kept_patches
        self.kept_patches = None if kept is None else torch.tensor(kept, device=device)
        self.tokens = 1 + (config.grid_size**2 if kept is None else len(kept))
        """Of one image."""
        self.patch_weight = weights.tensor("conv1.weight", dtype).flatten(1)
        positions = state["positional_embedding"].float()
        self.class_token = (state["class_embedding"].float() + positions[0]).to(device, RESIDUAL_DTYPE)
        patch_positions = positions[1:] if kept is None else positions[1:][list(kept)]
        self.patch_positions = patch_positions.to(device, RESIDUAL_DTYPE)
        self.ln_pre = weights.norm("ln_pre") if config.pre_norm else None
        with ThreadPoolExecutor(max_workers=1) as pool:
            if device.type == "cuda":
                # This fails where memory runs out; whoever runs the tower then meets the same error, and handles it.
                pool.submit(prepare, device, dtype, config.width)
            blocks = [StackedBlock(number, weights, packed=packed) for number in range(1, config.layers + 1)]
        self.steps = [step for block in blocks for step in block.steps()]
        adapted = [index for index, step in enumerate(self.steps) if step.adapted]
        self.parting = adapted[0] if adapted else len(self.steps)
        """Index of the first step that differs between rows."""
        own_block = self.steps[self.parting].block if adapted else config.layers
        self.trunk_blocks = own_block - 1
        """How many blocks, from the first on, are the same for all rows. The last block is never one of them: what it
        has to compute depends on what is asked for."""
        self.ln_post_weight = weights.tensor("ln_post.weight", torch.float32)
        self.ln_post_bias = weights.tensor("ln_post.bias", torch.float32)
        self.proj = weights.tensor("proj", torch.float32)

    def run(
        self,
        images: Tensor,
        rows: Sequence[int],
        *,
        taps: Sequence[int] = (),
        order: RowOrder = "sequential",
        embed: bool = True,
        trunk: Tensor | None = None,
        keep: bool = False,
    ) -> StackedOutput:
        """Embeddings and taps of `rows` for normalised images (batch, 3, image_size, image_size).

        Batched order needs rows in sequence; the result's rows are in the order asked for. Without `embed` nothing
        after the last tap is computed. `trunk` is what `run_trunk` gave for the images: with it no tap may lie there.
        `keep` gives what `finish` goes on from.
        """
        class_token_only = self.config.pool == "tok" and self.config.layers not in taps
        steps = self.steps if embed else [step for step in self.steps if step.block <= max(taps)]
        shared_steps, tail = steps[: self.parting], steps[self.parting :]
        if trunk is None:
            x = self.embed_patches(images)
        else:
            assert all(number > self.trunk_blocks for number in taps)
            x = trunk[None]
            shared_steps = [step for step in shared_steps if step.block > self.trunk_blocks]
        shared: dict[int, Tensor] = {}
        kept: list[Tensor] | None = [] if keep else None
        state = self._advance(_State(x, class_token_only), shared_steps, slice(0, 1), taps, shared, kept)
        if order == "batched":
            chosen = slice(rows[0], rows[-1] + 1)
            assert list(rows) == list(range(chosen.start, chosen.stop))
            runs = [chosen]
        else:
            runs = [slice(row, row + 1) for row in rows] if tail else [slice(0, 1)]
        embeddings, tapped = [], []
        for chosen in runs:
            own: dict[int, Tensor] = {}
            ended = self._advance(state, tail, chosen, taps, own, kept)
            if embed:
                embeddings.append(self._pool(ended.stream()))
            for index in range(chosen.stop - chosen.start if tail else 1):
                of_row = {number: tap[min(index, len(tap) - 1)] for number, tap in (shared | own).items()}
                tapped.append(of_row)
        if not tail:
            tapped = tapped * len(rows)
        embedding = torch.cat(embeddings).expand(len(rows), -1, -1) if embed else None
        before_last = [stream for of_rows in kept or [] for stream in of_rows]
        if len(before_last) == 1:
            before_last *= len(rows)
        return StackedOutput(embedding, tapped, before_last)

    def finish(self, before_last: Sequence[Tensor], rows: Sequence[int]) -> list[Tensor]:
        """The last block's output for all tokens, (batch, 1 + grid x grid, width) a row of `rows`, from what `run` has
        kept of each."""
        last = self.config.layers
        steps = [step for step in self.steps if step.block == last]
        outputs = []
        for stream, row in zip(before_last, rows, strict=True):
            tapped: dict[int, Tensor] = {}
            state = _State(stream[None], class_token_only=False)
            self._advance(state, steps, slice(row, row + 1), (last,), tapped)
            outputs.append(tapped[last][0])
        return outputs

    def run_trunk(self, images: Tensor) -> Tensor:
        """Tokens (batch, 1 + kept patches, width) after the last block that is the same for all rows."""
        steps = [step for step in self.steps if step.block <= self.trunk_blocks]
        return self._advance(_State(self.embed_patches(images), False), steps, slice(0, 1), (), {}).stream()[0]

    def embed_patches(self, images: Tensor) -> Tensor:
        """Tokens before the first block, (1, batch, 1 + kept patches, width)."""
        side, grid = self.config.patch_size, self.config.grid_size
        images = images.to(self.dtype)
        patches = images.unflatten(3, (grid, side)).unflatten(2, (grid, side)).permute(0, 2, 4, 1, 3, 5)
        patches = patches.flatten(3).flatten(1, 2)
        if self.kept_patches is not None:
            patches = patches[:, self.kept_patches]
        tokens = F.linear(patches, self.patch_weight) + self.patch_positions
        tokens = torch.cat([self.class_token.expand(len(images), 1, -1), tokens], dim=1)
        if self.ln_pre is not None:
            tokens = F.layer_norm(tokens, (self.config.width,), *self.ln_pre, self.config.norm_eps)
        return tokens[None]

    def _advance(
        self,
        state: _State,
        steps: Sequence[_Step],
        rows: slice,
        taps: Sequence[int],
        tapped: dict[int, Tensor],
        kept: list[Tensor] | None = None,
    ) -> _State:
        """Run `steps` for `rows`, putting the outputs of the blocks in `taps` into `tapped`, and the residual stream
        before the last block into `kept`."""
        for step in steps:
            if kept is not None and step.begins_block and step.block == self.config.layers:
                state = replace(state, x=state.stream(), pending=None)
                kept.append(state.x)
            state = step.apply(state, rows)
            if step.ends_block and step.block in taps:
                tapped[step.block] = self._to_full_grid(state.stream())
        return state

    def _pool(self, x: Tensor) -> Tensor:
        """The embedding (rows, batch, output_dim) in float32, as `Tower.pool`."""
        if self.config.pool == "tok":
            pooled = self._normalise_last(x[:, :, 0])
        elif self.config.norm_after_pool:
            pooled = self._normalise_last(x[:, :, 1:].float().mean(dim=2))
        else:
            pooled = self._normalise_last(x[:, :, 1:]).mean(dim=2)
        return pooled @ self.proj

    def _normalise_last(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), (x.shape[-1],), self.ln_post_weight, self.ln_post_bias, self.config.norm_eps)

    def _to_full_grid(self, x: Tensor) -> Tensor:
        """As `Tower.to_full_grid`, with the row axis in front."""
        if self.kept_patches is None:
            return x
        full = x.new_zeros(*x.shape[:2], 1 + self.config.grid_size**2, x.shape[-1])
        full[:, :, 0] = x[:, :, 0]
        return full.index_copy(2, self.kept_patches + 1, x[:, :, 1:])
