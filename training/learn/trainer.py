"""Lightning's trainer of a run: its precision, its callbacks, and checkpoints from which it goes on anywhere."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from acouslic.errors import AcouslicError
from acouslic.locks import locked
from algorithm.engine.device import choose_device
from training.learn.autocast import autocast_type
from training.learn.keeping import Keeping, StopRequest, WholeCheckpoints
from training.learn.run_folder import RunFolder
from training.learn.run_log import LOG_EVERY, Bar, StepFigures, make_loggers
from training.recipe.settings import MachineSettings, TrainSettings


def make_trainer(
    folder: RunFolder, settings: TrainSettings, check: bool, request: StopRequest, from_step: int = 0
) -> lightning.Trainer:
    """The trainer of a run that begins at a step; with `check` of one batch, without files.

    Raises AcouslicError where the machine is not as the settings say.
    """
    machine, optimiser = settings.machine, settings.optimiser
    leave_fresh_memory()
    try:
        return lightning.Trainer(
            accelerator=machine.accelerator,
            devices=machine.devices if machine.accelerator != "cpu" or machine.devices != "auto" else 1,
            num_nodes=machine.nodes,
            strategy=machine.strategy,
            precision=choose_training_precision(machine),  # type: ignore[arg-type]
            plugins=_plugins(),
            default_root_dir=folder.root,
            max_epochs=1 if check else optimiser.epochs,
            limit_train_batches=1 if check else None,
            limit_val_batches=1 if check else None,
            logger=False if check else make_loggers(folder.root, from_step),
            callbacks=_callbacks(folder, settings, check, request),
            enable_checkpointing=not check,
            enable_model_summary=False,
            gradient_clip_val=optimiser.clip_norm or None,
            num_sanity_val_steps=0,
            log_every_n_steps=LOG_EVERY,
            use_distributed_sampler=False,
            reload_dataloaders_every_n_epochs=1,
            sync_batchnorm=torch.cuda.is_available() and machine.accelerator != "cpu",
            deterministic="warn",
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        asked = f"machine.accelerator={machine.accelerator}, machine.devices={machine.devices}"
        if SLURMEnvironment.detect():
            asked += f", and Slurm's job has SLURM_NTASKS={os.environ.get('SLURM_NTASKS')}"
        raise AcouslicError(f"this machine cannot train as asked ({asked}): {' '.join(str(error).split())}") from None


@contextlib.contextmanager
def alone_in(root: Path) -> Iterator[None]:
    """Inside, no other process trains the run in `root`: two would write the same checkpoints and table of figures.

    Raises AcouslicError where one does already; the further processes of one run are let through. On a file system
    without locks nobody can tell.
    """
    # The rank is set by Lightning, in every process; that of a further machine (NODE_RANK) only with its trainer.
    if rank_zero_only.rank or LightningEnvironment().node_rank():  # type: ignore[attr-defined]
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(root, wait=False))
        except BlockingIOError:
            raise AcouslicError(
                f"another process trains in {root}: wait until it has ended, or choose another --out"
            ) from None
        yield


def _plugins() -> list[Any]:
    # A requeued job starts the same command again, which goes on. Lightning's own way would look for a checkpoint
    # wherever the job was started, and take that of another fold.
    slurm = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
    return [WholeCheckpoints(), *slurm]


def leave_fresh_memory() -> None:
    """Deterministic algorithms would write every fresh tensor once for nothing: none is read before it is written."""
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property


def _callbacks(folder: RunFolder, settings: TrainSettings, check: bool, request: StopRequest) -> list[Callback]:
    """In an order that matters: figures before the bar that shows them, and the best checkpoint before the last, which
    holds the best one's state."""
    optimiser = settings.optimiser
    figures = StepFigures()
    keeping = Keeping(folder.checkpoints / "last.ckpt", request)
    callbacks: list[Callback] = [figures, Bar(figures)]
    if check:  # of one batch, after which nothing is saved
        return [*callbacks, keeping]
    monitor, mode = ("val/f1", "max") if optimiser.keep == "f1" else ("val/loss", "min")
    if optimiser.keep != "last":
        callbacks.append(_Checkpoint(folder.checkpoints, "best", monitor, mode))
    callbacks.append(_Checkpoint(folder.checkpoints, "last"))
    if optimiser.patience_epochs is not None:
        callbacks.append(
            EarlyStopping(monitor, mode=mode, patience=optimiser.patience_epochs, check_on_train_epoch_end=True)
        )
    return [*callbacks, keeping]


def choose_training_precision(machine: MachineSettings) -> str:
    """Lightning's name of the precision: as asked, or what the device is fast in."""
    if machine.precision != "auto":
        return machine.precision
    device, _ = choose_device("cpu" if machine.accelerator == "cpu" else None)
    dtype, reason = autocast_type(device)
    name = {torch.bfloat16: "bf16-mixed", torch.float16: "16-mixed"}.get(dtype, "32-true")
    print(f"precision {name} on {device}: {reason}", flush=True)
    return name


def stopped_early_after(checkpoint: dict[str, Any], settings: TrainSettings) -> int | None:
    """The number of epochs after which early stopping had ended the run of a checkpoint; None where it had not."""
    patience = settings.optimiser.patience_epochs
    for name, state in checkpoint["callbacks"].items():
        if name.startswith("EarlyStopping") and patience is not None and state["wait_count"] >= patience:
            return int(checkpoint["epoch"]) + 1
    return None


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's advice: what it advises against is meant here, or does not matter."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        try:
            yield
        finally:
            logger.setLevel(level)


_EXPECTED_WARNINGS: Sequence[str] = (
    ".*does not have many workers.*",  # reading memory-mapped frames is not what takes the time
    ".*The number of training batches.*is smaller than the logging interval.*",
    ".*Checkpoint directory.*exists and is not empty.*",  # a run that goes on
    ".*resuming from a checkpoint that ended before the epoch ended.*",  # the loader begins at the step
    ".*No device id is provided via.*",
    ".*GPU available but not used.*",
    ".*LeafSpec.*is deprecated.*",  # Lightning 2.6 against torch 2.14
)


class _Checkpoint(ModelCheckpoint):
    """One file, `name`.ckpt, of the best epoch by `monitor`, or without it of the last."""

    def __init__(self, folder: Path, name: str, monitor: str | None = None, mode: str = "min") -> None:
        super().__init__(
            folder,
            filename=name,
            monitor=monitor,
            mode=mode,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of a run that goes on, wherever it was begun: Lightning forgets how good the best epoch was where the folder
        has another name now."""

        def moved(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        state = {name: moved(value) if name.endswith("_path") else value for name, value in state_dict.items()}
        state["best_k_models"] = {moved(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state | {"dirpath": self.dirpath})
