"""A head for a finished model that judges frames with their whole case in view, kept only where it wins.

    python -m training head MODEL --cache CACHE --out NEW [--split SPLIT] [--trials N] [--device cpu|cuda] [--seed N]
                            [--anyway]

The head learns from what the members say of cases that they did not learn from: the validation part of the paper's
split, for a model that was trained on no other, or all folds of the split that the model's own members were trained on,
each case by the member that validated on it; without --split all cases of the cache, which none of the members may have
learned from.

It is judged nested: five groups of subjects, each judged by a head that learned from the other four, and by a
half-way reading fitted without the case's patient. What that reading is fitted on was said by heads that had seen the
patient, and how many frames are likely is the model's own: so far it is not nested. Where F1 over all frames rises,
and the lower end of the rise's interval is not below -0.01, NEW is the model with a head that learned from all
groups, and with the reading fitted for it. Else nothing is written. With --trials Optuna searches how large a head
should be and how it should learn, anew for each of them, on the cases that it learns from. The frame is chosen as
before. A model with a head scores every frame by all members: it cannot be gated.
"""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from acouslic.errors import AcouslicError
from algorithm.engine.device import choose_device, set_cpu_threads
from algorithm.model.artifact import Artifact, load_artifact, refuse_target, write_artifact
from algorithm.model.manifest import Manifest
from training.export.consequence import tell_what_is_void
from training.export.model_card import write_card_beside
from training.export.precision import FRAMES, describe, measure_artifact
from training.judge.ask_members import Answers
from training.judge.calibrate import Calibration, judge_cases
from training.judge.case_head import CaseExample, HeadRecipe, calibrated_logit, fit_case_head, review_nested
from training.judge.head_gain import describe_gain, is_won, measure_gain
from training.judge.head_search import search_recipe
from training.judge.nested_reading import read_nested
from training.judge.reading import choose_thresholds, describe_reading, fit_half_way, read_again
from training.judge.unseen_cases import ask_about, cases_of_members, check_frames, of_members, uncertain_frames
from training.learn.run_folder import made_with
from training.recipe.check_settings import check_seed
from training.release.cache import Cache
from training.release.split import Split, read_split

_GROUPS = 5


def add_case_head(
    artifact: Artifact,
    cache: Cache,
    split: Split | None,
    device: torch.device,
    out: Path,
    *,
    seed: int = 1,
    trials: int = 0,
    anyway: bool = False,
    command: str = "",
) -> Manifest:
    """Write the model with a case head to `out`, and return its manifest.

    Raises AcouslicError, and writes nothing, where the model is gated or has a student, the cache holds other frames,
    there are fewer than five subjects or no annotated frame, or the head does not win and is not wanted `anyway`.
    """
    manifest = artifact.manifest
    check_frames(manifest, cache)
    uuids = cases_of_members(manifest, cache, split)
    subjects = {uuid: cache.case(uuid).subject_id for of_one in uuids for uuid in of_one}
    _refuse_unfit(artifact, cache, subjects)
    answers = ask_about(artifact, cache, uuids, device)
    examples = case_examples(answers, manifest, cache, uuids)
    groups = groups_of_subjects(subjects)

    def recipe_for(cases: Sequence[CaseExample]) -> HeadRecipe:
        return search_recipe(cases, groups, trials, seed) if trials else HeadRecipe()

    reviewed = review_nested(examples, groups, seed, recipe_for)
    scored = of_members(answers, cache, uuids)
    calibrations = [Calibration.of(member) for member in manifest.members]
    plain = replace(manifest.selection, half_way=None)
    without, with_head = (judge_cases(scored, calibrations, plain, found) for found in (None, reviewed))
    read = read_nested(without, subjects, plain)
    gain = measure_gain(read, read_nested(with_head, subjects, plain), subjects)
    print(describe_gain(gain), flush=True)
    if not is_won(gain) and not anyway:
        raise AcouslicError(
            f"the head does not win, so {out} was not written: keep the model as it is, or ask for the head by --anyway"
        )
    selection = replace(plain, half_way=fit_half_way(with_head))
    cases = [read_again(case, selection) for case in with_head]
    thresholds = choose_thresholds(cases, manifest.thresholds.mask)
    print(describe_reading(selection, thresholds, len(cases)), flush=True)
    recipe = recipe_for(examples)
    state = fit_case_head(examples, recipe, seed).state_dict()
    made = made_with(command or "python -m training head")
    manifest = replace(
        manifest,
        case_head=replace(recipe.config, gain=gain),
        selection=selection,
        thresholds=thresholds,
        provenance=replace(manifest.provenance, made_by=f"{manifest.provenance.made_by}; its case head: {made}"),
    )
    # The head is part of what half precision moves.
    tell_what_is_void(manifest.half_precision)
    frames = uncertain_frames(scored, cache, FRAMES)
    measured = measure_artifact(replace(artifact, manifest=manifest, case_head=state), frames, device)
    print(describe(measured), flush=True)
    manifest = replace(manifest, half_precision=measured)
    manifest = write_artifact(out, manifest, artifact.tower_state, artifact.members, case_head=state)
    print(f"wrote {out}", flush=True)
    return manifest


def _refuse_unfit(artifact: Artifact, cache: Cache, subjects: Mapping[str, str]) -> None:
    """Raises AcouslicError for a model that cannot have a head, and for cases that cannot teach one."""
    manifest = artifact.manifest
    if manifest.student is not None or manifest.scoring.mode != "exhaustive":
        raise AcouslicError(
            f"{artifact.folder} has a gate, but a case head takes what all members see of every frame: give a model "
            "whose scoring.mode is 'exhaustive', without a student"
        )
    count = len(set(subjects.values()))
    if count < _GROUPS:
        raise AcouslicError(f"{cache.folder}: a case head takes cases of {_GROUPS} subjects, not of {count}")
    if not any((cache.case(uuid).labels > 0).any() for uuid in subjects):
        raise AcouslicError(f"none of the cases has an annotated frame: {cache.folder} cannot teach a head")


def groups_of_subjects(subjects: Mapping[str, str]) -> dict[str, int]:
    """The group of each case, by uuid: all cases of a subject are in one."""
    numbers = {subject: number for number, subject in enumerate(sorted(set(subjects.values())))}
    return {uuid: numbers[subject] % _GROUPS for uuid, subject in subjects.items()}


def case_examples(
    answers: Mapping[str, Answers], manifest: Manifest, cache: Cache, uuids: Sequence[tuple[str, ...]]
) -> list[CaseExample]:
    """What each member says of its cases, as the head takes it."""
    examples = []
    for k, (member, of_one) in enumerate(zip(manifest.members, uuids, strict=True)):
        for uuid in of_one:
            case = cache.case(uuid)
            examples.append(
                CaseExample(
                    uuid=uuid,
                    embedding=torch.from_numpy(answers[uuid].embedding[k]),
                    logit=calibrated_logit(answers[uuid].presence[k], member.presence_temperature),
                    seen=torch.from_numpy(~case.black),
                    sweeps=case.sweeps,
                    label=case.labels,
                )
            )
    return examples


def main(arguments: list[str]) -> int:
    """The command `python -m training head`."""
    parser = argparse.ArgumentParser(prog="acouslic train head", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder of the artifact; it stays as it is")
    parser.add_argument("--cache", type=Path, required=True, help="cases that `acouslic train prepare` made")
    parser.add_argument("--out", type=Path, required=True, help="folder of the artifact with the head")
    parser.add_argument("--split", type=Path, help="use its validation cases; without it all cases of the cache")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a usable GPU, else the CPU")
    parser.add_argument("--seed", type=int, default=1, help="seed of everything random (default: %(default)s)")
    parser.add_argument("--trials", type=int, default=0, help="recipes that Optuna tries for each head (default: none)")
    parser.add_argument("--anyway", action="store_true", help="write the model also where the head does not win")
    options = parser.parse_args(arguments)
    if options.out.resolve() == options.model.resolve():
        raise AcouslicError(f"{options.out} is the model itself, which stays as it is: name another --out")
    if options.trials < 0:
        raise AcouslicError(f"--trials must be 0 or more, not {options.trials}")
    check_seed("--seed", options.seed)
    refuse_target(options.out)
    set_cpu_threads()
    device, _ = choose_device(options.device)
    add_case_head(
        load_artifact(options.model),
        Cache(options.cache),
        None if options.split is None else read_split(options.split),
        device,
        options.out,
        seed=options.seed,
        trials=options.trials,
        anyway=options.anyway,
        command=shlex.join(["python", "-m", "training", "head", *arguments]),
    )
    write_card_beside(options.out)
    return 0
