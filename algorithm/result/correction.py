"""A measurement by hand, as the page of a case saves it: read strictly, and turned into an ellipse."""

import math
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec

from acouslic.ellipse import Ellipse
from acouslic.errors import AcouslicError

CORRECTION_VERSION = 1
_MOST_BYTES = 20_000
_SAME_MIDDLE_PX = 0.1
_RIGHT_ANGLE = 0.002
"""Cosine: the browser rounds the ends to 0.001 px."""
_SHORTEST_AXIS_PX = 8.0

Number = Annotated[float, msgspec.Meta(ge=-100_000, le=100_000)]
Point = tuple[Number, Number]
"""(x, y) in pixels of the frame; (0, 0) is the centre of the top left one."""


class Correction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a correction file."""

    schema_version: int
    result_sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    """Of the `fetal-abdominal-circumference.json` that is corrected."""
    frame_number: Annotated[int, msgspec.Meta(ge=0)]
    axis_ends_px: tuple[tuple[Point, Point], tuple[Point, Point]]
    """The two ends of the ellipse's first axis, then those of its second."""
    circumference_mm: Annotated[float, msgspec.Meta(gt=0)]
    """As the browser calculated it."""
    reader: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,16}\Z")]
    """Initials of who measured."""
    comment: Annotated[str, msgspec.Meta(max_length=200)]
    made_at: str
    """A time with its zone, ISO 8601."""


def read_correction(path: Path) -> Correction:
    """Read a correction file. Raises AcouslicError, naming what is wrong, for everything that the page does not save:
    a missing, unknown or mistyped field, an unprintable comment, or another version."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise AcouslicError(f"{path} is no correction: it is longer than {_MOST_BYTES:,} bytes")
        content = path.read_bytes()
    except OSError as error:
        raise AcouslicError(f"{path} could not be read: {error.strerror}") from None
    try:
        correction = msgspec.json.decode(content, type=Correction)
        made_at = datetime.fromisoformat(correction.made_at)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        reason = str(error).replace("\n", " ")
        raise AcouslicError(f"{path} is no correction as the page saves it: {reason}; save it again") from None
    if correction.schema_version != CORRECTION_VERSION:
        raise AcouslicError(
            f"{path} has schema version {correction.schema_version}; this program reads {CORRECTION_VERSION}"
        )
    if made_at.tzinfo is None or not correction.comment.isprintable():
        raise AcouslicError(f"{path} is no correction as the page saves it: its time or its comment; save it again")
    return correction


def ellipse_of(correction: Correction) -> Ellipse:
    """The ellipse with these axes. Raises AcouslicError where they do not cross at right angles in their middles, or
    one is shorter than 8 pixels."""
    (first, second) = correction.axis_ends_px
    middle, other_middle = _middle(first), _middle(second)
    along, across = _vector(first), _vector(second)
    lengths = math.hypot(*along), math.hypot(*across)
    if min(lengths) < _SHORTEST_AXIS_PX:
        raise AcouslicError(f"the correction's shorter axis has {min(lengths):.1f} pixels: measure the abdomen again")
    cosine = (along[0] * across[0] + along[1] * across[1]) / (lengths[0] * lengths[1])
    if math.dist(middle, other_middle) > _SAME_MIDDLE_PX or abs(cosine) > _RIGHT_ANGLE:
        raise AcouslicError("the correction's axes do not cross at right angles in their middles: save it again")
    angle_degrees = math.degrees(math.atan2(along[1], along[0])) % 180
    return Ellipse(middle, (lengths[0] / 2, lengths[1] / 2), angle_degrees)


def _middle(axis: tuple[Point, Point]) -> tuple[float, float]:
    (x1, y1), (x2, y2) = axis
    return (x1 + x2) / 2, (y1 + y2) / 2


def _vector(axis: tuple[Point, Point]) -> tuple[float, float]:
    (x1, y1), (x2, y2) = axis
    return x2 - x1, y2 - y1
