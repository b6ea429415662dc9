"""`python -m evaluation`: the container's run, and the commands for people (`local`, `pack`, `compare`)."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from acouslic import printable
from acouslic.errors import AcouslicError
from acouslic.streams import set_up_streams

# The workers start from this module too: what they do not need is imported by the commands themselves.

INPUT_DIR, OUTPUT_DIR = "/input", "/output"
GROUND_TRUTH_DIR = "/opt/ml/input/data/ground_truth"

_LONGEST_MESSAGE = 2000
COMMANDS = {
    "local": "score a folder of outputs of `acouslic predict` against the raw release",
    "pack": "make ground_truth.tar.gz from the raw release",
    "compare": "compare two runs on the same cases",
}
"""One line of help by command."""
_USAGE = """usage: python -m evaluation [command]   or   acouslic evaluate command

python -m evaluation without a command: score a submission as the platform hands it over, from the folders in INPUT_DIR
(/input), GROUND_TRUTH_DIR (/opt/ml/input/data/ground_truth) and OUTPUT_DIR (/output)

commands (each with --help):
""" + "".join(f"  {name:<8} {text}\n" for name, text in COMMANDS.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. An error is one line, the last one on stderr."""
    set_up_streams()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return _run(list(arguments))
    except AcouslicError as error:
        print(one_line(str(error)), file=sys.stderr)
        return 1


def one_line(message: str) -> str:
    """A message as the platform can take it: one line of printable characters, not too long."""
    return printable.one_line(message, _LONGEST_MESSAGE)


def _run(arguments: list[str]) -> int:
    if not arguments:
        return score_platform(os.environ)
    command, rest = arguments[0], arguments[1:]
    if command == "local":
        return _local(rest)
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

    sources = find_official(Path(environment.get("GROUND_TRUTH_DIR", GROUND_TRUTH_DIR)))
    submissions = read_platform_predictions(Path(environment.get("INPUT_DIR", INPUT_DIR)))
    check_cases([submission.case for submission in submissions], sources)
    tasks = [
        CaseTask(sources[submission.case], submission, failure=None, lenient=False, cache_dir=None)
        for submission in submissions
    ]
    return _score(tasks, Path(environment.get("OUTPUT_DIR", OUTPUT_DIR)), None, {})


def _local(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="acouslic evaluate local",
        description="Score a folder of outputs of `python -m algorithm predict` against the raw release.",
    )
    parser.add_argument(
        "--predictions", type=Path, required=True, help="the folder that `predict` wrote, a folder a case"
    )
    parser.add_argument("--raw", type=Path, required=True, help="folder of the raw release (masks/, circumferences/)")
    parser.add_argument(
        "--output", type=Path, default=Path("evaluation-results"), help="where the results go (%(default)s)"
    )
    parser.add_argument("--lenient", action="store_true", help="a case that cannot be scored gets the worst scores")
    parser.add_argument("--subset", action="store_true", help="score only the cases that have predictions")
    parser.add_argument("--cache", type=Path, help="where the index of the reference goes (OUTPUT/ground_truth_index)")
    parser.add_argument("--workers", type=int, help="worker processes (by default what CPU and memory allow)")
    options = parser.parse_args(arguments)
    if options.workers is not None and options.workers < 1:
        parser.error("--workers must be at least 1")
    return score_local(options)


def score_local(options: argparse.Namespace) -> int:
    """The run for people."""
    from evaluation.case_evaluation import CaseTask
    from evaluation.inputs.ground_truth import find_release
    from evaluation.inputs.predictions import Submission, check_cases, predicted_cases, read_local_prediction

    sources = find_release(options.raw)
    predicted = predicted_cases(options.predictions)
    unknown = [case for case in predicted if case not in sources]
    cases = [case for case in sources if case in set(predicted) or not options.subset]
    if not options.lenient:
        check_cases(predicted, cases)
    if not cases:
        raise AcouslicError(f"{options.predictions} holds no prediction of a case of {options.raw}")
    cache_dir = options.cache or options.output / "ground_truth_index"
    tasks = []
    for case in cases:
        submission: Submission | None = None
        failure = None
        try:
            if case not in predicted:
                raise AcouslicError(f"case {case} has no prediction")
            submission = read_local_prediction(options.predictions, case)
        except AcouslicError as error:
            if not options.lenient:
                raise
            failure = str(error)
        tasks.append(CaseTask(sources[case], submission, failure, options.lenient, cache_dir))
    return _score(tasks, options.output, options.workers, {"ignored_predictions": unknown} if unknown else {})


def _score(tasks: Sequence[Any], output_dir: Path, workers: int | None, notes: Mapping[str, Any]) -> int:
    from evaluation.evaluate import evaluate
    from evaluation.outputs import write_outputs

    results = evaluate(tasks, workers=workers)
    metrics = write_outputs(output_dir, results, notes)
    for result in results:
        if result.failure is not None:
            print(f"failed: {one_line(result.failure)}")
    print(f"score {metrics['score']['mean']:.4f} over {len(results)} cases; results in {output_dir}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
