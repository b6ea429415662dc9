"""Reading a stranger's JSON: bounded in size, depth and digits, finite numbers only, regular files only."""

import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from acouslic.errors import AcouslicError

LONGEST_NUMBER = 40
"""Characters of a number. Longer ones are no measurement, and converting a huge integer takes quadratic time."""
_SHOWN_CHARACTERS = 80


def read_strict_json(path: Path, limit_bytes: int, what: str) -> Any:
    """The content of a UTF-8 JSON file.

    `what` opens the sentence of every error, followed by the path ("case x"). Raises AcouslicError where the file is
    missing, not a regular file, larger than `limit_bytes` (found before it is read), not UTF-8, not JSON, nested too
    deeply, or holds NaN, an infinite number or one of more than 40 characters.
    """
    where = f"{what}: {path}"
    return parse_json(read_bounded(path, limit_bytes, where), where)


def read_bounded(path: Path, limit_bytes: int, where: str, missing: str = "") -> bytes:
    """The bytes of a regular file of at most `limit_bytes`.

    `where` opens the sentence of every error. Raises AcouslicError where the file is missing (`missing` says what to
    do), may not be read, is no regular file or is larger, which is found before it is read.
    """
    try:
        # Not blocking: opening a pipe that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise AcouslicError(f"{where} is missing" + (f": {missing}" if missing else "")) from None
    except (OSError, ValueError) as error:
        raise AcouslicError(f"{where} cannot be read: {reason(error)}") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise AcouslicError(f"{where} is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        content = b"" if status.st_size > limit_bytes else file.read(limit_bytes + 1)
    if (size_bytes := max(status.st_size, len(content))) > limit_bytes:
        raise AcouslicError(f"{where} has {size_bytes:,} bytes, more than the {limit_bytes:,} allowed")
    return content


def finite_number(text: str) -> int | float:
    """The number that `text` is in JSON. Raises ValueError where it has more than 40 characters or is infinite."""
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(text)} {'digits' if text.lstrip('-').isdecimal() else 'characters'}")
    if text.lstrip("-").isdecimal():
        return int(text)
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number that is too large")
    return value


def parse_json(content: bytes, where: str, number: Callable[[str], Any] = finite_number) -> Any:
    """The value in `content`; `number` makes one of a number's text, and its ValueError says what the file holds.

    `where` opens the sentence of every error. Raises AcouslicError where the content is not UTF-8, not JSON, nested too
    deeply, names a key twice in one object, or holds NaN, infinity or what `number` refuses.
    """
    try:
        return json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_object_without_repeats,
            parse_int=number,
            parse_float=number,
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
    """A stranger's value for a message: one line of plain ASCII, text in quotes, cut after 80 characters."""
    if isinstance(value, int) and value.bit_length() > 200:
        return "a huge integer"
    if isinstance(value, str):
        text = ascii(value[:_SHOWN_CHARACTERS]) + ("..." if len(value) > _SHOWN_CHARACTERS else "")
    elif isinstance(value, (int, float, type(None))):
        text = str(value)
    else:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 2 * _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def reason(error: Exception) -> str:
    """Why a file could not be used, in a few words without its path: "Permission denied"."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return shown(str(error)) if str(error) else type(error).__name__


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, item in pairs:
        if key in value:
            raise ValueError(f"the field {shown(key)} twice in one object")
        value[key] = item
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text}, which is no JSON number")
