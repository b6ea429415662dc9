"""What the commands of several benchmarks have in common."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from acouslic.errors import AcouslicError


def add_place(parser: argparse.ArgumentParser) -> None:
    """Options for where it runs, and where what it made is kept."""
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--work", type=Path, help="a folder to keep artifacts and cases in for the next time")


def exit_with(main: Callable[[], int]) -> NoReturn:
    """End the process with what `main` returns; an AcouslicError is one sentence on stderr and exit code 1."""
    try:
        sys.exit(main())
    except AcouslicError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
