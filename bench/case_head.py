"""What a head of the whole case is worth, on cases that neither the members nor the head have learned from.

    python bench/case_head.py score MODEL --cache CACHE --out SCORES [--stride 4]
    python bench/case_head.py judge SCORES... [--on NAME=SCORES ...] [--seeds 1 2 3] [--trials N]

`score` asks an artifact about cases that none of its members has learned from, and keeps what each says of every so
manyth frame. `judge` takes such folders and makes what `training head` makes, once a seed: five groups of subjects,
each judged by a head that learned from the other four and by a reading fitted without the case's patient; and, with
`--on`, the cases of other folders by a head and a reading that learned from all of the former. It prints average
precision, F1 at 0.5 and F1 as exported, without the head and with it, and what one run a sweep does without it. The
last line is JSON.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from acouslic.errors import AcouslicError
from acouslic.geometry import sweep_ranges
from algorithm.engine.device import choose_device, choose_precision, set_cpu_threads
from algorithm.engine.ensemble import Ensemble
from algorithm.judgement.select_frame import Values, judge_frames, probability_of
from algorithm.model.artifact import load_artifact
from algorithm.model.manifest import SelectionConfig
from algorithm.model.networks import CaseHeadConfig
from bench.setting.command import at_least, exit_with, named_folders
from training.export.add_case_head import groups_of_subjects
from training.frames.dataset import table_of
from training.judge.ask_members import ask_members
from training.judge.calibrate import CaseJudgement, fit_temperature
from training.judge.case_head import CaseExample, HeadRecipe, calibrated_logit, fit_case_head, review, review_nested
from training.judge.head_gain import describe_gain, measure_gain
from training.judge.head_search import search_recipe
from training.judge.nested_reading import read_nested
from training.judge.reading import fit_half_way, fit_most_frames, has_one_run_a_sweep, read_again
from training.learn.frame_metrics import count_frames
from training.release.cache import Cache

_BATCH_FRAMES = 32

RecipeFinder = Callable[[Sequence[CaseExample], Mapping[str, int], int], HeadRecipe]
"""From the cases that a head learns from, their groups and the seed to how it learns."""


@dataclass(frozen=True)
class KeptCase:
    """What all members say of every n-th frame of a case, R frames."""

    uuid: str
    subject: str
    label: NDArray[np.uint8]
    """(R,)"""
    presence: NDArray[np.float32]
    """(members, R): logits."""
    embedding: NDArray[np.float16]
    """(members, R, output_dim)"""
    black: NDArray[np.bool_]
    """(R,); none in scores of earlier versions, which do not say."""

    def sweeps(self, stride: int) -> list[range]:
        """Where the kept frames of each sweep lie among them."""
        whole = sweep_ranges(len(self.label) * stride)
        return [range(sweep.start // stride, sweep.stop // stride) for sweep in whole]


def keep_scores(model: Path, cache: Cache, out: Path, stride: int) -> None:
    """Ask the model about all cases of the cache; those that `out` holds already are left out."""
    artifact = load_artifact(model)
    device, _ = choose_device(None)
    dtype = choose_precision(device, artifact.manifest.half_precision).dtype
    ensemble = Ensemble.from_artifact(artifact, device, dtype)
    out.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(cache.cases, start=1):
        path = out / f"{case.uuid}.npz"
        if path.is_file():
            continue
        if any(len(sweep) % stride for sweep in case.sweeps):
            raise AcouslicError(f"case {case.uuid}: its sweeps are not multiples of {stride} frames long")
        rows = np.arange(0, case.frame_count, stride)
        said = ask_members(ensemble, table_of(cache, [case.uuid]), rows, _BATCH_FRAMES)
        part = path.with_suffix(".part.npz")
        np.savez(
            part,
            label=case.labels[rows],
            black=case.black[rows],
            subject=case.subject_id,
            stride=stride,
            presence=said.presence,
            embedding=said.embedding.astype(np.float16),
        )
        part.rename(path)
        print(f"scored {number} of {len(cache.cases)} cases", flush=True)


def read_scores(folders: Sequence[Path]) -> tuple[list[KeptCase], int]:
    """The kept cases of some folders, which have one stride, and that stride."""
    cases, strides = [], set()
    for path in sorted(path for folder in folders for path in folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as kept:
            label = kept["label"]
            black = kept["black"] if "black" in kept else np.zeros(len(label), bool)
            cases.append(KeptCase(path.stem, str(kept["subject"]), label, kept["presence"], kept["embedding"], black))
            strides.add(int(kept["stride"]))
    if len(strides) != 1:
        raise AcouslicError(f"{', '.join(map(str, folders))}: expected scores of one stride, found {sorted(strides)}")
    if len({len(case.presence) for case in cases}) > 1:
        raise AcouslicError(f"{', '.join(map(str, folders))}: expected scores of one model, found several ensembles")
    return cases, strides.pop()


@dataclass(frozen=True)
class Setting:
    """How kept cases are judged: fitted once, on those that the head learns from."""

    stride: int
    temperatures: tuple[float, ...]
    """By member."""

    @classmethod
    def of(cls, cases: Sequence[KeptCase], stride: int) -> "Setting":
        """Fitted on these cases."""
        positive = np.concatenate([case.label[~case.black] > 0 for case in cases])
        members = range(len(cases[0].presence))
        logits = [np.concatenate([case.presence[k][~case.black] for case in cases]) for k in members]
        return cls(stride, tuple(fit_temperature(logit, positive) for logit in logits))

    @property
    def selection(self) -> SelectionConfig:
        """As exported: the smoothing takes the same share of a sweep, however many of its frames were kept."""
        return SelectionConfig()

    def reading(self, learned: Sequence[CaseJudgement]) -> SelectionConfig:
        """How frames are read after these cases, but for the half-way reading."""
        return replace(
            self.selection, one_run_a_sweep=has_one_run_a_sweep(learned), most_positive_frames=fit_most_frames(learned)
        )

    def examples(self, cases: Sequence[KeptCase]) -> list[CaseExample]:
        """As a head takes them, one for each member."""
        return [
            CaseExample(
                case.uuid,
                torch.from_numpy(case.embedding[k].astype(np.float32)),
                calibrated_logit(case.presence[k], temperature),
                torch.from_numpy(~case.black),
                case.sweeps(self.stride),
                case.label,
            )
            for case in cases
            for k, temperature in enumerate(self.temperatures)
        ]

    def judge(self, cases: Sequence[KeptCase], reviewed: Mapping[str, Values] | None) -> list[CaseJudgement]:
        """Smoothed, not yet read; `reviewed` as the head sees them, None without it."""
        judged = []
        for case in cases:
            members = zip(case.presence, self.temperatures, strict=True)
            said = np.mean([probability_of(logit.astype(np.float64) / at) for logit, at in members], axis=0)
            said = np.where(case.black, 0.0, said)
            again = None if reviewed is None else reviewed[case.uuid]
            sweeps = case.sweeps(self.stride)
            frames = judge_frames(said, None, sweeps, self.selection, again)
            judged.append(CaseJudgement(case.uuid, case.label, frames, said > 0, sweeps))
        return judged


def compare_nested(cases: Sequence[KeptCase], setting: Setting, find: RecipeFinder, seed: int) -> dict[str, object]:
    """Each case by a head and a reading that have not seen its patient."""
    subjects = {case.uuid: case.subject for case in cases}
    groups = groups_of_subjects(subjects)
    reviewed = review_nested(setting.examples(cases), groups, seed, lambda some: find(some, groups, seed))
    without, with_head = setting.judge(cases, None), setting.judge(cases, reviewed)
    selection = setting.reading(without)
    read = read_nested(without, subjects, selection)
    read_with_head = read_nested(with_head, subjects, selection)
    every_run = read_nested(without, subjects, setting.selection)
    return _figures("nested", seed, every_run, read, read_with_head, subjects)


def compare_on(
    name: str,
    cases: Sequence[KeptCase],
    learned: Sequence[KeptCase],
    setting: Setting,
    find: RecipeFinder,
    seed: int,
) -> dict[str, object]:
    """Other cases, by a head that learned from all of `learned`, and by readings fitted on those."""
    subjects = {case.uuid: case.subject for case in (*cases, *learned)}
    if {case.subject for case in cases} & {case.subject for case in learned}:
        raise AcouslicError(f"{name}: a subject of these cases is among those that the head learns from")
    examples = setting.examples(learned)
    groups = groups_of_subjects({case.uuid: subjects[case.uuid] for case in learned})
    head = fit_case_head(examples, find(examples, groups, seed), seed)
    nested = review_nested(examples, groups, seed, lambda some: find(some, groups, seed))
    selection = setting.reading(setting.judge(learned, None))
    half_way, with_nested = (fit_half_way(setting.judge(learned, found)) for found in (None, nested))
    judged = setting.judge(cases, None), setting.judge(cases, review(head, setting.examples(cases)))
    read, read_with_head = (
        [read_again(case, replace(selection, half_way=reading)) for case in of_cases]
        for of_cases, reading in zip(judged, (half_way, with_nested), strict=True)
    )
    every_run = [read_again(case, replace(setting.selection, half_way=half_way)) for case in judged[0]]
    return _figures(name, seed, every_run, read, read_with_head, subjects)


def _figures(
    name: str,
    seed: int,
    every_run: Sequence[CaseJudgement],
    without: Sequence[CaseJudgement],
    with_head: Sequence[CaseJudgement],
    subjects: Mapping[str, str],
) -> dict[str, object]:
    """Printed for people, and returned. `every_run` is `without` before one run a sweep."""
    gain = measure_gain(without, with_head, subjects)
    found: dict[str, object] = {"cases_are": name, "seed": seed}
    one_run = measure_gain(every_run, without, subjects)
    found |= {
        "every_run_f1_without": one_run.f1_without,
        "one_run_lower": one_run.lower,
        "one_run_upper": one_run.upper,
    }
    positive = np.concatenate([case.label > 0 for case in without])
    for kind, judged in (("without", without), ("with", with_head)):
        alone = np.concatenate([case.frames.presence_alone for case in judged])
        found[f"average_precision_{kind}"] = round(float(average_precision_score(positive, alone)), 4)
        found[f"plain_f1_{kind}"] = round(count_frames(alone, positive, 0.5, None).f1, 4)
    print(f"{name}, seed {seed}: {describe_gain(gain)}", flush=True)
    return found | asdict(gain)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    score = commands.add_parser("score", help="keep what a model says of cases that it has not learned from")
    score.add_argument("model", type=Path, metavar="MODEL", help="folder of the artifact")
    score.add_argument("--cache", type=Path, required=True, help="cases that `acouslic train prepare` made")
    score.add_argument("--out", type=Path, required=True, help="folder of the scores; cases in it are kept")
    score.add_argument("--stride", type=at_least(1), default=4, help="keep every n-th frame (default: %(default)s)")
    judge = commands.add_parser("judge", help="make heads, nested, and measure what they are worth")
    judge.add_argument("scores", type=Path, nargs="+", metavar="SCORES", help="folders that `score` made")
    judge.add_argument(
        "--on", action="append", default=[], metavar="NAME=SCORES", help="other patients; may be repeated"
    )
    judge.add_argument(
        "--seeds", type=int, nargs="+", default=[1, 2, 3], help="heads of each kind, one each (default: 1 2 3)"
    )
    judge.add_argument(
        "--components",
        type=at_least(1),
        default=CaseHeadConfig.components,
        help="of the embedding that the head reads (default: %(default)s)",
    )
    judge.add_argument(
        "--trials", type=at_least(0), default=0, help="recipes that Optuna tries for each head (default: none)"
    )
    options = parser.parse_args(arguments)
    set_cpu_threads()
    if options.command == "score":
        keep_scores(options.model, Cache(options.cache), options.out, options.stride)
        return 0
    cases, stride = read_scores(options.scores)
    others = {name: read_scores([folder]) for name, folder in named_folders("--on", options.on).items()}
    if any(of_others != stride for _, of_others in others.values()):
        raise AcouslicError(f"--on: expected scores of stride {stride} too")
    for name, (of_others, _) in others.items():
        if of_others[0].presence.shape[0] != cases[0].presence.shape[0]:
            raise AcouslicError(f"--on: {name} was scored by another number of members: score it by the same model")
    setting = Setting.of(cases, stride)
    sigma = CaseHeadConfig.neighbour_sigma_frames / stride
    recipe = HeadRecipe(CaseHeadConfig(components=options.components, neighbour_sigma_frames=sigma))

    def find(some: Sequence[CaseExample], groups: Mapping[str, int], seed: int) -> HeadRecipe:
        return search_recipe(some, groups, options.trials, seed) if options.trials else recipe

    found = [compare_nested(cases, setting, find, seed) for seed in options.seeds]
    for name, (of_others, _) in others.items():
        found += [compare_on(name, of_others, cases, setting, find, seed) for seed in options.seeds]
    for one in found:
        print(", ".join(f"{name} {value}" for name, value in one.items()))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    exit_with(main)
