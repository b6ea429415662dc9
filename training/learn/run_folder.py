"""What a training run leaves behind, and how an export finds it again.

RUN/settings.yaml              the resolved settings
RUN/cases.json                 what the run learns from and is judged by
RUN/run.json                   commit, split, fold, tower, cases, figures; written last, by a finished run
RUN/checkpoints/{last,best}.ckpt   last: of the last epoch, or of a later step by time or where a signal stopped the run
RUN/logs/metrics.csv, RUN/tensorboard/
RUN/member/                    peft's adapter_config.json and adapter_model.safetensors, heads.safetensors, member.json
RUN/tower/                     only where the tower itself was trained: tower.safetensors, open_clip_config.json
RUN/out_of_fold.npz            logits and masks of the validation cases and which frames are black, for calibration
"""

import argparse
import dataclasses
import hashlib
import json
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from acouslic import __version__
from acouslic.errors import AcouslicError
from acouslic.printable import printable
from acouslic.write import write_json, write_text
from training.recipe.settings import TrainSettings


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    root: Path

    @property
    def settings_path(self) -> Path:
        """The resolved settings."""
        return self.root / "settings.yaml"

    @property
    def cases_path(self) -> Path:
        """What the run learns from and is judged by."""
        return self.root / "cases.json"

    @property
    def record_path(self) -> Path:
        """What the run was and how it ended."""
        return self.root / "run.json"

    @property
    def checkpoints(self) -> Path:
        """Lightning's checkpoints."""
        return self.root / "checkpoints"

    @property
    def member(self) -> Path:
        """The trained member."""
        return self.root / "member"

    @property
    def tower(self) -> Path:
        """The trained tower, where one was trained."""
        return self.root / "tower"

    @property
    def out_of_fold(self) -> Path:
        """Logits and masks of the validation cases."""
        return self.root / "out_of_fold.npz"

    def start(self, settings: TrainSettings, cases: dict[str, Any]) -> bool:
        """Write settings and cases, or check that they are those of the run that is there. True where it is finished.

        Raises AcouslicError where another run lies there: a run that went on with other cases would be judged by ones
        that it has learned from.
        """
        self.refuse_other_settings(settings)
        if not self.settings_path.is_file():
            write_json(self.cases_path, cases)
            write_text(self.settings_path, settings_to_yaml(settings))
        elif self._read_cases() != cases:
            raise AcouslicError(
                f"{self.cases_path} names other cases, another fold, another cache or other weights to start from: a "
                "run goes on only with its own; choose another --out"
            )
        foreign = sorted(self.root.glob("hpc_ckpt_*"))
        if foreign:
            raise AcouslicError(
                f"{foreign[0]} is no checkpoint of this program and perhaps of another run: remove it, and the run "
                f"goes on from {self.checkpoints / 'last.ckpt'}"
            )
        return self.record_path.is_file()

    def refuse_other_settings(self, settings: TrainSettings) -> None:
        """Raises AcouslicError where the run that is there was started with settings that train another member."""
        if self.settings_path.is_file() and not _same_result(read_settings(self.settings_path), settings):
            raise AcouslicError(
                f"{self.settings_path} holds other settings: a run goes on only with its own; choose another --out"
            )

    def identity(self) -> dict[str, Any]:
        """What tells this run's checkpoints from those on other cases. Settings, machine and folder may change:
        whoever edits `settings.yaml` to train longer goes on from what is there."""
        cases = self._read_cases()
        text = json.dumps(cases, sort_keys=True)
        return {"fold": cases.get("fold"), "sha256": hashlib.sha256(text.encode()).hexdigest()}

    def train_cases(self) -> list[str]:
        """What the run learns from."""
        found: list[str] = self._read_cases()["train_cases"]
        return found

    def identity_of_split(self) -> str | None:
        """The sha256 of the split that the run's cases are of."""
        found: str | None = self._read_cases().get("split_sha256")
        return found

    def _read_cases(self) -> Any:
        try:
            return json.loads(self.cases_path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise AcouslicError(
                f"{self.cases_path} is not readable, so that nobody knows which cases the run has seen: choose another "
                f"--out ({error})"
            ) from None

    def write_record(self, record: dict[str, Any]) -> None:
        """Mark the run finished."""
        write_json(self.record_path, record)

    def read_record(self) -> dict[str, Any]:
        """What `write_record` wrote. Raises AcouslicError for a folder that holds no finished run."""
        try:
            content = json.loads(self.record_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise AcouslicError(f"{self.record_path} is missing: {self.root} is not a finished training run") from None
        except (OSError, ValueError) as error:
            raise AcouslicError(f"{self.record_path} is not readable: {error}") from None
        if not isinstance(content, dict):
            raise AcouslicError(f"{self.record_path} must hold a JSON object")
        return content


def settings_to_yaml(settings: TrainSettings) -> str:
    """Every setting, in the order they are declared; `--config` reads it back."""
    return yaml.safe_dump(_plain(dataclasses.asdict(settings)), sort_keys=False)


def read_settings(path: Path) -> TrainSettings:
    """The settings of a run. Raises AcouslicError where the file is not one that `settings_to_yaml` wrote."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainSettings, None)
    try:
        values = parser.instantiate(parser.parse_path(str(path)))
    except (argparse.ArgumentError, OSError, TypeError, UnicodeDecodeError) as error:
        raise AcouslicError(f"{path} does not hold a run's settings: {' '.join(str(error).split())}") from None
    return TrainSettings(**{name: getattr(values, name) for name in TrainSettings.__dataclass_fields__})


def made_with(command: str) -> str:
    """What an artifact's provenance says of how it was made: the command, and this program's version and commit."""
    origin = made_by()
    return f"{printable(command)}, version {origin['version']}, commit {origin['commit']}"


def made_by() -> dict[str, str]:
    """Version and commit of this program; the commit is "unknown" outside a git checkout, also where the program is
    installed within somebody else's; "+" marks changes to it."""
    this = Path(__file__).resolve()
    root = this.parents[2]
    try:
        _git(root, "ls-files", "--error-unmatch", str(this))
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return {"version": __version__, "commit": "unknown"}
    return {"version": __version__, "commit": commit + ("+" if changed else "")}


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def _plain(value: Any) -> Any:
    """Tuples as lists: YAML's safe form has no tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _same_result(first: TrainSettings, second: TrainSettings) -> bool:
    """Whether two settings train the same: a run may go on on another machine."""
    return replace(first, machine=second.machine) == second


_FOLD = re.compile(r"fold_\d+")


def find_all_runs(paths: Iterable[Path]) -> list[RunFolder]:
    """The runs of several paths, in their order. Raises AcouslicError for one that is there twice."""
    runs = [run for path in paths for run in find_runs(path)]
    seen: set[Path] = set()
    for run in runs:
        if run.root.resolve() in seen:
            raise AcouslicError(f"{run.root} is given twice: name each run, or the folder of all folds, once")
        seen.add(run.root.resolve())
    return runs


def find_runs(path: Path) -> list[RunFolder]:
    """The run in `path`, or the runs of all folds in it."""
    numbers = {int(fold.name.removeprefix("fold_")): fold for fold in path.glob("fold_*") if _FOLD.fullmatch(fold.name)}
    folds = [numbers[number] for number in sorted(numbers)]
    return [RunFolder(fold) for fold in folds] if folds else [RunFolder(path)]
