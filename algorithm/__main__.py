"""The program: `python -m algorithm` (one case, as the platform's exec mode), `... serve`, `... predict SWEEP ...`."""

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from acouslic.errors import AcouslicError
from algorithm.process.interrupts import Interrupts
from algorithm.process.messages import complain, explain, set_up_streams
from algorithm.result.growth import GestationalAge, parse_age

PORT = 4743
"""The platform's for invoke mode."""
_EPILOG = """\
environment: INPUT_DIR (default /input), OUTPUT_DIR (/output) and MODEL_DIR (/opt/ml/model) say where the case, the
results and the model artifact are. Logs go to stdout; the last line of stderr says what failed, and the exit code is 1.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parsed = _parser().parse_args(arguments)
    set_up_streams()
    # torch's own C++ warnings would go to stderr, where the platform takes them for the user's error message.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # Threads that spin while they wait for each other are fast alone and hopeless where they share cores, with other
    # jobs, under a quota, or with our own decoding: 200 frames took 254 s against 0.9 s on two busy cores. OpenMP reads
    # this when torch loads it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    interrupts = Interrupts()
    try:
        interrupts.install()
        return _run(parsed, interrupts)
    except (KeyboardInterrupt, Exception) as error:
        # C code that an interrupt meets may raise an error of its own instead.
        if interrupts.number is None and isinstance(error, Exception):
            complain(explain(error))
            return 1
        complain("stopped by a signal before the result was complete; nothing of an incomplete result was kept")
        return 128 + (interrupts.number or signal.SIGINT)


def _run(parsed: argparse.Namespace, interrupts: Interrupts) -> int:
    model_dir = parsed.model or Path(os.environ.get("MODEL_DIR", "/opt/ml/model"))
    if parsed.command == "predict":
        with interrupts.held():
            from algorithm.predict import predict

        return predict(
            parsed.sweeps,
            parsed.output,
            model_dir,
            device=parsed.device,
            batch_frames=parsed.batch_frames,
            verbose=parsed.verbose,
            age=parsed.gestational_age,
        )
    input_dir, output_dir = Path(os.environ.get("INPUT_DIR", "/input")), Path(os.environ.get("OUTPUT_DIR", "/output"))
    if parsed.command == "serve":
        from algorithm.serve import serve

        return serve(
            input_dir, output_dir, model_dir, port=parsed.port, device=parsed.device, batch_frames=parsed.batch_frames
        )
    _run_one_case(input_dir, output_dir, model_dir, parsed, interrupts)
    return 0


def _run_one_case(
    input_dir: Path, output_dir: Path, model_dir: Path, parsed: argparse.Namespace, interrupts: Interrupts
) -> None:
    """Exec mode. What can fail early does so before torch is imported, and the stack decodes meanwhile."""
    from acouslic.sockets import find_sweep_input
    from algorithm.frames.frame_stream import FrameStream
    from algorithm.model.manifest import read_manifest
    from algorithm.process.timing import process_age_s
    from algorithm.result.outputs import prepare_output, removed_on_failure

    with removed_on_failure(output_dir):
        prepare_output(output_dir)
        sweep = find_sweep_input(input_dir)
        read_manifest(model_dir)
        with contextlib.closing(FrameStream(sweep.path)) as stream:
            _ = stream.header

            with interrupts.held():
                from algorithm.pipeline import Pipeline

            age_s = process_age_s()
            started_at = time.monotonic() - age_s
            pipeline = Pipeline.load(model_dir, device=parsed.device, batch_frames=parsed.batch_frames, import_s=age_s)
            pipeline.run_stream(stream, output_dir, sweep.case, started_at=started_at)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--model", type=Path, metavar="DIR", help="the model artifact (default: MODEL_DIR)")
    common.add_argument("--device", choices=("cpu", "cuda"), help="default: a usable GPU, else the CPU")
    common.add_argument(
        "--batch-frames", type=_positive, metavar="N", help="frames a batch (default: what memory holds; 8 on a CPU)"
    )
    parser = argparse.ArgumentParser(
        prog="algorithm",
        description="Finds, outlines and measures the fetal abdomen in blind-sweep ultrasound.",
        epilog=_EPILOG,
    )
    parser.set_defaults(command="exec", model=None, device=None, batch_frames=None)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", help="without one: analyse INPUT_DIR, once")
    commands.add_parser("exec", parents=[common], help="analyse INPUT_DIR, once")
    serve = commands.add_parser("serve", parents=[common], help="an HTTP server that analyses INPUT_DIR on request")
    serve.add_argument("--port", type=_port, default=PORT, help=f"default: {PORT}, the platform's")
    predict = commands.add_parser("predict", parents=[common], help="analyse any number of sweep stacks")
    predict.add_argument("sweeps", type=Path, nargs="+", metavar="SWEEP", help="a stack, or a folder of stacks")
    predict.add_argument("--output", type=Path, required=True, metavar="DIR", help="gets a folder a case, results.csv")
    predict.add_argument(
        "--gestational-age",
        type=_age,
        metavar="WEEKS",
        help="such as 28w3d, of all cases: adds the circumference's centile (INTERGROWTH-21st); no diagnosis",
    )
    predict.add_argument("--verbose", action="store_true", help="log timings and notes of each case")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text!r}")
    return int(text)


def _age(text: str) -> GestationalAge:
    try:
        return parse_age(text)
    except AcouslicError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 65535, not {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
