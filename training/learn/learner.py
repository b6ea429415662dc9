"""One training run as a LightningModule: loss, optimiser, average, validation, hard negatives.

Every step's randomness (augmentation, dropout) is drawn from a seed made of the run's seed, the step and the process.
So a run that was killed goes on to the same result without any random state in its checkpoint.
"""

import contextlib
import time
from typing import Any

import lightning
import numpy as np
import torch
import torch.distributed
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.utils.data import DataLoader

from acouslic.frame_labels import OPTIMAL
from algorithm.frames.preprocess import normalise
from algorithm.model.networks import PreprocessingConfig
from training.frames.augment import apply_changes
from training.frames.dataset import FrameBatch, FrameDataset, FrameTable, PlannedBatch, soft_masks
from training.frames.loader import make_loader
from training.frames.sampling import HardNegatives, batches_of, plan_epoch, validation_rows
from training.learn.ema import TrainedAverage
from training.learn.frame_metrics import best_f1, count_frames, frame_selection_score
from training.learn.losses import (
    MASK_FIGURES,
    mask_figures,
    mask_loss,
    optimality_loss,
    presence_loss,
    ranking_loss,
    shared_mean,
    summarise_masks,
)
from training.learn.optimiser import parameter_groups, rate_factor
from training.network.fast_layers import frozen_in, merged
from training.network.model import Network, all_rows
from training.recipe.settings import AugmentSettings, TrainSettings

VALIDATION_BATCH = 64


class FrameLearner(lightning.LightningModule):
    """Trains `network` on the frames of one table and validates it on those of another."""

    presence_target: Tensor
    case_of_row: Tensor
    shown_rows: Tensor

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
        # On the device, by row of the table: looking them up there makes nobody wait.
        target = torch.from_numpy(train_table.presence_target(settings.loss.soft_ends))
        self.register_buffer("presence_target", target, persistent=False)
        self.register_buffer("case_of_row", torch.from_numpy(train_table.case), persistent=False)
        self.average = TrainedAverage(network, settings.optimiser.ema_decay)
        self.hard = HardNegatives(len(train_table))
        annotated_only = settings.sampling.sweeps == "annotated"
        self.validation_rows, self.validation_weight = validation_rows(
            validation_table, settings.sampling.validation_stride, annotated_sweeps_only=annotated_only
        )
        self.register_buffer("shown_rows", torch.from_numpy(self.validation_rows), persistent=False)
        self._validation: dict[str, Tensor] = {}
        self.validation_figures: dict[str, float] = {}
        self.step_figures: dict[str, Tensor] = {}
        """Losses of the last step, on the device."""
        self.identity: dict[str, Any] | None = None
        self.tower_sha256: str | None = None
        """Of the run, for its checkpoints."""
        self.seconds_before = 0.0
        """What the processes before this one took until the run's last checkpoint."""
        self._began = time.monotonic()
        self._goes_on_at = (-1, 0)
        """Epoch and step in it where a checkpoint was written in its middle."""
        self._is_repeatable = network.is_repeatable
        self._is_first_backward = True
        self._swap = contextlib.ExitStack()
        """Entered for a validation: averaged weights, merged adapters."""
        self._fitting = contextlib.ExitStack()
        """Entered for the whole fit: frozen matrices in the half type."""

    # Frames

    def train_dataloader(self) -> DataLoader[FrameBatch]:
        """This epoch's batches; Lightning asks anew every epoch."""
        epoch, augment, seed = self.current_epoch, self.settings.augment, self.settings.seed
        showings = augment.copies + 1 if augment.recipe == "published" else 1
        shown = plan_epoch(self.train_table, self.settings.sampling, self.hard, seed, epoch, showings)
        size, rank = self.settings.optimiser.batch_size, self._rank
        batches = [
            PlannedBatch(part // showings, part % showings, (seed, epoch, number, rank))
            for number, part in enumerate(batches_of(shown, size, rank, self._world_size))
        ]
        done = self._goes_on_at[1] if self._goes_on_at[0] == epoch else 0
        return self._loader(FrameDataset(self.train_table, augment, seed), batches, done)

    def val_dataloader(self) -> DataLoader[FrameBatch]:
        """The validation frames, each on one process."""
        rows = self.validation_rows[self._rank :: self._world_size]
        parts = [rows[start : start + VALIDATION_BATCH] for start in range(0, len(rows), VALIDATION_BATCH)]
        batches = [PlannedBatch(part, np.zeros_like(part), ()) for part in parts]
        return self._loader(FrameDataset(self.validation_table, AugmentSettings(recipe="none")), batches)

    def _loader(self, dataset: FrameDataset, batches: list[PlannedBatch], done: int = 0) -> DataLoader[FrameBatch]:
        return make_loader(dataset, batches, done, self.device, self.settings.machine.workers)

    @property
    def _rank(self) -> int:
        return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0

    @property
    def _world_size(self) -> int:
        return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1

    # Training

    def training_step(self, batch: FrameBatch) -> Tensor:
        """The weighted sum of the losses of one batch, a scalar; the batch is changed as the settings say first."""
        torch.manual_seed(_step_seed(self.settings.seed, self.global_step, self._rank))
        frames, masks = apply_changes(batch.frames, batch.masks, batch.changes, self.settings.augment)
        loss, parts, presence = self._losses(frames, masks, batch)
        if presence is not None:
            self.hard.note(batch.rows, presence.detach().float().sigmoid())
        self.step_figures = {name: value.detach() for name, value in parts.items()}
        return loss

    def _losses(
        self, frames: Tensor, masks: Tensor, batch: FrameBatch
    ) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """Total, parts by name, and presence logits, None where nothing judges presence in training."""
        settings, network = self.settings.loss, self.network
        positive = batch.label > 0
        images = normalise(frames, self.preprocessing, torch.float32)
        mask_rows, counted = self._mask_rows(batch)
        output = network(images, mask_rows)
        parts: dict[str, Tensor] = {}
        total = images.new_zeros(())
        everything = torch.ones_like(positive)
        if output.presence is not None:
            target = self.presence_target[batch.rows]
            parts["presence"] = shared_mean(presence_loss(output.presence, target, settings), everything)
            total = total + settings.presence_factor * parts["presence"]
            if settings.ranking:
                parts["ranking"] = ranking_loss(output.presence, positive, self.case_of_row[batch.rows])
                total = total + settings.ranking * parts["ranking"]
        if output.optimality is not None:
            parts["optimality"] = shared_mean(optimality_loss(output.optimality, batch.label == OPTIMAL), positive)
            total = total + settings.optimality_factor * parts["optimality"]
        if output.mask is not None and mask_rows is not None:
            target = soft_masks(masks[mask_rows], output.mask.shape[-1])
            parts["mask"] = shared_mean(mask_loss(output.mask, target, settings), counted)
            total = total + settings.mask_factor * parts["mask"]
        parts["loss"] = total.detach()
        presence = network.presence_of(output) if output.presence is not None or settings.mask_frames == "all" else None
        return total, parts, presence

    def _mask_rows(self, batch: FrameBatch) -> tuple[Tensor | None, Tensor]:
        """Rows the decoder sees, and which of them count. Never none, so that every process does the same work."""
        if not self.network.has_decoder:
            return None, batch.label
        if self.settings.loss.mask_frames == "all":
            return all_rows(batch.frames), torch.ones_like(batch.label, dtype=torch.bool)
        if len(batch.annotated):
            return batch.annotated, torch.ones_like(batch.annotated, dtype=torch.bool)
        return batch.annotated.new_zeros(1), torch.zeros(1, dtype=torch.bool, device=batch.label.device)

    def backward(self, loss: Tensor, *arguments: Any, **more: Any) -> None:
        """With the same sums in every run. Under Lightning's "warn" a GPU's attention may add gradients in any order;
        here it may not. Where a device lacks a repeatable form of an operator, "warn" stays, and a line says so."""
        warns = torch.is_deterministic_algorithms_warn_only_enabled()
        if warns and self._is_repeatable:
            self._is_repeatable = self._backward_repeatably(loss, *arguments, **more)
            if self._is_repeatable:
                return
        super().backward(loss, *arguments, **more)

    def _backward_repeatably(self, loss: Tensor, *arguments: Any, **more: Any) -> bool:
        """False, with no gradient kept, where an operator of this device has no fixed order. The first step finds that
        out, so only it keeps its graph for a second try."""
        first, self._is_first_backward = self._is_first_backward, False
        torch.use_deterministic_algorithms(True)
        try:
            super().backward(loss, *arguments, **more | {"retain_graph": True} if first else more)
        except RuntimeError as error:
            if not first or "determinis" not in str(error):
                raise
            print(f"a run that is stopped and goes on may end at other digits on {self.device}: {error}", flush=True)
            self.network.zero_grad(set_to_none=True)
            return False
        finally:
            torch.use_deterministic_algorithms(True, warn_only=True)
        return True

    def optimizer_step(self, *arguments: Any, **more: Any) -> None:
        """Take the step into the average."""
        super().optimizer_step(*arguments, **more)
        self.average.update(self.network)

    def on_train_epoch_end(self) -> None:
        """Share what each process learned about hard frames, for the next epoch's plan."""
        self.hard.learn(self._noted_by_all())

    def _noted_by_all(self) -> Tensor:
        # Of this epoch alone: an older, higher value of a process that has not seen the frame again is out of date.
        noted = self.hard.noted.to(self.device, copy=True)
        if self._world_size > 1:
            torch.distributed.all_reduce(noted, torch.distributed.ReduceOp.MAX)
        return noted

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW over what is trained, decoder apart, and its schedule by step."""
        settings = self.settings.optimiser
        steps = int(self.trainer.estimated_stepping_batches)
        # One kernel for all. In float16 gradients are scaled, and a fused step would unscale them after the clipping.
        is_fused = str(self.trainer.precision) != "16-mixed"
        groups = parameter_groups(self.network, self.settings)
        optimiser = torch.optim.AdamW(groups, weight_decay=0.0, fused=is_fused)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, rate_factor(settings.schedule, round(settings.warmup_share * steps), steps)
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm of all gradients, as Lightning does: it refuses fused optimisers under any autocast, but in
        bfloat16 nothing is scaled."""
        if gradient_clip_val and str(self.trainer.precision) != "16-mixed":
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # Validation

    def on_validation_epoch_start(self) -> None:
        """Validate the averaged weights."""
        count, names = len(self.validation_rows), ("probability", "loss", *MASK_FIGURES)
        self._validation = {name: torch.zeros(count, device=self.device) for name in names}
        self._swap = contextlib.ExitStack()
        self._swap.enter_context(self.average.applied(self.network))
        self._swap.enter_context(merged(self.network))

    def validation_step(self, batch: FrameBatch) -> None:
        """Remember probability and losses of each frame."""
        positive = batch.label > 0
        images = normalise(batch.frames, self.preprocessing, torch.float32)
        rows = all_rows(images) if self.network.judges_by_mask else batch.annotated
        output = self.network(images, rows if self.network.has_decoder and len(rows) else None)
        presence = self.network.presence_of(output)
        at = torch.searchsorted(self.shown_rows, batch.rows)
        kept = self._validation
        kept["probability"][at] = presence.sigmoid()
        if output.presence is not None:
            kept["loss"][at] = presence_loss(presence, positive, self.settings.loss)
        if output.mask is not None:
            target = soft_masks(batch.masks[rows], output.mask.shape[-1])
            for name, values in mask_figures(output.mask, target, self.settings.loss).items():
                kept[name][at[rows]] = values

    def on_validation_epoch_end(self) -> None:
        """Figures over all validation frames: F1 at its best threshold, losses, the frame that would be chosen."""
        self._swap.close()
        if self._world_size > 1:
            for values in self._validation.values():
                torch.distributed.all_reduce(values)
        kept = {name: values.cpu().numpy() for name, values in self._validation.items()}
        table, rows, settings = self.validation_table, self.validation_rows, self.settings.loss
        label, weight = table.label[rows], self.validation_weight
        score, threshold = best_f1(kept["probability"], label > 0, weight)
        counts = count_frames(kept["probability"], label > 0, threshold, weight)
        figures = {"f1": score, "threshold": threshold, "precision": counts.precision, "recall": counts.recall}
        figures["wfss"] = frame_selection_score(kept["probability"], table.case[rows], label)
        figures["presence"] = figures["mask"] = 0.0
        if not self.network.judges_by_mask:
            figures["presence"] = float(np.average(kept["loss"], weights=weight))
        if self.network.has_decoder:
            judged = np.ones(len(label), bool) if self.network.judges_by_mask else label > 0
            figures |= summarise_masks({name: kept[name][judged] for name in MASK_FIGURES}, settings)
        figures["loss"] = settings.presence_factor * figures["presence"] + settings.mask_factor * figures["mask"]
        self.validation_figures = {name: float(value) for name, value in figures.items()}
        for name, value in self.validation_figures.items():
            self.log(f"val/{name}", value, prog_bar=name in ("f1", "loss"))

    # Checkpoints hold what training changes; the frozen tower is where the run's settings say.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out the frozen tower; add the average and the hard negatives."""
        trained = self.network.trained_state(counters=True)
        checkpoint["state_dict"] = {f"network.{name}": tensor for name, tensor in trained.items()}
        checkpoint["average"] = {"steps": self.average.steps, "state": self.average.state}
        checkpoint["validation"] = dict(self.validation_figures)
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        checkpoint["steps_of_epoch"] = 0 if progress.is_last_batch else int(progress.current.ready)
        checkpoint["run"] = self.identity
        checkpoint["tower_sha256"] = self.tower_sha256
        checkpoint["seconds"] = self.seconds_before + time.monotonic() - self._began
        checkpoint["last_seen"] = torch.from_numpy(self.hard.last_seen.copy())
        checkpoint["noted"] = self._noted_by_all().cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The reverse of `on_save_checkpoint`."""
        self.average.steps = checkpoint["average"]["steps"]
        self.average.state = checkpoint["average"]["state"]
        self.hard.last_seen = checkpoint["last_seen"].numpy().copy()
        # A checkpoint of an earlier version was written at an epoch's end, with nothing open.
        self._goes_on_at = (int(checkpoint["epoch"]), int(checkpoint.get("steps_of_epoch", 0)))
        if "noted" in checkpoint:
            self.hard.noted = checkpoint["noted"].clone()

    def on_fit_start(self) -> None:
        """The average and what is noted live where the network does."""
        self.average.to(self.device)
        self.hard.noted = self.hard.noted.to(self.device)
        dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(str(self.trainer.precision))
        if dtype is not None:
            self._fitting.enter_context(frozen_in(self.network, dtype))

    def on_fit_end(self) -> None:
        """The frozen tower is what it was before, to the bit."""
        self._fitting.close()


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])
