"""The program: `python -m algorithm` (one case, as the platform's exec mode), `... serve`, `... predict SWEEP ...`."""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Until our own handler stands, an interrupt ends the program without a word, as the other signals do.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import contextlib
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from acouslic.interrupts import Interrupts

if TYPE_CHECKING:
    from algorithm.predict import PredictSettings

# Whatever takes time is imported later: until then a signal ends the program without a word.


def run(arguments: Sequence[str] | None = None, *, program: str = "algorithm") -> NoReturn:
    """Run the command line, which help calls `program`, and end the process.

    At once, without Python's own end: that would run into threads of torch and of decoders that are still at work, and
    into signals that come when all is done.
    """
    try:
        code = main(arguments, program=program)
    except SystemExit as ended:  # argparse's
        code = ended.code if isinstance(ended.code, int) else 1
    except KeyboardInterrupt:  # just while an error was being told
        code = 128 + signal.SIGINT
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def main(arguments: Sequence[str] | None = None, *, program: str = "algorithm") -> int:
    """Run the command line as `program`; the exit code. No signal interrupts any more when it returns."""
    interrupts = Interrupts()
    try:
        interrupts.install()
        from algorithm.process.environment import prepare_for_torch
        from algorithm.process.messages import complain, explain, set_up_messages

        set_up_messages()
        prepare_for_torch()
        code = _run(arguments, interrupts, program)
    except (KeyboardInterrupt, Exception) as error:
        interrupts.end()
        from algorithm.process.messages import complain, explain

        # C code that an interrupt meets may raise an error of its own instead.
        if interrupts.number is None and isinstance(error, Exception):
            complain(explain(error))
            return 1
        complain(f"stopped by a signal before the result was complete; {interrupts.kept}")
        return 128 + (interrupts.number or signal.SIGINT)
    interrupts.end()
    return code


def _run(arguments: Sequence[str] | None, interrupts: Interrupts, program: str) -> int:
    from algorithm.arguments import make_parser

    parser = make_parser(program)
    parsed = parser.parse_args(arguments)
    if parsed.command == "amend":
        return _amend(parsed, interrupts)
    if parsed.log_format == "json":
        from algorithm.process.messages import log_as_json

        log_as_json()
    if parsed.command == "health":
        return _health(parsed)
    model_dir = parsed.model or Path(os.environ.get("MODEL_DIR", "/opt/ml/model"))
    if parsed.command == "watch":
        return _watch(parsed, model_dir, interrupts)
    if parsed.command == "predict":
        if parsed.part_id >= parsed.num_parts:
            parser.error(f"--part-id counts from 0 to {parsed.num_parts - 1}, not {parsed.part_id}")
        return _predict(parsed, model_dir, interrupts)
    input_dir, output_dir = Path(os.environ.get("INPUT_DIR", "/input")), Path(os.environ.get("OUTPUT_DIR", "/output"))
    if parsed.command == "serve":
        from algorithm.serve import serve

        return serve(
            input_dir, output_dir, model_dir, port=parsed.port, device=parsed.device, batch_frames=parsed.batch_frames
        )
    assert parsed.command in (None, "exec"), "a command without a branch of its own"
    _run_one_case(input_dir, output_dir, model_dir, parsed, interrupts)
    return 0


def _settings_of(parsed: argparse.Namespace, model_dir: Path, **more: Any) -> "PredictSettings":
    """What `predict` and `watch` are told alike, and `more` that one of them is told."""
    from algorithm.predict import PredictSettings

    return PredictSettings(
        output_dir=parsed.output,
        model_dir=model_dir,
        device=parsed.device,
        batch_frames=parsed.batch_frames,
        verbose=parsed.verbose,
        spacing_mm=parsed.spacing_mm,
        dicom=parsed.dicom,
        page=parsed.page,
        **more,
    )


def _predict(parsed: argparse.Namespace, model_dir: Path, interrupts: Interrupts) -> int:
    from algorithm.predict import predict

    settings = _settings_of(
        parsed,
        model_dir,
        age=parsed.gestational_age,
        resume=parsed.resume,
        num_parts=parsed.num_parts,
        part_id=parsed.part_id,
        workers=parsed.workers,
        ray_address=parsed.ray_address,
    )
    return predict(parsed.sweeps, settings, interrupts)


def _amend(parsed: argparse.Namespace, interrupts: Interrupts) -> int:
    with interrupts.held():
        from algorithm.amend import amend

    amended = amend(parsed.case_dir, parsed.correction)
    with interrupts.held():
        logging.getLogger(__name__).info("the amended result is in %s; the original is as it was", amended)
        interrupts.end()
    return 0


def _watch(parsed: argparse.Namespace, model_dir: Path, interrupts: Interrupts) -> int:
    from algorithm.watch import Rhythm, watch

    settings = _settings_of(parsed, model_dir)
    return watch(parsed.folder, settings, Rhythm(parsed.every, parsed.settled), interrupts)


def _health(parsed: argparse.Namespace) -> int:
    if parsed.watcher is not None:
        from algorithm.watch import check_heartbeat

        check_heartbeat(parsed.watcher, parsed.longest)
    else:
        from algorithm.health import check_server, is_server_here

        if is_server_here() or not parsed.if_serving:
            check_server(parsed.port)
    return 0


def _run_one_case(
    input_dir: Path, output_dir: Path, model_dir: Path, parsed: argparse.Namespace, interrupts: Interrupts
) -> None:
    """Exec mode. What can fail early does so before torch is imported, and the stack decodes meanwhile."""
    from acouslic.sockets import find_sweep_input
    from algorithm.frames.frame_stream import FrameStream
    from algorithm.model.file_hashes import begin_hashing
    from algorithm.model.manifest import read_manifest
    from algorithm.process.collector import uncollected
    from algorithm.process.timing import process_age_s
    from algorithm.result.outputs import prepare_output, removed_on_failure

    with removed_on_failure(output_dir):
        prepare_output(output_dir)
        sweep = find_sweep_input(input_dir)
        read_manifest(model_dir)
        begin_hashing(model_dir)
        with contextlib.closing(FrameStream(sweep.path, stills=False)) as stream:
            _ = stream.header

            with interrupts.held(), uncollected():
                from algorithm.pipeline import Pipeline

            age_s = process_age_s()
            started_at = time.monotonic() - age_s
            pipeline = Pipeline.load(model_dir, device=parsed.device, batch_frames=parsed.batch_frames, import_s=age_s)
            pipeline.run_stream(stream, output_dir, sweep.case, started_at=started_at)
        interrupts.end()


if __name__ == "__main__":
    run()
