"""Half precision against float32, both ours: every member on every frame of some stacks.

    python bench/parity.py --model ARTIFACT SWEEP...

The bounds are those of `figures/parity.py`. The last line is a JSON object; `--probabilities` puts every member's
probabilities into it, for comparison with another implementation.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from algorithm.engine.device import choose_device, choose_precision, keep_exact_sums, set_cpu_threads
from algorithm.model.manifest import read_manifest
from bench.figures.parity import compare, score_exhaustively, summary
from bench.setting.command import add_device, exit_with


def main(arguments: Sequence[str] | None = None) -> None:
    """Score in both precisions, compare, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sweeps", type=Path, nargs="+", metavar="SWEEP", help="stacks of frames")
    parser.add_argument("--model", type=Path, required=True, help="folder of the artifact")
    add_device(parser)
    parser.add_argument(
        "--precision",
        choices=("bfloat16", "float16"),
        help="half precision (default: the type that the device is fast in; float32 where there is none)",
    )
    parser.add_argument("--probabilities", action="store_true", help="put every probability into the JSON too")
    args = parser.parse_args(arguments)
    set_cpu_threads()
    keep_exact_sums()
    device, _ = choose_device(args.device)
    half_type = getattr(torch, args.precision) if args.precision else choose_precision(device).dtype
    exact = score_exhaustively(args.model, args.sweeps, device, torch.float32)
    half = score_exhaustively(args.model, args.sweeps, device, half_type)
    selection = read_manifest(args.model).selection
    cases = [
        compare(str(sweep), *scores, blank, selection)
        for sweep, scores, blank in zip(
            args.sweeps,
            zip((s for s, _ in exact), (s for s, _ in half), strict=True),
            (b for _, b in exact),
            strict=True,
        )
    ]
    result = summary(cases, str(half_type).removeprefix("torch."), str(device))
    print(f"{'case':40} {'difference':>10} {'rank corr.':>10} {'float32':>8} {'half':>8}")
    for case in cases:
        name = Path(case.sweep).name[:40]
        print(
            f"{name:40} {case.probability_difference:10.5f} {case.rank_correlation:10.6f} "
            f"{case.float32_frame:8d} {case.half_frame:8d}"
        )
    if args.probabilities:
        for name, scored in (("float32", exact), ("half", half)):
            result[f"{name}_presence"] = [scores.member_presence.tolist() for scores, _ in scored]
            result[f"{name}_optimality"] = [
                None if scores.optimality_probability is None else scores.optimality_probability.tolist()
                for scores, _ in scored
            ]
    print(json.dumps(result))


if __name__ == "__main__":
    exit_with(main)
