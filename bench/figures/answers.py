"""What finished runs say of cases: of those that they left out, and of sets of other patients, which are asked once."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from acouslic.errors import AcouslicError
from algorithm.engine.device import choose_device, choose_precision
from algorithm.engine.ensemble import Ensemble
from algorithm.judgement.score import gate_frames, interpolate_in_sweeps
from algorithm.judgement.select_frame import Values, probability_of
from algorithm.model.manifest import HalfPrecision
from bench.figures.readings import SaidOfCase
from training.export.trained_member import MovedTower, TrainedMember, artifact_of, shared_tower
from training.frames.dataset import table_of
from training.judge.ask_members import ask_members
from training.learn.out_of_fold import OutOfFold
from training.release.cache import Cache, CachedCase

OUT_OF_FOLD = "out of fold"
"""The runs' own validation cases, where a set is called by its name."""
_BATCH_FRAMES = 32


@dataclass(frozen=True)
class Answer:
    """What one run says of one case: logits (F,), and the share of mask pixels where masks were drawn."""

    presence: Values
    optimality: Values | None
    mask_area: Values | None


def answers_of_run(scored: OutOfFold) -> dict[str, Answer]:
    """A run's answers to its validation cases, by uuid."""
    found = {}
    ends = np.cumsum(scored.frame_counts).tolist()
    for uuid, start, stop in zip(scored.uuid.tolist(), [0, *ends[:-1]], ends, strict=True):
        optimality = scored.optimality_logit[start:stop].astype(np.float64) if len(scored.optimality_logit) else None
        found[uuid] = Answer(scored.presence_logit[start:stop].astype(np.float64), optimality, None)
    return found


def answers_to_set(
    members: Sequence[TrainedMember], cases: Sequence[CachedCase], cache: Cache, scores: Path, stride: int, masks: bool
) -> list[dict[str, Answer]]:
    """What each run says of the cases of a set, by uuid; asked once, then read from `scores`."""
    return [_answers_of_member(member, cases, cache, scores, stride, masks) for member in members]


def _answers_of_member(
    member: TrainedMember, cases: Sequence[CachedCase], cache: Cache, scores: Path, stride: int, masks: bool
) -> dict[str, Answer]:
    """Of one run. Each is asked by itself: another one beside it changes nothing of what is kept."""
    kept: dict[str, Path] = {}
    for case in cases:
        # The case's record says of which files it was made and when: a uuid alone may be another set's too.
        question = [member.record, asdict(case.record), cache.image_size, stride, masks]
        asked = json.dumps(question, sort_keys=True)
        kept[case.uuid] = scores / f"{hashlib.sha256(asked.encode()).hexdigest()[:16]}.npz"
    missing = [case for case in cases if not kept[case.uuid].is_file()]
    if missing:
        scores.mkdir(parents=True, exist_ok=True)
        device, _ = choose_device(None)
        dtype = choose_precision(device, HalfPrecision()).dtype
        loaded = shared_tower([member], cache, MovedTower())
        ensemble = Ensemble.from_artifact(artifact_of([member], loaded), device, dtype)
        for number, case in enumerate(missing, start=1):
            frames = table_of(cache, [case.uuid])
            rows = gate_frames(case.sweeps, stride)
            answers = ask_members(ensemble, frames, rows, _BATCH_FRAMES, outline_all=masks)
            part = kept[case.uuid].with_suffix(".part.npz")
            np.savez_compressed(
                part,
                rows=rows,
                embedding=answers.embedding[0].astype(np.float16),
                **{name: getattr(answers, name)[0] for name in ("presence", "optimality", "mask_area")},
            )
            part.rename(kept[case.uuid])
            print(f"{cache.folder.name}: scored {number} of {len(missing)} cases", flush=True)
    found = {}
    for case in cases:
        with np.load(kept[case.uuid], allow_pickle=False) as content:
            found[case.uuid] = Answer(
                **{
                    name: _all_frames(content[name], content["rows"], case.sweeps)
                    for name in ("presence", "optimality", "mask_area")
                }
            )
    return found


def _all_frames(values: NDArray[np.float32], rows: NDArray[np.int64], sweeps: Sequence[range]) -> Values | None:
    """(F,) from the frames that were looked at; None where there is nothing."""
    if np.isnan(values).any():
        return None
    return interpolate_in_sweeps(values.astype(np.float64), rows, sweeps)


def said_of(members: Sequence[TrainedMember], answers: Sequence[dict[str, Answer]], case: CachedCase) -> SaidOfCase:
    """The mean of the runs that were asked about a case; calibrated presence of a black frame is 0, as in inference."""
    asked = [(member, found[case.uuid]) for member, found in zip(members, answers, strict=True) if case.uuid in found]
    presence = [answer.presence for _, answer in asked]
    calibrations = [member.calibration for member, _ in asked]
    optimality = [
        probability_of(answer.optimality / member.calibration.optimality_temperature)
        for member, answer in asked
        if answer.optimality is not None
    ]
    areas = [answer.mask_area for _, answer in asked if answer.mask_area is not None]
    return SaidOfCase(
        uuid=case.uuid,
        subject=case.subject_id,
        label=case.labels,
        sweeps=case.sweeps,
        plain=np.mean([probability_of(logit) for logit in presence], axis=0),
        presence=np.where(
            case.black,
            0.0,
            np.mean(
                [
                    probability_of(logit / calibration.presence_temperature)
                    for logit, calibration in zip(presence, calibrations, strict=True)
                ],
                axis=0,
            ),
        ),
        optimality=np.mean(optimality, axis=0) if len(optimality) == len(asked) else None,
        mask_area=np.mean(areas, axis=0) if len(areas) == len(asked) else None,
    )


def open_set(
    members: Sequence[TrainedMember], own: Cache, other: Cache, name: str, chosen: slice = slice(None)
) -> Sequence[CachedCase]:
    """The chosen cases of a set of other patients; `own` is the cache of the runs.

    Raises AcouslicError where there is none, or where a run has learned from one or was chosen on it.
    """
    cases = other.cases[chosen]
    if not cases:
        raise AcouslicError(f"{name}: none of its {len(other.cases)} cases is among those of --cases")
    known = {uuid for member in members for uuid in member.record["train_cases"] + member.record["validation_cases"]}
    subjects = {case.subject_id for case in own.cases if case.uuid in known}
    shared = [case for case in cases if case.uuid in known or case.subject_id in subjects]
    if shared:
        raise AcouslicError(
            f"{name}: a run has learned from or was chosen on case {shared[0].uuid} or another of its patient "
            f"({len(shared)} of {len(cases)} cases)"
        )
    return cases
