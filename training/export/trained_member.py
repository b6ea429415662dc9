"""Finished runs, read back: their members, the tower they share, and the networks as training had them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from acouslic.errors import AcouslicError
from algorithm.model.artifact import HEADS_FILE, Artifact, MemberState
from algorithm.model.heads import Heads
from algorithm.model.lora import read_adapter
from algorithm.model.manifest import Provenance, untuned_manifest
from algorithm.model.networks import MemberConfig
from algorithm.model.tower import linear_shapes, tower_from_state
from training.judge.calibrate import Calibration, calibrate_member
from training.learn.out_of_fold import OutOfFold, read_out_of_fold
from training.learn.run_folder import RunFolder, read_settings
from training.network.model import FrameNetwork, member_of_json
from training.network.tower_source import LoadedTower, hash_state, load_tower, tower_of_record
from training.recipe.settings import TowerSource
from training.release.cache import Cache


@dataclass(frozen=True)
class TrainedMember:
    """One finished run, ready to be a member."""

    folder: RunFolder
    record: dict[str, Any]
    config: MemberConfig
    heads: dict[str, Tensor]
    scored: OutOfFold
    calibration: Calibration

    def state(self, linear_shapes: Mapping[str, tuple[int, int]]) -> MemberState:
        """What an artifact holds of it, for a tower with these layers (`tower.linear_shapes`)."""
        adapter = read_adapter(self.folder.member, linear_shapes) if self.config.adapter else None
        return MemberState(adapter, self.heads)


def read_member(run: RunFolder) -> TrainedMember:
    """The member of a finished run, calibrated. Raises AcouslicError where the run is not finished."""
    record = run.read_record()
    config = member_of_json(run.member / "member.json")
    scored = read_out_of_fold(run.out_of_fold)
    heads = _read_tensors(run.member / HEADS_FILE)
    return TrainedMember(run, record, config, heads, scored, calibrate_member(scored))


@dataclass(frozen=True)
class MovedTower:
    """Where a tower lies now, as `--tower.weights` and `--tower.config` had it; None is where it was in training."""

    weights: str | None = None
    config: str | None = None

    def now(self, source: TowerSource) -> TowerSource:
        """The source of the training, found where it lies now."""
        return replace(source, weights=self.weights or source.weights, config=self.config or source.config)


def shared_tower(members: Sequence[TrainedMember], cache: Cache, moved: MovedTower) -> LoadedTower:
    """The one tower of all members, as it was when they were trained on frames such as those of `cache`.

    Raises AcouslicError where they have several, or its weights are others now.
    """
    first = members[0]
    for member in members[1:]:
        for what in ("tower_sha256", "tower"):
            if member.record[what] != first.record[what]:
                raise AcouslicError(
                    f"{member.folder.root} and {first.folder.root} have different towers; an artifact has one"
                )
    settings = read_settings(first.folder.settings_path)
    if settings.tower.train_all:
        loaded = tower_of_record(first.record["tower"], _read_tensors(first.folder.tower / "tower.safetensors"))
    else:
        shape = min((case.record.rows, case.record.columns) for case in cache.cases)
        antialias = bool(first.record["tower"]["preprocessing"]["antialias"])
        source = moved.now(settings.tower)
        loaded = load_tower(source, shape, antialias)
        if loaded.config != tower_of_record(first.record["tower"], {}).config:
            raise AcouslicError(f"{source.config or 'the tower'} is not as {first.folder.root} was trained on it")
    if hash_state(loaded.state) != first.record["tower_sha256"]:
        own = first.folder.tower / "tower.safetensors"
        where = own if settings.tower.train_all else moved.now(settings.tower).weights
        raise AcouslicError(f"{where} is not the tower that {first.folder.root} was trained on")
    return loaded


def artifact_of(members: Sequence[TrainedMember], loaded: LoadedTower) -> Artifact:
    """The members on their tower as an artifact in memory, to be asked as inference asks; never written, so it has no
    provenance."""
    shapes = linear_shapes(loaded.config)
    configs = (member.calibration.applied_to(member.config) for member in members)
    unknown = Provenance("", "", "", "", "")
    manifest = untuned_manifest("members in memory", loaded.config, configs, unknown, loaded.preprocessing)
    states = tuple(member.state(shapes) for member in members)
    return Artifact(members[0].folder.root, manifest, loaded.state, states)


def rebuild_network(member: TrainedMember, loaded: LoadedTower) -> FrameNetwork:
    """The network of a finished run as training had it, with peft's adapter unmerged; for evaluation."""
    tower: torch.nn.Module = tower_from_state(loaded.config, loaded.state)
    if member.config.adapter:
        tower = peft.PeftModel.from_pretrained(tower, str(member.folder.member))
    heads = Heads(member.config, loaded.config)
    heads.load_state_dict(member.heads)
    return FrameNetwork(tower, member.config, heads, detach_decoder=False).eval()


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise AcouslicError(f"{path} is not the weights of a finished run: {error}") from None
