"""Reading a stranger's JSON: bounded in size, depth and digits, finite numbers only, regular files only."""

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

from acouslic.errors import AcouslicError

_LONGEST_NUMBER = 40
"""Characters of a number. Longer ones are no measurement, and converting a huge integer takes quadratic time."""
_SHOWN_CHARACTERS = 80


def read_strict_json(path: Path, limit_bytes: int, what: str) -> Any:
    """The content of a UTF-8 JSON file.

    `what` opens the sentence of every error, followed by the path ("case x"). Raises AcouslicError where the file is
    missing, not a regular file, larger than `limit_bytes` (found before it is read), not UTF-8, not JSON, nested too
    deeply, or holds NaN, an infinite number or one of more than 40 characters.
    """
    where = f"{what}: {path}"
    content = _read_bounded(path, limit_bytes, where)
    try:
        return json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_object_without_repeats,
            parse_int=_bounded_int,
            parse_float=_finite_float,
            parse_constant=_no_constant,
        )
    except RecursionError:
        raise AcouslicError(f"{where} is nested too deeply to be read") from None
    except UnicodeDecodeError as error:
        raise AcouslicError(f"{where} is not UTF-8 text: byte {error.start} cannot be decoded") from None
    except json.JSONDecodeError as error:
        raise AcouslicError(f"{where} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except ValueError as error:
        raise AcouslicError(f"{where} holds {error}") from None


def shown(value: object) -> str:
    """A stranger's value for a message: one line of plain ASCII in quotes where it is text, cut after 80 characters."""
    if isinstance(value, (bool, int, float, type(None))):
        text = str(value) if not isinstance(value, int) or value.bit_length() < 200 else "a huge integer"
    elif isinstance(value, str):
        text = ascii(value[: 2 * _SHOWN_CHARACTERS])
    else:
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def _read_bounded(path: Path, limit_bytes: int, where: str) -> bytes:
    try:
        # Not blocking: opening a pipe that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise AcouslicError(f"{where} is missing") from None
    except (OSError, ValueError) as error:
        raise AcouslicError(f"{where} cannot be opened: {_reason(error)}") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size > limit_bytes:
        os.close(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise AcouslicError(f"{where} is not a regular file")
        raise AcouslicError(f"{where} has {status.st_size:,} bytes, more than the {limit_bytes:,} allowed")
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise AcouslicError(f"{where} has more than the {limit_bytes:,} bytes allowed")
    return content


def _reason(error: Exception) -> str:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, item in pairs:
        if key in value:
            raise ValueError(f"the key {shown(key)} twice in one object")
        value[key] = item
    return value


def _bounded_int(text: str) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _finite_float(text: str) -> float:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(text)} characters")
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number that is too large")
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text}, which is no JSON number")
