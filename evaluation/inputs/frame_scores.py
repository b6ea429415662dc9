"""A submission's `frame-quality-scores.json`: how likely it finds each frame, read as a stranger's file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from acouslic.errors import AcouslicError
from acouslic.strict_json import read_strict_json, shown

SCHEMA_VERSION = 1
LIMIT_BYTES = 2 * 1024 * 1024
"""Of the whole file. 840 frames with three probabilities of 17 digits take 60 kB."""


@dataclass(frozen=True, eq=False)
class FrameScores:
    """What the evaluation takes from the file; its other fields are for people."""

    presence_probability: np.ndarray
    """float64 (F,), 0..1: the abdomen is in the frame."""
    optimality_probability: np.ndarray | None
    """float64 (F,), 0..1: the plane is optimal, given that the abdomen is there; None where the submission has none."""
    presence_threshold: float
    """0..1: the submission calls a frame positive from this probability on."""
    optimality_threshold: float | None
    """None where there is no optimality."""
    presence_alone_probability: np.ndarray | None = None
    """float64 (F,), 0..1: the same, judged without the other frames of the case; None where the submission has none."""


def read_frame_scores(path: Path, frames: int, case: str) -> FrameScores:
    """The scores of a case whose stack has `frames` frames.

    Raises AcouslicError, naming the case and the cause, for a file over 2 MiB, one that `read_strict_json` refuses,
    another schema version, a missing field, a list of another length than `frames`, and a probability or threshold
    that is not a number in 0..1 (true, "0.5" and null are not numbers).
    """
    what = f"case {case}"
    document = read_strict_json(path, LIMIT_BYTES, what)
    where = f"{what}: {path}"
    if not isinstance(document, dict):
        raise AcouslicError(f"{where}: expected an object, got {shown(document)}")
    version = _field(document, "schema_version", where)
    if type(version) is not int or version != SCHEMA_VERSION:
        raise AcouslicError(f"{where}: schema_version must be {SCHEMA_VERSION}, got {shown(version)}")
    stated_frames = _field(document, "frames", where)
    if type(stated_frames) is not int or stated_frames != frames:
        raise AcouslicError(f"{where}: frames must be {frames}, the length of the stack, got {shown(stated_frames)}")
    thresholds = _field(document, "thresholds", where)
    if not isinstance(thresholds, dict):
        raise AcouslicError(f"{where}: thresholds must be an object, got {shown(thresholds)}")
    presence = _probabilities(document, "presence_probability", frames, where)
    presence_threshold = _probability(_field(thresholds, "presence", where), "thresholds.presence", where)
    alone = None
    if document.get("presence_alone_probability") is not None:
        alone = _probabilities(document, "presence_alone_probability", frames, where)
    if _field(document, "optimality_probability", where) is None:
        return FrameScores(presence, None, presence_threshold, None, alone)
    optimality = _probabilities(document, "optimality_probability", frames, where)
    optimality_threshold = _probability(_field(thresholds, "optimality", where), "thresholds.optimality", where)
    return FrameScores(presence, optimality, presence_threshold, optimality_threshold, alone)


def _field(mapping: dict[str, Any], name: str, where: str) -> Any:
    if name not in mapping:
        raise AcouslicError(f"{where}: the field {name} is missing")
    return mapping[name]


def _probabilities(document: dict[str, Any], name: str, frames: int, where: str) -> np.ndarray:
    values = _field(document, name, where)
    if not isinstance(values, list):
        raise AcouslicError(f"{where}: {name} must be a list of {frames} numbers, got {shown(values)}")
    if len(values) != frames:
        raise AcouslicError(f"{where}: {name} must have one number a frame, {frames}, got {len(values)}")
    return np.array([_probability(value, f"{name}[{index}]", where) for index, value in enumerate(values)])


def _probability(value: Any, name: str, where: str) -> float:
    # bool is a subclass of int, hence type() instead of isinstance; NaN fails the comparison.
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise AcouslicError(f"{where}: {name} must be a number in 0..1, got {shown(value)}")
    return float(value)
