"""The cases that a finished model's members did not learn from, and what each member says of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from acouslic.errors import AcouslicError
from algorithm.engine.batches import choose_batch_frames
from algorithm.engine.device import choose_precision
from algorithm.engine.ensemble import Ensemble
from algorithm.model.artifact import Artifact
from algorithm.model.manifest import Manifest
from training.frames.dataset import table_of
from training.judge.ask_members import Answers, ask_members, of_member, read_answers, write_answers
from training.learn.out_of_fold import OutOfFold
from training.release.cache import Cache, CachedCase
from training.release.split import Split, sha256_of_members


def check_frames(manifest: Manifest, cache: Cache) -> None:
    """Raises AcouslicError where a cache holds frames of another size or resize than the model takes."""
    size, antialias = manifest.tower.image_size, manifest.preprocessing.antialias
    if (cache.image_size, cache.index.antialias) != (size, antialias):
        raise AcouslicError(
            f"{cache.folder} holds frames of {cache.image_size} pixels {_resize(cache.index.antialias)}, the model "
            f"takes {size} {_resize(antialias)}: prepare the release again with --image-size {size}"
            f"{' --antialias' if antialias else ''}"
        )


def _resize(antialias: bool) -> str:
    return "with antialiasing" if antialias else "without antialiasing"


def cases_of_members(manifest: Manifest, cache: Cache, split: Split | None) -> list[tuple[str, ...]]:
    """The cases that each member is judged by: those it has not learned from.

    The validation part of the paper's split, where the model was trained on that or says of none (an imported one), or
    each member's fold of the model's own split; without a split all cases of the cache, which none may have learned
    from. Raises AcouslicError for another model's split.
    """
    members = len(manifest.members)
    if split is None:
        return [tuple(case.uuid for case in cache.cases)] * members
    own = manifest.provenance.split_sha256
    if split.protocol == "paper":
        # Earlier versions named the split itself, however many members it has.
        if own not in (None, split.sha256(), sha256_of_members([split.sha256()] * members, [1] * members)):
            raise AcouslicError(
                "the model's members were not trained on this split, so that they may have learned from its validation "
                "cases: give the split that the model was made with, or leave --split out and give a cache of cases "
                "that it has not seen"
            )
        return [split.validation_cases()] * members
    # Its own sha256 stands for the first folds in their order, of which later ones may be missing.
    if own != split.sha256() or split.members < members:
        raise AcouslicError(
            "the model's members were not trained on the folds of this split, one each and exported in their order, so "
            "nobody knows which cases they have learned from: give the split that the model was made with, export its "
            "runs in the order of their folds, or leave --split out and give a cache of cases that it has not seen"
        )
    return [split.validation_cases(member) for member in range(members)]


def ask_about(
    artifact: Artifact,
    cache: Cache,
    uuids: Sequence[tuple[str, ...]],
    device: torch.device,
    keep_in: Path | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Answers]:
    """What all members say of every frame of the cases of any member, by uuid. Each frame is looked at once; where
    answers are kept in a folder, those that lie there are not asked for again, unless `prepare` has made the case anew
    since.

    Without a `dtype` it is computed in the one that the model is used in."""
    manifest = artifact.manifest
    dtype = choose_precision(device, manifest.half_precision).dtype if dtype is None else dtype
    exhaustive = replace(manifest, scoring=replace(manifest.scoring, mode="exhaustive"))
    ensemble = Ensemble.from_artifact(replace(artifact, manifest=exhaustive), device, dtype)
    batch_frames = choose_batch_frames(manifest.tower, ensemble.members, device, dtype)
    wanted = list(dict.fromkeys(uuid for of_one in uuids for uuid in of_one))
    answers = {}
    for number, uuid in enumerate(wanted, start=1):
        kept = None if keep_in is None else keep_in / f"{uuid}.npz"
        if kept is not None and kept.is_file() and not _is_older(kept, cache.case(uuid)):
            answers[uuid] = read_answers(kept)
            continue
        table = table_of(cache, [uuid])
        answers[uuid] = ask_members(ensemble, table, np.arange(len(table)), batch_frames)
        if kept is not None:
            write_answers(kept, answers[uuid])
        print(f"scored {number} of {len(wanted)} cases", flush=True)
    return answers


def _is_older(kept: Path, case: CachedCase) -> bool:
    """Whether answers are of the case as it was before: its frames may be others now, or more."""
    return kept.stat().st_mtime_ns < (case.folder / "case.json").stat().st_mtime_ns


def score_members(
    artifact: Artifact,
    cache: Cache,
    uuids: Sequence[tuple[str, ...]],
    device: torch.device,
    keep_in: Path | None = None,
    dtype: torch.dtype | None = None,
) -> list[OutOfFold]:
    """What each member says of its cases; `keep_in` and `dtype` as for `ask_about`."""
    return of_members(ask_about(artifact, cache, uuids, device, keep_in, dtype), cache, uuids)


def uncertain_frames(scored: Sequence[OutOfFold], cache: Cache, count: int) -> torch.Tensor:
    """The frames that each member is least certain of, uint8 (about `count` in all, S, S): a small change of a logit
    moves their probability most. Black ones, whose probability is 0, come last."""
    frames = []
    for member in scored:
        doubt = np.where(member.black, np.inf, np.abs(member.presence_logit))
        rows = np.sort(np.argsort(doubt, kind="stable")[: max(1, count // len(scored))])
        frames.append(table_of(cache, member.uuid.tolist()).read(rows).frames)
    return torch.cat(frames)


def of_members(answers: Mapping[str, Answers], cache: Cache, uuids: Sequence[tuple[str, ...]]) -> list[OutOfFold]:
    """What each member says of its cases, from what all members said."""
    return [
        of_member([answers[uuid] for uuid in of_one], member, table_of(cache, of_one))
        for member, of_one in enumerate(uuids)
    ]
