"""Commands whose options hold settings: what is unknown or of a wrong type is one sentence."""

import argparse
import itertools

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from acouslic.errors import AcouslicError


def command_parser(command: str, description: str | None) -> ArgumentParser:
    """The parser of `acouslic train COMMAND`; of the description its first line is shown. Options have one name: a
    shortened `--config` would not be known as such. Help on settings is what their dataclasses say of them, some of
    them below each field."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    first_line = (description or "").splitlines()[0]
    return ArgumentParser(
        prog=f"acouslic train {command}", description=first_line, exit_on_error=False, allow_abbrev=False
    )


def parse_with(parser: ArgumentParser, command: str, arguments: list[str]) -> Namespace:
    """The options with settings as dataclasses: those of `--config` files, later ones over earlier ones, then those of
    the command line, wherever `--config` stands. Raises AcouslicError in place of jsonargparse's own."""
    try:
        return parser.instantiate(parser.parse_args(_config_first(arguments)))
    except argparse.ArgumentError as error:
        raise AcouslicError(f"{command}: {' '.join(str(error).split())}") from None


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
