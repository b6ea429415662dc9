"""The command line of every benchmark, read in this process: what `--help` would show."""

import argparse
import importlib
import sys
from pathlib import Path

import pytest

import bench
from acouslic.errors import AcouslicError
from bench.setting.command import exit_with

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


@pytest.mark.parametrize(
    ("module", "words", "said"),
    [
        ("cohort", ["--parts", "speed,kill"], "'kill' is none of speed, overhead, kills, metrics"),
        ("nodes", ["--parts", "kiled"], "'kiled' is none of killed, cut, slurm"),
        ("kills", ["--modes", "exec,server"], "'server' is none of exec, serve, predict, fit"),
        ("cohort", ["--speed-cases", "1"], "must be at least 2, not 1"),
        ("scaling", ["--frames", "60"], "must be two or more numbers, not 60"),
        ("scaling", ["--members", "3,3"], "must name each number once, not 3,3"),
        ("case", ["--rounds", "0"], "must be at least 1, not 0"),
        ("gpu", ["--keep-share", "1.5"], "must be above 0 and at most 1, not 1.5"),
        ("gpu", ["--adapted-blocks", "-1"], "must be a number of blocks or 'all', not '-1'"),
        ("training_flops", ["now"], "unrecognized arguments: now"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_the_start(module, words, said, capsys):
    """Before anything is made: a part that there is not, no repetition, a line through one point."""
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"bench.{module}").main(["=".join(words)])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "words", "said"),
    [
        (
            "judgement",
            ["--runs=x", "--scores=x", "--set=home=x", "--closed", "hom"],
            "--closed names hom, but --set does not",
        ),
        ("judgement", ["--runs=x", "--scores=x", "--set=home"], "--set takes NAME=FOLDER, each name once, not 'home'"),
        (
            "judgement",
            ["--runs=x", "--scores=x", "--set=a=x", "--set=a=y"],
            "--set takes NAME=FOLDER, each name once, not 'a=y'",
        ),
        ("ablation", ["--cache=x", "--split=x", "--out=x", "--seeds", "1", "1"], "--seeds must name each number once"),
        ("evaluation_speed", ["--golden", "nowhere"], "nowhere/cases.npz is not there"),
        ("training_speed", ["--against", "nowhere"], "nowhere is not there"),
        ("augmentation_order", ["nowhere.png"], "nowhere.png is no picture"),
    ],
)
def test_what_is_said_wrongly_is_refused_in_a_sentence(module, words, said):
    """A set that was to stay closed is not opened by a slip of the pen, and none takes another's place."""
    with pytest.raises(AcouslicError, match=said):
        importlib.import_module(f"bench.{module}").main(words)


def test_a_script_ends_with_the_sentence(capsys):
    """As every command of the project: exit code 1 and no traceback."""
    with pytest.raises(SystemExit) as ended:
        exit_with(lambda: importlib.import_module("bench.augmentation_order").main(["nowhere.png"]))
    assert ended.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1] == "nowhere.png is no picture"
