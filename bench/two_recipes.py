"""Two recipes of training on sets of other patients: the first read plainly, as the paper does, the second as exported.

    python bench/two_recipes.py --first RUN... --second RUN... --set NAME=CACHE ... --scores FOLDER [--stride 6]

Each run is one seed, judged by itself; its reading is fitted on the cases that it left out. Differences are paired by
case and by seed, in the order in which the runs are named, with an interval by subject; a side's further runs have
their figures alone. With more sets than one a last table has all their cases. A run looks at a set once: `--scores`
keeps what it said. The last line is JSON.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from acouslic.errors import AcouslicError
from algorithm.engine.device import set_cpu_threads
from bench.figures.judged_sets import ALL_SETS, BEST, EXPORTED, PLAIN, Judged, difference, judge_sets, signed
from bench.figures.table import table
from bench.setting.command import at_least, exit_with, named_folders
from evaluation.metrics import intervals
from evaluation.metrics.intervals import Interval
from training.export.trained_member import read_member
from training.learn.run_folder import RunFolder
from training.release.cache import Cache

_FIRST, _SECOND = "first", "second"


def worth_difference(first: Sequence[Judged], second: Sequence[Judged]) -> Interval | None:
    """Of the WFSS of the second's exported choice and the first's plain one, seeds together."""
    plain, exported = (
        np.concatenate([judged.worth(reading) for judged in side])
        for side, reading in ((first, PLAIN), (second, EXPORTED))
    )
    subjects = [case.subject for judged in first for case in judged.cases]
    return intervals.paired_mean_interval(plain, exported, intervals.units_of(subjects))


@dataclass(frozen=True)
class ComparedRecipes:
    """Both recipes on one set."""

    cases: int
    figures: dict[str, dict[str, list[float]]]
    """By side and by name, of each run."""
    pairs: int
    """Runs of each side that are compared."""
    differences: dict[str, Interval | None]
    """Second minus first."""

    def text(self) -> str:
        """A table, and the differences below it."""
        rows = [
            [f"{side}: {name}", " ".join(f"{value:.3f}" for value in values), f"{np.mean(values):.3f}"]
            for side, figures in self.figures.items()
            for name, values in figures.items()
        ]
        lines = [table(["", "each run", "mean"], rows)]
        for name, one in self.differences.items():
            lines.append(f"{name}, {self.pairs} pairs of runs: {signed(one)}")
        return "\n".join(lines)

    def metrics(self) -> dict[str, object]:
        """As plain numbers."""
        differences = {name: None if one is None else one.metrics() for name, one in self.differences.items()}
        return vars(self) | {"differences": differences}


def compare_recipes(first: Sequence[Judged], second: Sequence[Judged]) -> ComparedRecipes:
    """The figures of each run, and the paired differences of as many runs as both sides have, at least one."""
    figures = {_FIRST: _figures(first), _SECOND: _figures(second)}
    pairs = min(len(first), len(second))
    first, second = first[:pairs], second[:pairs]
    differences = {
        "F1, second as exported minus first plain": difference(first, second, EXPORTED, PLAIN),
        "F1, both plain": difference(first, second, PLAIN),
        "F1, both as exported": difference(first, second, EXPORTED),
        "F1, both at each case's best threshold": difference(first, second, BEST),
        "WFSS, second as exported minus first plain": worth_difference(first, second),
    }
    return ComparedRecipes(len(first[0].cases), figures, pairs, differences)


def _figures(side: Sequence[Judged]) -> dict[str, list[float]]:
    figures = {f"F1, {reading}": [judged.f1(reading) for judged in side] for reading in (PLAIN, EXPORTED, BEST)}
    figures["average precision"] = [judged.average_precision for judged in side]
    for reading in (PLAIN, EXPORTED):
        figures[f"WFSS, {reading}"] = [float(judged.worth(reading).mean()) for judged in side]
    return figures


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    options = _parser().parse_args(arguments)
    sets = named_folders("--set", options.set)
    if not sets or ALL_SETS in sets:
        raise AcouslicError(f"give one --set or more, none of them called {ALL_SETS!r}: the last table is")
    set_cpu_threads()
    opened = {name: Cache(folder) for name, folder in sets.items()}
    judged: dict[str, dict[str, list[Judged]]] = {}
    for side, runs in ((_FIRST, options.first), (_SECOND, options.second)):
        for run in runs:
            members = [read_member(RunFolder(run))]
            own = Cache(options.cache or Path(members[0].record["cache"]))
            for name, one in judge_sets(members, own, opened, options.scores, options.stride).items():
                judged.setdefault(name, {}).setdefault(side, []).append(one)
    compared = {name: compare_recipes(sides[_FIRST], sides[_SECOND]) for name, sides in judged.items()}
    for name, one in compared.items():
        print(f"{name}: {one.cases} cases\n{one.text()}\n")
    print(json.dumps({name: one.metrics() for name, one in compared.items()}))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--first", type=Path, nargs="+", required=True, metavar="RUN", help="runs of the first recipe")
    parser.add_argument("--second", type=Path, nargs="+", required=True, metavar="RUN", help="runs of the second one")
    parser.add_argument("--cache", type=Path, help="of the runs, if it lies elsewhere now (default: where it was)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=CACHE", help="other patients; may be repeated"
    )
    parser.add_argument("--scores", type=Path, required=True, help="folder that keeps what each run said of each set")
    parser.add_argument("--stride", type=at_least(1), default=1, help="look at every n-th frame (default: %(default)s)")
    return parser


if __name__ == "__main__":
    exit_with(main)
