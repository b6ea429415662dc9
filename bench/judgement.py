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
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from acouslic.errors import AcouslicError
from algorithm.engine.device import choose_device, choose_precision, set_cpu_threads
from algorithm.engine.ensemble import Ensemble
from algorithm.judgement.score import gate_frames, interpolate_in_sweeps
from algorithm.judgement.select_frame import Values, probability_of
from algorithm.model.manifest import HalfPrecision
from bench.figures.compared_readings import DRAWN_CASES, Comparison, compare, draw_differences
from bench.figures.readings import READINGS, Called, Reading, SaidOfCase
from bench.setting.command import at_least, exit_with, named_folders
from training.export.trained_member import MovedTower, TrainedMember, artifact_of, read_member, shared_tower
from training.frames.dataset import table_of
from training.judge.ask_members import ask_members
from training.learn.out_of_fold import OutOfFold
from training.learn.run_folder import RunFolder
from training.release.cache import Cache, CachedCase

OUT_OF_FOLD = "out of fold"
_BATCH_FRAMES = 32


@dataclass(frozen=True)
class Answer:
    """What one run says of one case: logits (F,), and the share of mask pixels where masks were drawn."""

    presence: Values
    optimality: Values | None
    mask_area: Values | None


def answers_of_run(scored: OutOfFold) -> dict[str, Answer]:
    """A run's answers to its validation cases, by uuid."""
    found = {}
    ends = np.cumsum(scored.frame_counts).tolist()
    for uuid, start, stop in zip(scored.uuid.tolist(), [0, *ends[:-1]], ends, strict=True):
        optimality = scored.optimality_logit[start:stop].astype(np.float64) if len(scored.optimality_logit) else None
        found[uuid] = Answer(scored.presence_logit[start:stop].astype(np.float64), optimality, None)
    return found


def answers_to_set(
    members: Sequence[TrainedMember], cases: Sequence[CachedCase], cache: Cache, scores: Path, stride: int, masks: bool
) -> list[dict[str, Answer]]:
    """What each run says of the cases of a set, by uuid; asked once, then read from `scores`."""
    return [_answers_of_member(member, cases, cache, scores, stride, masks) for member in members]


def _answers_of_member(
    member: TrainedMember, cases: Sequence[CachedCase], cache: Cache, scores: Path, stride: int, masks: bool
) -> dict[str, Answer]:
    """Of one run. Each is asked by itself: another one beside it changes nothing of what is kept."""
    kept: dict[str, Path] = {}
    for case in cases:
        # The case's record says of which files it was made and when: a uuid alone may be another set's too.
        question = [member.record, asdict(case.record), cache.image_size, stride, masks]
        asked = json.dumps(question, sort_keys=True)
        kept[case.uuid] = scores / f"{hashlib.sha256(asked.encode()).hexdigest()[:16]}.npz"
    missing = [case for case in cases if not kept[case.uuid].is_file()]
    if missing:
        scores.mkdir(parents=True, exist_ok=True)
        device, _ = choose_device(None)
        dtype = choose_precision(device, HalfPrecision()).dtype
        loaded = shared_tower([member], cache, MovedTower())
        ensemble = Ensemble.from_artifact(artifact_of([member], loaded), device, dtype)
        for number, case in enumerate(missing, start=1):
            frames = table_of(cache, [case.uuid])
            rows = gate_frames(case.sweeps, stride)
            answers = ask_members(ensemble, frames, rows, _BATCH_FRAMES, outline_all=masks)
            part = kept[case.uuid].with_suffix(".part.npz")
            np.savez_compressed(
                part,
                rows=rows,
                embedding=answers.embedding[0].astype(np.float16),
                **{name: getattr(answers, name)[0] for name in ("presence", "optimality", "mask_area")},
            )
            part.rename(kept[case.uuid])
            print(f"{cache.folder.name}: scored {number} of {len(missing)} cases", flush=True)
    found = {}
    for case in cases:
        with np.load(kept[case.uuid], allow_pickle=False) as content:
            found[case.uuid] = Answer(
                **{
                    name: _all_frames(content[name], content["rows"], case.sweeps)
                    for name in ("presence", "optimality", "mask_area")
                }
            )
    return found


def _all_frames(values: NDArray[np.float32], rows: NDArray[np.int64], sweeps: Sequence[range]) -> Values | None:
    """(F,) from the frames that were looked at; None where there is nothing."""
    if np.isnan(values).any():
        return None
    return interpolate_in_sweeps(values.astype(np.float64), rows, sweeps)


def said_of(members: Sequence[TrainedMember], answers: Sequence[dict[str, Answer]], case: CachedCase) -> SaidOfCase:
    """The mean of the runs that were asked about a case; calibrated presence of a black frame is 0, as in inference."""
    asked = [(member, found[case.uuid]) for member, found in zip(members, answers, strict=True) if case.uuid in found]
    presence = [answer.presence for _, answer in asked]
    calibrations = [member.calibration for member, _ in asked]
    optimality = [
        probability_of(answer.optimality / member.calibration.optimality_temperature)
        for member, answer in asked
        if answer.optimality is not None
    ]
    areas = [answer.mask_area for _, answer in asked if answer.mask_area is not None]
    return SaidOfCase(
        uuid=case.uuid,
        subject=case.subject_id,
        label=case.labels,
        sweeps=case.sweeps,
        plain=np.mean([probability_of(logit) for logit in presence], axis=0),
        presence=np.where(
            case.black,
            0.0,
            np.mean(
                [
                    probability_of(logit / calibration.presence_temperature)
                    for logit, calibration in zip(presence, calibrations, strict=True)
                ],
                axis=0,
            ),
        ),
        optimality=np.mean(optimality, axis=0) if len(optimality) == len(asked) else None,
        mask_area=np.mean(areas, axis=0) if len(areas) == len(asked) else None,
    )


def read_out_of_fold_cases(
    cases: dict[str, SaidOfCase], folds: Sequence[Sequence[str]], reading: Reading
) -> list[Called]:
    """Each fold's cases, read as fitted on the other folds'; in the order of `cases`."""
    called = {}
    for fold in folds:
        fitted = reading([case for uuid, case in cases.items() if uuid not in fold])
        called |= {uuid: fitted(cases[uuid]) for uuid in fold}
    return [called[uuid] for uuid in cases]


def open_set(
    members: Sequence[TrainedMember], own: Cache, other: Cache, name: str, chosen: slice = slice(None)
) -> Sequence[CachedCase]:
    """The chosen cases of a set of other patients; `own` is the cache of the runs.

    Raises AcouslicError where there is none, or where a run has learned from one or was chosen on it.
    """
    cases = other.cases[chosen]
    if not cases:
        raise AcouslicError(f"{name}: none of its {len(other.cases)} cases is among those of --cases")
    known = {uuid for member in members for uuid in member.record["train_cases"] + member.record["validation_cases"]}
    subjects = {case.subject_id for case in own.cases if case.uuid in known}
    shared = [case for case in cases if case.uuid in known or case.subject_id in subjects]
    if shared:
        raise AcouslicError(
            f"{name}: a run has learned from or was chosen on case {shared[0].uuid} or another of its patient "
            f"({len(shared)} of {len(cases)} cases)"
        )
    return cases


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
