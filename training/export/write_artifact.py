"""Finished runs become an artifact: one tower, the members as they are, calibration, thresholds, provenance.

    python -m training export RUN... --out model/ --tower "FetalCLIP ViT-L/14" --tower_licence "CC BY-NC 4.0" \
                              --training_data "ACOUSLIC-AI 1.1" --training_data_licence "CC BY-NC-SA 4.0"

Nothing is merged: inference does that. The artifact is read back by algorithm's own loader, and refused unless its
probabilities and masks on validation frames are those of the networks that were trained. How far half precision takes
them from there is measured on the least certain validation frames and goes into the manifest.
"""

import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from acouslic.errors import AcouslicError
from algorithm.engine.device import FEWEST_CASES, choose_device
from algorithm.model.artifact import load_artifact, refuse_target, write_artifact
from algorithm.model.manifest import SCHEMA_VERSION, HalfPrecision, Manifest, Provenance, ScoringConfig, SelectionConfig
from algorithm.model.tower import linear_shapes
from algorithm.model.typed_json import check_bounds
from training.export.consequence import case_of_cache, measure_whole_cases
from training.export.model_card import write_card_beside
from training.export.pack import refuse_inside, write_archive
from training.export.precision import FRAMES, describe, measure_half_precision, refused_types
from training.export.read_back import refuse_unless_equal
from training.export.trained_member import MovedTower, TrainedMember, read_member, shared_tower
from training.frames.dataset import table_of
from training.judge.calibrate import judge_cases
from training.judge.mask_threshold import choose_mask_threshold
from training.judge.reading import choose_thresholds, describe_reading, read_cases
from training.judge.unseen_cases import uncertain_frames
from training.learn.out_of_fold import OutOfFold
from training.learn.run_folder import RunFolder, find_all_runs, made_with
from training.network.tower_source import LoadedTower, rounded_state
from training.recipe.command_line import command_parser, parse_with
from training.release.cache import Cache
from training.release.split import sha256_of_members

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ExportSettings:
    """What the manifest says beyond what was measured.

    Args:
        tower: which weights the tower has.
        tower_licence: its licence.
        training_data: what the members learned from.
        training_data_licence: its licence.
        name: of the artifact.
        notes: for whoever reads the manifest.
        tower_dtype: precision of the tower in the file.
        scoring: which frames the whole ensemble sees.
        selection: how the frame is chosen and outlined.
        fit_half_way: let each case set the scale for its frames, as chosen on the validation cases; a half-way reading
            given in `selection` is taken as it is.
        fit_one_run: let one run of frames a sweep be positive where the validation cases are annotated so.
        fit_most_frames: let no more frames be positive in a case than twice the most that a validation case has.
        precision_frames: on about how many validation frames half precision is measured, at least one a member; 0 is
            none. Five ViT-L/14 members on 128 take a quarter of an hour on two cores, seconds on a GPU.
        whole_cases: on how many validation cases it is measured what half precision changes in the answers, in the
            types that the device is fast in. A type that changes nothing in five or more is used however far it moves
            a single probability, if need be with the frames near a decision computed again in float32. Each case is
            analysed once in float32, and once or twice in every such type. By default five on a GPU, if one of its
            types moves a probability too far, and none on a CPU.
        device: where that is done; by default on a usable GPU, else on the CPU.
    """

    tower: str
    tower_licence: str
    training_data: str
    training_data_licence: str
    name: str = "fetal-abdomen-ensemble"
    notes: str = ""
    tower_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    fit_half_way: bool = True
    fit_one_run: bool = True
    fit_most_frames: bool = True
    precision_frames: int = FRAMES
    whole_cases: int | None = None
    device: Literal["cpu", "cuda"] | None = None


def export_runs(
    runs: Sequence[RunFolder],
    out: Path,
    settings: ExportSettings,
    *,
    cache: Cache | None = None,
    moved: MovedTower | None = None,
    command: str = "",
) -> Manifest:
    """Write the artifact of `runs`, in their order, to `out`.

    `cache` is where their validation frames lie, `moved` where the tower does; None is where it was in training. Raises
    AcouslicError where the runs do not share one tower, one of them is not finished, none has a decoder, or the
    artifact does not say what its members said.
    """
    _check(settings, len(runs))
    refuse_target(out)
    device, _ = choose_device(settings.device)
    members = [read_member(run) for run in runs]
    _say_missing_folds([member.record for member in members])
    if not any(member.config.decoder for member in members):
        raise AcouslicError("none of the runs has a mask decoder, so no mask could be drawn: add a run that has one")
    cache = cache or Cache(Path(members[0].record["cache"]))
    loaded = shared_tower(members, cache, moved or MovedTower())
    manifest = _manifest(members, loaded, cache, settings, command)
    state = rounded_state(loaded.state, _DTYPES[settings.tower_dtype], "store it by --tower_dtype bfloat16 or float32")
    shapes = linear_shapes(loaded.config)
    states = [member.state(shapes) for member in members]
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.parity-", dir=out.parent) as folder:
        candidate = Path(folder) / "artifact"
        write_artifact(candidate, manifest, state, states)
        table = table_of(cache, members[0].record["validation_cases"])
        refuse_unless_equal(candidate, members, loaded, table, settings.tower_dtype)
        if settings.precision_frames:
            scored = [member.scored for member in members]
            manifest = replace(manifest, half_precision=_measure(candidate, scored, cache, settings, device))
        shutil.rmtree(candidate)
    manifest = write_artifact(out, manifest, state, states)
    size_mib = sum(record.size_bytes for record in manifest.files.values()) / 2**20
    print(f"wrote {out}: {len(members)} members, {size_mib:.1f} MiB", flush=True)
    return manifest


def _say_missing_folds(records: Sequence[Mapping[str, Any]]) -> None:
    """Say which folds of their split the runs, by what `run.json` has of each, leave out."""
    # A run of an earlier version does not say how many there are.
    splits = {(record["split_sha256"], record.get("folds")) for record in records}
    folds = {record["fold"] for record in records}
    if len(splits) != 1 or None in folds:
        return
    ((_, count),) = splits
    missing = [str(fold) for fold in range(1, (count or 0) + 1) if fold not in folds]
    if missing:
        print(f"note: no run of fold {' and '.join(missing)} of {count} is among them", flush=True)


def _check(settings: ExportSettings, runs: int) -> None:
    """Raises AcouslicError for settings that no artifact of so many runs can have."""
    for name in ("precision_frames", "whole_cases"):
        if (getattr(settings, name) or 0) < 0:
            raise AcouslicError(f"{name} must not be negative: {getattr(settings, name)}")
    if settings.whole_cases and not settings.precision_frames:
        raise AcouslicError("whole_cases needs precision_frames: both are one record of the manifest")
    if settings.scoring.gate == "student":
        raise AcouslicError("scoring.gate: a model gets its student after the export, by `acouslic train distil`")
    for section in ("scoring", "selection"):
        try:
            check_bounds(getattr(settings, section))
        except ValueError as error:
            raise AcouslicError(f"{section}.{error}") from None
    if settings.scoring.gate_member >= runs:
        raise AcouslicError(f"scoring.gate_member {settings.scoring.gate_member} is not one of {runs} members")


def _manifest(
    members: Sequence[TrainedMember], loaded: LoadedTower, cache: Cache, settings: ExportSettings, command: str
) -> Manifest:
    """The manifest but for its files and half precision. Reading, thresholds and interval are fitted on what the
    members said of their own validation cases, which is told to people too."""
    scored = [member.scored for member in members]
    mask_threshold = choose_mask_threshold(scored, cache)
    cases = judge_cases(scored, [member.calibration for member in members], settings.selection)
    selection, cases = read_cases(
        cases,
        settings.selection,
        half_way=settings.fit_half_way,
        one_run=settings.fit_one_run,
        most=settings.fit_most_frames,
    )
    if selection.circumference_error is None:
        selection = replace(selection, circumference_error=mask_threshold.nine_in_ten)
    thresholds = choose_thresholds(cases, mask_threshold.value)
    print(describe_reading(selection, thresholds, len(cases)), flush=True)
    print(mask_threshold.describe(), flush=True)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=settings.name,
        tower=loaded.config,
        preprocessing=loaded.preprocessing,
        members=tuple(member.calibration.applied_to(member.config) for member in members),
        thresholds=thresholds,
        scoring=settings.scoring,
        selection=selection,
        provenance=_provenance(members, settings, command),
    )


def _measure(
    candidate: Path, scored: Sequence[OutOfFold], cache: Cache, settings: ExportSettings, device: torch.device
) -> HalfPrecision:
    """What half precision moves in the artifact at `candidate`, which is told to people too."""
    print(f"half precision on {device} ...", flush=True)
    frames = uncertain_frames(scored, cache, settings.precision_frames)
    measured = measure_half_precision(candidate, frames, device)
    print(describe(measured), flush=True)
    count = _whole_cases(settings, measured, device)
    if count:
        whole = [case_of_cache(cache.case(uuid)) for uuid in _spread_cases(scored, count)]
        measured = measure_whole_cases(measured, load_artifact(candidate), whole, device)
    return measured


def _provenance(members: Sequence[TrainedMember], settings: ExportSettings, command: str) -> Provenance:
    splits = [member.record["split_sha256"] for member in members]
    folds = [member.record["fold"] for member in members]
    return Provenance(
        tower=settings.tower,
        tower_licence=settings.tower_licence,
        training_data=settings.training_data,
        training_data_licence=settings.training_data_licence,
        made_by=made_with(command or "python -m training export"),
        notes=settings.notes,
        split_sha256=sha256_of_members(splits, folds) if all(splits) else None,
    )


def _whole_cases(settings: ExportSettings, measured: HalfPrecision, device: torch.device) -> int:
    """On how many cases is measured what half precision changes; says what could be done where it is none."""
    if settings.whole_cases is not None:
        return settings.whole_cases
    refused = refused_types(measured, device)
    if refused and device.type == "cuda":
        return FEWEST_CASES
    if refused:
        print(
            f"{' and '.join(refused)} may still be used if it changes nothing in whole cases: export with "
            f"--whole_cases {FEWEST_CASES}, or `acouslic train precision MODEL SWEEP... --whole-cases`",
            flush=True,
        )
    return 0


def _spread_cases(scored: Sequence[OutOfFold], count: int) -> list[str]:
    """`count` of the validation cases, or as many as there are, spread evenly over the members."""
    uuids = list(dict.fromkeys(uuid for of_member in scored for uuid in of_member.uuid.tolist()))
    count = min(count, len(uuids))
    return [uuids[index * len(uuids) // count] for index in range(count)]


def main(arguments: list[str]) -> int:
    """The command `python -m training export`."""
    parser = command_parser("export", __doc__)
    runs_help = "folders of finished runs in the order of their folds, or folders that hold fold_1, fold_2, ..."
    parser.add_argument("runs", nargs="+", help=runs_help)
    parser.add_argument("--out", required=True, help="folder of the artifact")
    parser.add_argument("--pack", help="also write the artifact as this model.tar.gz")
    parser.add_argument("--cache", help="where the validation frames lie now, if not where they lay in training")
    parser.add_argument("--tower_weights", help="where the tower's weights lie now, if not where they lay in training")
    parser.add_argument("--tower_config", help="and their open_clip configuration")
    parser.add_class_arguments(ExportSettings, None)
    options = parse_with(parser, "export", arguments)
    names = ExportSettings.__dataclass_fields__
    settings = ExportSettings(**{name: getattr(options, name) for name in names})
    runs = find_all_runs(map(Path, options.runs))
    if options.pack is not None:
        refuse_inside(Path(options.out), Path(options.pack))
    cache = None if options.cache is None else Cache(Path(options.cache))
    command = shlex.join(["python", "-m", "training", "export", *arguments])
    moved = MovedTower(options.tower_weights, options.tower_config)
    export_runs(runs, Path(options.out), settings, cache=cache, moved=moved, command=command)
    write_card_beside(Path(options.out))
    if options.pack is not None:
        write_archive(Path(options.out), Path(options.pack))
    return 0
