"""What one setting of training is worth: runs that differ in it alone, on the same folds with the same seeds.

    python bench/ablation.py --cache CACHE --split SPLIT --out FOLDER [--folds 1 2 3] [--seeds 1 2 3]
                             [--set NAME=CACHE ...] [--closed NAME ...] [--stride 6]
                             --variant "softer ends=--loss.soft_ends 2" --variant ... -- COMMON SETTINGS OF `fit`

The first row is the run with the common settings, every further one adds a variant's. Each run learns without its fold
and is judged on it, every frame, nested: a reading is fitted on the other folds' cases where there are several folds.
Figures are pooled over folds; those of the seeds are listed one by one. Differences are to the first row, paired by
case and seed, with an interval by subject.

Each `--set` is a cache of other patients. The runs of a seed judge it together, as an ensemble of their folds, and the
reading is fitted on all the cases that they left out. With more sets than one a last table has all their cases. A set
named by `--closed` is left out until the option is dropped: choose on the others, then open it once.

Runs, and what they said of a set, are kept in FOLDER: what is there is not run again. The last line is JSON.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from acouslic.errors import AcouslicError
from algorithm.engine.device import set_cpu_threads
from bench.figures.answers import OUT_OF_FOLD
from bench.figures.judged_sets import ALL_SETS, PLAIN, Judged, difference, judge_runs, judge_sets, signed
from bench.figures.table import table
from bench.setting.command import at_least, exit_with, named_folders
from training.export.trained_member import read_member
from training.fit import main as fit
from training.learn.run_folder import RunFolder
from training.release.cache import Cache

_COMMON = "as it is"


def describe(found: dict[str, list[Judged]]) -> tuple[str, dict[str, object]]:
    """The table, and the same as plain numbers."""
    base = found[_COMMON]
    readings = list(base[0].called)
    header = ["", "average precision", *(f"F1, {name}" for name in readings), *(f"difference, {n}" for n in readings)]
    rows, record = [], {}
    for name, seeds in found.items():
        figures: dict[str, list[float]] = {"average precision": [one.average_precision for one in seeds]}
        figures |= {f"F1, {reading}": [one.f1(reading) for one in seeds] for reading in readings}
        figures["WFSS"] = [float(one.worth(PLAIN).mean()) for one in seeds]
        differences = {reading: difference(base, seeds, reading) for reading in readings}
        rows.append([name, *(_listed(values) for values in figures.values()), *map(signed, differences.values())])
        record[name] = figures | {
            f"difference, {reading}": None if one is None else one.metrics() for reading, one in differences.items()
        }
    header.insert(2 + len(readings), "WFSS")
    return table(header, rows), record


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    words = sys.argv[1:] if arguments is None else arguments
    split_at = words.index("--") if "--" in words else len(words)
    options = _parser().parse_args(words[:split_at])
    variants = {_COMMON: list[str]()}
    for given in options.variant:
        name, found, settings = given.partition("=")
        if not found or not name or name in variants:
            raise AcouslicError(f"--variant takes NAME=SETTINGS, each name once, not {given!r}")
        variants[name] = shlex.split(settings)
    for name in ("folds", "seeds"):
        given_numbers = getattr(options, name)
        if len(set(given_numbers)) < len(given_numbers):
            raise AcouslicError(f"--{name} must name each number once, not {given_numbers}")
    sets = named_folders("--set", options.set)
    if OUT_OF_FOLD in sets or ALL_SETS in sets:
        raise AcouslicError(f"no --set may be called {OUT_OF_FOLD!r} or {ALL_SETS!r}: two tables are called so")
    if unknown := set(options.closed) - set(sets):
        raise AcouslicError(f"--closed names {', '.join(sorted(unknown))}, but --set does not")
    cache = Cache(options.cache)
    opened = {name: Cache(folder) for name, folder in sets.items() if name not in options.closed}
    found: dict[str, dict[str, list[Judged]]] = {}
    for name, settings in variants.items():
        for seed in options.seeds:
            runs = [options.out / name.replace(" ", "_") / f"seed_{seed}" / f"fold_{fold}" for fold in options.folds]
            for fold, run in zip(options.folds, runs, strict=True):
                where = [f"--cache={options.cache}", f"--split={options.split}", f"--fold={fold}", f"--out={run}"]
                fit([*where, f"--seed={seed}", *words[split_at + 1 :], *settings])
            members = [read_member(RunFolder(run)) for run in runs]
            judged = {OUT_OF_FOLD: judge_runs(members, cache)}
            set_cpu_threads()
            judged |= judge_sets(members, cache, opened, options.out / "scores", options.stride)
            for set_name, one in judged.items():
                found.setdefault(set_name, {}).setdefault(name, []).append(one)
    records = {}
    for set_name, by_variant in found.items():
        text, records[set_name] = describe(by_variant)
        cases = len(by_variant[_COMMON][0].cases)
        print(f"{set_name}: {cases} cases, seeds {options.seeds}, folds {options.folds}\n{text}\n")
    print(json.dumps(records))
    return 0


def _listed(values: Sequence[float]) -> str:
    return f"{' '.join(f'{value:.3f}' for value in values)}; {np.mean(values):.3f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="cases that `acouslic train prepare` made")
    parser.add_argument("--split", type=Path, required=True, help="file that `acouslic train split` made")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the runs; those that are there are not run again"
    )
    parser.add_argument("--folds", type=at_least(1), nargs="+", default=[1], help="of the split, from 1 (default: 1)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one run each (default: 1 2 3)")
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME=SETTINGS",
        help="a row of runs with these settings of `fit` too; may be repeated",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=CACHE", help="other patients; may be repeated"
    )
    parser.add_argument("--closed", nargs="*", default=[], metavar="NAME", help="sets that are not looked at yet")
    parser.add_argument(
        "--stride", type=at_least(1), default=1, help="look at every n-th frame of a set (default: %(default)s)"
    )
    parser.epilog = "Settings of `fit` that all runs have follow after --."
    return parser


if __name__ == "__main__":
    exit_with(main)
