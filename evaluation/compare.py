"""Two runs on the same cases: the paired difference of each figure, with an interval over subjects.

`python -m evaluation compare RUN_A RUN_B`, each a folder that an evaluation wrote. Only `per_case.csv` and
`metrics.json` are read, so neither submission nor ground truth is needed any more.
"""

import argparse
import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from acouslic.errors import AcouslicError
from acouslic.strict_json import read_strict_json, shown
from acouslic.table import plain_cell
from evaluation.metrics.frame_f1 import PROTOCOLS, TARGETS, ConfusionCounts, Rule
from evaluation.metrics.intervals import RESAMPLES, paired_f1_interval, paired_mean_interval, units_of
from evaluation.metrics.summary import F1_PREFIX, SELECTION_NAME, counts_prefix

COMPARED_MEANS = ("score", "wfss", "DiceCoefficientSoft", "nae_circumference")
SMALLER_IS_BETTER = frozenset({"nae_circumference"})
_LIMIT_BYTES = 64 * 1024 * 1024
_MOST_RESAMPLES = 100_000
_AGREEMENT = 1e-9
_NAMED_CASES = 5


@dataclass(frozen=True)
class RunCases:
    """What is compared of a run: one row a case, sorted by case."""

    folder: Path
    rows: dict[str, dict[str, str]]

    def number(self, case: str, column: str) -> float | None:
        """A cell as a number; None where it is empty. Raises AcouslicError for text."""
        text = self._cell(case, column)
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise AcouslicError(f"{self.folder}: case {case}, {column}: expected a finite number, got {shown(text)}")
        return value

    def counts(self, case: str, prefix: str) -> ConfusionCounts | None:
        """A confusion matrix of a case; None where its cells are empty."""
        cells = [self.number(case, f"{prefix}_{cell}") for cell in ("tp", "fp", "fn", "tn")]
        known = [int(cell) for cell in cells if cell is not None and cell.is_integer() and cell >= 0]
        if len(known) < len(cells):
            if any(cell is not None for cell in cells):
                raise AcouslicError(f"{self.folder}: case {case}, {prefix}_tp, ...: expected four counts, got {cells}")
            return None
        return ConfusionCounts(*known)

    def subject(self, case: str) -> str | None:
        """The subject of a case; None where the ground truth had none."""
        return self._cell(case, "subject_id") or None

    def labels(self, case: str) -> str | None:
        """What tells the annotated frames of its reference from others; None in a run of an earlier version."""
        return self.rows[case].get("labels_sha256") or None

    def _cell(self, case: str, column: str) -> str:
        row = self.rows[case]
        if column not in row:
            raise AcouslicError(f"{self.folder / 'per_case.csv'}: column {column} is missing; evaluate the run again")
        return row[column]


@dataclass(frozen=True)
class Difference:
    """One compared figure, over the cases in which both runs have it."""

    name: str
    cases: int
    value_a: float
    value_b: float
    lower: float | None
    upper: float | None
    """95 % interval of B - A; None where a single subject cannot give one."""
    better: int | None
    worse: int | None
    """Cases in which B is better or worse than A; None for F1, which is of pooled frames."""

    @property
    def difference(self) -> float:
        """B - A."""
        return self.value_b - self.value_a


def read_run(folder: Path) -> RunCases:
    """The cases of a run.

    Raises AcouslicError where a file is missing or damaged, a case is there twice, or the mean score of the cases is
    not the one in `metrics.json`, so that the two files are not of one run.
    """
    path = folder / "per_case.csv"
    metrics = read_strict_json(folder / "metrics.json", _LIMIT_BYTES, "an evaluated run")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True, restkey="", restval=None))
    except FileNotFoundError:
        raise AcouslicError(f"{path} is missing: expected a folder that an evaluation wrote") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AcouslicError(f"{path} is not a readable csv file: {error}") from None
    by_case: dict[str, dict[str, str]] = {}
    for line, row in enumerate(rows, start=2):
        if "" in row or None in row.values() or "case" not in row:
            raise AcouslicError(f"{path}: row {line} does not fit the header, which must have a column case")
        row["case"] = plain_cell(row["case"])
        if row["case"] in by_case:
            raise AcouslicError(f"{path}: case {shown(row['case'])} is there twice")
        by_case[row["case"]] = row
    if not by_case:
        raise AcouslicError(f"{path} has no cases")
    if isinstance(metrics, dict) and "score" not in metrics and "score" not in rows[0]:
        raise AcouslicError(f"{folder} has frames alone, as `evaluate frames` writes them: compare runs with masks")
    run = RunCases(folder, dict(sorted(by_case.items())))
    _check_same_run(run, metrics)
    return run


def _check_same_run(run: RunCases, metrics: Any) -> None:
    stated = metrics.get("score", {}) if isinstance(metrics, dict) else None
    stated = stated.get("mean") if isinstance(stated, dict) else None
    found = _means(run, list(run.rows), "score").mean()
    if type(stated) not in (int, float) or not abs(stated - found) <= _AGREEMENT:
        raise AcouslicError(
            f"{run.folder}: metrics.json says score.mean {shown(stated)}, per_case.csv {found}; evaluate the run again"
        )


def compare_runs(run_a: RunCases, run_b: RunCases, resamples: int = RESAMPLES) -> list[Difference]:
    """Every figure that both runs have, in a fixed order: means, then F1 by target and protocol.

    F1 is at each submission's own threshold; `selection_f1` calls the chosen frame alone. Where scores are missing,
    F1 is over the cases with scores in both runs and its name ends in `_of_scored_cases`.
    Raises AcouslicError where the runs do not have the same cases, subjects or reference frames.
    """
    cases = _common_cases(run_a, run_b)
    units = units_of([run_a.subject(case) for case in cases])
    differences = [_mean_difference(run_a, run_b, cases, name, units, resamples) for name in COMPARED_MEANS]
    rules: tuple[Rule, ...] = ("own_threshold", "selection")
    for rule in rules:
        for target in TARGETS:
            for protocol in PROTOCOLS:
                name = f"{SELECTION_NAME[target] if rule == 'selection' else F1_PREFIX[target]}_{protocol}"
                difference = _f1_difference(run_a, run_b, cases, name, counts_prefix(target, rule, protocol), units)
                if difference is not None:
                    differences.append(difference)
    return differences


def _common_cases(run_a: RunCases, run_b: RunCases) -> list[str]:
    only_a, only_b = sorted(run_a.rows.keys() - run_b.rows.keys()), sorted(run_b.rows.keys() - run_a.rows.keys())
    for run, only in ((run_a, only_a), (run_b, only_b)):
        if only:
            some = ", ".join(shown(case) for case in only[:_NAMED_CASES])
            raise AcouslicError(
                f"the runs have different cases: {len(only_a)} only in {run_a.folder}, {len(only_b)} only in "
                f"{run_b.folder}; only in {run.folder}: {some}{', ...' if len(only) > _NAMED_CASES else ''}"
            )
    for case in run_a.rows:
        same = run_a.subject(case) == run_b.subject(case) and _reference(run_a, case) == _reference(run_b, case)
        labels = {run_a.labels(case), run_b.labels(case)} - {None}
        if not same or len(labels) > 1 or _measured_otherwise(run_a, run_b, case):
            raise AcouslicError(f"case {shown(case)} was scored against different references in the two runs")
    return list(run_a.rows)


def _reference(run: RunCases, case: str) -> list[tuple[int, int]]:
    """Positive and other frames of each target and protocol: equal where the reference was the same."""
    found = []
    for target in TARGETS:
        for protocol in PROTOCOLS:
            counts = run.counts(case, counts_prefix(target, "selection", protocol)) or ConfusionCounts()
            found.append((counts.tp + counts.fn, counts.fp + counts.tn))
    return found


def _measured_otherwise(run_a: RunCases, run_b: RunCases, case: str) -> bool:
    """Whether the same chosen frame was held against two circumferences."""
    if run_a.number(case, "frame_number") != run_b.number(case, "frame_number"):
        return False
    length_a_mm, length_b_mm = run_a.number(case, "reference_ac_mm"), run_b.number(case, "reference_ac_mm")
    if length_a_mm is None or length_b_mm is None:
        return length_a_mm != length_b_mm
    return abs(length_a_mm - length_b_mm) > _AGREEMENT


def _means(run: RunCases, cases: Sequence[str], column: str) -> np.ndarray:
    values = [run.number(case, column) for case in cases]
    if None in values:
        raise AcouslicError(f"{run.folder}: case {shown(cases[values.index(None)])} has no {column}")
    return np.array(values, dtype=float)


def _mean_difference(
    run_a: RunCases, run_b: RunCases, cases: Sequence[str], name: str, units: np.ndarray, resamples: int
) -> Difference:
    values_a, values_b = _means(run_a, cases, name), _means(run_b, cases, name)
    interval = paired_mean_interval(values_a, values_b, units, resamples)
    gain = values_a - values_b if name in SMALLER_IS_BETTER else values_b - values_a
    return Difference(
        name=name,
        cases=len(cases),
        value_a=float(values_a.mean()),
        value_b=float(values_b.mean()),
        lower=None if interval is None else interval.lower,
        upper=None if interval is None else interval.upper,
        better=int(np.sum(gain > 0)),
        worse=int(np.sum(gain < 0)),
    )


def _f1_difference(
    run_a: RunCases, run_b: RunCases, cases: Sequence[str], name: str, prefix: str, units: np.ndarray
) -> Difference | None:
    both: list[tuple[int, ConfusionCounts, ConfusionCounts]] = []
    for index, case in enumerate(cases):
        counts_a, counts_b = run_a.counts(case, prefix), run_b.counts(case, prefix)
        if counts_a is not None and counts_b is not None:
            both.append((index, counts_a, counts_b))
    all_a, all_b = [a for _, a, _ in both], [b for _, _, b in both]
    value_a, value_b = sum(all_a, ConfusionCounts()).f1, sum(all_b, ConfusionCounts()).f1
    interval = paired_f1_interval(all_a, all_b, units[[index for index, _, _ in both]])
    if value_a is None or value_b is None:
        return None
    return Difference(
        name=name if len(both) == len(cases) else f"{name}_of_scored_cases",
        cases=len(both),
        value_a=value_a,
        value_b=value_b,
        lower=None if interval is None else interval.lower,
        upper=None if interval is None else interval.upper,
        better=None,
        worse=None,
    )


def comparison_table(run_a: RunCases, run_b: RunCases, differences: Sequence[Difference]) -> str:
    """The differences for reading, one line each."""
    lines = [
        f"A  {run_a.folder}",
        f"B  {run_b.folder}",
        "",
        f"{'':44} {'cases':>5} {'A':>8} {'B':>8} {'B - A':>8}   95 % interval        B better / worse",
    ]
    for item in differences:
        clear, around = " ", "-"
        if item.lower is not None and item.upper is not None:
            clear = "*" if item.lower > 0 or item.upper < 0 else " "
            around = f"{item.lower:+.4f} to {item.upper:+.4f}"
        cases = "" if item.better is None else f"{item.better:>8} / {item.worse}"
        lines.append(
            f"{item.name:44} {item.cases:>5} {item.value_a:8.4f} {item.value_b:8.4f} {item.difference:+8.4f} "
            f"{clear} {around:18}   {cases}".rstrip()
        )
    lines += ["", "* the interval leaves out 0. nae_circumference: smaller is better."]
    failed = [sum(bool(row.get("failure")) for row in run.rows.values()) for run in (run_a, run_b)]
    if any(failed):
        lines.append(f"Cases that could not be scored, and have the worst values: {failed[0]} in A, {failed[1]} in B.")
    return "\n".join(lines)


def main(arguments: Sequence[str], say: Callable[[str], None] = print) -> None:
    """`compare RUN_A RUN_B`: prints the table and, as the last line, the same as JSON."""
    parser = argparse.ArgumentParser(prog="acouslic evaluate compare", description="Compare two evaluated runs.")
    parser.add_argument("run_a", type=Path, help="folder with metrics.json and per_case.csv of the first run")
    parser.add_argument("run_b", type=Path, help="the same of the second run; differences are second - first")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help="bootstrap resamples (%(default)s)")
    options = parser.parse_args(arguments)
    if not 1 <= options.resamples <= _MOST_RESAMPLES:
        raise AcouslicError(f"--resamples must be from 1 to {_MOST_RESAMPLES:,}, got {options.resamples}")
    run_a, run_b = read_run(options.run_a), read_run(options.run_b)
    differences = compare_runs(run_a, run_b, options.resamples)
    say(comparison_table(run_a, run_b, differences))
    say(json.dumps(comparison_json(run_a, differences, options.resamples), allow_nan=False))


def comparison_json(run: RunCases, differences: Sequence[Difference], resamples: int) -> dict[str, Any]:
    """The same as plain numbers, by figure."""
    units = units_of([run.subject(case) for case in run.rows])
    return {
        "cases": len(run.rows),
        "units": len(set(units.tolist())),
        "resamples": resamples,
        "differences": {
            item.name: {
                "cases": item.cases,
                "a": item.value_a,
                "b": item.value_b,
                "difference": item.difference,
                "lower": item.lower,
                "upper": item.upper,
            }
            | ({} if item.better is None else {"better": item.better, "worse": item.worse})
            for item in differences
        },
    }
