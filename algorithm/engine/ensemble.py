"""The ensemble: every member's judgement of a batch of frames, from one run through the stacked tower.

Members are merged and share what they can (`stacked_tower.py`). Embeddings, heads and decoders are float32 in any
precision. Nothing here waits for the device: results are tensors on it.
"""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from acouslic.errors import AcouslicError
from algorithm.engine.merged_weights import MergedWeights, Row
from algorithm.engine.outline_start import OutlineStart
from algorithm.engine.stacked_tower import StackedOutput, StackedTower
from algorithm.model.artifact import Artifact
from algorithm.model.decoder import fold_normalisation
from algorithm.model.heads import Heads, presence_from_mask
from algorithm.model.manifest import Manifest
from algorithm.model.networks import DecoderConfig
from algorithm.model.student import Student, student_from_state
from algorithm.model.tower import without_weights
from algorithm.process.memory import is_out_of_memory

_TOKENS_A_MULTIPROCESSOR = 62
"""This many of one member keep a multiprocessor of a GPU busy: 31 frames of 257 tokens an H100 (bench/LOG.md, 31)."""


@dataclass(frozen=True)
class MemberScores:
    """Calibrated probabilities of each member for each image, float32."""

    presence_probability: Tensor
    """(members, batch): is there an abdomen plane. Every member judges it, without a head by its mask."""
    optimality_probability: Tensor
    """(members with an optimality head, batch): is it an optimal one. No row where no member has the head."""
    embedding: Tensor | None = None
    """(members, batch, output_dim); None where no case head wants it."""
    start: OutlineStart | None = None
    """What `segment` goes on from, where it was asked for."""


@dataclass(frozen=True)
class GateScores:
    """One cheap opinion of each image, float32."""

    presence_probability: Tensor
    """(batch,)"""
    optimality_probability: Tensor | None
    """(batch,); None where the gate has no optimality head."""


@dataclass(frozen=True)
class LinearHeads:
    """Linear heads of several rows with their calibration folded in: logit = embedding . weight + bias."""

    weight: Tensor
    """(heads, output_dim)"""
    bias: Tensor
    """(heads,)"""

    def probability(self, embedding: Tensor) -> Tensor:
        """(heads, batch) for the embeddings (heads, batch, output_dim) of their rows."""
        logit = torch.baddbmm(self.bias[:, None, None], embedding, self.weight[:, :, None])
        return logit[:, :, 0].sigmoid()

    def average(self) -> "LinearHeads":
        """One head whose logit is the mean of all."""
        return LinearHeads(self.weight.mean(dim=0, keepdim=True), self.bias.mean(dim=0, keepdim=True))


class Ensemble:
    """All members of an artifact on one device. `Ensemble.from_artifact` makes it."""

    def __init__(
        self,
        manifest: Manifest,
        tower: Callable[[], StackedTower],
        heads: list[Heads],
        device: torch.device,
        dtype: torch.dtype,
        *,
        batched_below: int = 0,
        student: Student | None = None,
    ) -> None:
        self.manifest, self.heads = manifest, heads
        self.device, self.dtype = device, dtype
        self._student = student
        self._merged = tower
        self.batched_below = batched_below
        """Batches of fewer frames run through all members at once after the first adapter, others one after another."""
        members = manifest.members
        self.presence_members = [k for k, member in enumerate(members) if member.presence]
        self.optimality_members = [k for k, member in enumerate(members) if member.optimality]
        self.decoder_members = [k for k, member in enumerate(members) if member.decoder]
        self.mask_judges = [k for k, member in enumerate(members) if not member.presence]
        self.presence = self._linear_heads("presence", self.presence_members)
        self.optimality = self._linear_heads("optimality", self.optimality_members)

    @classmethod
    def from_artifact(
        cls,
        artifact: Artifact,
        device: torch.device,
        dtype: torch.dtype,
        *,
        order: Literal["auto", "batched", "sequential"] = "auto",
    ) -> "Ensemble":
        """Merge the members of `artifact` and put them on `device` in `dtype`.

        `order` is how members run from the first adapter on: `auto` is `batched` on a GPU for as few frames as leave it
        idle in between, and else `sequential` (bench/LOG.md). It is counted, not timed, for the same results every
        time, unless memory runs out. A gate is made only where the manifest asks for it; the average one is one more
        row. Where a student is the gate, on a CPU, members are merged in a thread, while it looks at the first frames.
        """
        manifest = artifact.manifest
        rows: list[Row] = [[(1.0, member.adapter)] for member in artifact.members]
        scoring = manifest.scoring
        if scoring.mode == "gated" and scoring.gate == "average":
            judges = [k for k, member in enumerate(manifest.members) if member.presence]
            if not judges:
                raise AcouslicError(
                    f"{artifact.folder}: the manifest asks for a gate that averages presence heads, but no member has "
                    "one: set scoring.gate to 'member'"
                )
            rows.append([(1.0 / len(judges), artifact.members[k].adapter) for k in judges])
        packed = device.type == "cpu" and order != "batched"

        def merge() -> StackedTower:
            weights = MergedWeights(manifest.tower, artifact.tower_state, rows, device, dtype)
            return StackedTower(weights, packed=packed)

        heads = []
        for member, config in zip(artifact.members, manifest.members, strict=True):
            with without_weights():
                head = Heads(config, manifest.tower)
            head.load_state_dict({name: tensor.clone() for name, tensor in member.heads.items()}, assign=True)
            head = head.to(device, torch.float32).eval().requires_grad_(False)
            if head.decoder is not None:
                fold_normalisation(head.decoder)
            heads.append(head)
        student = None
        if scoring.mode == "gated" and scoring.gate == "student":
            assert manifest.student is not None
            assert artifact.student is not None
            student = student_from_state(manifest.student, artifact.student, device, dtype)
        tower = _begin(merge) if student is not None and device.type == "cpu" else _done(merge())
        below = {"batched": sys.maxsize, "sequential": 0, "auto": 0}[order]
        if order == "auto" and device.type == "cuda":
            multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
            below = multiprocessors * _TOKENS_A_MULTIPROCESSOR // tower().tokens
        return cls(manifest, tower, heads, device, dtype, batched_below=below, student=student)

    @property
    def tower(self) -> StackedTower:
        """All members' weights. Waits for them where they are still being merged, and raises what merging raised."""
        return self._merged()

    @property
    def members(self) -> int:
        """How many members there are."""
        return len(self.manifest.members)

    @torch.inference_mode()
    def trunk(self, images: Tensor) -> Tensor | None:
        """What `score` and `gate` both do first with images: tokens (batch, ...), to be handed to them.

        None where nothing is shared, or where decoders that judge frames read what is.
        """
        if self.tower.trunk_blocks == 0 or self.mask_judges:
            return None
        return self.tower.run_trunk(images)

    @torch.inference_mode()
    def score(self, images: Tensor, trunk: Tensor | None = None, *, keep: bool = False) -> MemberScores:
        """Every member's judgement of normalised images (batch, 3, image_size, image_size) on the ensemble's device.

        `trunk` is what `trunk` said of the same images, where that is known already. `keep` keeps what `segment` needs
        again, but nothing where `trunk` is given or decoders judge frames.
        Raises as torch does where the batch is too large for the device (`memory.is_out_of_memory`).
        """
        keep = keep and trunk is None and not self.mask_judges and bool(self.decoder_members)
        taps = self._taps_before_last() if keep else self._taps(self.mask_judges)
        output = self._run(images, list(range(self.members)), taps, trunk=trunk, keep=keep)
        embedding = output.embedding
        assert embedding is not None
        presence = self._presence_of_members(images, output)
        optimality = embedding.new_empty(0, len(images))
        if self.optimality is not None:
            optimality = self.optimality.probability(_pick(embedding, self.optimality_members))
        wanted = embedding if self.manifest.case_head is not None else None
        start = OutlineStart(output.before_last, output.taps) if keep else None
        return MemberScores(presence, optimality, wanted, start)

    @torch.inference_mode()
    def gate(self, images: Tensor, trunk: Tensor | None = None) -> GateScores:
        """The gate's judgement, as `manifest.scoring` sets it: averaged adapters and heads, one member, or the student.

        `trunk` as for `score`; a student has no use for it.
        """
        scoring = self.manifest.scoring
        if scoring.mode != "gated":
            raise AcouslicError("the manifest's scoring.mode is not 'gated', so this ensemble has no gate")
        if scoring.gate == "student":
            assert self._student is not None
            presence, optimality = self._student(images)
            return GateScores(presence.sigmoid(), None if optimality is None else optimality.sigmoid())
        if scoring.gate == "average":
            assert self.presence is not None
            embedding = self.tower.run(images, [self.members], trunk=trunk).embedding
            assert embedding is not None
            optimality = None if self.optimality is None else self.optimality.average().probability(embedding)[0]
            return GateScores(self.presence.average().probability(embedding)[0], optimality)
        return self._gate_member(images, trunk, scoring.gate_member)

    @torch.inference_mode()
    def segment(self, images: Tensor, start: OutlineStart | None = None) -> Tensor:
        """Mask probabilities (members with a decoder, batch, side, side), float32, side 16 x the largest grid_size.

        Images as for `score`, `start` what that has kept of them. Masks of members with a smaller grid are resized
        bilinearly.
        """
        rows = self.decoder_members
        if start is None:
            taps_of_rows = self._run(images, rows, self._taps(rows), embed=False).taps
        else:
            taps_of_rows = self._finish(start)
        masks = [self._mask(k, images, taps) for k, taps in zip(rows, taps_of_rows, strict=True)]
        side = max(mask.shape[-1] for mask in masks)
        return torch.stack(
            [
                mask if mask.shape[-1] == side else F.interpolate(mask[None], (side, side), mode="bilinear")[0]
                for mask in masks
            ]
        )

    def _run(
        self,
        images: Tensor,
        rows: list[int],
        taps: list[int],
        *,
        embed: bool = True,
        trunk: Tensor | None = None,
        keep: bool = False,
    ) -> StackedOutput:
        """These members on a batch, all at once where it is small and memory holds that, else one after another."""
        if len(images) < self.batched_below and rows == list(range(rows[0], rows[-1] + 1)):
            try:
                return self.tower.run(images, rows, taps=taps, order="batched", embed=embed, trunk=trunk, keep=keep)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return self.tower.run(images, rows, taps=taps, order="sequential", embed=embed, trunk=trunk, keep=keep)

    def _finish(self, start: OutlineStart) -> list[dict[int, Tensor]]:
        """What each decoder reads of its tower, by block, where all but the last block has been run."""
        rows, last = self.decoder_members, self.manifest.tower.layers
        found = {k: dict(start.taps[k]) for k in rows}
        reading = [k for k in rows if last in self._decoder_config(k).taps]
        ends = self.tower.finish([start.before_last[k] for k in reading], reading)
        for k, end in zip(reading, ends, strict=True):
            found[k][last] = end
        return [found[k] for k in rows]

    def _linear_heads(self, name: Literal["presence", "optimality"], members: list[int]) -> LinearHeads | None:
        """The linear heads of `members`, divided by their temperatures; None without any."""
        if not members:
            return None
        weights, biases = [], []
        for k in members:
            layer = getattr(self.heads[k], name)
            temperature = getattr(self.manifest.members[k], f"{name}_temperature")
            weights.append(layer.weight[0] / temperature)
            biases.append(layer.bias[0] / temperature)
        return LinearHeads(torch.stack(weights), torch.stack(biases))

    def _decoder_config(self, k: int) -> DecoderConfig:
        config = self.manifest.members[k].decoder
        assert config is not None
        return config

    def _taps(self, members: list[int]) -> list[int]:
        """The blocks that the decoders of `members` read."""
        return sorted({number for k in members for number in self._decoder_config(k).taps})

    def _taps_before_last(self) -> list[int]:
        """The blocks that decoders read, but for the last one."""
        return [number for number in self._taps(self.decoder_members) if number != self.manifest.tower.layers]

    def _mask(self, k: int, images: Tensor, taps: dict[int, Tensor]) -> Tensor:
        """Member k's mask probabilities (batch, side, side)."""
        decoder = self.heads[k].decoder
        assert decoder is not None
        wanted = [taps[number].float() for number in self._decoder_config(k).taps]
        return decoder(images.float(), wanted).sigmoid()

    def _mask_judgement(self, k: int, images: Tensor, taps: dict[int, Tensor]) -> Tensor:
        """Presence probability (batch,) of a member without a presence head."""
        member = self.manifest.members[k]
        logit = presence_from_mask(self._mask(k, images, taps), member.presence_mask_fraction)
        return (logit / member.presence_temperature).sigmoid()

    def _presence_of_members(self, images: Tensor, output: StackedOutput) -> Tensor:
        """Presence probability (members, batch) from heads, and from masks where there is none."""
        embedding = output.embedding
        assert embedding is not None
        if not self.mask_judges:
            assert self.presence is not None
            return self.presence.probability(embedding)
        presence: dict[int, Tensor] = {k: self._mask_judgement(k, images, output.taps[k]) for k in self.mask_judges}
        if self.presence is not None:
            of_heads = self.presence.probability(_pick(embedding, self.presence_members))
            presence |= dict(zip(self.presence_members, of_heads, strict=True))
        return torch.stack([presence[k] for k in range(self.members)])

    def _gate_member(self, images: Tensor, trunk: Tensor | None, k: int) -> GateScores:
        """Member k alone as the gate."""
        taps = self._taps([k]) if k in self.mask_judges else []
        output = self.tower.run(images, [k], taps=taps, trunk=trunk)
        assert output.embedding is not None
        optimality = None
        if self.optimality is not None and k in self.optimality_members:
            optimality = _one(self.optimality, self.optimality_members.index(k)).probability(output.embedding)[0]
        if k in self.mask_judges:
            return GateScores(self._mask_judgement(k, images, output.taps[0]), optimality)
        assert self.presence is not None
        head = _one(self.presence, self.presence_members.index(k))
        return GateScores(head.probability(output.embedding)[0], optimality)


def _begin(work: Callable[[], StackedTower]) -> Callable[[], StackedTower]:
    """Do the work in a thread; what is returned waits for its result."""
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="merge")
    result = pool.submit(work).result
    pool.shutdown(wait=False)
    return result


def _done(tower: StackedTower) -> Callable[[], StackedTower]:
    return lambda: tower


def _pick(embedding: Tensor, members: list[int]) -> Tensor:
    """The rows of `members`. Not by indexing with the list: that is copied to a GPU, which makes the host wait."""
    return torch.stack([embedding[k] for k in members])


def _one(heads: LinearHeads, index: int) -> LinearHeads:
    return LinearHeads(heads.weight[index : index + 1], heads.bias[index : index + 1])
