"""JSON files that somebody else may have written: read with bounds, checked against types, refused by field.

msgspec checks types and bounds and names the place; here its findings become one sentence for a person. It takes
milliseconds to import, which counts in every cold container.
"""

import dataclasses
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar

import msgspec

from acouslic.errors import AcouslicError
from acouslic.strict_json import LONGEST_NUMBER, finite_number, parse_json, read_bounded, shown

LIMIT_BYTES = 4 << 20
"""Of a JSON file of an artifact: a manifest that lists the patches of the largest tower takes a tenth of it."""
_WORDS = {
    "int": "an integer",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "an array",
    "object": "an object",
}
"""For a person, what msgspec calls by Python's names."""

Checked = TypeVar("Checked")


def read_typed_file(path: Path, *, missing: str = "mount or extract the whole artifact") -> bytes:
    """The bytes of an artifact's JSON file, whose size is bounded; `missing` says what to do where it is not there."""
    return read_bounded(path, LIMIT_BYTES, str(path), missing)


def read_object(content: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in `content`; numbers that no float holds come as text, so that a check of types meets them.

    Raises AcouslicError where it is not UTF-8, not JSON, not an object, nested too deeply, or names a field twice.
    """
    found = parse_json(content, str(path), _number_or_text)
    if not isinstance(found, dict):
        raise AcouslicError(f"{path} must hold a JSON object, not {_kind(found)}")
    return found


def convert(found: Mapping[str, Any], kind: type[Checked], path: Path) -> Checked:
    """What was read as the dataclass `kind`, types and bounds checked strictly; fields it does not know are left out.

    Raises AcouslicError with the path of the field.
    """
    try:
        return msgspec.convert(found, kind, strict=True)
    except msgspec.ValidationError as error:
        raise AcouslicError(f"{path}: {_sentence(str(error), found, kind)}") from None


def refuse_other_fields(found: Any, wanted: Any, path: Path, where: str = "") -> None:
    """Raises AcouslicError unless `found` names exactly the fields that `wanted`, a dataclass made of it, has."""
    if dataclasses.is_dataclass(wanted):
        known = [item.name for item in dataclasses.fields(wanted)]
        unknown = sorted(set(found) - set(known))
        missing = [name for name in known if name not in found]
        if unknown or missing:
            problem = f"unknown field {shown(unknown[0])}" if unknown else f"field {missing[0]!r} is missing"
            raise AcouslicError(f"{path}: {problem} in {where or 'the manifest'}")
        for name in known:
            refuse_other_fields(found[name], getattr(wanted, name), path, f"{where}.{name}" if where else name)
    elif isinstance(wanted, tuple):
        for index, (one, value) in enumerate(zip(found, wanted, strict=True)):
            refuse_other_fields(one, value, path, f"{where}[{index}]")
    elif isinstance(wanted, dict):
        for name, value in wanted.items():
            refuse_other_fields(found[name], value, path, f"{where}[{shown(name)}]")


def check_bounds(section: Any) -> None:
    """Raises ValueError where a dataclass made in the program, not read, breaks the bounds of its types."""
    content = dataclasses.asdict(section)
    try:
        msgspec.convert(content, type(section), strict=True)
    except msgspec.ValidationError as error:
        raise ValueError(_sentence(str(error), content, type(section))) from None


def _number_or_text(text: str) -> int | float | str:
    """The number; one of more than 40 characters, or too large, stays text."""
    try:
        return finite_number(text)
    except ValueError:
        return f"a number of {len(text):,} characters" if len(text) > LONGEST_NUMBER else text


def _sentence(message: str, found: Any, kind: Any) -> str:
    """msgspec's finding ("Expected `int` >= 1 - at `$.tower.width`") with the field's path and what stands there."""
    problem, _, place = message.partition(" - at `$")
    where, value = "", found
    for part in re.findall(r"\.[^.\[\]`]+|\[\d+\]|\[\.\.\.\]", place):
        if part == "[...]":
            key, kind = _broken_item(value, kind)
            value, where = value[key], f"{where}[{shown(key)}]"
        elif part.startswith("["):
            index = int(part[1:-1])
            value, kind, where = value[index], _item_type(kind, index), f"{where}{part}"
        else:
            value, kind = value[part[1:]], _field_type(kind, part[1:])
            where += part if where else part[1:]
    here = where or "the manifest"
    if options := _options(kind):
        return f"{here} must be one of {', '.join(map(repr, options))}, not {shown(value)}"
    if "matching regex" in problem:
        return f"{here} must be {_described(kind)}, not {_kind(value)}"
    if problem.startswith("Expected "):
        wanted = problem.removeprefix("Expected ").partition(", got ")[0]
        wanted = re.sub(
            r"\w+", lambda word: _WORDS.get(word[0], word[0]), wanted.replace("`", "").replace(" | ", " or ")
        )
        return f"{here} must be {wanted}, not {_kind(value)}"
    if problem.startswith("Object missing required field "):
        return (
            f"field {problem.removeprefix('Object missing required field ').replace('`', repr('')[0])} is missing"
            + (f" in {where}" if where else "")
        )
    return f"in {here}: {problem.replace('`', '')}"


def _kind(value: Any) -> str:
    """What a value is, for a message: itself where it is short, else its kind."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"an array of {len(value):,}"
    return "null" if value is None else shown(value)


def _plain(kind: Any) -> list[Any]:
    """A type without its bounds: the members of a union, else itself alone; null left out."""
    if typing.get_origin(kind) is typing.Annotated:
        return _plain(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, UnionType):
        return [plain for one in typing.get_args(kind) if one is not type(None) for plain in _plain(one)]
    return [kind]


def _described(kind: Any) -> str:
    """What the pattern of a text's type asks for, as its `Meta` says."""
    if typing.get_origin(kind) is not typing.Annotated:
        return " or ".join(_described(one) for one in typing.get_args(kind) if one is not type(None))
    return " ".join(one.description or "" for one in typing.get_args(kind)[1:] if isinstance(one, msgspec.Meta))


def _field_type(kind: Any, name: str) -> Any:
    (section,) = (one for one in _plain(kind) if dataclasses.is_dataclass(one))
    return typing.get_type_hints(section, include_extras=True)[name]


def _item_type(kind: Any, index: int) -> Any:
    (sequence,) = (one for one in _plain(kind) if typing.get_origin(one) in (tuple, list))
    arguments = typing.get_args(sequence)
    many = len(arguments) == 1 or arguments[1] is Ellipsis
    return arguments[0 if many else index]


def _broken_item(value: Mapping[str, Any], kind: Any) -> tuple[str, Any]:
    """The first key of a mapping whose item is refused, which msgspec does not name, and the items' type."""
    (mapping,) = (one for one in _plain(kind) if typing.get_origin(one) is dict)
    item_type = typing.get_args(mapping)[1]
    for key, item in value.items():
        try:
            msgspec.convert(item, item_type, strict=True)
        except msgspec.ValidationError:
            return key, item_type
    raise AssertionError("msgspec refused an item that it accepts alone")


def _options(kind: Any) -> tuple[Any, ...]:
    (first, *_) = _plain(kind)
    return typing.get_args(first) if typing.get_origin(first) is Literal else ()
