"""The machine's own matrix peak: the best rate that torch's plain matrix product reaches here, now, in one type.

    python bench/matrix_peak.py --device cpu --precision bfloat16

How it is measured says `figures/matrix_peak.py`. The last line is a JSON object.
"""

import argparse
import json
from collections.abc import Sequence

import torch

from algorithm.engine.device import choose_device, set_cpu_threads
from bench.figures.matrix_peak import SHAPES, matrix_peak_flop_per_s
from bench.setting.command import add_device, exit_with


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_device(parser)
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16"),
        action="append",
        help="may be repeated (default: float32)",
    )
    args = parser.parse_args(arguments)
    set_cpu_threads()
    device, _ = choose_device(args.device)
    peaks = {
        precision: matrix_peak_flop_per_s(device, getattr(torch, precision), SHAPES[device.type])
        for precision in args.precision or ["float32"]
    }
    for precision, flop_per_s in peaks.items():
        print(f"{precision} on {device.type}: {flop_per_s / 1e9:,.0f} GFLOP/s")
    print(json.dumps({"device": device.type, "flop_per_s": peaks}))


if __name__ == "__main__":
    exit_with(main)
