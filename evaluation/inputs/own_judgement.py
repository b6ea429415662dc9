"""What `acouslic predict` itself says of a case's result: `suitable`, and the interval of the circumference."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acouslic.errors import AcouslicError
from acouslic.strict_json import read_strict_json, shown

SCHEMA_VERSION = 1
_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True)
class OwnJudgement:
    """Of `fetal-abdominal-circumference.json`."""

    suitable: bool
    """The case shows the abdomen well enough to be measured."""
    interval_mm: tuple[float, float] | None
    """Where the circumference is said to lie; None where none was measured."""


def read_own_judgement(path: Path, case: str) -> OwnJudgement:
    """The two fields of the file. Raises AcouslicError, naming the case, for a file that is damaged."""
    what = f"case {case}"
    document = read_strict_json(path, _LIMIT_BYTES, what)
    where = f"{what}: {path}"
    if not isinstance(document, dict) or document.get("schema_version") != SCHEMA_VERSION:
        raise AcouslicError(f"{where} must be an object with schema_version {SCHEMA_VERSION}")
    suitable, interval = document.get("suitable"), document.get("interval_mm")
    if not isinstance(suitable, bool):
        raise AcouslicError(f"{where}: suitable must be true or false, not {shown(suitable)}")
    if interval is None:
        return OwnJudgement(suitable, None)
    if not isinstance(interval, list) or len(interval) != 2 or not all(map(_is_length, interval)):
        raise AcouslicError(f"{where}: interval_mm must be two lengths in mm or null, not {shown(interval)}")
    if interval[0] > interval[1]:
        raise AcouslicError(f"{where}: interval_mm must be in ascending order")
    return OwnJudgement(suitable, (float(interval[0]), float(interval[1])))


def _is_length(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0
