"""A run that is ended: by SIGTERM or Ctrl-C, under Slurm, between two checkpoints. What is kept, and how it goes on."""

import csv
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from acouslic.errors import AcouslicError, ShortageError
from training.__main__ import main as training_main
from training.fit import main
from training.learn.keeping import Keeping, StoppedError, StopRequest
from training.learn.out_of_fold import score_out_of_fold
from training.learn.run_folder import RunFolder
from training.learn.run_log import MetricsCsv
from training.learn.trainer import alone_in

EPOCHS = "--optimiser.epochs=3"


def words(tiny_training: Any, out: Path, *more: str) -> list[str]:
    """Of a run on the second fold with several steps an epoch."""
    split = f"--split={tiny_training.subject_split}"
    return tiny_training.fit_arguments(out, split, "--fold=2", EPOCHS, "--optimiser.batch_size=4", *more)


@pytest.fixture(scope="module")
def whole(tiny_training: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without interruption."""
    out = tmp_path_factory.mktemp("stop") / "whole"
    assert main(words(tiny_training, out)) == 0
    return out


def assert_same_member(first: Path, second: Path) -> None:
    """To the bit, of the same epoch."""
    for name in ("adapter_model.safetensors", "heads.safetensors"):
        one, other = (load_file(run / "member" / name) for run in (first, second))
        assert [key for key in one if not torch.equal(one[key], other[key])] == []
    records = [RunFolder(run).read_record() for run in (first, second)]
    assert records[0]["kept"] == records[1]["kept"]


def steps_of(run: Path) -> list[int]:
    """The steps in the run's one table of figures."""
    assert not list(run.glob("logs_*"))
    with (run / "logs" / "metrics.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_an_epoch_loses_nothing(
    number: signal.Signals, whole: Path, tiny_training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of the second epoch: the step is finished, a checkpoint written, exit code and sentence say so;
    the same command goes on to the same bits, and to one table of figures."""
    run = tmp_path / "run"
    per_epoch = _steps_per_epoch(whole)
    assert per_epoch > 4
    ended_at = per_epoch + per_epoch // 2
    _signal_at(ended_at, number, monkeypatch)
    with pytest.raises(StoppedError, match=rf"stopped by {number.name} in epoch 2, step {ended_at}: .*goes on") as told:
        main(words(tiny_training, run))
    assert told.value.exit_code == 128 + number
    assert not (run / "run.json").exists()
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == ended_at
    monkeypatch.undo()
    assert main(words(tiny_training, run)) == 0
    assert_same_member(whole, run)
    assert steps_of(run) == steps_of(whole)


def test_in_half_precision_too(tiny_training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: bfloat16, with the frozen tower held in it, recomputed blocks and frames read by another process."""
    more = ["--machine.precision=bf16-mixed", "--machine.checkpoint_blocks=true", "--machine.workers=1"]
    assert main(words(tiny_training, tmp_path / "whole", *more)) == 0
    _signal_at(_steps_per_epoch(tmp_path / "whole") + 1, signal.SIGTERM, monkeypatch)
    with pytest.raises(StoppedError):
        main(words(tiny_training, tmp_path / "run", *more))
    monkeypatch.undo()
    assert main(words(tiny_training, tmp_path / "run", *more)) == 0
    assert_same_member(tmp_path / "whole", tmp_path / "run")
    assert RunFolder(tmp_path / "run").read_record()["precision"] == "bf16-mixed"


def _signal_at(step: int, number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Keeping.on_train_batch_end

    def signalled(self: Keeping, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == step:
            os.kill(os.getpid(), number)
        save(self, trainer, *rest)

    monkeypatch.setattr(Keeping, "on_train_batch_end", signalled)


def _steps_per_epoch(run: Path) -> int:
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return int(checkpoint["global_step"]) // 3


def test_a_checkpoint_by_time_goes_on_to_the_same_bits(
    whole: Path, tiny_training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed outright, without a word, after a checkpoint that the clock asked for."""
    run, killed_at = tmp_path / "run", _steps_per_epoch(whole) * 2 + 3
    monkeypatch.setattr("training.learn.keeping.SAVE_EVERY_S", 0.0)
    init, save = Keeping.__init__, Keeping.on_train_batch_end
    monkeypatch.setattr(Keeping, "__init__", lambda self, path, request: init(self, path, request, 0.0))

    def killed(self: Keeping, trainer: Any, *rest: Any) -> None:
        save(self, trainer, *rest)
        if trainer.global_step == killed_at:
            raise RuntimeError("as if killed")

    monkeypatch.setattr(Keeping, "on_train_batch_end", killed)
    with pytest.raises(RuntimeError, match="as if killed"):
        main(words(tiny_training, run))
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == killed_at
    monkeypatch.undo()
    assert main(words(tiny_training, run)) == 0
    assert_same_member(whole, run)


def test_a_run_that_is_being_trained_is_not_trained_twice(
    tiny_training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the command for Slurm is given again while its jobs still run: the second is refused, and the first
    does not notice. Afterwards the run is free."""
    run, refused = tmp_path / "run", []
    one_epoch = words(tiny_training, run, "--optimiser.epochs=1")
    begin = Keeping.on_train_start

    def try_again(self: Keeping, trainer: Any, *rest: Any) -> None:
        command = [sys.executable, "-m", "training", "fit", *one_epoch]
        refused.append(subprocess.run(command, capture_output=True, text=True, timeout=240))
        begin(self, trainer, *rest)

    monkeypatch.setattr(Keeping, "on_train_start", try_again)
    assert main(one_epoch) == 0
    assert refused[0].returncode == 1
    assert f"another process trains in {run}: wait" in refused[0].stderr.splitlines()[-1]
    (run / "run.json").unlink()
    monkeypatch.undo()
    assert main(one_epoch) == 0


def test_a_run_that_scores_its_frames_is_not_trained_again(
    tiny_training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left to train by then, but its member is written for the second time, and its record once more."""
    run, refused = tmp_path / "run", []
    one_epoch = words(tiny_training, run, "--optimiser.epochs=1")

    def try_again(*rest: Any) -> Any:
        with pytest.raises(AcouslicError, match="another process trains in"):
            main(one_epoch)
        refused.append(True)
        return score_out_of_fold(*rest)

    monkeypatch.setattr("training.learn.run_member.score_out_of_fold", try_again)
    assert main(one_epoch) == 0
    assert refused == [True]


def test_a_further_machine_of_a_run_is_let_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither Slurm nor torchrun numbers the processes, Lightning is told by NODE_RANK which machine it is on."""
    with alone_in(tmp_path):
        with pytest.raises(AcouslicError, match="another process trains in"), alone_in(tmp_path):
            pass
        monkeypatch.setenv("NODE_RANK", "1")
        with alone_in(tmp_path):
            pass


def test_a_full_disk_leaves_the_checkpoint_before(
    whole: Path, tiny_training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second checkpoint that does not fit ends the run with one sentence, and the first one is whole: the same
    command goes on from it to the same bits. Nothing is written anywhere else on the way."""
    run, written = tmp_path / "run", []

    def fsync(_: int) -> None:
        written.append((run / "checkpoints" / ".last.partial.ckpt").is_file())
        if sum(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("acouslic.write.os.fsync", fsync)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "no folder"))
    with pytest.raises(ShortageError, match=r"checkpoints/last\.ckpt could not be written: No space left on device"):
        main(words(tiny_training, run))
    monkeypatch.undo()
    steps = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < steps < 3 * _steps_per_epoch(whole)
    assert main(words(tiny_training, run)) == 0
    assert_same_member(whole, run)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error")])
def test_a_member_that_does_not_fit_is_one_sentence(
    error: Exception, tiny_training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever library met the full disk."""

    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr("training.learn.run_member.save_file", full)
    with pytest.raises(ShortageError, match=r"run/member could not be written: (No space left|I/O error)"):
        main(words(tiny_training, tmp_path / "run", "--optimiser.epochs=1"))


def test_a_table_of_figures_that_does_not_fit_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk may fill between two lines."""
    table = MetricsCsv(tmp_path / "metrics.csv", 0)
    table.log_metrics({"a": 1.0}, 0)
    table.log_metrics({"a": 2.0}, 1)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(ShortageError, match=r"metrics\.csv could not be written: No space left on device"):
        table.finalize("success")


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (errno.ENOSPC, ShortageError, "run could not be written: No space left on device"),
        (errno.EIO, OSError, "Input/output error"),
    ],
)
def test_figures_for_tensorboard_that_do_not_fit_are_one_sentence(
    number: int,
    kind: type[Exception],
    said: str,
    tiny_training: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its writer may be the first to meet a full disk; any other trouble of a disk stays what it is."""

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("training.learn.run_log.TensorBoardLogger.log_metrics", fail)
    with pytest.raises(kind, match=said):
        main(words(tiny_training, tmp_path / "run", "--optimiser.epochs=1"))


def test_a_signal_while_it_validates_ends_it(
    tiny_training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No checkpoint can be written there: the sentence says how old the last one is, or that there is none."""
    request: list[StopRequest] = []
    init = Keeping.__init__

    def remember(self: Keeping, path: Path, asked: StopRequest) -> None:
        request.append(asked)
        init(self, path, asked)

    monkeypatch.setattr(Keeping, "__init__", remember)
    monkeypatch.setattr(Keeping, "on_validation_start", lambda *_: os.kill(os.getpid(), signal.SIGTERM), raising=False)
    with pytest.raises(StoppedError, match="no checkpoint was written yet, so the same command begins anew"):
        main(words(tiny_training, tmp_path / "run"))
    assert request[0].number == signal.SIGTERM


def test_a_stopped_command_ends_with_the_code_of_its_signal(
    tiny_training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`ensemble && export` stops: 143, and the sentence is the last line of stderr."""

    def stopped(*_: Any, **__: Any) -> None:
        raise StoppedError(signal.SIGTERM, "stopped by SIGTERM: kept")

    monkeypatch.setattr("training.ensemble.fit_fold", stopped)
    release, out = f"--raw={tiny_training.release}", tmp_path / "work"
    arguments = [
        word for word in tiny_training.fit_arguments(out, "--antialias=true") if not word.startswith("--cache")
    ]
    assert training_main(["ensemble", release, "--folds=2", *arguments]) == 143
    told = capsys.readouterr()
    assert told.err.splitlines()[-1] == "stopped by SIGTERM: kept"
    assert f"fold 1 of 2, in {out / 'fold_1'}" in told.out


def test_a_signal_before_training_ends_the_command(tiny_training: Any, tmp_path: Path) -> None:
    """While torch is imported, or a tower is loaded: 143 and one sentence."""
    command = [sys.executable, "-m", "training", "fit", *words(tiny_training, tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    _out, err = process.communicate(timeout=300)
    # Before Python has installed the handler, the signal's own default ends it.
    assert process.returncode in (143, -signal.SIGTERM)
    if process.returncode == 143:
        assert "stopped by SIGTERM" in err.splitlines()[-1]
        assert "Traceback" not in err


def test_slurm_gives_no_run_the_checkpoint_of_another(
    whole: Path, tiny_training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another fold's checkpoint in the current folder is not looked at; one in the run's own folder is refused by
    name, under Lightning's name for it and under ours."""
    one_epoch = ["--optimiser.epochs=1", "--fold=1"]
    shutil.copy(whole / "checkpoints" / "last.ckpt", tmp_path / "hpc_ckpt_1.ckpt")
    monkeypatch.chdir(tmp_path)
    slurm = {"NTASKS": "1", "JOB_ID": "7", "JOB_NAME": "x", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert main(words(tiny_training, tmp_path / "under", *one_epoch)) == 0
    assert not list(tmp_path.glob("lightning_logs"))
    for name in slurm:
        monkeypatch.delenv(f"SLURM_{name}")
    assert main(words(tiny_training, tmp_path / "without", *one_epoch)) == 0
    assert_same_member(tmp_path / "under", tmp_path / "without")

    other = tmp_path / "without"
    (other / "run.json").unlink()
    shutil.copy(whole / "checkpoints" / "last.ckpt", other / "checkpoints" / "last.ckpt")
    with pytest.raises(AcouslicError, match=r"last\.ckpt is a checkpoint of another run .*fold 2, this is fold 1"):
        main(words(tiny_training, other, *one_epoch))
    (other / "hpc_ckpt_1.ckpt").touch()
    with pytest.raises(AcouslicError, match=r"hpc_ckpt_1\.ckpt is no checkpoint of this program"):
        main(words(tiny_training, other, *one_epoch))


def test_a_gpu_that_is_not_there_is_one_sentence(
    tiny_training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for by name, it is no traceback."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(AcouslicError, match=r"cannot train as asked \(machine\.accelerator=gpu"):
        main(words(tiny_training, tmp_path / "run", "--machine.accelerator=gpu"))


def test_a_run_says_how_it_does(whole: Path) -> None:
    """Learning rate, speed, precision, recall, WFSS and the mask's background are in the table, from the first step."""
    with (whole / "logs" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    trained = [row for row in rows if row["train/loss"]]
    assert trained[0]["step"] == "0"
    assert all(float(row["train/learning_rate"]) > 0 and float(row["train/frames_per_s"]) > 0 for row in trained)
    judged = [row for row in rows if row["val/f1"]]
    assert len(judged) == 3
    for name in ("precision", "recall", "wfss", "mask_dice", "mask_background"):
        assert all(0 <= float(row[f"val/{name}"]) <= 1 for row in judged)


def test_the_bar_shows_the_first_step_and_no_version(
    tiny_training: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A short epoch is seen, with its loss, and without a logger's version."""
    assert main(words(tiny_training, tmp_path / "run", "--optimiser.epochs=1")) == 0
    told = capsys.readouterr()
    shown = told.out + told.err
    assert "v_num" not in shown
    assert " 1/" in shown
    assert "loss=" in shown


def test_what_is_trained_again_is_written_once(tmp_path: Path) -> None:
    """A table that goes on from step 3 loses what came after, and a line that a kill cut off; new columns join it."""
    path = tmp_path / "logs" / "metrics.csv"
    first = MetricsCsv(path, 0)
    for step in range(5):
        first.log_metrics({"a": step / 2, "epoch": 0}, step)
    first.save()
    with path.open("a") as file:
        file.write("0,5")
    second = MetricsCsv(path, 3)
    second.log_metrics({"a": 9.0}, 3)
    second.log_metrics({"b": 1.0}, 3)
    second.finalize("success")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["a"], row["b"]) for row in rows] == [
        ("0", "0", ""),
        ("1", "0.5", ""),
        ("2", "1", ""),
        ("3", "9", "1"),
    ]
