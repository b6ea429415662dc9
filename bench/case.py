"""One case by both sides, in one run: what one would write with open_clip and peft (A), and this program (B).

    python bench/case.py                        random five-member ViT-L/14, generated case; about 12 minutes on 2 cores
    python bench/case.py --cold --exhaustive    and with an empty page cache (as root), and B without its gate
    python bench/case.py --student              a random student in place of the averaged gate
    python bench/case.py --kept-patches         and B on an artifact that knows only the patches inside the fan
    python bench/case.py --model ARTIFACT --sweep CASE.mha      a trained artifact, with the same figures
    python bench/case.py --ours-only --frames 60          B alone, in exec and invoke mode

A (`straightforward.py`) runs on a few frames, spread evenly over the stack, as a process of its own, in float32 and
under autocast; its time for the case is extrapolated (`sides.extrapolate`). B is `python -m algorithm exec` on the
whole case, timed from outside. Both take turns on the same files. Then B repeats A's frames: every probability in
float32, for the bound of 1e-4, and in half precision; the chosen frame exhaustively, which is what A does, and as the
manifest has it. `consequence` compares B's answer on those frames in the precision that it chose with its answer in
float32: the chosen frame, the frames called positive and the millimetres. The last line is a JSON object.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acouslic.errors import AcouslicError
from acouslic.stack import StackHeader, open_stack
from algorithm.model.manifest import Manifest, read_manifest
from algorithm.model.networks import TowerConfig
from algorithm.result.outputs import SCORES_FILE
from bench.figures.case_report import AutocastSide, CaseReport
from bench.figures.frame_choice import rank_correlation
from bench.setting.command import add_case_size, add_device, add_sizes, add_work, at_least, exit_with, share
from bench.setting.inputs import (
    RANDOM_REFINED_FRACTION,
    generated_sweep,
    platform_input,
    random_model,
    run_python,
    scoring_of,
    shortened,
    stack_name,
    with_precision_refused,
    with_scoring,
)
from bench.setting.machine import describe_machine
from bench.setting.modes import measure_modes
from bench.setting.random_artifact import TOWERS
from bench.setting.sides import SideRun, drop_page_cache, run_algorithm, run_straightforward
from bench.setting.workspace import workspace

HALF_WITHOUT_ONE = "bfloat16"
"""The type A's autocast takes where B found none worth using."""


@dataclass(frozen=True)
class Setting:
    """What is run."""

    model: Path
    manifest: Manifest
    sweep: Path
    sweep_name: str
    """Of its content."""
    header: StackHeader
    work: Path
    device: str | None
    """None leaves the choice to each side."""
    kept: Path | None
    """A random artifact of the same sizes that keeps the patches inside the fan alone."""


@dataclass
class Runs:
    """What was measured, in order."""

    float32: list[SideRun] = field(default_factory=list)
    autocast: list[SideRun] = field(default_factory=list)
    ours: list[SideRun] = field(default_factory=list)
    exhaustive: list[SideRun] = field(default_factory=list)
    kept: list[SideRun] = field(default_factory=list)
    cold_float32: SideRun | None = None
    cold_ours: SideRun | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare, measure, print."""
    args = _parser().parse_args(arguments)
    with workspace(args.work) as work:
        setting = prepare(args, work)
        if args.ours_only:
            result = measure_modes(setting.model, setting.sweep, work, setting.device)
            print(json.dumps(result))
            return 0
        before = describe_machine()
        runs = measure(setting, args)
        report = CaseReport(
            manifest=setting.manifest,
            model=setting.model,
            random=args.model is None,
            header=setting.header,
            float32=runs.float32,
            autocast=AutocastSide(half_type(runs.ours), runs.autocast),
            ours=runs.ours,
            exhaustive=runs.exhaustive,
            kept=runs.kept,
            cold_float32=runs.cold_float32,
            cold_ours=runs.cold_ours,
            agreement=agreement(setting, runs.float32[0], args.frames),
            consequence=consequence(setting, args.frames),
            peak_flop_per_s=matrix_peaks(runs.ours[0]),
            machine=before,
        )
        print(report.text())
        print(json.dumps(report.to_json()))
    return 0


def prepare(args: argparse.Namespace, work: Path) -> Setting:
    """The artifact with its scoring settings and the case, made where none are given."""
    whole = args.frames if args.ours_only else args.case_frames
    sweep = args.sweep or generated_sweep(work, frames=whole, rows=args.rows)
    header = open_stack(sweep).header
    sizes = {"config": args.config, "members": args.members, "adapted_blocks": args.adapted_blocks}
    if args.student and args.model is not None:
        raise AcouslicError(
            "--student goes with a random artifact: a trained one gets its student by `training distil`"
        )
    model = args.model or random_model(work, sweep, device=args.device, student=args.student, **sizes)
    scoring = scoring_of(model, random=args.model is None, mode=args.mode, refined_fraction=args.refined_fraction)
    model = with_scoring(model, work / f"model-{scoring.mode}", scoring)
    kept = None
    if args.kept_patches:
        if args.model is not None:
            raise AcouslicError("--kept-patches goes with a random artifact: which patches one knows cannot be changed")
        keep_share = fan_share(TOWERS[args.config], header)
        kept = random_model(work, sweep, device=args.device, keep_share=keep_share, student=args.student, **sizes)
        kept = with_scoring(kept, work / "model-kept-patches", scoring)
    return Setting(model, read_manifest(model), sweep, stack_name(sweep), header, work, args.device, kept)


def fan_share(tower: TowerConfig, header: StackHeader) -> float:
    """The share of patches that hold a pixel of the field of view."""
    from training.network.tower_source import fan_patches

    return len(fan_patches(tower, header.rows, header.columns)) / tower.grid_size**2


def measure(setting: Setting, args: argparse.Namespace) -> Runs:
    """Both sides in turn: A in float32, B, A under autocast, B, as often as asked for."""
    runs = Runs()
    if args.cold:
        _short(setting, args.frames)  # made before, or it would be in memory
        drop_page_cache()
        runs.cold_float32 = _side_a(setting, "float32", args.frames)
        drop_page_cache()
        runs.cold_ours = _side_b(setting, "cold")
    for turn in range(1, args.rounds + 1):
        _say(f"round {turn} of {args.rounds}: A in float32 on {args.frames} frames")
        runs.float32.append(_side_a(setting, "float32", args.frames))
        _say(f"    B on {setting.header.frames} frames")
        runs.ours.append(_side_b(setting, "ours"))
        half = half_type(runs.ours)
        _say(f"    A under {half} autocast on {args.autocast_frames} frames")
        runs.autocast.append(_side_a(setting, half, args.autocast_frames))
        _say("    B again")
        runs.ours.append(_side_b(setting, "ours"))
        if setting.kept is not None:
            _say("    B on the patches inside the fan")
            runs.kept.append(_side_b(setting, "kept", setting.kept))
        if args.exhaustive:
            _say("    B exhaustively")
            runs.exhaustive.append(_side_b(setting, "exhaustive", _exhaustive(setting)))
    return runs


def half_type(ours: Sequence[SideRun]) -> str:
    """The half precision that B chose."""
    precision = str(ours[0].report["precision"])
    return HALF_WITHOUT_ONE if precision == "float32" else precision


def agreement(setting: Setting, side_a: SideRun, frames: int) -> dict[str, Any]:
    """B on A's frames: every probability in float32 and in half precision, and the frame it chooses as it is set up."""
    _say("B on A's frames, for agreement")
    short = _short(setting, frames)
    device = [] if setting.device is None else ["--device", setting.device]
    words = [str(short), "--model", str(setting.model), "--probabilities", *device]
    parity = json.loads(run_python("bench.parity", *words).splitlines()[-1])
    expected = np.array(side_a.report["member_presence"])
    found = {name: np.array(parity[f"{name}_presence"][0]) for name in ("float32", "half")}
    optimality = np.array(side_a.report["member_optimality"]).mean(0)
    input_dir = platform_input(setting.work / "short", short)
    answers = [
        _answer(input_dir, setting.work / f"out-short-{name}", model, setting.device)
        for name, model in (("gated", setting.model), ("exhaustive", _exhaustive(setting)))
    ]
    gated, exhaustive = (answer.run for answer in answers)
    (case,) = parity["cases"]
    return {
        "frames": frames,
        "float32_probability_difference": float(np.abs(found["float32"] - expected).max()),
        "half_probability_difference": float(np.abs(found["half"] - expected).max()),
        **{
            f"{name}_optimality_difference": float(np.abs(np.array(parity[f"{name}_optimality"][0]) - optimality).max())
            for name in ("float32", "half")
        },
        "half_type": parity["precision"],
        "rank_correlation": rank_correlation(found["half"].mean(0), expected.mean(0)),
        "probability_spread": float(expected.mean(0).std()),
        "selected_frame": {
            "A float32": side_a.report["chosen_frame"],
            "B exhaustive": exhaustive.report["frame_number"],
            f"B {setting.manifest.scoring.mode}": gated.report["frame_number"],
        },
        "circumference_mm": {
            "A float32": side_a.report["circumference_mm"],
            "B exhaustive": exhaustive.report["circumference_mm"],
            f"B {setting.manifest.scoring.mode}": gated.report["circumference_mm"],
        },
        "first_candidate": {
            "A float32": side_a.report["first_candidate"],
            "B float32": case["float32_frame"],
            f"B {parity['precision']}": case["half_frame"],
        },
        "gate_against_exhaustive": changes(*answers),
        "agrees": side_a.report["chosen_frame"] == gated.report["frame_number"],
        "agrees_exhaustive": side_a.report["chosen_frame"] == exhaustive.report["frame_number"],
    }


def consequence(setting: Setting, frames: int) -> dict[str, Any]:
    """What B's precision does to its answer on A's frames, against B in float32."""
    _say("B on A's frames in its own precision and in float32")
    input_dir = platform_input(setting.work / "short", _short(setting, frames))
    exact_model = with_precision_refused(setting.model, setting.work / "model-in-float32")
    own, exact = (
        _answer(input_dir, setting.work / f"out-short-{name}", model, setting.device)
        for name, model in (("own", setting.model), ("float32", exact_model))
    )
    against = {"precision": own.run.report["precision"], "against": exact.run.report["precision"]}
    return {"frames": frames} | against | changes(own, exact)


@dataclass(frozen=True)
class Answer:
    """One run of B on a case."""

    run: SideRun
    positive: NDArray[np.bool_]
    """(F,): the frames called positive."""


def changes(one: Answer, other: Answer) -> dict[str, Any]:
    """What differs between two answers to the same case."""
    lengths_mm = [answer.run.report["circumference_mm"] for answer in (one, other)]
    both = None not in lengths_mm
    return {
        "same_frame": one.run.report["frame_number"] == other.run.report["frame_number"],
        "frames_called_otherwise": int((one.positive != other.positive).sum()),
        "circumference_difference_mm": abs(lengths_mm[0] - lengths_mm[1]) if both else None,
        "one_has_no_circumference": (lengths_mm[0] is None) != (lengths_mm[1] is None),
    }


def _answer(input_dir: Path, output_dir: Path, model: Path, device: str | None) -> Answer:
    run = run_algorithm(input_dir, output_dir, model, device)
    scores = json.loads((output_dir / SCORES_FILE).read_text(encoding="utf-8"))
    return Answer(run, np.array(scores["presence_probability"]) >= scores["thresholds"]["presence"])


def matrix_peaks(ours: SideRun) -> dict[str, float]:
    """FLOP/s of plain products, on B's device, in float32 and in B's precision."""
    _say("the machine's matrix peak")
    device = str(ours.report["device"]).partition(":")[0]
    words = [word for name in ("float32", half_type([ours])) for word in ("--precision", name)]
    measured = json.loads(run_python("bench.matrix_peak", "--device", device, *words).splitlines()[-1])
    return dict(measured["flop_per_s"])


def _side_a(setting: Setting, precision: str, frames: int) -> SideRun:
    device = setting.device
    return run_straightforward(_short(setting, frames), setting.model, setting.work / "out-a", precision, device)


def _side_b(setting: Setting, name: str, model: Path | None = None) -> SideRun:
    input_dir = platform_input(setting.work / "whole", setting.sweep)
    return run_algorithm(input_dir, setting.work / f"out-{name}", model or setting.model, setting.device)


def _exhaustive(setting: Setting) -> Path:
    """The artifact with a manifest that asks for all members on all frames."""
    scoring = scoring_of(setting.model, random=False, mode="exhaustive")
    return with_scoring(setting.model, setting.work / "model-without-gate", scoring)


def _short(setting: Setting, frames: int) -> Path:
    path = setting.work / f"{frames}-frames-of-{setting.sweep_name}.mha"
    return path if path.is_file() else shortened(setting.sweep, path, frames)


def _say(text: str) -> None:
    print(text, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="artifact (default: a random one of these sizes)")
    parser.add_argument("--sweep", type=Path, help="stack (default: a generated case)")
    add_sizes(parser, TOWERS)
    parser.add_argument("--student", action="store_true", help="give the random artifact a student, as its gate")
    parser.add_argument(
        "--mode", choices=("gated", "exhaustive"), help="of scoring (default: the manifest's; gated where random)"
    )
    parser.add_argument(
        "--refined-fraction",
        type=share,
        help=f"largest share of frames refined (default: the manifest's; {RANDOM_REFINED_FRACTION} where random)",
    )
    parser.add_argument(
        "--frames",
        type=at_least(1),
        default=16,
        help="for A in float32; with --ours-only those of the generated case (default: %(default)s)",
    )
    parser.add_argument(
        "--autocast-frames", type=at_least(1), default=8, help="for A under autocast (default: %(default)s, one batch)"
    )
    add_case_size(parser)
    parser.add_argument(
        "--rounds", type=at_least(1), default=1, help="each runs A twice and B twice (default: %(default)s)"
    )
    parser.add_argument("--exhaustive", action="store_true", help="run B without its gate too")
    parser.add_argument("--kept-patches", action="store_true", help="run B with the patches inside the fan alone too")
    parser.add_argument("--cold", action="store_true", help="first run both with an empty page cache; needs root")
    parser.add_argument("--ours-only", action="store_true", help="B alone, in exec and invoke mode")
    add_device(parser)
    add_work(parser)
    return parser


if __name__ == "__main__":
    exit_with(main)
