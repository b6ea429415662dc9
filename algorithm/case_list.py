"""The cases that files, folders, patterns and lists on a command line stand for."""

import glob
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from acouslic.errors import AcouslicError
from acouslic.sockets import STACK_SUFFIXES, SWEEP_FOLDER, SweepInput, case_name, find_sweep_input
from algorithm.result.table import INDEX_FILE, RESULTS_FILE

_RELEASE_FOLDER = "images/stacked_fetal_ultrasound"


def find_sweeps(paths: Sequence[Path]) -> list[SweepInput]:
    """The stacks that files, folders and patterns stand for, in the order given.

    A folder is one of stacks, of stacks in the raw release's layout, or a case in the platform's layout. Raises
    AcouslicError where there is nothing in one, a stack is given twice, two cases would have the same name, or one
    has a name that no folder can have.
    """
    sweeps = [sweep for path in paths for match in _matches(path) for sweep in _sweeps_at(match)]
    twice = [path for path, count in Counter(sweep.path for sweep in sweeps).items() if count > 1]
    if twice:
        raise AcouslicError(f"{twice[0]} is given twice: name every stack once")
    counts = Counter(sweep.case for sweep in sweeps)
    for case, count in counts.items():
        if count > 1:
            double = ", ".join(str(sweep.path) for sweep in sweeps if sweep.case == case)
            raise AcouslicError(f"{count} stacks would write to the same folder {case!r}: {double}; rename all but one")
        if case in ("", ".", "..", RESULTS_FILE, INDEX_FILE):
            raise AcouslicError(f"a stack's name gives the case name {case!r}, which no folder can have: rename it")
    return sweeps


def _matches(path: Path) -> list[Path]:
    """What a pattern stands for: a shell outside a container cannot expand one that is meant for the inside."""
    if path.exists() or not glob.has_magic(str(path)):
        return [path]
    return [Path(match) for match in sorted(glob.glob(str(path)))] or [path]  # noqa: PTH207 - absolute patterns too


def _sweeps_at(path: Path) -> list[SweepInput]:
    if not path.exists():
        raise AcouslicError(f"{path} does not exist: give sweep stacks or folders of them")
    if not path.is_dir():
        return [SweepInput(path, case_name(path.name))]
    if (path / SWEEP_FOLDER).is_dir():
        return [find_sweep_input(path)]
    folder = path / _RELEASE_FOLDER if (path / _RELEASE_FOLDER).is_dir() else path
    stacks = sorted(
        item
        for item in folder.iterdir()
        if item.is_file() and item.suffix.lower() in STACK_SUFFIXES and not item.name.startswith(".")
    )
    if not stacks:
        raise AcouslicError(f"{folder} holds no sweep stack ({', '.join(STACK_SUFFIXES)})")
    return [SweepInput(stack, case_name(stack.name)) for stack in stacks]
