"""`acouslic COMMAND ...`: finds the package that a command belongs to, and lets that one do the work.

`python -m algorithm`, `python -m evaluation` and `python -m training` do the same with the same words; the containers
use those.
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # As in algorithm/__main__.py.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from acouslic import __version__
from acouslic.streams import set_up_streams

DIRECT_FROM_TRAINING = ("generate",)
"""Commands of training that need no `train` before them."""


def run() -> NoReturn:
    """Run the command line and end the process, as the package that the command belongs to ends it."""
    from algorithm.arguments import COMMANDS

    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        from algorithm.__main__ import run as run_algorithm

        run_algorithm(sys.argv[1:], program="acouslic")
    sys.exit(main())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Without a command, or with an unknown one, 2."""
    set_up_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"acouslic {__version__}")
        return 0
    command, rest = words[0], words[1:]
    if command in DIRECT_FROM_TRAINING:
        command, rest = "train", words
    if command in ("evaluate", "train"):
        return _run_group(command, rest)
    from algorithm.arguments import COMMANDS

    if command in COMMANDS:
        from algorithm.__main__ import main as run_algorithm

        return run_algorithm(words, program="acouslic")
    print(f"acouslic has no command {command!a}: acouslic --help lists them all", file=sys.stderr)
    return 2


def usage() -> str:
    """Every command with one line each."""
    from algorithm.arguments import COMMANDS as OF_ALGORITHM
    from evaluation.__main__ import COMMANDS as OF_EVALUATION
    from training.__main__ import COMMANDS as OF_TRAINING

    training = {name: text for name, (_, text) in OF_TRAINING.items()}
    direct = {name: training.pop(name) for name in DIRECT_FROM_TRAINING}
    return "\n".join(
        [
            "usage: acouslic COMMAND ...       each command has a --help",
            "       acouslic --version",
            "",
            "find, outline and measure the fetal abdomen in blind-sweep ultrasound:",
            *_lines(OF_ALGORITHM),
            "",
            "score results:",
            *_lines(OF_EVALUATION, "evaluate "),
            "",
            "make models:",
            *_lines(direct),
            *_lines(training, "train "),
            "",
        ]
    )


def _lines(commands: Mapping[str, str], before: str = "") -> list[str]:
    return [f"  {before + name:<18} {text}" for name, text in commands.items()]


def _run_group(group: str, rest: list[str]) -> int:
    """A command of evaluation or training."""
    if group == "train":
        from training.__main__ import main as run_training

        return run_training(rest)
    from evaluation.__main__ import main as run_evaluation

    if not rest:  # `python -m evaluation` alone is the container's run
        run_evaluation(["--help"])
        return 2
    return run_evaluation(rest)


if __name__ == "__main__":
    run()
