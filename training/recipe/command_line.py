"""Commands whose options hold settings: what is unknown or of a wrong type is one sentence."""

import argparse

from jsonargparse import ArgumentParser, Namespace

from acouslic.errors import AcouslicError


def command_parser(command: str, description: str | None) -> ArgumentParser:
    """The parser of `acouslic train COMMAND`; of the description its first line is shown."""
    first_line = (description or "").splitlines()[0]
    return ArgumentParser(prog=f"acouslic train {command}", description=first_line, exit_on_error=False)


def parse_with(parser: ArgumentParser, command: str, arguments: list[str]) -> Namespace:
    """The options with settings as dataclasses. Raises AcouslicError in place of jsonargparse's own."""
    try:
        return parser.instantiate(parser.parse_args(arguments))
    except argparse.ArgumentError as error:
        raise AcouslicError(f"{command}: {' '.join(str(error).split())}") from None
