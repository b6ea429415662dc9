"""What half precision changes in the answers to whole cases, against float32: what a type may be taken for."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from algorithm.engine.batches import NotNumbersError
from algorithm.engine.device import (
    MOST_RECORDED_DIFFERENCE,
    Precision,
    changes_nothing,
    consequence_field,
    describe_consequence,
    half_types,
    keep_exact_sums,
    recheck_margin,
)
from algorithm.frames.frame_source import ArrayFrames, FrameSource
from algorithm.frames.frame_stream import FrameStream
from algorithm.model.artifact import Artifact
from algorithm.model.manifest import Consequence, HalfPrecision
from algorithm.pipeline import Pipeline
from algorithm.result.outputs import CaseResult
from training.release.cache import CachedCase

CONSEQUENCES = tuple(
    consequence_field(dtype, rechecked=rechecked)
    for dtype in (torch.float16, torch.bfloat16)
    for rechecked in (False, True)
)
"""The fields of `HalfPrecision` that say what a half type changes in whole cases."""


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


def measure_whole_cases(
    measured: HalfPrecision, artifact: Artifact, cases: Sequence[WholeCase], device: torch.device
) -> HalfPrecision:
    """The record `measured` with what each half type that `device` is fast in changes in the answers to `cases`, which
    is told to people too; of other types it keeps what it has.

    Each case is analysed as the manifest says, gate included, and nothing is written. A type that changes something,
    and that moves a probability too far to be used all the same, is tried again with the frames near a decision asked
    again in float32, unless it moves it too far even for that. One that overflows has no consequence, and its
    difference is 1 from then on.
    """
    keep_exact_sums()
    types, reason = half_types(device)
    if not types:
        print(f"no whole case is analysed: {device} is fast in no half type ({reason})", flush=True)
    exact = _answers(artifact, cases, device, Precision(torch.float32, "")) if types else []
    for dtype in types:
        name = str(dtype).removeprefix("torch.")
        difference = getattr(measured, name)
        plain, rechecked = None, None
        try:
            plain = compare_answers(exact, _answers(artifact, cases, device, Precision(dtype, "")))
            _tell(name, plain)
        except NotNumbersError:
            difference = 1.0
            print(f"{name} overflows in whole cases: it is not used", flush=True)
        margin = recheck_margin(difference)
        too_far = margin is not None and difference > MOST_RECORDED_DIFFERENCE
        if plain is not None and too_far and not changes_nothing(plain):
            rechecked = compare_answers(exact, _answers(artifact, cases, device, Precision(dtype, "", margin)))
            _tell(f"{name}, frames near a decision in float32,", rechecked)
        fields = (name, consequence_field(dtype, rechecked=False), consequence_field(dtype, rechecked=True))
        found: dict[str, Any] = dict(zip(fields, (difference, plain, rechecked), strict=True))
        measured = dataclasses.replace(measured, **found)
    return measured


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
    if any(getattr(measured, name) is not None for name in CONSEQUENCES):
        print(
            "what half precision changes in whole cases is to be measured anew: `acouslic train precision`", flush=True
        )


def without_consequences(measured: HalfPrecision) -> HalfPrecision:
    """How far half precision moves a probability, alone."""
    nothing: dict[str, Any] = dict.fromkeys(CONSEQUENCES)
    return dataclasses.replace(measured, **nothing)


def _tell(how: str, consequence: Consequence) -> None:
    """One sentence for people about what was measured."""
    may = ": it may be used" if changes_nothing(consequence) else ""
    print(f"{how} in {consequence.cases} whole cases: it {describe_consequence(consequence)}{may}", flush=True)


def _answers(
    artifact: Artifact, cases: Sequence[WholeCase], device: torch.device, precision: Precision
) -> list[CaseResult]:
    """The answers to whole cases in one precision; the masks, which nobody asks for, are let go."""
    pipeline = Pipeline.of_artifact(artifact, device, precision)
    answers = []
    for case in cases:
        with case.open() as frames:
            result = pipeline.run_stream(frames, None, case.name)
        answers.append(dataclasses.replace(result, mask=np.zeros((0, 0), dtype=bool)))
    return answers
