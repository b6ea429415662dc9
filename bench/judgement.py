"""Which reading of a system's frames is the best: every reading on every set, fitted where it is not judged.

    python bench/judgement.py --runs RUN... --set NAME=CACHE ... [--closed NAME ...] [--scores FOLDER] [--stride 3]

`--runs` are finished runs on the folds of one split. The first row of sets is `out of fold`: the runs' own validation
cases, each judged by the run that has not learned from it, with readings fitted on the other folds' cases. All other
sets are caches of other patients, judged by each run alone and by all together, with readings fitted on all
out-of-fold cases. A run looks at a set once: `--scores` keeps logits, embeddings and, with `--masks`, mask areas of
every frame. With a stride the frames in between are interpolated, as a gate's are.

A set named by `--closed` is left out until the option is dropped: choose on the others, then open it once.

Differences are to `plain, 0.5` on the same cases; intervals are those of `evaluation/metrics/intervals.py`, by subject.
`--draws` says how much a reading depends on the cases it was fitted on: it is fitted on 10 of them, so many times. The
last line is JSON.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from acouslic.errors import AcouslicError
from algorithm.engine.device import set_cpu_threads
from bench.figures.answers import OUT_OF_FOLD, answers_of_run, answers_to_set, open_set, said_of
from bench.figures.compared_readings import DRAWN_CASES, Comparison, compare, draw_differences
from bench.figures.readings import READINGS, Reading, SaidOfCase, read_out_of_fold_cases
from bench.setting.command import at_least, exit_with, named_folders
from training.export.trained_member import TrainedMember, read_member
from training.learn.run_folder import RunFolder
from training.release.cache import Cache


def usable_readings(cases: Sequence[SaidOfCase]) -> dict[str, Reading]:
    """All readings that these cases allow: those by the mask need masks of all frames."""
    return {
        name: reading
        for name, reading in READINGS.items()
        if name != "the mask alone" or all(case.mask_area is not None for case in cases)
    }


def compare_out_of_fold(members: Sequence[TrainedMember], cases: dict[str, SaidOfCase]) -> Comparison:
    """All readings on the runs' own validation cases."""
    folds = [member.scored.uuid.tolist() for member in members]
    listed = list(cases.values())
    called = {name: read_out_of_fold_cases(cases, folds, reading) for name, reading in usable_readings(listed).items()}
    return compare("each case by its own run", OUT_OF_FOLD, listed, called, {})


def compare_on_set(
    system: str, name: str, fit_cases: Sequence[SaidOfCase], test_cases: Sequence[SaidOfCase], draws: int
) -> Comparison:
    """All readings on a set of other patients."""
    readings = usable_readings(test_cases)
    called = {}
    for reading_name, reading in readings.items():
        fitted = reading(fit_cases)
        called[reading_name] = [fitted(case) for case in test_cases]
    fitted_ones = ("half-way, as exported", "calibrated (Platt), own threshold", "in context, own threshold")
    drawn = {
        reading_name: draw_differences(fit_cases, test_cases, READINGS[reading_name], draws)
        for reading_name in fitted_ones
        if draws and len(fit_cases) > DRAWN_CASES
    }
    return compare(system, name, test_cases, called, drawn)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    options = _parser().parse_args(arguments)
    sets = named_folders("--set", options.set)
    if unknown := set(options.closed) - set(sets):
        raise AcouslicError(f"--closed names {', '.join(sorted(unknown))}, but --set does not")
    set_cpu_threads()
    members = [read_member(RunFolder(path)) for path in options.runs]
    own = Cache(options.cache or Path(members[0].record["cache"]))
    answers = [answers_of_run(member.scored) for member in members]
    out_of_fold = {uuid: said_of(members, answers, own.case(uuid)) for found in answers for uuid in found}
    comparisons = []
    if sum(len(found) for found in answers) == len(out_of_fold) and len(members) > 1:
        comparisons.append(compare_out_of_fold(members, out_of_fold))
        print(comparisons[-1].text(), flush=True)
    else:
        print(f"{OUT_OF_FOLD}: left out, it takes runs on two or more folds of one split\n", flush=True)
    for name, folder in sets.items():
        if name in options.closed:
            print(f"{name}: left closed\n", flush=True)
            continue
        cache = Cache(folder)
        cases = open_set(members, own, cache, name, slice(*options.cases))
        of_set = answers_to_set(members, cases, cache, options.scores, options.stride, options.masks)
        systems = {"all runs together": list(range(len(members)))}
        systems = {f"run {k + 1}": [k] for k in range(len(members))} | systems if len(members) > 1 else systems
        for system, chosen in systems.items():
            asked = [members[k] for k in chosen], [of_set[k] for k in chosen]
            said = [said_of(*asked, case) for case in cases]
            comparisons.append(compare_on_set(system, name, list(out_of_fold.values()), said, options.draws))
            print(comparisons[-1].text(), flush=True)
    print(json.dumps([comparison.metrics() for comparison in comparisons]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, nargs="+", required=True, metavar="RUN", help="finished runs")
    parser.add_argument("--cache", type=Path, help="of the runs, if it lies elsewhere now (default: where it was)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=CACHE", help="other patients; may be repeated"
    )
    parser.add_argument(
        "--cases",
        type=int,
        nargs=2,
        default=(None, None),
        metavar="INDEX",
        help="only cases from, to of each set (default: all)",
    )
    parser.add_argument("--closed", nargs="*", default=[], metavar="NAME", help="sets that are not looked at yet")
    parser.add_argument("--scores", type=Path, required=True, help="folder that keeps what each run said of each set")
    parser.add_argument("--stride", type=at_least(1), default=1, help="look at every n-th frame (default: %(default)s)")
    parser.add_argument("--masks", action="store_true", help="draw masks on all frames too")
    parser.add_argument(
        "--draws",
        type=at_least(0),
        default=100,
        help=f"fits on {DRAWN_CASES} of the cases, which say how much a reading depends on them (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    exit_with(main)
