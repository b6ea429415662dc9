"""Which cases train, validate and test: the published split, or folds by subject.

    python -m training split --protocol paper --csv CSV [--runs RUNS] [--out FILE]
    python -m training split --protocol subject --csv CSV --runs RUNS [--folds 5] [--seed 1] [--out FILE]

`paper` is the split of "Advancing Fetal Ultrasound Image Quality Assessment in Low-Resource Settings" (arXiv
2507.22802): a fixed permutation of the table's uuids, 70, 10 and 20 %. It ignores subjects; stderr says how many cases
have a subject who is also in an earlier part. `subject` makes k folds that share no subject and have about the same
share of cases with an optimal frame; member i of an ensemble validates on fold i and trains on the others. Which frames
are optimal is read from RUNS, or from a prepared cache with `--cache CACHE` in its place.

Stdout is one JSON object: the counts of each part. Sweeps and frames are those that the paper uses, of sweeps with a
circumference; positives are their frames with label 1 or 2, null where neither runs nor a cache are given.
"""

import argparse
import hashlib
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from acouslic.errors import AcouslicError
from acouslic.release import CaseCircumferences, read_circumferences
from acouslic.write import write_json
from training.recipe.check_settings import check_seed
from training.release.case_labels import CaseLabels, labels_of_cache, labels_of_runs, labels_of_table

SCHEMA_VERSION = 1
PAPER_SEED = 9872398152123123767126
PAPER_PARTS = ("train", "validation", "test")
Protocol = Literal["paper", "subject"]


@dataclass(frozen=True)
class Split:
    """Cases by part. Parts are disjoint and none is empty."""

    protocol: Protocol
    seed: int
    parts: dict[str, tuple[str, ...]]
    """`paper`: train, validation, test. `subject`: fold_1, fold_2, ... Each the uuids of its cases."""

    @property
    def members(self) -> int:
        """How many different trainings the split is for: one, or one a fold."""
        return len(self.parts) if self.protocol == "subject" else 1

    def training_cases(self, member: int = 0) -> tuple[str, ...]:
        """What a member (0, 1, ...) trains on."""
        if self.protocol == "paper":
            self._check_member(member)
            return self.parts["train"]
        validation = self._fold_name(member)
        return tuple(uuid for name, uuids in self.parts.items() if name != validation for uuid in uuids)

    def validation_cases(self, member: int = 0) -> tuple[str, ...]:
        """What a member is stopped, calibrated and thresholded on."""
        return self.parts["validation" if self.protocol == "paper" else self._fold_name(member)]

    def test_cases(self) -> tuple[str, ...]:
        """What no member sees; none in a split by subject."""
        return self.parts.get("test", ())

    def sha256(self) -> str:
        """Of the canonical JSON of protocol, seed and parts: what an artifact's manifest names."""
        content = {"protocol": self.protocol, "seed": self.seed, "parts": self.parts}
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def _check_member(self, member: int) -> None:
        if not 0 <= member < self.members:
            raise AcouslicError(f"fold {member + 1} is not there: the split is for members 1 to {self.members}")

    def _fold_name(self, member: int) -> str:
        self._check_member(member)
        return f"fold_{member + 1}"


def sha256_of_members(sha256s: Sequence[str], folds: Sequence[int | None]) -> str:
    """What an artifact's manifest names as the split of its members, from that of each and the fold that it validates
    on, from 1: the split's own where the first member has the first fold, and so on; else that of all of these, which
    is no split's. None is the one validation part of the paper's split."""
    numbers = [fold or 1 for fold in folds]
    if len(set(sha256s)) == 1 and numbers == list(range(1, len(numbers) + 1)):
        return sha256s[0]
    return hashlib.sha256(json.dumps([sha256s, numbers]).encode()).hexdigest()


def split_as_paper(uuids: list[str]) -> Split:
    """The published split of the uuids in the order of the csv."""
    order = np.random.default_rng(PAPER_SEED).permutation(np.array(uuids, str)).tolist()
    # As the published code has it: (1 - 0.2) n is not always 0.8 n in floating point.
    ends = (0, int(0.7 * len(order)), int((1 - 0.2) * len(order)), len(order))
    parts = {name: tuple(order[ends[i] : ends[i + 1]]) for i, name in enumerate(PAPER_PARTS)}
    empty = [name for name, part in parts.items() if not part]
    if empty:
        raise AcouslicError(f"{len(uuids)} cases are too few for the paper's split: {empty[0]} gets none")
    return Split("paper", PAPER_SEED, parts)


def split_by_subject(rows: list[CaseCircumferences], has_optimal: list[bool], *, folds: int, seed: int) -> Split:
    """`folds` folds grouped by subject, stratified by having an optimal frame (one value a row)."""
    from sklearn.model_selection import StratifiedGroupKFold  # takes a second to import

    subjects = [row.subject_id for row in rows]
    count = len(set(subjects))
    if count < 2:
        raise AcouslicError(f"folds share no subject, so they take two subjects at least: the table has {count}")
    if not 2 <= folds <= count:
        raise AcouslicError(f"{count} subjects cannot make {folds} folds; choose --folds of 2 to {count}")
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    strata = np.array(has_optimal, int)
    if min(np.bincount(strata, minlength=2)) < folds and strata.any() and not strata.all():
        print(f"warning: fewer than {folds} cases with or without an optimal frame: folds differ", file=sys.stderr)
    if max(np.bincount(strata)) < folds:
        strata[:] = 0  # too few of either kind to stratify
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # said above, for people
        chosen = [test for _, test in splitter.split(subjects, strata, subjects)]
    parts = {f"fold_{i + 1}": tuple(rows[at].uuid for at in fold) for i, fold in enumerate(chosen)}
    empty = [name for name, part in parts.items() if not part]
    if empty:
        raise AcouslicError(f"{count} subjects left {empty[0]} of {folds} empty; choose fewer --folds")
    return Split("subject", seed, parts)


def shared_subject_cases(split: Split, subjects: dict[str, str]) -> dict[str, int]:
    """For each part but the first: how many of its cases are of a subject who is also in an earlier part.

    `subjects` has the subject of each case.
    """
    seen: set[str] = set()
    counts = {}
    for index, (name, uuids) in enumerate(split.parts.items()):
        own = [subjects[uuid] for uuid in uuids]
        if index:
            counts[name] = sum(subject in seen for subject in own)
        seen.update(own)
    return counts


def check_split(split: Split, rows: dict[str, CaseCircumferences]) -> dict[str, int]:
    """Hold a split against the table; returns `shared_subject_cases`.

    Raises AcouslicError for a case that is not in the table or is in two parts, for a case of the table in no part, and
    what `check_subjects` raises.
    """
    uuids = [uuid for part in split.parts.values() for uuid in part]
    unknown = sorted(set(uuids) - set(rows))
    if unknown:
        raise AcouslicError(f"the split's case {unknown[0]} is not in the table of circumferences; split again")
    if len(uuids) != len(set(uuids)):
        twice = next(uuid for uuid in uuids if uuids.count(uuid) > 1)
        raise AcouslicError(f"the split has case {twice} in more than one place; split again")
    left_out = sorted(set(rows) - set(uuids))
    if left_out:
        raise AcouslicError(
            f"case {left_out[0]} of the table of circumferences is in no part of the split; split again"
        )
    return check_subjects(split, {uuid: row.subject_id for uuid, row in rows.items()})


def check_subjects(split: Split, subjects: dict[str, str]) -> dict[str, int]:
    """Look for leaks by subject, given that of each case; returns `shared_subject_cases`.

    Raises AcouslicError for a subject in two folds of a split by subject. For the paper's split it is a warning on
    stderr.
    """
    shared = shared_subject_cases(split, subjects)
    total = sum(shared.values())
    if total and split.protocol == "subject":
        raise AcouslicError(f"{total} cases of the split are of a subject who is also in another fold; split again")
    if total:
        counts = " and ".join(f"{count} {name} cases" for name, count in shared.items() if count)
        print(f"warning: {counts} are of a subject who is also in an earlier part", file=sys.stderr)
    return shared


def write_split(path: Path, split: Split) -> None:
    """Write a split file."""
    content = {"schema_version": SCHEMA_VERSION, "protocol": split.protocol, "seed": split.seed}
    write_json(path, {**content, "parts": split.parts, "sha256": split.sha256()})


def read_split(path: Path) -> Split:
    """A split file. Raises AcouslicError where it is not one, or its content is not what its hash was made of."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema_version"] != SCHEMA_VERSION or content["protocol"] not in ("paper", "subject"):
            raise AcouslicError(f"{path} is a split file of another kind; split again")
        split = Split(
            content["protocol"], content["seed"], {name: tuple(part) for name, part in content["parts"].items()}
        )
        stated = content["sha256"]
    except FileNotFoundError:
        raise AcouslicError(f"{path} is missing; make it: acouslic train split --out {path.name}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AcouslicError(f"{path} is not a split file: {error!r}; split again") from None
    if split.sha256() != stated:
        raise AcouslicError(f"{path} was changed after it was written (its sha256 does not fit); split again")
    return split


def count_parts(
    split: Split, rows: dict[str, CaseCircumferences], labels: dict[str, CaseLabels], shared: dict[str, int]
) -> dict[str, Any]:
    """The JSON object that the command prints."""
    result: dict[str, Any] = {"protocol": split.protocol, "seed": split.seed, "sha256": split.sha256()}
    result["shared_subject_cases"] = shared
    for name, uuids in split.parts.items():
        cases = [labels[uuid] for uuid in uuids]
        known = all(case.optimal_frames is not None for case in cases)
        optimal = sum(case.optimal_frames or 0 for case in cases)
        suboptimal = sum(case.suboptimal_frames or 0 for case in cases)
        result[name] = {
            "cases": len(cases),
            "subjects": len({rows[uuid].subject_id for uuid in uuids}),
            "sweeps": sum(case.annotated_sweeps for case in cases),
            "frames": sum(case.annotated_sweep_frames for case in cases),
            "positives": optimal + suboptimal if known else None,
            "optimal": optimal if known else None,
            "suboptimal": suboptimal if known else None,
            "cases_with_optimal": sum(bool(case.optimal_frames) for case in cases) if known else None,
        }
    return result


def split_cache(csv: Path, cache: Path, *, folds: int, seed: int) -> Split:
    """The cases of a release's table in folds by subject, by the frames of a prepared cache."""
    rows = read_circumferences(csv)
    labels = labels_of_cache(cache, rows)
    return split_by_subject(
        list(rows.values()), [bool(labels[uuid].optimal_frames) for uuid in rows], folds=folds, seed=seed
    )


def main(arguments: list[str]) -> int:
    """The command `python -m training split`."""
    parser = argparse.ArgumentParser(prog="acouslic train split", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--protocol", choices=("paper", "subject"), required=True, help="the published split, or folds by subject"
    )
    parser.add_argument("--csv", type=Path, required=True, help="the release's table of circumferences")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--runs", type=Path, help="csv of runs of optimal and suboptimal frames")
    source.add_argument("--cache", type=Path, help="a prepared cache, in place of --runs")
    parser.add_argument("--folds", type=int, default=5, help="subject: number of folds, one a member (%(default)s)")
    parser.add_argument(
        "--seed", type=int, default=1, help="subject: seed of the folds (%(default)s); the paper's is fixed"
    )
    parser.add_argument("--out", type=Path, help="split file to write; without it the counts are only shown")
    options = parser.parse_args(arguments)
    check_seed("--seed", options.seed)
    rows = read_circumferences(options.csv)
    if options.runs:
        labels = labels_of_runs(options.runs, rows)
    elif options.cache:
        labels = labels_of_cache(options.cache, rows)
    elif options.protocol == "subject":
        raise AcouslicError("a split by subject needs to know the optimal frames: give --runs or --cache")
    else:
        labels = labels_of_table(rows)
    if options.protocol == "paper":
        split = split_as_paper(list(rows))
    else:
        has_optimal = [bool(labels[uuid].optimal_frames) for uuid in rows]
        split = split_by_subject(list(rows.values()), has_optimal, folds=options.folds, seed=options.seed)
    shared = check_split(split, rows)
    if options.out:
        write_split(options.out, split)
    print(json.dumps(count_parts(split, rows, labels, shared), indent=2))
    return 0
