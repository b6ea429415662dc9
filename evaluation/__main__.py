"""`python -m evaluation`: the container's run, and the commands for people (`local`, `pack`, `compare`, `frames`)."""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # As in algorithm/__main__.py.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from acouslic import printable
from acouslic.errors import AcouslicError
from acouslic.interrupts import Interrupts
from acouslic.missing_package import missing_package_named
from acouslic.streams import set_up_streams

# The workers start from this module too: what they do not need is imported by the commands themselves.

INPUT_DIR, OUTPUT_DIR = "/input", "/output"
GROUND_TRUTH_DIR = "/opt/ml/input/data/ground_truth"

_LONGEST_MESSAGE = 2000
COMMANDS = {
    "local": "score a folder of outputs of `acouslic predict` against the raw release",
    "pack": "make ground_truth.tar.gz from the raw release",
    "compare": "compare two runs on the same cases",
    "frames": "judge frame scores against labels, without masks, e.g. out of fold: the same table and report",
}
"""One line of help by command."""
_USAGE = """usage: python -m evaluation [command]   or   acouslic evaluate command

python -m evaluation without a command: score a submission as the platform hands it over, from the folders in INPUT_DIR
(/input), GROUND_TRUTH_DIR (/opt/ml/input/data/ground_truth) and OUTPUT_DIR (/output)

commands (each with --help):
""" + "".join(f"  {name:<8} {text}\n" for name, text in COMMANDS.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: SIGTERM 143, Ctrl-C 130. An error is one line, the last one on stderr."""
    set_up_streams()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    interrupts = Interrupts()
    try:
        interrupts.install()
        with missing_package_named("evaluation", "evaluation"):
            code = _run(list(arguments))
        interrupts.end()
        return code
    except AcouslicError as error:
        print(one_line(str(error)), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        interrupts.end()
        print(f"stopped by a signal before the result was complete; {interrupts.kept}", file=sys.stderr)
        return 128 + (interrupts.number or signal.SIGINT)


def one_line(message: str) -> str:
    """A message as the platform can take it: one line of printable characters, not too long."""
    return printable.one_line(message, _LONGEST_MESSAGE)


def _run(arguments: list[str]) -> int:
    if not arguments:
        return score_platform(os.environ)
    command, rest = arguments[0], arguments[1:]
    if command == "local":
        from evaluation import local

        return local.main(rest)
    if command == "frames":
        from evaluation import frames

        return frames.main(rest)
    if command == "pack":
        from evaluation import pack

        return pack.main(rest)
    if command == "compare":
        from evaluation import compare

        compare.main(rest)
        return 0
    if command in ("-h", "--help"):
        print(_USAGE, end="")
        return 0
    print(f"{_USAGE}\npython -m evaluation: unknown command {one_line(command)}", file=sys.stderr)
    return 2


def score_platform(environment: Mapping[str, str]) -> int:
    """The container's run."""
    from evaluation.case_evaluation import CaseTask
    from evaluation.inputs.ground_truth import find_official
    from evaluation.inputs.predictions import check_cases, read_platform_predictions
    from evaluation.outputs import remove_outputs
    from evaluation.run import run

    output_dir = Path(environment.get("OUTPUT_DIR", OUTPUT_DIR))
    remove_outputs(output_dir)
    sources = find_official(Path(environment.get("GROUND_TRUTH_DIR", GROUND_TRUTH_DIR)))
    submissions = read_platform_predictions(Path(environment.get("INPUT_DIR", INPUT_DIR)))
    check_cases([submission.case for submission in submissions], sources)
    tasks = [
        CaseTask(sources[submission.case], submission, failure=None, lenient=False, cache_dir=None)
        for submission in submissions
    ]
    run(tasks, output_dir)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
