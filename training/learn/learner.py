"""One training run as a LightningModule: loss, optimiser, average, validation, hard negatives.

Every step's randomness (augmentation, dropout) is drawn from a seed made of the run's seed, the step and the process.
So a run that was killed goes on to the same result without any random state in its checkpoint.
"""

import math
from collections.abc import Callable
from typing import Any

import lightning
import numpy as np
import torch
import torch.distributed
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from algorithm.frames.preprocess import normalise
from algorithm.model.manifest import PreprocessingConfig
from training.frames.augment import BatchAugmentation
from training.frames.dataset import FrameBatch, FrameDataset, FrameTable, soft_masks
from training.frames.sampling import HardNegatives, batches_of, plan_epoch, validation_rows
from training.learn.ema import TrainedAverage
from training.learn.frame_metrics import best_f1
from training.learn.losses import mask_loss, optimality_loss, presence_loss, shared_mean
from training.network.model import Network, all_rows
from training.recipe.settings import TrainSettings

VALIDATION_BATCH = 64


class FrameLearner(lightning.LightningModule):
    """Trains `network` on the frames of one table and validates it on those of another."""

    def __init__(
        self,
        network: Network,
        settings: TrainSettings,
        preprocessing: PreprocessingConfig,
        train_table: FrameTable,
        validation_table: FrameTable,
    ) -> None:
        super().__init__()
        self.strict_loading = False  # checkpoints leave out what never changes
        self.network = network
        self.settings = settings
        self.preprocessing = preprocessing
        self.train_table = train_table
        self.validation_table = validation_table
        self.augmentation = BatchAugmentation(settings.augment)
        self.average = TrainedAverage(network, settings.optimiser.ema_decay)
        self.hard = HardNegatives(len(train_table))
        annotated_only = settings.sampling.sweeps == "annotated"
        self.validation_rows, self.validation_weight = validation_rows(
            validation_table, settings.sampling.validation_stride, annotated_sweeps_only=annotated_only
        )
        self._validation: dict[str, Tensor] = {}
        self.validation_figures: dict[str, float] = {}
        self._swap: Any = None

    # Frames

    def train_dataloader(self) -> DataLoader[FrameBatch]:
        """This epoch's batches; Lightning asks anew every epoch."""
        epoch = self.current_epoch
        augment = self.settings.augment
        showings = augment.copies + 1 if augment.recipe == "published" else 1
        rows = plan_epoch(self.train_table, self.settings.sampling, self.hard, self.settings.seed, epoch, showings)
        size = self.settings.optimiser.batch_size
        return self._loader(self.train_table, batches_of(rows, size, self._rank, self._world_size))

    def val_dataloader(self) -> DataLoader[FrameBatch]:
        """The validation frames, each on one process."""
        rows = self.validation_rows[self._rank :: self._world_size]
        batches = [rows[start : start + VALIDATION_BATCH] for start in range(0, len(rows), VALIDATION_BATCH)]
        return self._loader(self.validation_table, batches)

    def _loader(self, table: FrameTable, batches: list[NDArray[np.int64]]) -> DataLoader[FrameBatch]:
        workers = self.settings.machine.workers
        return DataLoader(
            FrameDataset(table),
            batch_sampler=batches,  # type: ignore[arg-type]  # rows of a batch as an array
            num_workers=workers,
            collate_fn=_whole_batch,  # type: ignore[arg-type]  # the dataset gives whole batches
        )

    @property
    def _rank(self) -> int:
        return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0

    @property
    def _world_size(self) -> int:
        return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1

    # Training

    def training_step(self, batch: FrameBatch) -> Tensor:
        """The weighted sum of the losses of one batch."""
        torch.manual_seed(_step_seed(self.settings.seed, self.global_step, self._rank))
        frames, masks = self.augmentation(batch.frames, batch.masks)
        loss, parts, presence = self._losses(frames, masks, batch)
        self.hard.note(batch.rows.cpu().numpy(), presence.detach().float().sigmoid().cpu().numpy())
        self.log_dict({f"train/{name}": value for name, value in parts.items()}, batch_size=len(frames))
        return loss

    def _losses(self, frames: Tensor, masks: Tensor, batch: FrameBatch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Total, parts by name, and presence logits."""
        settings, network = self.settings.loss, self.network
        positive = batch.label > 0
        images = normalise(frames, self.preprocessing, torch.float32)
        mask_rows, counted = self._mask_rows(positive, frames)
        output = network(images, mask_rows)
        parts: dict[str, Tensor] = {}
        total = images.new_zeros(())
        everything = torch.ones_like(positive)
        if output.presence is not None:
            parts["presence"] = shared_mean(presence_loss(output.presence, positive, settings), everything)
            total = total + settings.presence_factor * parts["presence"]
        if output.optimality is not None:
            parts["optimality"] = shared_mean(optimality_loss(output.optimality, batch.label == 1), positive)
            total = total + settings.optimality_factor * parts["optimality"]
        if output.mask is not None and mask_rows is not None:
            target = soft_masks(masks[mask_rows], output.mask.shape[-1])
            parts["mask"] = shared_mean(mask_loss(output.mask, target, settings), counted)
            total = total + settings.mask_factor * parts["mask"]
        parts["loss"] = total.detach()
        presence = network.presence_of(output) if output.presence is not None or settings.mask_frames == "all" else None
        return total, parts, torch.zeros(len(frames)) if presence is None else presence

    def _mask_rows(self, positive: Tensor, frames: Tensor) -> tuple[Tensor | None, Tensor]:
        """Rows the decoder sees, and which of them count. Never none, so that every process does the same work."""
        if not self.network.has_decoder:
            return None, positive
        if self.settings.loss.mask_frames == "all":
            return all_rows(frames), torch.ones_like(positive)
        rows = torch.nonzero(positive)[:, 0]
        if len(rows):
            return rows, torch.ones_like(rows, dtype=torch.bool)
        return rows.new_zeros(1), positive.new_zeros(1)

    def on_train_batch_end(self, *_: Any) -> None:
        """Take the step into the average."""
        self.average.update(self.network)

    def on_train_epoch_end(self) -> None:
        """Share what each process learned about hard frames."""
        noted = self.hard.take_noted()
        if self._world_size > 1:
            # Of this epoch alone: an older, higher value of a process that has not seen the frame again is out of date.
            shared = torch.from_numpy(noted).to(self.device)
            torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
            self.hard.learn(shared.cpu().numpy())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW over what is trained, decoder apart, and its schedule by step."""
        settings = self.settings.optimiser
        steps = int(self.trainer.estimated_stepping_batches)
        optimiser = torch.optim.AdamW(parameter_groups(self.network, self.settings), weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, rate_factor(settings.schedule, round(settings.warmup_share * steps), steps)
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # Validation

    def on_validation_epoch_start(self) -> None:
        """Validate the averaged weights."""
        count = len(self.validation_rows)
        self._validation = {name: torch.zeros(count, device=self.device) for name in ("probability", "loss", "mask")}
        self._swap = self.average.applied(self.network)
        self._swap.__enter__()

    def validation_step(self, batch: FrameBatch) -> None:
        """Remember probability and losses of each frame."""
        positive = batch.label > 0
        images = normalise(batch.frames, self.preprocessing, torch.float32)
        by_mask = self.network.judges_by_mask
        rows = all_rows(images) if by_mask else torch.nonzero(positive)[:, 0]
        has_decoder = self.network.has_decoder
        output = self.network(images, rows if has_decoder and len(rows) else None)
        presence = self.network.presence_of(output)
        at = torch.searchsorted(torch.from_numpy(self.validation_rows).to(self.device), batch.rows)
        settings = self.settings.loss
        self._validation["probability"][at] = presence.sigmoid()
        if output.presence is not None:
            self._validation["loss"][at] = presence_loss(presence, positive, settings)
        if output.mask is not None:
            target = soft_masks(batch.masks[rows], output.mask.shape[-1])
            self._validation["mask"][at[rows]] = mask_loss(output.mask, target, settings)

    def on_validation_epoch_end(self) -> None:
        """Frame F1 over all validation frames at its best threshold, and the losses."""
        self._swap.__exit__(None, None, None)
        if self._world_size > 1:
            for sums in self._validation.values():
                torch.distributed.all_reduce(sums)
        label = self.validation_table.label[self.validation_rows]
        weight = self.validation_weight
        score, threshold = best_f1(self._validation["probability"].cpu().numpy(), label > 0, weight)
        loss = self._validation["loss"].cpu().numpy()
        mask = self._validation["mask"].cpu().numpy()
        mask_frames = np.ones(len(label), bool) if self.network.judges_by_mask else label > 0
        mask_mean = float(mask[mask_frames].mean()) if self.network.has_decoder else 0.0
        presence_mean = 0.0 if self.network.judges_by_mask else float(np.average(loss, weights=weight))
        total = self.settings.loss.presence_factor * presence_mean + self.settings.loss.mask_factor * mask_mean
        values = {"f1": score, "threshold": threshold, "loss": total, "presence": presence_mean, "mask": mask_mean}
        self.validation_figures = {name: float(value) for name, value in values.items()}
        self.log_dict({f"val/{name}": value for name, value in self.validation_figures.items()}, prog_bar=True)

    # Checkpoints hold what training changes; the frozen tower is where the run's settings say.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out the frozen tower; add the average and the hard negatives."""
        trained = self.network.trained_state(counters=True)
        checkpoint["state_dict"] = {f"network.{name}": tensor for name, tensor in trained.items()}
        checkpoint["average"] = {"steps": self.average.steps, "state": self.average.state}
        checkpoint["validation"] = dict(self.validation_figures)
        checkpoint["last_seen"] = torch.from_numpy(self.hard.last_seen.copy())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The reverse of `on_save_checkpoint`."""
        self.average.steps = checkpoint["average"]["steps"]
        self.average.state = checkpoint["average"]["state"]
        self.hard.last_seen = checkpoint["last_seen"].numpy().copy()

    def on_fit_start(self) -> None:
        """The average lives where the network does."""
        self.average.to(self.device)


def parameter_groups(network: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
    """Trained parameters by learning rate and by whether they decay: matrices do, biases and norms do not."""
    optimiser = settings.optimiser
    decoder_rate = optimiser.decoder_learning_rate
    if decoder_rate is None:
        decoder_rate = optimiser.learning_rate
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((".decoder." in name, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": decoder_rate if decoder else optimiser.learning_rate,
            "weight_decay": optimiser.weight_decay if decays else 0.0,
        }
        for (decoder, decays), parameters in groups.items()
    ]


def rate_factor(schedule: str, warmup_steps: int, steps: int) -> Callable[[int], float]:
    """Factor on the learning rate at a step: a linear rise, then constant or half a cosine down to zero."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        if schedule == "constant":
            return 1.0
        share = (step - warmup_steps) / max(1, steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    return factor


def _whole_batch(batch: FrameBatch) -> FrameBatch:
    return batch


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])
