"""The command line of `python -m algorithm`: its words and what they may be. Loads nothing heavy."""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from acouslic.errors import AcouslicError
from acouslic.geometry import GIVEN_SPACING_MM
from acouslic.printable import printable

if TYPE_CHECKING:
    from algorithm.result.growth import GestationalAge

COMMANDS = {
    "exec": "analyse INPUT_DIR, once",
    "serve": "an HTTP server that analyses INPUT_DIR on request",
    "predict": "analyse any number of sweep stacks",
    "amend": "add a measurement by hand, saved from report.html, beside the result",
    "watch": "analyse each new stack that comes into a folder, once",
    "health": "ask a server or a watcher on this machine for a sign of life; exit code 0 means healthy",
}
"""One line of help by command; `acouslic --help` shows them too."""
_SWEEP = """\
a stack, a folder of stacks, or a pattern in quotes ('/data/*.mha'): MetaImage (.mha, .mhd), TIFF (.tif, .tiff), NIfTI
(.nii, .nii.gz), NRRD (.nrrd, .nhdr), DICOM (.dcm or without a suffix; a folder of DICOM files is one case), video
(.mp4, .avi), one still (.png, .jpg, .jpeg); a folder of PNG is one sweep. Or a list of them: a .csv or .parquet file
with a column path, and case and gestational_age if you like"""
PORT = 4743
"""The platform's for invoke mode."""
_EPILOG = """\
environment: INPUT_DIR (default /input), OUTPUT_DIR (/output) and MODEL_DIR (/opt/ml/model) say where the case, the
results and the model artifact are. Logs go to stdout; the last line of stderr says what failed, and the exit code is 1.
"""
_OF_ONE_CASE = """\
environment: INPUT_DIR (default /input) is the folder of the case, as the platform lays it out: the stack in
images/stacked-fetal-ultrasound/. OUTPUT_DIR (/output) gets the results.
"""


class Parser(argparse.ArgumentParser):
    """Refuses in printable characters: a pattern may stand for a file whose name is an option or an escape sequence."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit with 2."""
        super().error(printable(message))


def make_parser(program: str = "algorithm") -> argparse.ArgumentParser:
    """Every command with its options. Each command's own come from a function of its name below.

    `program` is what help calls this program.
    """
    common = Parser(add_help=False)
    common.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="the model artifact (default: MODEL_DIR of the environment, else /opt/ml/model)",
    )
    common.add_argument("--device", choices=("cpu", "cuda"), help="default: a usable GPU, else the CPU")
    common.add_argument(
        "--batch-frames",
        type=positive,
        metavar="N",
        help="frames a batch (default: what a GPU's memory holds; on a CPU 8, or four a core up to 64)",
    )
    common.add_argument(
        "--log-format", choices=("text", "json"), default="text", help="json: each line of the log is an object"
    )
    parser = Parser(
        prog=program,
        description="Finds, outlines and measures the fetal abdomen in blind-sweep ultrasound.",
        epilog=_EPILOG,
    )
    parser.set_defaults(command="exec", model=None, device=None, batch_frames=None, log_format="text")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", help="without one: analyse INPUT_DIR, once")
    made = {
        name: commands.add_parser(
            name,
            parents=[] if name in ("amend", "health") else [common],
            help=text,
            description=f"{text[:1].upper()}{text[1:]}.",
            epilog=_OF_ONE_CASE if name in ("exec", "serve") else None,
        )
        for name, text in COMMANDS.items()
    }
    _serve(made["serve"])
    _predict(made["predict"])
    _amend(made["amend"])
    _watch(made["watch"])
    _health(made["health"])
    return parser


def _serve(serve: argparse.ArgumentParser) -> None:
    serve.add_argument("--port", type=port, default=PORT, help=f"default: {PORT}, the platform's")


def _predict(predict: argparse.ArgumentParser) -> None:
    predict.add_argument("sweeps", type=Path, nargs="+", metavar="SWEEP", help=_SWEEP)
    predict.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder of the results: a folder a case, results.csv"
    )
    predict.add_argument(
        "--gestational-age",
        type=age,
        metavar="WEEKS",
        help="such as 28w3d, for cases without an age in a list: adds the circumference's centile (INTERGROWTH-21st)",
    )
    _of_every_case(
        predict,
        no_page="write no report.html and no index.html",
        verbose="log timings and notes of each case (not with several workers)",
    )
    many = predict.add_argument_group("many cases")
    many.add_argument(
        "--resume",
        action="store_true",
        help="skip cases that are complete and were made from the same files by the same model, version and settings; "
        "those made with --no-page get no report.html then",
    )
    many.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="analyse N cases at once, by Ray; cores are divided (default: one per GPU; without GPUs one per machine)",
    )
    many.add_argument("--ray-address", metavar="ADDRESS", help="join a Ray cluster, such as HOST:6379 or auto")
    many.add_argument(
        "--num-parts",
        type=positive,
        default=1,
        metavar="N",
        help="divide the cases into N parts, each for a command of its own",
    )
    many.add_argument(
        "--part-id", type=not_negative, default=0, metavar="K", help="the part that this command does, counted from 0"
    )


def _of_every_case(command: argparse.ArgumentParser, *, no_page: str, verbose: str) -> None:
    """What `predict` and `watch` may be told of all their cases."""
    command.add_argument(
        "--dicom",
        action="store_true",
        help="for DICOM input: write a Segmentation and a structured report that refer to it, marked as research",
    )
    command.add_argument("--no-page", dest="page", action="store_false", help=no_page)
    command.add_argument(
        "--spacing-mm",
        type=millimetres,
        metavar="MM",
        help="size of a pixel in all cases, if the files state none (video, PNG) or a wrong one",
    )
    command.add_argument("--verbose", action="store_true", help=verbose)


def _amend(amend: argparse.ArgumentParser) -> None:
    amend.add_argument("case_dir", type=Path, metavar="CASE_DIR", help="the folder of the case that was corrected")
    amend.add_argument("correction", type=Path, metavar="CORRECTION", help="the .json that the browser saved")


def _watch(watch: argparse.ArgumentParser) -> None:
    watch.add_argument("folder", type=Path, metavar="IN", help="the folder that new stacks come into")
    watch.add_argument("output", type=Path, metavar="OUT", help="folder of the results: a folder a case, results.csv")
    watch.add_argument("--every", type=seconds, default=2.0, metavar="S", help="look every S seconds (default: 2)")
    watch.add_argument(
        "--settled",
        type=seconds,
        default=5.0,
        metavar="S",
        help="a file is complete when nobody has written to it for S seconds (default: 5)",
    )
    _of_every_case(
        watch,
        no_page="write no report.html (a watcher never writes index.html)",
        verbose="log timings and notes of each case",
    )


def _health(health: argparse.ArgumentParser) -> None:
    health.add_argument("--port", type=port, default=PORT, help=f"of the server (default: {PORT})")
    health.add_argument(
        "--watcher", type=Path, metavar="OUT", help="look at a watcher instead of a server: its output folder"
    )
    health.add_argument(
        "--if-serving",
        action="store_true",
        help="count as healthy also if no process here is a server (the image's own check)",
    )
    health.add_argument(
        "--longest",
        type=seconds,
        default=120.0,
        metavar="S",
        help="how long a watcher may be silent, in seconds (default: 120)",
    )


def seconds(text: str) -> float:
    """A positive time."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds, not {text!r}")
    return value


def positive(text: str) -> int:
    """A whole number from 1."""
    return _whole(text, 1)


def not_negative(text: str) -> int:
    """A whole number from 0."""
    return _whole(text, 0)


def millimetres(text: str) -> float:
    """The size of a pixel: what a scanner can have."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    lowest, highest = GIVEN_SPACING_MM
    if not lowest <= value <= highest:
        raise argparse.ArgumentTypeError(
            f"must be millimetres from {lowest:g} to {highest:g}, such as 0.28, not {text!r}"
        )
    return value


def age(text: str) -> "GestationalAge":
    """A gestational age, such as 28w3d."""
    from algorithm.result.growth import parse_age

    try:
        return parse_age(text)
    except AcouslicError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def port(text: str) -> int:
    """A port's number."""
    if not text.isdecimal() or len(text) > 5 or not 1 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 65535, not {text!r}")
    return int(text)


def _whole(text: str, lowest: int) -> int:
    # int() refuses numbers of thousands of digits with an error of its own.
    if not text.isdecimal() or len(text) > 18 or int(text) < lowest:
        raise argparse.ArgumentTypeError(f"must be a whole number from {lowest}, not {text!r}")
    return int(text)
