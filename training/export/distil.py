"""A student for a finished model: a small network learns what the ensemble says of every frame, and becomes its gate.

    python -m training distil MODEL --cache CACHE --out NEW [--runs RUNS ... | --split SPLIT] [--work FOLDER]
                              [--SECTION.SETTING VALUE ...]

Every frame of the cache's cases teaches, with a label or without. What the members say of cases that they did not learn
from is read from their runs, RUNS being what `export` was given; without --runs the model is asked, in half precision
where the device is fast in that, as runs are: on the cases of its own split or the paper's, or without --split on all
of the cache, which no member may have learned from.

A share of the subjects is held out. On their cases the student's scale is brought to the ensemble's, and the gate's
settings are chosen: which of its judgements the ensemble looks at again, so that chosen frame and positive frames are
those of exhaustive scoring. NEW is the model with the student and these settings; MODEL stays as it is. The run is kept
in FOLDER, by default beside NEW. An ended command goes on where it stopped.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import lightning
import numpy as np
import torch

from acouslic.errors import AcouslicError
from algorithm.engine.device import set_cpu_threads
from algorithm.model.artifact import Artifact, load_artifact, refuse_target, write_artifact
from algorithm.model.file_hashes import hash_file
from algorithm.model.manifest import MANIFEST_FILE, Manifest, ScoringConfig
from algorithm.model.networks import StudentConfig
from algorithm.model.student import Student, student_from_state
from algorithm.model.typed_json import check_bounds
from training.export.consequence import tell_what_is_void, without_consequences
from training.export.model_card import write_card_beside
from training.export.trained_member import read_member
from training.judge.gate_settings import JudgedTwice, choose_gate, describe_agreement, scale_shift, shifted
from training.judge.teacher import FrameOpinions, ask_student, taught_table, teach
from training.judge.unseen_cases import cases_of_members, check_frames, score_members
from training.learn.autocast import autocast_type
from training.learn.out_of_fold import OutOfFold
from training.learn.run_folder import RunFolder, find_runs, made_with
from training.learn.run_member import scoring_device, train
from training.learn.student_learner import GIVEN_A_CHANCE, StudentLearner
from training.learn.trainer import alone_in
from training.network.student import StudentNetwork, student_flop
from training.recipe.check_settings import check_settings
from training.recipe.command_line import command_parser, parse_with
from training.recipe.distil_settings import DistilSettings
from training.release.cache import Cache
from training.release.split import read_split

MOST_FLOP = 3_000_000_000
"""Of a student, for a frame: a gate that costs more is no longer next to nothing beside the ensemble."""
_OF_MEMBERS = (
    ("optimiser", "decoder_learning_rate"),
    ("optimiser", "keep"),
    ("optimiser", "patience_epochs"),
    ("sampling", "min_positive_pixels"),
    ("machine", "checkpoint_blocks"),
)
"""Settings of a member's run that a student has no use for: it has no decoder, sees no mask, is all trained, and is
kept as it is at the end, since validation judges it by labels, not by what it learns."""


@dataclass(frozen=True)
class Teacher:
    """Where the members' word on cases that they did not learn from comes from: their runs, or else the model."""

    runs: tuple[RunFolder, ...] = ()
    split: Path | None = None


def distil(
    artifact: Artifact, cache: Cache, teacher: Teacher, settings: DistilSettings, out: Path, work: Path, *, command: str
) -> Manifest | None:
    """Train a student for `artifact` in the folder `work` and write the model that has it to `out`.

    None on processes other than the first. Raises AcouslicError where model, cache and teacher do not belong together,
    the settings are none that a student can have, or it does not become a gate; nothing is written to `out` then.
    """
    manifest = artifact.manifest
    if manifest.case_head is not None:
        raise AcouslicError(
            f"{artifact.folder} has a case head, which takes what all members see of every frame: distil the model "
            "that it was made from"
        )
    config = _student_config(settings, manifest)
    check_frames(manifest, cache)
    scored = _read_runs(teacher.runs, artifact)
    folder = RunFolder(work)
    described = {
        "model": hash_file(artifact.folder / MANIFEST_FILE),
        "runs": [hash_file(run.out_of_fold) for run in teacher.runs],  # what they say, wherever they lie
        "split": None if teacher.split is None else read_split(teacher.split).sha256(),
        "cases": [case.uuid for case in cache.cases],
        "student": {"width": config.width, "blocks": list(config.blocks), "held_out": settings.held_out},
    }
    folder.start(settings.as_training(), described)
    scored = scored or _ask_model(artifact, cache, teacher, settings, work)
    lessons = teach(scored, manifest.members)
    learned, held_out = _hold_out(cache, list(lessons), settings)
    student_state = _train(learned, held_out, lessons, cache, manifest, config, settings, folder)
    if student_state is None:
        return None
    device = scoring_device(settings.as_training())
    student = student_from_state(config, student_state, device, torch.float32)
    judged = _judge_twice(student, held_out, lessons, cache, manifest, device)
    shift = scale_shift(judged)
    student_state["presence.bias"] = student_state["presence.bias"] + shift
    judged = [shifted(case, shift) for case in judged]
    scoring, agreement = choose_gate(judged, manifest.selection, manifest.thresholds.presence, settings.most_refined)
    print(f"the student is the gate: {describe_agreement(agreement)}", flush=True)
    manifest = _with_student(manifest, replace(config, agreement=agreement), scoring, command)
    manifest = write_artifact(out, manifest, artifact.tower_state, artifact.members, student_state)
    print(f"wrote {out}", flush=True)
    return manifest


def _student_config(settings: DistilSettings, manifest: Manifest) -> StudentConfig:
    """The student's part of the manifest. Raises AcouslicError for settings that no student can have."""
    check_settings(settings.as_training())
    for section, name in _OF_MEMBERS:
        if getattr(getattr(settings, section), name) != getattr(getattr(DistilSettings(), section), name):
            raise AcouslicError(f"{section}.{name} has no effect on a student: leave it out")
    for name in ("held_out", "most_refined"):
        value = getattr(settings, name)
        if not 0 < value <= 1 or (name == "held_out" and value == 1):
            raise AcouslicError(f"{name} must be a share between 0 and 1, not {value}")
    config = StudentConfig(
        width=settings.student.width,
        blocks=settings.student.blocks,
        # Each case may be taught by one member alone.
        optimality=all(member.optimality for member in manifest.members),
    )
    try:
        check_bounds(config)
    except ValueError as error:
        raise AcouslicError(f"student.{error}") from None
    flop = student_flop(config, manifest.tower.image_size)
    if flop > MOST_FLOP:
        raise AcouslicError(
            f"this student costs {flop / 1e9:.1f} GFLOP a frame, more than {MOST_FLOP / 1e9:.0f}: choose a smaller "
            "student.width or fewer student.blocks"
        )
    return config


def _read_runs(runs: Sequence[RunFolder], artifact: Artifact) -> list[OutOfFold]:
    """What the members said at the end of their runs; [] without runs. Raises AcouslicError for another model's."""
    if not runs:
        return []
    if len(runs) != len(artifact.members):
        raise AcouslicError(
            f"{artifact.folder} has {len(artifact.members)} members, --runs names {len(runs)} runs: give what `export` "
            "was given"
        )
    scored = []
    for run, member in zip(runs, artifact.members, strict=True):
        trained = read_member(run)
        same = trained.heads.keys() == member.heads.keys() and all(
            torch.equal(tensor, member.heads[name]) for name, tensor in trained.heads.items()
        )
        if not same:
            raise AcouslicError(
                f"{run.root} is not the run of that member of {artifact.folder}: give them in its order"
            )
        scored.append(trained.scored)
    return scored


def _ask_model(
    artifact: Artifact, cache: Cache, teacher: Teacher, settings: DistilSettings, work: Path
) -> list[OutOfFold]:
    """What the model says, kept in `work` case by case, so that a command that goes on does not ask again."""
    split = None if teacher.split is None else read_split(teacher.split)
    set_cpu_threads()
    device = scoring_device(settings.as_training())
    uuids = cases_of_members(artifact.manifest, cache, split)
    # What members say at the end of their runs is computed in this type too.
    dtype, _ = autocast_type(device)
    return score_members(artifact, cache, uuids, device, keep_in=work / "teacher", dtype=dtype)


def _hold_out(cache: Cache, uuids: Sequence[str], settings: DistilSettings) -> tuple[list[str], list[str]]:
    """The cases to learn from, and those of `held_out` of the subjects, at least one."""
    subjects = sorted({cache.case(uuid).subject_id for uuid in uuids})
    if len(subjects) < 2:
        raise AcouslicError(f"{cache.folder} has cases of one subject only: there is nobody to hold out")
    count = min(len(subjects) - 1, max(1, round(settings.held_out * len(subjects))))
    chosen = set(np.random.default_rng(settings.seed).permutation(np.array(subjects))[:count].tolist())
    held_out = [uuid for uuid in uuids if cache.case(uuid).subject_id in chosen]
    return [uuid for uuid in uuids if uuid not in set(held_out)], held_out


def _train(
    learned: Sequence[str],
    held_out: Sequence[str],
    lessons: Mapping[str, FrameOpinions],
    cache: Cache,
    manifest: Manifest,
    config: StudentConfig,
    settings: DistilSettings,
    folder: RunFolder,
) -> dict[str, torch.Tensor] | None:
    """The trained student's state; None on processes other than the first."""
    tables = [taught_table(cache, uuids, lessons) for uuids in (learned, held_out)]
    if not tables[0].label.any():
        raise AcouslicError(
            f"no frame of the {len(learned)} cases to learn from has a presence of {GIVEN_A_CHANCE} by the ensemble: "
            "there is nothing to teach"
        )
    lightning.seed_everything(settings.seed, workers=True, verbose=False)
    network = StudentNetwork(config)
    learner = StudentLearner(network, settings.as_training(), manifest.preprocessing, tables[0], tables[1])
    with alone_in(folder.root):
        facts = train(learner, folder)
    if facts is None:
        return None
    return network.eval().folded_state()


def _judge_twice(
    student: Student,
    held_out: Sequence[str],
    lessons: Mapping[str, FrameOpinions],
    cache: Cache,
    manifest: Manifest,
    device: torch.device,
) -> list[JudgedTwice]:
    """The held-out cases, those without a single bright pixel left out."""
    judged = []
    for uuid in held_out:
        case = cache.case(uuid)
        black = case.black
        if not black.all():
            opinions = ask_student(student, case, manifest.preprocessing, device)
            judged.append(JudgedTwice(lessons[uuid], opinions, black, case.labels > 0))
    if not judged:
        raise AcouslicError("every frame of the held-out cases is black: hold out others by another --seed")
    return judged


def _with_student(manifest: Manifest, config: StudentConfig, scoring: ScoringConfig, command: str) -> Manifest:
    """The manifest of the model that has the student. What half precision changed in whole cases went by another gate,
    and is taken out."""
    tell_what_is_void(manifest.half_precision)
    made = made_with(command or "python -m training distil")
    return replace(
        manifest,
        student=config,
        scoring=scoring,
        half_precision=without_consequences(manifest.half_precision),
        provenance=replace(manifest.provenance, made_by=f"{manifest.provenance.made_by}; its student: {made}"),
    )


def main(arguments: list[str]) -> int:
    """The command `python -m training distil`."""
    parser = command_parser("distil", __doc__)
    parser.add_argument("model", metavar="MODEL", help="folder of the artifact; it stays as it is")
    parser.add_argument("--cache", required=True, help="cases that `acouslic train prepare` made")
    parser.add_argument("--out", required=True, help="folder of the artifact with the student")
    parser.add_argument("--runs", nargs="+", default=[], help="the members' runs, as `export` was given them")
    parser.add_argument("--split", help="without --runs: use the model's answers on this split's validation cases")
    parser.add_argument("--work", help="folder of the run (default: beside --out, with .run added)")
    parser.add_class_arguments(DistilSettings, None)
    options = parse_with(parser, "distil", arguments)
    if options.runs and options.split is not None:
        raise AcouslicError("give --runs or --split: runs know their own cases")
    model, out = Path(options.model), Path(options.out)
    if out.resolve() == model.resolve():
        raise AcouslicError(f"{out} is the model itself, which stays as it is: name another --out")
    settings = DistilSettings(**{name: getattr(options, name) for name in DistilSettings.__dataclass_fields__})
    work = Path(options.work) if options.work is not None else out.with_name(f"{out.name}.run")
    refuse_target(out)
    runs = tuple(run for path in options.runs for run in find_runs(Path(path)))
    teacher = Teacher(runs, None if options.split is None else Path(options.split))
    command = shlex.join(["python", "-m", "training", "distil", *arguments])
    if distil(load_artifact(model), Cache(Path(options.cache)), teacher, settings, out, work, command=command):
        write_card_beside(out)
    return 0
