"""What half precision changes in the answers to whole cases, against float32: what a type may be taken for."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from algorithm.engine.batches import choose_batch_frames
from algorithm.engine.device import changes_nothing, describe_consequence, half_types, keep_exact_sums
from algorithm.engine.ensemble import Ensemble
from algorithm.frames.frame_source import ArrayFrames, FrameSource
from algorithm.frames.frame_stream import FrameStream
from algorithm.judgement.review import load_case_head
from algorithm.model.artifact import Artifact
from algorithm.model.manifest import Consequence, HalfPrecision
from algorithm.pipeline import Pipeline
from algorithm.result.outputs import CaseResult
from training.release.cache import CachedCase


@dataclass(frozen=True)
class WholeCase:
    """A case that is analysed once in every type."""

    name: str
    open: Callable[[], AbstractContextManager[FrameSource]]


def case_of_sweep(path: Path) -> WholeCase:
    """A stack as it lies on the disk."""
    return WholeCase(path.stem, lambda: contextlib.closing(FrameStream(path)))


def case_of_cache(case: CachedCase) -> WholeCase:
    """A case of a cache, at training size: the tower sees the same frames, and a pixel is as much larger as it has to
    be."""
    record = case.record
    larger = max(record.rows, record.columns) / case.frames.shape[1]
    spacing_mm = (record.spacing_mm[0] * larger, record.spacing_mm[1] * larger)
    return WholeCase(case.uuid, lambda: contextlib.nullcontext(ArrayFrames(np.asarray(case.frames), spacing_mm)))


def measure_consequences(
    artifact: Artifact, cases: Sequence[WholeCase], device: torch.device
) -> dict[str, Consequence]:
    """What each half type that `device` is fast in changes in the answers to `cases`, by the type's name.

    Each is analysed as the manifest says, gate included, and nothing is written.
    """
    keep_exact_sums()
    types, _ = half_types(device)
    exact = _answers(artifact, cases, device, torch.float32) if types else []
    return {
        str(dtype).removeprefix("torch."): compare_answers(exact, _answers(artifact, cases, device, dtype))
        for dtype in types
    }


def compare_answers(exact: Sequence[CaseResult], half: Sequence[CaseResult]) -> Consequence:
    """What differs between two answers to the same cases, in the same order, at least one."""
    other_frames, positive_frames, changed_frames, largest_mm = 0, 0, 0, 0.0
    for one, other in zip(exact, half, strict=True):
        lengths_mm = (one.circumference_mm, other.circumference_mm)
        called = [answer.presence_probability >= answer.thresholds.presence for answer in (one, other)]
        other_frames += one.frame_index != other.frame_index or (lengths_mm[0] is None) != (lengths_mm[1] is None)
        positive_frames += int(called[0].sum() + called[1].sum())
        changed_frames += int((called[0] != called[1]).sum())
        if lengths_mm[0] is not None and lengths_mm[1] is not None:
            largest_mm = max(largest_mm, abs(lengths_mm[0] - lengths_mm[1]))
    return Consequence(len(exact), other_frames, positive_frames, changed_frames, largest_mm)


def tell_what_is_void(measured: HalfPrecision) -> None:
    """Say, where frames are judged otherwise from now on, that what was found in whole cases holds no more."""
    if measured.float16_consequence is not None or measured.bfloat16_consequence is not None:
        print(
            "what half precision changes in whole cases is to be measured anew: `acouslic train precision`", flush=True
        )


def with_consequences(measured: HalfPrecision, found: Mapping[str, Consequence]) -> HalfPrecision:
    """The record with what was found, which is told to people too; of other types it keeps what it has."""
    for name, consequence in found.items():
        may = ": it may be used" if changes_nothing(consequence) else ""
        print(f"{name} in {consequence.cases} whole cases: {describe_consequence(consequence)}{may}", flush=True)
    return dataclasses.replace(
        measured,
        float16_consequence=found.get("float16", measured.float16_consequence),
        bfloat16_consequence=found.get("bfloat16", measured.bfloat16_consequence),
    )


def _answers(
    artifact: Artifact, cases: Sequence[WholeCase], device: torch.device, dtype: torch.dtype
) -> list[CaseResult]:
    """The answers to whole cases in one type; the masks, which nobody asks for, are let go."""
    ensemble = Ensemble.from_artifact(artifact, device, dtype)
    batch_frames = choose_batch_frames(artifact.manifest.tower, ensemble.members, device, dtype)
    pipeline = Pipeline(ensemble, batch_frames, 0.0, 0.0, load_case_head(artifact))
    answers = []
    for case in cases:
        with case.open() as frames:
            result = pipeline.run_stream(frames, None, case.name)
        answers.append(dataclasses.replace(result, mask=np.zeros((0, 0), dtype=bool)))
    return answers
