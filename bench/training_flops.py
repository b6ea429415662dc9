"""What training an ensemble computes, part by part, and what could be left out: counted, on tensors without storage.

    python bench/training_flops.py

Our recipe on the release's size (300 cases of 840 frames, 22 of them annotated) with FetalCLIP's tower and with the
stand-in's. The frozen prefix is the blocks before the first adapted one. Members that are trained at once could share
it for frames that several of them show in the same step, changed alike. What they would share:

- `as it is`: nothing; each fold shuffles and changes its frames for itself;
- `own hard frames`: all but the hard negatives, which follow from what a member says itself, were the order and the
  changes of frames drawn by frame and not by fold;
- `all`: hard negatives too, which is another training.

The last line is a JSON object.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from algorithm.model.networks import PreprocessingConfig, TowerConfig
from algorithm.model.tower import Tower, without_weights
from bench.figures.flops import tower_steps
from bench.figures.table import table
from training.network.model import FrameNetwork, build_network, first_adapted_block
from training.network.open_clip_weights import tower_config_from_open_clip
from training.network.tower_source import FETALCLIP_CONFIG, LoadedTower, fan_patches
from training.recipe.settings import TrainSettings

CASES, FRAMES, ANNOTATED = 300, 840, 22
"""Of the release; annotated frames a case."""
STAND_IN = TowerConfig(224, 14, 384, 12, 6, 1536, 384, pre_norm=False, layer_scale=True)
MEMBERS = (1, 3, 5)
IMAGE_SIZE = 224
"""Of both towers."""


@dataclass(frozen=True)
class EpochFlop:
    """One member's epoch."""

    prefix: float
    """Frozen blocks of the frames that are shown."""
    rest: float
    """Adapted blocks and decoder, there and back."""
    validation: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.prefix + self.rest + self.validation

    def shared(self, members: int, share: float) -> float:
        """How many times less `members` folds cost at once, where a `share` of the shown frames is the same for all
        folds that may learn from them, one less than there are."""
        seen_by = max(1, members - 1)
        prefix = self.prefix * (1 - share + share / seen_by)
        return self.total / (prefix + self.rest + self.validation)


def build(config: TowerConfig, settings: TrainSettings) -> FrameNetwork:
    """A network of names and shapes."""
    with without_weights():
        state = {name: tensor.detach() for name, tensor in Tower(config).state_dict().items()}
    with torch.device("meta"):
        loaded = LoadedTower(config, PreprocessingConfig(), state, "")
        network = build_network(loaded, settings.adapter, settings.heads, train_all=False, checkpoint_blocks=False)
    for module in network.modules():
        vars(module).pop("forward", None)  # the fast layers ask for autocast, which tensors without storage do not know
    return network.to("meta")


def count(network: FrameNetwork, images: int, annotated: int, *, backward: bool) -> int:
    """FLOP of a batch, without those of the embedding's heads."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        output = network(torch.empty(images, 3, IMAGE_SIZE, IMAGE_SIZE), torch.zeros(annotated, dtype=torch.int64))
        if backward:
            assert output.presence is not None
            assert output.mask is not None
            (output.presence.sum() + output.mask.sum()).backward()
    return counter.get_total_flops()


@dataclass(frozen=True)
class FrameFlop:
    """One frame."""

    prefix: float
    """Its frozen blocks."""
    step: float
    """All of a training step."""
    judged: float
    """Forward, without a mask."""
    outlined: float
    """Forward, with one."""


def frame_flop(config: TowerConfig, settings: TrainSettings) -> FrameFlop:
    """Of a frame of a usual batch."""
    negatives, batch = settings.sampling.negatives_per_positive, 40
    assert negatives is not None
    step = count(build(config, settings), batch, round(batch / (1 + negatives)), backward=True)
    first = f"transformer.resblocks.{first_adapted_block(config, settings.adapter)}."
    steps = tower_steps(config)
    prefix = sum(flop for _, flop in steps[: next(i for i, (name, _) in enumerate(steps) if name.startswith(first))])
    merged = build(config, replace(settings, adapter=replace(settings.adapter, rank=0)))
    outlined = count(merged, batch, batch, backward=False) / batch
    judged = (count(merged, batch, 1, backward=False) - outlined) / batch
    return FrameFlop(prefix, step / batch, judged, outlined)


def epoch_flop(frame: FrameFlop, settings: TrainSettings, members: int = 5) -> EpochFlop:
    """An epoch of one of `members` folds; a single member learns from four fifths of the cases as well."""
    sampling = settings.sampling
    assert sampling.negatives_per_positive is not None
    learning = CASES * (1 - 1 / members if members > 1 else 0.8)
    shown = learning * ANNOTATED * (1 + sampling.negatives_per_positive)
    validated = CASES - learning
    others = validated * (FRAMES - ANNOTATED) / sampling.validation_stride
    return EpochFlop(
        prefix=frame.prefix * shown,
        rest=(frame.step - frame.prefix) * shown,
        validation=validated * ANNOTATED * frame.outlined + others * frame.judged,
    )


def describe(name: str, config: TowerConfig, settings: TrainSettings) -> tuple[list[str], dict[str, Any]]:
    """One row."""
    sampling = settings.sampling
    assert sampling.negatives_per_positive is not None
    hard = sampling.negatives_per_positive * sampling.hard_share / (1 + sampling.negatives_per_positive)
    frame = frame_flop(config, settings)
    epoch = epoch_flop(frame, settings)
    gains = {
        str(members): [epoch_flop(frame, settings, members).shared(members, share) for share in (0.0, 1 - hard, 1.0)]
        for members in MEMBERS
    }
    parts = {part: getattr(epoch, part) / epoch.total for part in ("prefix", "rest", "validation")}
    row = [name, f"{epoch.total / 1e15:.2f}", *(f"{share:.0%}" for share in parts.values())]
    row += [" ".join(f"{gain:.2f}" for gain in gains[str(members)]) for members in MEMBERS]
    return row, {"pflop_an_epoch": epoch.total / 1e15, **parts, "gain_by_members": gains}


def main(arguments: Sequence[str] | None = None) -> None:
    """Count and print."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args(arguments)
    towers = {"ViT-L/14": tower_config_from_open_clip(FETALCLIP_CONFIG), "ViT-S/14": STAND_IN}
    rows, result = [], {}
    for name, whole in towers.items():
        for kept in ("all", "fan"):
            config = whole if kept == "all" else replace(whole, kept_patches=fan_patches(whole, 562, 744))
            row, result[f"{name}, {kept}"] = describe(f"{name}, {kept} patches", config, TrainSettings())
            rows.append(row)
    head = ["", "PFLOP an epoch and member", "frozen prefix", "adapted blocks, decoder", "validation"]
    print(table([*head, *(f"{members} at once: as it is, own hard frames, all" for members in MEMBERS)], rows))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
