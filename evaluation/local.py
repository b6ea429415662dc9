"""`evaluation local`: a folder of outputs of `acouslic predict` against the raw release."""

import argparse
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from acouslic.errors import AcouslicError
from acouslic.printable import printable
from evaluation.case_evaluation import CaseTask
from evaluation.inputs.ground_truth import find_release
from evaluation.inputs.predictions import (
    Submission,
    check_cases,
    empty_folders,
    predicted_cases,
    read_local_prediction,
)
from evaluation.inputs.sets import read_sets
from evaluation.outputs import remove_outputs
from evaluation.run import run


def main(arguments: Sequence[str]) -> int:
    """The command line. Raises AcouslicError, with one sentence, for whatever cannot be scored."""
    parser = argparse.ArgumentParser(
        prog="acouslic evaluate local",
        description="Score a folder of outputs of `acouslic predict` against the raw release.",
    )
    parser.add_argument(
        "--predictions", type=Path, required=True, help="the folder that `predict` wrote, a folder a case"
    )
    parser.add_argument("--raw", type=Path, required=True, help="folder of the raw release (masks/, circumferences/)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("evaluation-results"),
        help="where the results go (%(default)s); those of an earlier run are removed first",
    )
    parser.add_argument("--lenient", action="store_true", help="a case that cannot be scored gets the worst scores")
    parser.add_argument("--subset", action="store_true", help="score only the cases that have predictions")
    parser.add_argument(
        "--complete",
        action="store_true",
        help="score only the cases whose outputs are complete, and name the others: for a run of `predict` that was "
        "stopped",
    )
    parser.add_argument(
        "--sets", type=Path, help="a CSV file with the columns case and set: figures for each set, e.g. for each site"
    )
    parser.add_argument("--cache", type=Path, help="where the index of the reference goes (OUTPUT/ground_truth_index)")
    parser.add_argument("--workers", type=int, help="worker processes (by default what CPU and memory allow)")
    options = parser.parse_args(arguments)
    if options.workers is not None and options.workers < 1:
        parser.error("--workers must be at least 1")
    score_local(options)
    return 0


def score_local(options: argparse.Namespace) -> None:
    """Find the cases, score them, write the results."""
    # A run that fails must not leave the figures of another one.
    remove_outputs(options.output, inputs=[] if options.sets is None else [options.sets])
    sources = find_release(options.raw)
    cache_dir = options.cache or options.output / "ground_truth_index"
    predicted, empty = _case_folders(options.predictions, sources, (options.output, cache_dir))
    left_out = {case: f"case {case}: its folder is empty" for case in empty if case in sources}
    unknown = sorted(name for name in (*predicted, *empty) if name not in sources)
    if options.complete:
        submissions, incomplete = _complete(options.predictions, [case for case in predicted if case in sources])
        left_out |= incomplete | {
            case: f"case {case} has no prediction" for case in sources if case not in predicted and case not in left_out
        }
    else:
        left_out = left_out if options.subset else {}
        submissions = {}
    if options.complete or options.subset:
        cases = [case for case in sources if case in predicted and case not in left_out]
    else:
        cases = list(sources)
    if not options.lenient:
        check_cases([case for case in predicted if case not in left_out], cases)
    for name in unknown:
        print(f"ignored: {printable(name)} is no case of {options.raw}")
    if not cases:
        more = f": {next(iter(left_out.values()))}" if left_out else ""
        raise AcouslicError(f"{options.predictions} holds no complete prediction of a case of {options.raw}{more}")
    sets = None if options.sets is None else read_sets(options.sets, cases)
    tasks = []
    for case in cases:
        submission, failure = submissions.get(case), None
        try:
            if case not in predicted:
                raise AcouslicError(f"case {case} has no prediction")
            submission = submission or read_local_prediction(options.predictions, case)
        except AcouslicError as error:
            if not options.lenient:
                raise
            failure = str(error)
        tasks.append(CaseTask(sources[case], submission, failure, options.lenient, cache_dir))
    notes = {"ignored_predictions": unknown} if unknown else {}
    run(tasks, options.output, workers=options.workers, sets=sets, left_out=left_out, notes=notes)


def _case_folders(folder: Path, sources: Collection[str], written: Sequence[Path]) -> tuple[list[str], list[str]]:
    """The cases of the folder of predictions, and its empty folders; what earlier runs have `written` there is none."""
    found = predicted_cases(folder), empty_folders(folder)
    own = {path.name for path in map(Path.resolve, written) if path.parent == folder.resolve()}.difference(sources)
    predicted, empty = ([case for case in cases if case not in own] for cases in found)
    return predicted, empty


def _complete(folder: Path, cases: Sequence[str]) -> tuple[Mapping[str, Submission], dict[str, str]]:
    """The cases whose files are all there, and why the others are not."""
    submissions, reasons = {}, {}
    for case in cases:
        try:
            submissions[case] = read_local_prediction(folder, case)
        except AcouslicError as error:
            reasons[case] = str(error)
    return submissions, reasons
