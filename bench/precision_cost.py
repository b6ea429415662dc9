"""What half precision gains and changes in whole cases of a model: beside float32, and with decisions in float32.

    python bench/precision_cost.py MODEL SWEEP... [--device cpu]

Each case is analysed in float32, in each half type that the device is fast in, and in it with frames near a decision
asked again in float32, in turns, whatever the model's manifest allows. The first case is analysed once by each before,
untimed. Printed are seconds, the median over cases of the time beside the half type alone, and what the answers differ
in from float32's. The last line is a JSON object.
"""

import argparse
import contextlib
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from acouslic.errors import AcouslicError
from algorithm.engine.device import (
    Precision,
    choose_device,
    describe_consequence,
    half_types,
    keep_exact_sums,
    recheck_margin,
    set_cpu_threads,
)
from algorithm.frames.frame_stream import FrameStream
from algorithm.model.artifact import Artifact, load_artifact
from algorithm.pipeline import Pipeline
from algorithm.result.outputs import CaseResult
from bench.setting.command import add_device, check_there, exit_with
from bench.setting.machine import describe_machine, today, versions, warn_if_busy
from training.export.consequence import compare_answers

EXACT = "float32"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of an artifact whose difference in half precision is recorded")
    parser.add_argument("sweeps", type=Path, nargs="+", help="stacks of whole cases")
    add_device(parser)
    args = parser.parse_args(arguments)
    check_there(args.model, *args.sweeps)
    machine = describe_machine()
    set_cpu_threads()
    keep_exact_sums()
    device, _ = choose_device(args.device)
    artifact = load_artifact(args.model)
    pipelines = {
        name: Pipeline.of_artifact(artifact, device, precision)
        for name, precision in precisions_of(artifact, device).items()
    }
    for pipeline in pipelines.values():
        analyse(pipeline, args.sweeps[0])
    seconds: dict[str, list[float]] = {name: [] for name in pipelines}
    answers: dict[str, list[CaseResult]] = {name: [] for name in pipelines}
    for sweep in args.sweeps:
        for name, pipeline in pipelines.items():
            start = time.monotonic()
            answers[name].append(analyse(pipeline, sweep))
            seconds[name].append(time.monotonic() - start)
    consequence = {name: compare_answers(answers[EXACT], found) for name, found in answers.items() if name != EXACT}
    result = {
        "date": today(),
        "machine": machine,
        "versions": versions(),
        "device": str(device),
        "cases": len(args.sweeps),
        "seconds": seconds,
        "times": times_of_half(seconds),
        "consequence": {name: dataclasses.asdict(found) for name, found in consequence.items()},
    }
    if warning := warn_if_busy(machine["load_before"], machine["cores"]):
        print(warning)
    for name, taken in seconds.items():
        line = f"{name}: {sum(taken):.1f} s"
        if name in result["times"]:
            line += f", {result['times'][name]:.2f} times as long as without decisions in float32"
        if name in consequence:
            line += f"; it {describe_consequence(consequence[name])}"
        print(line)
    print(json.dumps(result))
    return 0


def precisions_of(artifact: Artifact, device: torch.device) -> dict[str, Precision]:
    """Float32, each half type that the device is fast in, and, where the difference that the manifest records is not
    too far for it, the same with decisions in float32. Raises AcouslicError where there is no half type."""
    types, reason = half_types(device)
    if not types:
        raise AcouslicError(f"{device} is fast in no half type ({reason}): there is nothing to compare")
    found = {EXACT: Precision(torch.float32, "")}
    for dtype in types:
        name = str(dtype).removeprefix("torch.")
        found[name] = Precision(dtype, "")
        margin = recheck_margin(getattr(artifact.manifest.half_precision, name))
        if margin is not None:
            found[_rechecked(name)] = Precision(dtype, "", margin)
    return found


def analyse(pipeline: Pipeline, sweep: Path) -> CaseResult:
    """The answer to one case, its mask let go; nothing is written."""
    with contextlib.closing(FrameStream(sweep)) as frames:
        result = pipeline.run_stream(frames, None, sweep.stem)
    return dataclasses.replace(result, mask=np.zeros((0, 0), dtype=bool))


def times_of_half(seconds: dict[str, list[float]]) -> dict[str, float]:
    """How many times as long as the half type alone its cases with decisions in float32 take: medians over cases."""
    found = {}
    for name, alone in seconds.items():
        if _rechecked(name) in seconds:
            ratios = np.array(seconds[_rechecked(name)]) / np.array(alone)
            found[_rechecked(name)] = float(np.median(ratios))
    return found


def _rechecked(name: str) -> str:
    return f"{name}, decisions in float32"


if __name__ == "__main__":
    exit_with(main)
