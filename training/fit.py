"""Trains members: one fold, or every fold of a split.

    python -m training fit --cache CACHE --split SPLIT --out RUN --tower.weights FILE [--fold K] [--config X.yaml]
                           [--faithful [cls|seg]] [--check] [--SECTION.SETTING VALUE ...]

`--fold 1` trains the member that validates on the first fold; without `--fold` every fold of a split by subject is
trained, in RUN/fold_1, RUN/fold_2, ... . Settings come from the defaults (our recipe) or from `--faithful` (the
published one), then from `--config`, then from the command line; unknown ones are refused, and so is a file that names
another published recipe than the command line. The same command goes on where an ended run stopped, and says so where
it is finished. `--check` takes one batch through everything and leaves nothing behind.
"""

import argparse
import shlex
import tempfile
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from acouslic.errors import AcouslicError
from training.learn.run_folder import RunFolder
from training.learn.run_member import FoldCases, run_member
from training.recipe.check_settings import check_settings
from training.recipe.command_line import command_parser, parse_with, refuse_other_than_utf8
from training.recipe.settings import PRESETS, TrainSettings
from training.release.cache import Cache
from training.release.split import Split, check_subjects, read_split


def main(arguments: list[str]) -> int:
    """The command `python -m training fit`."""
    options = parse_arguments(arguments)
    cache, split = Cache(Path(options.cache)), read_split(Path(options.split))
    check_split_of_cache(split, cache)
    members = list(range(split.members)) if options.fold is None else [options.fold - 1]
    settings = settings_of(options)
    command = shlex.join(["python", "-m", "training", "fit", *arguments])
    for member in members:
        out = Path(options.out) if len(members) == 1 else Path(options.out) / f"fold_{member + 1}"
        print(f"fold {member + 1} of {split.members}, in {out}", flush=True)
        fit_fold(cache, split, member, settings, out, command=command, check=options.check)
    return 0


def fit_fold(
    cache: Cache, split: Split, member: int, settings: TrainSettings, out: Path, *, command: str, check: bool = False
) -> RunFolder:
    """Train the member (0, 1, ...) of a split into `out`; with `check` into a folder that is gone afterwards."""
    cases = FoldCases(
        split.training_cases(member), split.validation_cases(member), split.sha256(), member + 1, split.members
    )
    if not check:
        return run_member(cache, cases, settings, out, command=command)
    with tempfile.TemporaryDirectory(prefix="check-") as folder:
        return run_member(cache, cases, settings, Path(folder), command=command, check=True)


def check_split_of_cache(split: Split, cache: Cache) -> None:
    """Raises AcouslicError where a case is not in the cache, or a subject is in two folds of a split by subject."""
    uuids = (uuid for part in split.parts.values() for uuid in part)
    check_subjects(split, {uuid: cache.case(uuid).subject_id for uuid in uuids})


def parse_arguments(arguments: list[str]) -> Namespace:
    """Options and settings, or AcouslicError for what is unknown or of a wrong type."""
    parser = make_parser("fit", __doc__, arguments)
    parser.add_argument("--cache", required=True, help="folder that `prepare` made")
    parser.add_argument("--split", required=True, help="file that `split` made")
    parser.add_argument("--out", required=True, help="folder of the run")
    parser.add_argument("--fold", type=int, help="fold to validate on, from 1; all of them if not given")
    parser.add_argument("--check", action="store_true", help="only take one batch through everything")
    return parse_settings(parser, "fit", arguments)


def make_parser(command: str, description: str | None, arguments: list[str]) -> ArgumentParser:
    """A parser of a command that trains: every setting, `--config`, and `--faithful`, which decides the defaults."""
    preset = _preset_of(arguments)
    parser = command_parser(command, description)
    parser.add_argument("--faithful", nargs="?", const="cls", choices=sorted(PRESETS), help="the published recipe")
    parser.add_argument("--config", action=ActionConfigFile, help="settings as YAML")
    add_settings(parser, TrainSettings() if preset is None else PRESETS[preset])
    return parser


def parse_settings(parser: ArgumentParser, command: str, arguments: list[str]) -> Namespace:
    """The options of a parser of `make_parser`. Raises AcouslicError for what is unknown or of a wrong type, and where
    a `--config` file names a published recipe: the defaults are decided before a file is read. And for a name that is
    not UTF-8."""
    refuse_other_than_utf8(command, arguments)
    options = parse_with(parser, command, arguments)
    if options.faithful != _preset_of(arguments):
        raise AcouslicError(
            f"{command}: a --config file says faithful: {options.faithful}, which decides the defaults only on the "
            f"command line: give --faithful {options.faithful} there"
        )
    return options


def _preset_of(arguments: list[str]) -> str | None:
    """The published recipe that the command line names."""
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--faithful", nargs="?", const="cls", choices=sorted(PRESETS))
    preset: str | None = chooser.parse_known_args(arguments)[0].faithful
    return preset


def add_settings(parser: ArgumentParser, defaults: TrainSettings) -> None:
    """Every setting as `--section.setting`, with these defaults."""
    parser.add_class_arguments(TrainSettings, None)
    values: dict[str, Any] = {"seed": defaults.seed}
    for section in _sections():
        settings = getattr(defaults, section)
        values |= {f"{section}.{name}": getattr(settings, name) for name in settings.__dataclass_fields__}
    parser.set_defaults(values)


def settings_of(options: Namespace) -> TrainSettings:
    """The settings among the options of `parse_arguments`. Raises AcouslicError for values that no run can have."""
    values: dict[str, Any] = {name: getattr(options, name) for name in [*_sections(), "seed"]}
    return check_settings(TrainSettings(**values))


def _sections() -> list[str]:
    return [name for name in TrainSettings.__dataclass_fields__ if name != "seed"]
