"""What a run writes down while it trains: one table of figures, TensorBoard's events, and the bar on the screen.

Figures of a step are read one interval after they were computed, so that nobody waits for the device.
"""

import csv
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from acouslic.errors import AcouslicError, ShortageError
from acouslic.write import why_not_written, write_text

LOG_EVERY = 10
"""Steps between two lines."""


class MetricsCsv(Logger):
    """`metrics.csv`: a line a step that is logged, a column a figure, empty where a line has none.

    A run that goes on keeps writing to the same file, from the step of its checkpoint. Lines after that step are
    removed, since those steps are trained again.
    """

    def __init__(self, path: Path, from_step: int) -> None:
        super().__init__()
        self._path = path
        self._from_step = from_step
        self._columns: list[str] = ["epoch", "step"]
        self._rows: list[dict[str, str]] = []
        self._open: dict[str, str] | None = None
        self._written = 0
        self._begun = False

    @property
    def name(self) -> str:
        """Of the folder, which Lightning asks for."""
        return self._path.parent.name

    @property
    def version(self) -> str:
        """There is one."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """`settings.yaml` has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add figures to the line of their step."""
        self._begin()
        cells = {name: f"{value:.8g}" for name, value in metrics.items()} | {"step": str(step)}
        if "epoch" in cells:
            cells["epoch"] = str(int(metrics["epoch"]))
        if (
            self._open is not None
            and self._open["step"] == cells["step"]
            and not self._open.keys() & (cells.keys() - {"epoch", "step"})
        ):
            self._open |= cells
            return
        self.save()
        self._open = cells

    @rank_zero_only
    def save(self) -> None:
        """Write the line that is open, below the others or, with a new column, with all of them."""
        if self._open is None:
            return
        new = [name for name in self._open if name not in self._columns]
        self._rows.append(self._open)
        self._open = None
        if new or not self._path.is_file():
            self._columns += sorted(new)
            self._rewrite()
            return
        try:
            with self._path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns, lineterminator="\n").writerow(self._rows[-1])
        except OSError as error:
            raise ShortageError(f"{self._path} could not be written: {why_not_written(error)}") from None

    @rank_zero_only
    def finalize(self, status: str) -> None:  # noqa: ARG002  # Lightning's signature
        """Nothing is left open."""
        self.save()

    def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        if self._path.is_file():
            self._columns, rows = _read_table(self._path)
            self._rows = [row for row in rows if int(row["step"]) < self._from_step]
            self._rewrite()

    def _rewrite(self) -> None:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, self._columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._path, buffer.getvalue())


def _read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and whole lines of a table; a last line that was cut off by a kill is left out."""
    text = path.read_text(encoding="utf-8")
    reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
    columns = list(reader.fieldnames or ())
    try:
        return columns, [dict(row) for row in reader if int(row["step"]) >= 0]
    except (KeyError, TypeError, ValueError, csv.Error):
        raise AcouslicError(f"{path} is no table of a run's figures: move it away, and the run goes on") from None


def make_loggers(root: Path, from_step: int) -> list[Logger]:
    """The loggers of the run in `root` that begins, or goes on, at a step."""
    return [
        MetricsCsv(root / "logs" / "metrics.csv", from_step),
        TensorBoardLogger(root, name="", version="tensorboard", purge_step=from_step),
    ]


@dataclass(frozen=True)
class _Waiting:
    """Figures of a step on their way to the host."""

    step: int
    epoch: int
    known: dict[str, float]
    names: list[str]
    values: Tensor
    arrived: torch.cuda.Event | None

    def read(self) -> dict[str, float]:
        if self.arrived is not None:
            self.arrived.synchronize()  # long ago, but for the first step
        return {f"train/{name}": value for name, value in zip(self.names, self.values.tolist(), strict=True)}


class StepFigures(Callback):
    """Loss, its parts, learning rate and speed, every `LOG_EVERY` steps and at the first.

    The module's `step_figures` holds tensors on its device; they are copied aside and read when the next are due.
    """

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}
        """What was read last, for the bar."""
        self._waiting: _Waiting | None = None
        self._frames = 0
        self._since = time.perf_counter()

    def on_train_epoch_start(self, *_: Any) -> None:
        """The clock runs in training alone."""
        self._restart_clock()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, learner: Any, _: Any, batch: Any, batch_index: int
    ) -> None:
        """Note this step's figures where they are due."""
        self._frames += len(batch.rows) * trainer.world_size
        is_first = trainer.global_step <= 1
        if (batch_index + 1) % LOG_EVERY and not is_first:
            return
        self._log_waiting(trainer)
        seconds = max(1e-9, time.perf_counter() - self._since)
        known = {"train/frames_per_s": self._frames / seconds}
        known["train/learning_rate"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        figures: dict[str, Tensor] = learner.step_figures
        values = torch.stack([value.detach().float() for value in figures.values()])
        aside = torch.empty(values.shape, pin_memory=values.is_cuda).copy_(values, non_blocking=True)
        arrived = None
        if values.is_cuda:
            arrived = torch.cuda.Event()
            arrived.record()
        step, epoch = trainer.global_step - 1, trainer.current_epoch
        self._waiting = _Waiting(step, epoch, known, list(figures), aside, arrived)
        self._restart_clock()
        if is_first:
            self._log_waiting(trainer)

    def on_validation_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """What is waiting comes before the epoch's own line."""
        self._log_waiting(trainer)

    def on_exception(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Also where the run ends early."""
        self._log_waiting(trainer)

    def _log_waiting(self, trainer: lightning.Trainer) -> None:
        if self._waiting is None:
            return
        waiting, self._waiting = self._waiting, None
        self.latest = waiting.read() | waiting.known
        for logger in trainer.loggers:
            logger.log_metrics(self.latest | {"epoch": waiting.epoch}, waiting.step)

    def _restart_clock(self) -> None:
        self._frames, self._since = 0, time.perf_counter()


class Bar(TQDMProgressBar):
    """Lightning's bar from the first step on, with loss, speed and the last validation."""

    def __init__(self, figures: StepFigures, shown: Sequence[str] = ("train/loss", "train/frames_per_s")) -> None:
        super().__init__(refresh_rate=LOG_EVERY)
        self._figures = figures
        self._shown = shown

    def get_metrics(self, trainer: lightning.Trainer, *_: Any) -> dict[str, int | str | float | dict[str, float]]:
        """Without a version of a logger: a run has no versions."""
        shown = {name.removeprefix("train/"): self._figures.latest.get(name) for name in self._shown}
        metrics: dict[str, Any] = {name: f"{value:.4g}" for name, value in shown.items() if value is not None}
        return metrics | trainer.progress_bar_metrics

    def _should_update(self, current: int, total: int) -> bool:
        return self.is_enabled and (current == 1 or super()._should_update(current, total))
