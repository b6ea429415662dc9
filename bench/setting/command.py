"""What the commands of several benchmarks have in common."""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from acouslic.errors import AcouslicError
from acouslic.geometry import FRAMES_PER_CASE, ROWS
from bench.setting.machine import REPOSITORY


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that takes a whole number from `least` on."""

    def number(words: str) -> int:
        value = int(words)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {value}")
        return value

    return number


def numbers(words: str) -> list[int]:
    """An option's whole numbers, comma-separated, each 1 or more and once."""
    found = [at_least(1)(word) for word in words.split(",")]
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"must name each number once, not {words}")
    return found


def share(words: str) -> float:
    """An option's share, above 0 and at most 1."""
    value = float(words)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, not {words}")
    return value


def blocks(words: str) -> str:
    """A number of blocks, 0 or more, or 'all'; as it was written."""
    if words != "all" and not words.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a number of blocks or 'all', not {words!r}")
    return words


def some_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """The type of an option that takes some of these names, comma-separated."""

    def chosen(words: str) -> list[str]:
        names = words.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return chosen


def check_there(*paths: Path | None) -> None:
    """Raises AcouslicError for the first that is given and not there."""
    for path in paths:
        if path is not None and not path.exists():
            raise AcouslicError(f"{path} is not there")


def named_folders(option: str, given: Iterable[str]) -> dict[str, Path]:
    """What a repeated option says, NAME=FOLDER each time. Raises AcouslicError for another form or a name twice."""
    found: dict[str, Path] = {}
    for words in given:
        name, _, folder = words.partition("=")
        if not name or not folder or name in found:
            raise AcouslicError(f"{option} takes NAME=FOLDER, each name once, not {words!r}")
        found[name] = Path(folder)
    return found


def add_device(parser: argparse.ArgumentParser) -> None:
    """Option for where it runs."""
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a usable GPU, else the CPU")


def add_work(parser: argparse.ArgumentParser) -> None:
    """Option for where what it made is kept."""
    parser.add_argument(
        "--work", type=Path, help="a folder to keep artifacts and cases in for the next time (default: a temporary one)"
    )


def add_sizes(parser: argparse.ArgumentParser, configs: Iterable[str]) -> None:
    """Options for the sizes of a random artifact; `configs` are the towers that there are."""
    parser.add_argument(
        "--config",
        choices=sorted(configs),
        default="vit-l-14",
        help="tower of a random artifact (default: %(default)s)",
    )
    parser.add_argument(
        "--members", type=at_least(1), default=5, help="how many a random artifact has (default: %(default)s)"
    )
    parser.add_argument(
        "--adapted-blocks",
        type=blocks,
        default="6",
        help="how many of its last blocks carry adapters, or 'all' (default: %(default)s)",
    )


def add_parts(
    parser: argparse.ArgumentParser, option: str, known: Sequence[str], default: Sequence[str] | None = None
) -> None:
    """Option for which of the `known` parts run, by default all or `default`."""
    parser.add_argument(
        option,
        type=some_of(known),
        default=",".join(known if default is None else default),
        help=f"comma-separated, of {', '.join(known)} (default: %(default)s)",
    )


def add_case_size(parser: argparse.ArgumentParser) -> None:
    """Options for a generated case."""
    parser.add_argument(
        "--case-frames", type=at_least(1), default=FRAMES_PER_CASE, help="of a generated case (default: %(default)s)"
    )
    parser.add_argument(
        "--rows", type=at_least(1), default=ROWS, help="of a generated case's frames (default: %(default)s)"
    )


def add_keep_share(parser: argparse.ArgumentParser) -> None:
    """Option for the patches of a random artifact's tower."""
    parser.add_argument(
        "--keep-share", type=share, default=1.0, help="share of the patches the tower keeps (default: %(default)s)"
    )


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Option for torch's threads."""
    parser.add_argument("--threads", type=at_least(1), default=1, help="of torch on the CPU (default: %(default)s)")


def add_seed(parser: argparse.ArgumentParser, default: int) -> None:
    """Option for what is random."""
    parser.add_argument("--seed", type=int, default=default, help="seed of everything random (default: %(default)s)")


def add_demo_model(parser: argparse.ArgumentParser) -> None:
    """Option for the artifact where any will do."""
    parser.add_argument(
        "--model", type=Path, default=REPOSITORY / "model" / "demo", help="folder of the artifact (default: model/demo)"
    )


def exit_with(main: Callable[[], int | None]) -> NoReturn:
    """End the process with what `main` returns; an AcouslicError is one sentence on stderr and exit code 1."""
    try:
        sys.exit(main())
    except AcouslicError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
