"""Commands whose options hold settings: what is unknown or of a wrong type is one sentence."""

import argparse
import itertools
import re
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings

from acouslic.errors import AcouslicError
from acouslic.printable import printable

_BOUNDED = re.compile(r"Annotated\[(\w+), (?:msgspec\.)?Meta\(([^()]*)\)\]")
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_OR_NOTHING = re.compile(r"Optional\[([^\[\]]+)\]")


def command_parser(command: str, description: str | None) -> ArgumentParser:
    """The parser of `acouslic train COMMAND`; of the description its first line is shown. Options have one name: a
    shortened `--config` would not be known as such. Help on settings is what their dataclasses say of them, some of
    them below each field."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    first_line = (description or "").splitlines()[0]
    return SettingsParser(
        prog=f"acouslic train {command}", description=first_line, exit_on_error=False, allow_abbrev=False
    )


class SettingsParser(ArgumentParser):
    """jsonargparse's, with `BoundsInWords`. It makes parsers of its own class for `--SETTING.help`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=BoundsInWords, **options)


class BoundsInWords(DefaultHelpFormatter):
    """Help in which the type of a bounded setting is plain: `int at least 1`, not `Annotated[int, Meta(ge=1)]`."""

    def _expand_help(self, action: argparse.Action) -> str:
        """The text of one option; argparse breaks it into lines afterwards."""
        return bounds_in_words(super()._expand_help(action))


def bounds_in_words(text: str) -> str:
    """A text in which jsonargparse has spelled types, with the bounds of numbers in words."""
    plain, found = _BOUNDED.subn(_in_words, text)
    return _OR_NOTHING.sub(r"\1, or null", plain) if found else text


def _in_words(found: re.Match[str]) -> str:
    kind, words = found.groups()
    bounds = dict(re.findall(r"\b(ge|gt|le|lt)=([^,]+)", words))
    if {"ge", "le"} <= bounds.keys():
        return f"{kind} from {bounds['ge']} to {bounds['le']}"
    return f"{kind} {' and '.join(f'{_BOUNDS[name]} {bound}' for name, bound in bounds.items())}".rstrip()


def parse_with(parser: ArgumentParser, command: str, arguments: list[str]) -> Namespace:
    """The options with settings as dataclasses: those of `--config` files, later ones over earlier ones, then those of
    the command line, wherever `--config` stands; hyphens in their names count as underscores. Raises AcouslicError in
    place of jsonargparse's own, and for a file that is not UTF-8."""
    try:
        return parser.instantiate(parser.parse_args(_config_first([_with_underscores(word) for word in arguments])))
    except UnicodeDecodeError as error:
        raise AcouslicError(f"{command}: a --config file is not UTF-8: {error}") from None
    except (argparse.ArgumentError, ValueError) as error:  # settings that contradict each other are the latter
        raise AcouslicError(f"{command}: {' '.join(str(error).split())}") from None


def refuse_other_than_utf8(command: str, arguments: list[str]) -> None:
    """Raises AcouslicError for a name that is not UTF-8: neither settings nor TensorBoard can hold one, and a run
    that finds out when it writes its record has trained for nothing."""
    for word in arguments:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise AcouslicError(
                f"{command}: {printable(word)} is not UTF-8, which the record of a run cannot hold: rename it, or make "
                "a link with another name"
            ) from None


def _with_underscores(word: str) -> str:
    """An option in the one spelling that settings have: `--whole-cases` is `--whole_cases`."""
    name, equals, value = word.partition("=")
    if not name.startswith("--") or name == "--":
        return word
    return "--" + name.removeprefix("--").replace("-", "_") + equals + value


def _config_first(arguments: list[str]) -> list[str]:
    """The words with those of `--config` before all others: jsonargparse lets the later one win."""
    first: list[str] = []
    others: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--config":
            first += [word, *itertools.islice(words, 1)]
        elif word.startswith("--config="):
            first.append(word)
        elif word == "--":
            others += [word, *words]
        else:
            others.append(word)
    return first + others
