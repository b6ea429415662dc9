"""The command line of every benchmark, read in this process: what `--help` would show."""

import argparse
import importlib
import sys
from pathlib import Path

import pytest

import bench

FOLDER = Path(bench.__path__[0])
SCRIPTS = [f"bench.{path.stem}" for path in sorted(FOLDER.glob("*.py"))]
SCRIPTS += [f"bench.setting.{name}" for name in ("random_artifact", "straightforward", "training_side")]


class HelpWanted(BaseException):
    """Raised where a script would parse its words; no script catches it."""

    def __init__(self, parser):
        super().__init__()
        self.parser = parser


def parsers_of(module, monkeypatch):
    """The parser that a script's `main` makes, and those of its commands."""

    def show(parser, *_, **__):
        raise HelpWanted(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", show)
    monkeypatch.setattr(sys, "argv", [module])
    with pytest.raises(HelpWanted) as found:
        importlib.import_module(module).main()
    found = [found.value.parser]
    for action in found[0]._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += action.choices.values()
    return found


def faults_of(parser):
    """Options without help, and options whose help does not say what stands in for them."""
    faults = []
    for action in parser._actions:
        name = "/".join(action.option_strings) or action.dest
        if isinstance(action, argparse._SubParsersAction):
            faults += [name for command in action._choices_actions if not command.help]
            continue
        if action.help is argparse.SUPPRESS:
            continue
        text = (action.help or "").strip()
        if not text:
            faults.append(f"{name} has no help")
        elif action.default not in (None, False, [], argparse.SUPPRESS) and "default" not in text:
            faults.append(f"{name} does not say its default")
    return faults


@pytest.mark.parametrize("module", SCRIPTS)
def test_every_option_of_a_benchmark_says_what_it_is(module, monkeypatch):
    """Each has a line of help, with its default where it has one; the description is the module's first line."""
    first_line = importlib.import_module(module).__doc__.splitlines()[0]
    whole, *commands = parsers_of(module, monkeypatch)
    assert whole.description == first_line
    for parser in (whole, *commands):
        assert faults_of(parser) == []
        assert parser.format_help().startswith("usage: ")


def test_options_without_help_are_found():
    """What the test above looks for: nothing at all, or a default that is not said; a hidden option may be silent."""
    parser = argparse.ArgumentParser()
    parser.add_argument("silent", nargs="?")
    parser.add_argument("--half", default=3, help="half of it")
    parser.add_argument("--whole", default=3, help="all of it (default: %(default)s)")
    parser.add_argument("--hidden", help=argparse.SUPPRESS)
    assert faults_of(parser) == ["silent has no help", "--half does not say its default"]
