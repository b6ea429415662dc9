"""The paper's table, one row a command: independent seeded trials on the published split, and what they average to.

    python -m training table --row densenet121 --cache CACHE --split paper.json --out RESULTS [--trials 5]
                             [--weights FILE] [--random_init true] [--SECTION.SETTING VALUE ...]

Each trial has its own folder, RESULTS/<row>/trial_<seed>, starts from fresh weights and a seed of its own, and knows
nothing of the others. `--weights` and `--random_init` are for networks of timm, in place of the weights of timm's hub;
FetalCLIP's two rows take `--tower.weights`. Figures are of the test cases at threshold 0.5, in two protocols that are
never mixed: `annotated_sweeps` (the paper's: only sweeps with a circumference) and `all_frames`. RESULTS/results.csv
has a line a trial and protocol; RESULTS/table.md the means and standard deviations of all rows that are there.
"""

import argparse
import csv
import io
import shlex
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from jsonargparse import ActionConfigFile
from lightning.pytorch.utilities import rank_zero_only

from acouslic.errors import AcouslicError
from acouslic.locks import locked
from acouslic.write import write_text
from algorithm.model.file_hashes import hash_file
from training.export.trained_member import read_member, rebuild_network
from training.fit import add_settings, check_split_of_cache, settings_of
from training.frames.dataset import FrameTable, table_of
from training.learn.frame_metrics import FrameCounts, count_frames
from training.learn.learner import FrameLearner
from training.learn.out_of_fold import OutOfFold, read_out_of_fold, score_out_of_fold, write_out_of_fold
from training.learn.run_folder import RunFolder, read_settings
from training.learn.run_member import (
    FoldCases,
    describe_run,
    load_tower_for,
    run_member,
    scoring_device,
    tables_of,
    train,
)
from training.learn.trainer import alone_in
from training.network.baselines import ROWS, Row, build_baseline
from training.network.model import Network
from training.recipe.check_settings import check_seed
from training.recipe.command_line import command_parser, parse_with, refuse_other_than_utf8
from training.recipe.settings import FAITHFUL_CLS, FAITHFUL_SEG, TrainSettings
from training.release.cache import Cache
from training.release.split import Split, read_split

PROTOCOLS = ("annotated_sweeps", "all_frames")
THRESHOLD = 0.5
FIGURES = ("accuracy", "f1", "precision", "recall")


@dataclass(frozen=True)
class TrialResult:
    """One line of results.csv."""

    row: str
    seed: int
    protocol: str
    frames: int
    positives: int
    accuracy: float
    f1: float
    precision: float
    recall: float
    trained_parameters: int
    epochs: int
    seconds: float
    commit: str


@dataclass(frozen=True)
class TableTask:
    """What one command does."""

    row: Row
    cache: Cache
    split: Split
    settings: TrainSettings
    out: Path
    weights: Path | None
    random_init: bool
    command: str


def run_trial(task: TableTask, seed: int) -> list[TrialResult]:
    """One trial, trained unless it is there; its figures in both protocols, none in processes other than the first."""
    folder = RunFolder(task.out / task.row.name / f"trial_{seed}")
    settings = replace(task.settings, seed=seed)
    cases = FoldCases(task.split.training_cases(), task.split.validation_cases(), task.split.sha256())
    test = table_of(task.cache, task.split.test_cases())
    scores_path = folder.root / "test_scores.npz"
    if task.row.timm_name is None:
        run_member(task.cache, cases, settings, folder.root, command=task.command)
        if _is_first_process() and not scores_path.is_file():
            loaded = load_tower_for(task.cache, settings)
            network: Network = rebuild_network(read_member(folder), loaded)
            scored = score_out_of_fold(network, test, loaded.preprocessing, scoring_device(settings))
            write_out_of_fold(scores_path, scored)
    elif not folder.start(settings, cases.described(task.cache) | _start_of(task)):
        with alone_in(folder.root):
            _train_baseline(task, settings, cases, test, folder, scores_path)
    if not _is_first_process():
        return []
    return measure_trial(task.row, seed, folder, test, read_out_of_fold(scores_path))


def refuse_other_trials(task: TableTask) -> None:
    """Raises AcouslicError where a trial of the same row has other settings, or any trial of the table another split:
    their mean would be of nothing."""
    for other in sorted(task.out.glob("*/trial_*")):
        folder = RunFolder(other)
        if not (folder.settings_path.is_file() and folder.cases_path.is_file()):
            continue
        if other.parent.name == task.row.name:
            there = read_settings(folder.settings_path)
            folder.refuse_other_settings(replace(task.settings, seed=there.seed))
        found = folder.identity_of_split()
        if found != task.split.sha256():
            raise AcouslicError(
                f"{folder.cases_path} is of a trial on another split: one table has one split; choose another --out"
            )


def _is_first_process() -> bool:
    """Of those that train one trial; the first alone scores it and writes."""
    return not rank_zero_only.rank  # type: ignore[attr-defined]  # set by Lightning, in every process


def _start_of(task: TableTask) -> dict[str, Any]:
    """What a trial's weights started from, where it is not timm's hub: a trial that started from others is another."""
    if task.weights is not None:
        try:
            return {"weights_sha256": hash_file(task.weights)}
        except OSError as error:
            raise AcouslicError(f"{task.weights} is not a readable file of weights: {error.strerror}") from None
    return {"random_init": True} if task.random_init else {}


def _train_baseline(
    task: TableTask, settings: TrainSettings, cases: FoldCases, test: FrameTable, folder: RunFolder, scores_path: Path
) -> None:
    started = time.monotonic()
    described = describe_run(task.cache, cases, settings, task.command)
    lightning.seed_everything(settings.seed, workers=True, verbose=False)
    network, preprocessing = build_baseline(
        task.row,
        image_size=task.cache.image_size,
        weights=task.weights,
        random_init=task.random_init,
        antialias=task.cache.index.antialias,
    )
    learner = FrameLearner(network, settings, preprocessing, *tables_of(task.cache, cases, settings.sampling))
    facts = train(learner, folder)
    if facts is None:
        return
    scored = score_out_of_fold(network, test, preprocessing, scoring_device(settings))
    write_out_of_fold(scores_path, scored)
    seconds = round(learner.seconds_before + time.monotonic() - started, 1)
    folder.write_record(described | facts | {"seconds": seconds})


def measure_trial(row: Row, seed: int, folder: RunFolder, test: FrameTable, scored: OutOfFold) -> list[TrialResult]:
    """The figures of scored test frames, one result a protocol."""
    record = folder.read_record()
    # sigmoid(0) is 0.5: the threshold on the logit, without rounding.
    called = (scored.presence_logit >= 0).astype(np.float32)
    results = []
    for protocol in PROTOCOLS:
        usable = test.in_annotated_sweep if protocol == "annotated_sweeps" else np.ones(len(test), bool)
        positive = test.label[usable] > 0
        counts: FrameCounts = count_frames(called[usable], positive, THRESHOLD, None)
        results.append(
            TrialResult(
                row=row.name,
                seed=seed,
                protocol=protocol,
                frames=len(positive),
                positives=int(positive.sum()),
                accuracy=round(counts.accuracy, 6),
                f1=round(counts.f1, 6),
                precision=round(counts.precision, 6),
                recall=round(counts.recall, 6),
                trained_parameters=record["trained_parameters"],
                epochs=record["epochs"],
                seconds=record["seconds"],
                commit=record["commit"],
            )
        )
    return results


def write_results(out: Path, fresh: list[TrialResult]) -> None:
    """Put results into results.csv, in place of older ones of the same trial, and write table.md anew. Commands for
    several rows may run beside each other: one after another reads and writes."""
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, wait=True):
        _write_results(out, fresh)


def read_results(path: Path) -> list[dict[str, str]]:
    """The lines of a results.csv; none where there is no file. Raises AcouslicError where it is not as it was written:
    a spreadsheet may have saved it in a form of its own."""
    columns = list(TrialResult.__dataclass_fields__)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            lines = list(reader)
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AcouslicError(f"{path} is not a readable csv file ({error}): move it away") from None
    if reader.fieldnames != columns or any(None in (*line, *line.values()) for line in lines):
        raise AcouslicError(f"{path} is no table that this command wrote: move it away")
    return lines


def _write_results(out: Path, fresh: list[TrialResult]) -> None:
    path = out / "results.csv"
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for line in read_results(path):
        lines[line["row"], line["seed"], line["protocol"]] = line
    for result in fresh:
        line = {name: str(value) for name, value in asdict(result).items()}
        lines[line["row"], line["seed"], line["protocol"]] = line
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(TrialResult.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines.values())
    write_text(path, buffer.getvalue())
    write_text(out / "table.md", markdown_table(list(lines.values())))


def markdown_table(lines: list[dict[str, str]]) -> str:
    """A Markdown table a protocol: mean +- sample standard deviation over the trials of each row."""
    parts = []
    for protocol in PROTOCOLS:
        parts.append(f"### {protocol}, threshold {THRESHOLD}\n")
        parts.append("| model | accuracy | F1 | precision | recall | trained parameters | trials |")
        parts.append("|---|---|---|---|---|---|---|")
        for row in ROWS:
            trials = [line for line in lines if line["row"] == row.name and line["protocol"] == protocol]
            if trials:
                figures = " | ".join(_mean_and_sd([float(trial[name]) for trial in trials]) for name in FIGURES)
                millions = int(trials[0]["trained_parameters"]) / 1e6
                parts.append(f"| {row.title} | {figures} | {millions:.1f} M | {len(trials)} |")
        parts.append("")
    return "\n".join(parts)


def _mean_and_sd(values: list[float]) -> str:
    mean = f"{np.mean(values):.4f}"
    return f"{mean} ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else mean


def _refuse_settings_of_the_tower(row: Row, settings: TrainSettings) -> None:
    """Raises AcouslicError for a setting of tower, adapter or heads that a network of timm would not have."""
    for section in ("tower", "adapter", "heads"):
        given, unused = asdict(getattr(settings, section)), asdict(getattr(FAITHFUL_CLS, section))
        for name, value in given.items():
            if value != unused[name]:
                instead = "; give --weights or --random_init" if section == "tower" else ""
                raise AcouslicError(f"{section}.{name} has no effect on {row.name}, a network of timm{instead}")


def main(arguments: list[str]) -> int:
    """The command `python -m training table`."""
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--row", default="")
    wanted = chooser.parse_known_args(arguments)[0].row
    parser = command_parser("table", __doc__)
    parser.add_argument("--row", required=True, choices=[row.name for row in ROWS])
    parser.add_argument("--cache", required=True, help="folder that `prepare` made")
    parser.add_argument("--split", required=True, help="the paper's split, or another with test cases")
    parser.add_argument("--out", required=True, help="folder of results, one for all rows")
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--first_seed", type=int, default=1)
    parser.add_argument("--weights", help="file of a timm network's weights, in place of its hub")
    parser.add_argument("--random_init", type=bool, default=False, help="a timm network without pretrained weights")
    parser.add_argument("--config", action=ActionConfigFile, help="settings as YAML")
    add_settings(parser, FAITHFUL_SEG if wanted == "fetalclip_seg" else FAITHFUL_CLS)
    refuse_other_than_utf8("table", arguments)
    options = parse_with(parser, "table", arguments)
    if options.row != wanted:
        raise AcouslicError(
            f"table: a --config file says row: {options.row}, which decides the defaults only on the command line: "
            f"give --row {options.row} there"
        )
    if options.trials < 1:
        raise AcouslicError(f"--trials must be at least 1, not {options.trials}")
    check_seed("--first_seed", options.first_seed)
    check_seed("the last trial's seed", options.first_seed + options.trials - 1)
    split = read_split(Path(options.split))
    if not split.test_cases():
        raise AcouslicError(f"{options.split} has no test cases: make it with --protocol paper")
    cache = Cache(Path(options.cache))
    check_split_of_cache(split, cache)
    row = next(row for row in ROWS if row.name == options.row)
    if row.timm_name is None and (options.weights is not None or options.random_init):
        raise AcouslicError(f"--weights and --random_init are for networks of timm: {row.name} takes --tower.weights")
    settings = settings_of(options)
    if row.timm_name is not None:
        _refuse_settings_of_the_tower(row, settings)
    task = TableTask(
        row=row,
        cache=cache,
        split=split,
        settings=settings,
        out=Path(options.out),
        weights=None if options.weights is None else Path(options.weights),
        random_init=options.random_init,
        command=shlex.join(["python", "-m", "training", "table", *arguments]),
    )
    # Before hours of training.
    read_results(task.out / "results.csv")
    refuse_other_trials(task)
    for seed in range(options.first_seed, options.first_seed + options.trials):
        results = run_trial(task, seed)
        if results:
            write_results(task.out, results)
    if _is_first_process():
        print((task.out / "table.md").read_text(encoding="utf-8"))
    return 0
