"""What a frame costs a student, beside one pass through the tower that an averaged gate takes.

    python bench/student_speed.py [--config vit-l-14] [--frames 8] [--tower-frames 4] [--repeats 8] [--threads 1]

Both in float32 on the CPU in one process, the student before and after the tower, in seconds of processor time, the
least of several: other work on the machine counts little there. Weights do not matter to the time, and are not those of
any model. The last line is a JSON object.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from algorithm.model.networks import StudentConfig
from algorithm.model.student import student_from_state
from algorithm.model.tower import Tower, tower_from_state, without_weights
from bench.figures.flops import tower_flop
from bench.setting.command import add_threads, at_least, exit_with
from bench.setting.machine import describe_machine, today, versions
from bench.setting.random_artifact import TOWERS, random_student
from training.network.student import student_flop


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", choices=sorted(TOWERS), default="vit-l-14", help="tower (default: %(default)s)")
    parser.add_argument("--frames", type=at_least(1), default=8, help="of the student's batch (default: %(default)s)")
    parser.add_argument(
        "--tower-frames", type=at_least(1), default=4, help="of the tower's batch (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats",
        type=at_least(1),
        default=8,
        help="batches of the student before the tower, and as many after it (default: %(default)s)",
    )
    add_threads(parser)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    config, sizes = TOWERS[args.config], StudentConfig()
    state = random_student(sizes, config.image_size, torch.Generator().manual_seed(0))
    student = student_from_state(sizes, state, torch.device("cpu"), torch.float32)
    with without_weights():
        shapes = {name: tensor.shape for name, tensor in Tower(config).state_dict().items()}
    tower = tower_from_state(config, {name: torch.full(shape, 0.01) for name, shape in shapes.items()})
    images = torch.randn(max(args.frames, args.tower_frames), 3, config.image_size, config.image_size)
    with torch.inference_mode():
        student_s = seconds(student, images[: args.frames], args.repeats)
        tower_s = seconds(tower, images[: args.tower_frames], 2)
        student_s = min(student_s, seconds(student, images[: args.frames], args.repeats))
    result = {
        "date": today(),
        "machine": describe_machine(),
        "versions": versions(),
        "threads": args.threads,
        "student_s_a_frame": student_s,
        "student_flop_a_frame": student_flop(sizes, config.image_size),
        "tower_s_a_frame": tower_s,
        "tower_flop_a_frame": tower_flop(config),
        "times_a_frame": tower_s / student_s,
    }
    print(f"student {student_s * 1e3:.1f} ms a frame, tower {tower_s * 1e3:.0f} ms, {tower_s / student_s:.0f} times")
    print(json.dumps(result))
    return 0


def seconds(network: Callable[[Tensor], object], images: Tensor, repeats: int) -> float:
    """Processor time a frame, the least of several batches."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        network(images)
        found.append((time.process_time() - start) / len(images))
    return min(found)


if __name__ == "__main__":
    exit_with(main)
