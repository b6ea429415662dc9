"""Trains one member in one folder, from wherever it stopped, and writes what an export needs."""

import errno
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning
import peft
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from acouslic.errors import AcouslicError, ShortageError
from acouslic.write import why_not_written, write_json
from algorithm.engine.device import choose_device, set_cpu_threads
from algorithm.model.artifact import HEADS_FILE
from algorithm.model.lora import ADAPTER_CONFIG_FILE
from algorithm.model.networks import PreprocessingConfig, TowerConfig
from algorithm.process.memory import keep_freed_memory
from training.frames.dataset import FrameTable, table_of
from training.learn.keeping import StopRequest, ended_by
from training.learn.learner import FrameLearner
from training.learn.out_of_fold import score_out_of_fold, write_out_of_fold
from training.learn.run_folder import RunFolder, made_by
from training.learn.trainer import alone_in, make_trainer, quiet_lightning, stopped_early_after
from training.network.model import FrameNetwork, build_network, count_trained
from training.network.tower_source import LoadedTower, hash_state, load_tower, open_clip_config, read_checkpoint
from training.recipe.settings import SamplingSettings, TrainSettings
from training.release.cache import Cache

CHECK_FRAMES = 48
CONVERGED_BACKGROUND = 0.05
"""Mean mask probability outside the abdomen, on annotated validation frames, below which a decoder counts as done."""


@dataclass(frozen=True)
class FoldCases:
    """Which cases a run learns from and is judged by."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    split_sha256: str | None = None
    fold: int | None = None
    folds: int | None = None
    """Of the split."""

    def described(self, cache: Cache) -> dict[str, Any]:
        """What a run with these cases of this cache may go on with."""
        return {
            "fold": self.fold,
            "split_sha256": self.split_sha256,
            "image_size": cache.image_size,
            "antialias": cache.index.antialias,
            "train_cases": list(self.train),
            "validation_cases": list(self.validation),
        }


def run_member(
    cache: Cache, cases: FoldCases, settings: TrainSettings, out: Path, *, command: str, check: bool = False
) -> RunFolder:
    """Train a member into `out`; a run that was ended goes on, a finished one is left alone.

    With `check` it is one batch of everything, in `out`, and no finished run. Raises AcouslicError where another
    process trains it.
    """
    folder = RunFolder(out)
    _refuse_seen(settings, cases)
    if folder.start(settings, cases.described(cache)):
        print(f"{out} is finished already", flush=True)
        return folder
    # Until its record is written: frames are scored for minutes after the last step.
    with alone_in(folder.root):
        _train_member(folder, cache, cases, settings, command=command, check=check)
    return folder


def _refuse_seen(settings: TrainSettings, cases: FoldCases) -> None:
    """Raises AcouslicError for weights to start from that have learned from validation cases of this run."""
    for name, weights in (("heads.weights", settings.heads.weights), ("tower.weights", settings.tower.weights)):
        if weights is None:
            continue
        # In a run's folder they lie one folder down; a file from elsewhere has no cases beside it.
        of_run = RunFolder(Path(weights).absolute().parent.parent)
        seen = set(of_run.train_cases() if of_run.cases_path.is_file() else ()) & set(cases.validation)
        if seen:
            raise AcouslicError(
                f"{name}: {weights} has learned from {len(seen)} of the {len(cases.validation)} cases that this run is "
                f"judged by ({of_run.cases_path}): start from weights of the same fold, or of other cases"
            )


def _train_member(
    folder: RunFolder, cache: Cache, cases: FoldCases, settings: TrainSettings, *, command: str, check: bool
) -> None:
    started = time.monotonic()
    # Now, not at the end: a pull or a commit in hours of training changes nothing of what runs here.
    described = describe_run(cache, cases, settings, command)
    loaded = load_tower_for(cache, settings)
    learner = build_learner(cache, cases, settings, loaded)
    learner.tower_sha256 = loaded.sha256
    facts = train(learner, folder, check=check)
    if facts is None:
        return
    network = learner.network
    assert isinstance(network, FrameNetwork)
    _write_member(folder, network, loaded, settings)
    rows = CHECK_FRAMES if check else None
    scored = score_out_of_fold(network, learner.validation_table, learner.preprocessing, scoring_device(settings), rows)
    write_out_of_fold(folder.out_of_fold, scored)
    if check:
        print("one batch of everything went through", flush=True)
        return
    tower_sha256 = hash_state(_tower_state(network)) if settings.tower.train_all else loaded.sha256
    folder.write_record(
        described
        | facts
        | {
            "tower": {"config": asdict(loaded.config), "preprocessing": asdict(loaded.preprocessing)},
            "tower_sha256": tower_sha256,
            "seconds": round(learner.seconds_before + time.monotonic() - started, 1),
        }
    )


def describe_run(cache: Cache, cases: FoldCases, settings: TrainSettings, command: str) -> dict[str, Any]:
    """What `run.json` says of how a run was started."""
    return made_by() | {
        "command": command,
        "seed": settings.seed,
        "fold": cases.fold,
        "folds": cases.folds,
        "split_sha256": cases.split_sha256,
        "cache": str(cache.folder.absolute()),
        "train_cases": list(cases.train),
        "validation_cases": list(cases.validation),
    }


def build_learner(cache: Cache, cases: FoldCases, settings: TrainSettings, loaded: LoadedTower) -> FrameLearner:
    """The whole of a run before its first step; the same for the same arguments, whatever ran before."""
    lightning.seed_everything(settings.seed, workers=True, verbose=False)
    train_table, validation_table = tables_of(cache, cases, settings.sampling)
    network = build_network(
        loaded,
        settings.adapter,
        settings.heads,
        train_all=settings.tower.train_all,
        checkpoint_blocks=settings.machine.checkpoint_blocks,
        mask_share=train_table.mask_share if settings.heads.mask_prior else None,
    )
    return FrameLearner(network, settings, loaded.preprocessing, train_table, validation_table)


def tables_of(cache: Cache, cases: FoldCases, sampling: SamplingSettings) -> tuple[FrameTable, FrameTable]:
    """The frames to learn from and to be validated on. Raises AcouslicError where the two share a case, or where one
    has no annotated frame that `sampling` shows."""
    train, validation = table_of(cache, cases.train), table_of(cache, cases.validation)
    shared = {case.uuid for case in train.cases} & {case.uuid for case in validation.cases}
    if shared:
        raise AcouslicError(f"case {sorted(shared)[0]} is in train and in validation: mend the split")
    for name, table in (("train", train), ("validation", validation)):
        if not (table.label > 0).any():
            raise AcouslicError(f"no {name} case has an annotated frame: check the split")
        if sampling.sweeps == "annotated" and not (table.label[table.in_annotated_sweep] > 0).any():
            raise AcouslicError(
                f"no {name} case has an annotated frame in a sweep with a circumference: check the split, or set "
                "sampling.sweeps to all"
            )
    return train, validation


def train(learner: FrameLearner, folder: RunFolder, *, check: bool = False) -> dict[str, Any] | None:
    """Train from the last checkpoint, or from the start, and put the kept epoch's averaged weights into the network.

    Returns what `run.json` says of it; None on processes other than the first. Raises StoppedError where a signal
    ended it, ShortageError where the disk is full, and AcouslicError where the checkpoint is of another run.
    """
    settings, network = learner.settings, learner.network
    learner.identity = folder.identity()
    threads, reason = set_cpu_threads() if settings.machine.threads is None else (settings.machine.threads, "as asked")
    torch.set_num_threads(threads)
    keep_freed_memory()
    print(f"{threads} CPU threads: {reason}", flush=True)
    print(
        f"{len(learner.train_table.cases)} cases to train ({(learner.train_table.label > 0).sum()} frames with an "
        f"abdomen), {len(learner.validation_table.cases)} to validate; "
        f"{count_trained(network) / 1e6:.2f} M trained parameters",
        flush=True,
    )
    last = folder.checkpoints / "last.ckpt"
    checkpoint = read_own_checkpoint(last, folder, learner.tower_sha256) if last.is_file() and not check else None
    from_step = 0 if checkpoint is None else int(checkpoint["global_step"])
    # Of an earlier version's checkpoint nobody knows.
    learner.seconds_before = 0.0 if checkpoint is None else float(checkpoint.get("seconds", 0.0))
    # A run that had stopped early and was ended while its frames were scored has nothing left to train.
    stopped_after = None if checkpoint is None else stopped_early_after(checkpoint, settings)
    request = StopRequest()
    with quiet_lightning(), ended_by(request, last):
        trainer = make_trainer(folder, settings, check, request, from_step)
        if checkpoint is not None:
            print(f"goes on from step {from_step} ({last})", flush=True)
        if stopped_after is None:
            path = None if checkpoint is None else str(last)
            del checkpoint
            try:
                trainer.fit(learner, ckpt_path=path, weights_only=True)
            except OSError as error:  # of TensorBoard's file; what we write ourselves says so by itself
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise ShortageError(f"{folder.root} could not be written: {why_not_written(error)}") from None
        if request.number is not None:  # in the last moments of the fit
            raise KeyboardInterrupt(request.number)
    if not trainer.is_global_zero:
        return None
    facts: dict[str, Any] = {
        "trained_parameters": count_trained(network),
        "epochs": trainer.current_epoch if stopped_after is None else stopped_after,
        "kept": _take_best(learner, folder, settings, check),
        "precision": str(trainer.precision),
    }
    say_where_unfinished(facts["kept"], from_step if stopped_after is not None else trainer.global_step)
    return facts


def read_own_checkpoint(path: Path, folder: RunFolder, tower_sha256: str | None) -> dict[str, Any]:
    """A checkpoint of this run. Raises AcouslicError where it is of another, which learned from other cases or on
    another tower."""
    content = read_checkpoint(path)
    own, found = folder.identity(), content.get("run")
    if found is not None and found != own:
        differing = "fold" if found.get("fold") != own["fold"] else "cases"
        raise AcouslicError(
            f"{path} is a checkpoint of another run (its {differing} differ: fold {found.get('fold')}, this is fold "
            f"{own['fold']}): remove it, or choose another --out"
        )
    # An earlier version's checkpoint does not say.
    if content.get("tower_sha256") not in (None, tower_sha256):
        raise AcouslicError(
            f"{path} was trained on another tower: the file of weights has changed since; put the earlier one back, or "
            "choose another --out"
        )
    return content


def say_where_unfinished(kept: dict[str, Any], steps: int) -> None:
    """Warn of a decoder that has not learned to leave the background dark, in the epoch that is kept of `steps`."""
    background = kept.get("mask_background")
    if background is not None and background > CONVERGED_BACKGROUND:
        instead = " or choose --optimiser.keep last" if kept["steps"] < steps else ""
        print(
            f"the mask decoder that is kept, of step {kept['steps']} of {steps}, is not done: it gives pixels outside "
            f"the abdomen a probability of {background:.2f} on average, a finished one less than "
            f"{CONVERGED_BACKGROUND} (val/mask_background in metrics.csv); raise --optimiser.epochs{instead}",
            flush=True,
        )


def load_tower_for(cache: Cache, settings: TrainSettings) -> LoadedTower:
    """The settings' tower, for the frames of a cache. Raises AcouslicError where they do not fit each other."""
    shapes = {(case.record.rows, case.record.columns) for case in cache.cases}
    if len(shapes) > 1 and settings.tower.kept_patches == "fan":
        raise AcouslicError(f"{cache.folder} holds frames of several shapes: tower.kept_patches=fan needs one")
    loaded = load_tower(settings.tower, min(shapes), cache.index.antialias)
    if loaded.config.image_size != cache.image_size:
        raise AcouslicError(
            f"{cache.folder} holds frames of {cache.image_size} pixels, the tower takes {loaded.config.image_size}: "
            f"prepare with --image-size {loaded.config.image_size}"
        )
    return loaded


def scoring_device(settings: TrainSettings) -> torch.device:
    """Where frames are scored after training."""
    return choose_device("cpu" if settings.machine.accelerator == "cpu" else None)[0]


def _take_best(learner: FrameLearner, folder: RunFolder, settings: TrainSettings, check: bool) -> dict[str, Any]:
    """Put the kept epoch's averaged weights into the network; returns that epoch's figures. Raises AcouslicError where
    they are no numbers any more."""
    if check:
        return {}
    name = "last" if settings.optimiser.keep == "last" else "best"
    checkpoint = read_checkpoint(folder.checkpoints / f"{name}.ckpt")
    values = [*checkpoint["average"]["state"].values(), torch.tensor(list(checkpoint["validation"].values()))]
    if not all(torch.isfinite(value).all() for value in values):
        raise AcouslicError(
            f"the training diverged: weights or losses of the kept epoch, {checkpoint['epoch'] + 1}, are NaN or "
            "infinite; choose another --out and a lower --optimiser.learning_rate"
        )
    learner.network.cpu()
    # Counters too, so that the member is the same whether the run ended here or went on from a file. The frozen tower
    # is not in it.
    learner.load_state_dict(checkpoint["state_dict"], strict=False)
    learner.average.state = checkpoint["average"]["state"]
    learner.average.copy_into(learner.network)
    return {"epoch": checkpoint["epoch"], "steps": checkpoint["global_step"]} | checkpoint["validation"]


def _tower_state(network: FrameNetwork) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in network.tower.state_dict().items()}


def _write_member(folder: RunFolder, network: FrameNetwork, loaded: LoadedTower, settings: TrainSettings) -> None:
    """The adapter as peft saves it, the heads, and the tower where it was trained. Raises ShortageError where the disk
    is full."""
    try:
        _write_weights(folder, network, loaded, settings)
    except (OSError, SafetensorError) as error:
        why = why_not_written(error) if isinstance(error, OSError) else str(error)
        raise ShortageError(f"{folder.member} could not be written: {why}") from None


def _write_weights(folder: RunFolder, network: FrameNetwork, loaded: LoadedTower, settings: TrainSettings) -> None:
    network.cpu().eval()
    folder.member.mkdir(parents=True, exist_ok=True)
    if isinstance(network.tower, peft.PeftModel):
        network.tower.save_pretrained(str(folder.member), save_embedding_layers=False)
        (folder.member / "README.md").unlink(missing_ok=True)  # an empty model card
        _sort_sets(network.tower.peft_config["default"].to_dict(), folder.member / ADAPTER_CONFIG_FILE)
    heads = {name: tensor.contiguous() for name, tensor in network.heads.state_dict().items()}
    save_file(heads, folder.member / HEADS_FILE)
    write_json(folder.member / "member.json", asdict(network.member))
    if settings.tower.train_all:
        save_tower(folder.tower, loaded.config, loaded.preprocessing, _tower_state(network))


def _sort_sets(config: Mapping[str, Any], path: Path) -> None:
    """Sort what peft keeps as sets: it writes them in an order that differs from process to process, and a run that
    was stopped and went on should write the same bytes."""
    written = json.loads(path.read_text())
    names = [name for name, value in config.items() if isinstance(value, set)]
    write_json(path, written | {name: sorted(written[name]) for name in names})


def save_tower(
    folder: Path, config: TowerConfig, preprocessing: PreprocessingConfig, state: dict[str, torch.Tensor]
) -> None:
    """A tower as `--tower.weights FOLDER/tower.safetensors --tower.config FOLDER/open_clip_config.json` read it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "tower.safetensors")
    write_json(folder / "open_clip_config.json", open_clip_config(config, preprocessing))
