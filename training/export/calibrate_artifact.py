"""A finished artifact is calibrated on cases that it has not learned from: temperatures, reading, thresholds.

    python -m training calibrate MODEL --cache CACHE [--split SPLIT] [--device cpu|cuda]

For imported checkpoints, which come without any of it, and for a model that moves to a new site. The cases are the
validation part of the paper's split, for a model that was trained on no other, or all folds of the split that the
model's own members were trained on, each judged by the member that validated on it; without --split all cases of the
cache, which none of the members may have learned from. What `training export` chooses is chosen here by the same code
and written into the manifest. Weights stay as they are.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from acouslic.errors import AcouslicError
from acouslic.write import check_writable, write_text
from algorithm.engine.device import choose_device, set_cpu_threads
from algorithm.model.artifact import load_artifact
from algorithm.model.manifest import (
    MANIFEST_FILE,
    HalfPrecision,
    Manifest,
    SelectionConfig,
    manifest_to_json,
    read_manifest,
)
from training.export.consequence import tell_what_is_void
from training.export.model_card import renew_card_beside
from training.export.precision import FRAMES, describe, measure_artifact
from training.judge.calibrate import calibrate_member, judge_cases
from training.judge.mask_threshold import choose_mask_threshold
from training.judge.reading import choose_thresholds, describe_reading, read_cases
from training.judge.unseen_cases import cases_of_members, check_frames, score_members, uncertain_frames
from training.release.cache import Cache
from training.release.split import Split, read_split


def calibrate_artifact(
    folder: Path,
    cache: Cache,
    split: Split | None,
    device: torch.device,
    *,
    precision_frames: int = FRAMES,
) -> Manifest:
    """Write what the cases say into the manifest of the artifact in `folder`, and return it.

    Raises AcouslicError, before anything is written, where the artifact is not sound, the cache holds frames of another
    size or resize, no case has an annotated frame, the split is not the model's own (for a model that names none: not
    the paper's), or the model has a student or a case head.
    """
    artifact = load_artifact(folder)
    manifest = artifact.manifest
    if manifest.student is not None or manifest.case_head is not None:
        what = "student" if manifest.student is not None else "case head"
        raise AcouslicError(
            f"{folder} has a {what}, which was made for the calibration that the model has: calibrate the model that "
            "it was made from, and make it again"
        )
    check_frames(manifest, cache)
    scored = score_members(artifact, cache, cases_of_members(manifest, cache, split), device)
    if not any((member.label > 0).any() for member in scored):
        raise AcouslicError(f"none of the cases has an annotated frame: {cache.folder} cannot calibrate a model")
    calibrations = [calibrate_member(member) for member in scored]
    plain = _newly_read(manifest.selection)
    selection, cases = read_cases(judge_cases(scored, calibrations, plain), plain)
    mask_threshold = choose_mask_threshold(scored, cache)
    tell_what_is_void(manifest.half_precision)
    manifest = replace(
        manifest,
        members=tuple(
            calibration.applied_to(member) for member, calibration in zip(manifest.members, calibrations, strict=True)
        ),
        selection=replace(selection, circumference_error=mask_threshold.nine_in_ten),
        thresholds=choose_thresholds(cases, mask_threshold.value),
        half_precision=HalfPrecision(),
    )
    print(describe_reading(selection, manifest.thresholds, len(cases)), flush=True)
    print(mask_threshold.describe(), flush=True)
    if precision_frames:
        # Temperatures are part of what half precision moves.
        frames = uncertain_frames(scored, cache, precision_frames)
        measured = measure_artifact(replace(artifact, manifest=manifest), frames, device)
        manifest = replace(manifest, half_precision=measured)
        print(describe(measured), flush=True)
    write_text(folder / MANIFEST_FILE, manifest_to_json(manifest))
    return manifest


def _newly_read(selection: SelectionConfig) -> SelectionConfig:
    """`selection` as a new artifact would read and choose frames, before anything is fitted; what concerns outlines and
    unsuitable cases stays."""
    stays = ("candidates", "neighbour_frames", "when_unsuitable", "mask_shape")
    return SelectionConfig(**{name: getattr(selection, name) for name in stays})


def main(arguments: list[str]) -> int:
    """The command `python -m training calibrate`."""
    parser = argparse.ArgumentParser(prog="acouslic train calibrate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder of the artifact; its manifest is rewritten")
    parser.add_argument("--cache", type=Path, required=True, help="cases that `acouslic train prepare` made")
    parser.add_argument("--split", type=Path, help="use its validation cases; without it all cases of the cache")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a usable GPU, else the CPU")
    parser.add_argument(
        "--precision-frames",
        type=int,
        default=FRAMES,
        help=f"on how many frames half precision is measured; 0 for none (default: {FRAMES})",
    )
    options = parser.parse_args(arguments)
    if options.precision_frames < 0:
        raise AcouslicError(f"--precision-frames must not be negative: {options.precision_frames}")
    read_manifest(options.model)  # before `check_writable`, which makes a folder that is missing
    check_writable(options.model)
    set_cpu_threads()
    device, _ = choose_device(options.device)
    split = None if options.split is None else read_split(options.split)
    calibrate_artifact(options.model, Cache(options.cache), split, device, precision_frames=options.precision_frames)
    print(f"written into {options.model / MANIFEST_FILE}: pack the model again")
    renew_card_beside(options.model)
    return 0
