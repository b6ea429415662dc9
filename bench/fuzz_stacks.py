"""Damaged sweep stacks, thousands of them, tried on our readers and on SimpleITK and tifffile.

    python bench/fuzz_stacks.py [--count 5000] [--seed 1] [--keep DIR]

Half of the files are TIFFs, the others MetaImages, NIfTIs, NRRDs, PNGs and JPEGs; each is a good file in which bytes
were changed, cut off, repeated or put in. Each reader has a process of its own, which is started anew where it dies.
A fault is a file on which our reader

- ends with anything but a stack or an AcouslicError, dies, needs more than 2 GB, or computes for more than 20 s;
- gives a stack, although every library that knows the kind of file refuses it (tifffile or SimpleITK for a TIFF,
  SimpleITK for the rest).

Prints each fault, and as its last line the counts as JSON. Exit code 1 where there is a fault; `--keep` then has the
files. 5,000 files take about three minutes on two cores.
"""

import argparse
import json
import math
import random
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import SimpleITK
import tifffile

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from acouslic.errors import AcouslicError
from acouslic.stack import read_stack
from bench.setting.command import add_seed, at_least, exit_with

FRAMES, ROWS, COLUMNS = 6, 24, 40
BATCH_FILES = 200
LONGEST_S = 20.0
"""Of processor time, which other work on the machine does not make longer."""
_LONGEST_WAIT_S = 10 * LONGEST_S
MOST_BYTES = 2 << 30
TIFF_FORMS = (
    {}, {"compression": "zlib"}, {"compression": "lzw", "rowsperstrip": 7}, {"compression": "packbits"},
    {"tile": (16, 16), "compression": "zlib", "predictor": True}, {"bigtiff": True}, {"byteorder": ">"},
    {"rowsperstrip": 5}, {"compression": "jpeg"}, {"imagej": True},
)  # fmt: skip
OTHER_NAMES = ("x.mha", "z.mha", "x.nii", "x.nii.gz", "x.nrrd", "z.nrrd", "x.png", "x.jpg")


_ANSWER = "=== "


def good_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """(TIFFs, others): whole files of every form, written into `folder`."""
    rng = np.random.default_rng(0)
    stack = rng.integers(0, 200, (FRAMES, ROWS, COLUMNS)).astype(np.uint8)
    stack[:, :, : COLUMNS // 2] = np.arange(COLUMNS // 2)
    tiffs = [folder / f"good{number}.tif" for number in range(len(TIFF_FORMS))]
    for path, form in zip(tiffs, TIFF_FORMS, strict=True):
        plain = {} if "imagej" in form else {"metadata": None}
        tifffile.imwrite(path, stack, photometric="minisblack", **plain, **form)
    others = [folder / f"good-{name}" for name in OTHER_NAMES]
    for path in others:
        if path.suffix in (".png", ".jpg"):
            cv2.imwrite(str(path), stack[0])
        else:
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(stack), str(path), path.name[5] == "z")
    return tiffs, others


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The content with one to four changes, most of them near its start, where headers are."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        reach = len(changed) if rng.random() < 0.5 else min(len(changed), 400)
        at = rng.randrange(max(1, reach))
        kind = rng.random()
        if kind < 0.5:
            changed[at : at + 1] = bytes([rng.randrange(256)])
        elif kind < 0.65:
            length = rng.randint(1, 64)
            changed[at : at + length] = rng.randbytes(length)
        elif kind < 0.75:
            changed[at : at + 4] = rng.choice([bytes(4), b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0\0\1\0"])
        elif kind < 0.85:
            del changed[rng.randrange(len(changed) + 1) :]
        elif kind < 0.93:
            changed[at:at] = rng.randbytes(rng.randint(1, 40))
        else:
            changed[at : at + 40] = changed[: rng.randint(1, 40)]
    return bytes(changed)


def judge(paths: Iterable[Path], reader: str) -> None:
    """Print a line for each path: `accepted`, `refused`, or what else came of it. Runs in a process of its own."""
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    for path in paths:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        most_s = math.ceil(usage.ru_utime + usage.ru_stime + LONGEST_S)
        resource.setrlimit(resource.RLIMIT_CPU, (most_s, resource.RLIM_INFINITY))  # SIGXCPU ends the process
        verdict = "accepted"
        try:
            _READERS[reader](path)
        except AcouslicError as error:
            verdict = "refused" if str(error).isprintable() else "a message with control characters"
        except MemoryError:
            verdict = "more than 2 GB"
        except Exception as error:
            verdict = f"a bug: {type(error).__name__}" if reader == "ours" else "refused"
        # Libraries print what they think of a file between these lines.
        print(f"{_ANSWER}{verdict}", flush=True)


def _read_with_tifffile(path: Path) -> None:
    with tifffile.TiffFile(path) as file:
        for page in file.pages:
            page.asarray()


def _read_with_simpleitk(path: Path) -> None:
    SimpleITK.ReadImage(str(path))


_READERS = {"ours": read_stack, "simpleitk": _read_with_simpleitk, "tifffile": _read_with_tifffile}


def verdicts(paths: list[Path], reader: str) -> list[str]:
    """What `judge` says of each path; `died` where the process ended, also because it computed for longer than
    LONGEST_S; `hung` where it waited for something."""
    said: list[str] = []
    while len(said) < len(paths):
        names = "\n".join(map(str, paths[len(said) :]))
        command = [sys.executable, str(Path(__file__).resolve()), "--judge", reader]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(names.encode())
            child.stdin.close()
            while len(said) < len(paths):
                ready = select.select([child.stdout], [], [], _LONGEST_WAIT_S)[0]
                line = child.stdout.readline() if ready else b""
                if not line:
                    said.append("died" if ready else "hung")
                    child.kill()
                    break
                if line.startswith(_ANSWER.encode()):
                    said.append(line.decode().removeprefix(_ANSWER).strip())
    return said


def fuzz(count: int, seed: int, folder: Path, keep: Path | None = None) -> tuple[list[str], dict[str, int]]:
    """(faults as sentences, counts) over `count` files, which are made in `folder`."""
    rng = random.Random(seed)
    tiffs, others = good_files(folder)
    faults: list[str] = []
    counts: Counter[str] = Counter()
    for start in range(0, count, BATCH_FILES):
        paths = []
        for number in range(start, min(start + BATCH_FILES, count)):
            good = rng.choice(tiffs if number % 2 else others)
            path = folder / f"{number}{''.join(good.suffixes)}"
            path.write_bytes(damaged(good.read_bytes(), rng))
            paths.append(path)
        said = {reader: verdicts(paths, reader) for reader in _READERS}
        for path, ours, itk, tiff in zip(paths, *said.values(), strict=True):
            counts[f"ours {ours}"] += 1
            refusing = itk != "accepted" and (path.suffix != ".tif" or tiff != "accepted")
            counts["refused by the libraries"] += refusing
            if ours == "refused" or (ours == "accepted" and not refusing):
                path.unlink()
                continue
            faults.append(f"{path.name}: ours {ours}, SimpleITK {itk}, tifffile {tiff}")
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                path.rename(keep / path.name)
    return faults, dict(counts)


def main(arguments: Sequence[str] | None = None) -> int:
    """As the module says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=at_least(1), default=5000, help="files (default: %(default)s)")
    add_seed(parser, 1)
    parser.add_argument("--keep", type=Path, help="folder that gets the files that are faults (default: none are kept)")
    parser.add_argument("--judge", choices=sorted(_READERS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.judge:
        judge([Path(line) for line in sys.stdin.read().splitlines()], options.judge)
        return 0
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        faults, counts = fuzz(options.count, options.seed, Path(folder), options.keep)
    for fault in faults:
        print(fault)
    seconds = round(time.monotonic() - start, 1)
    print(
        json.dumps({"files": options.count, "seed": options.seed, "faults": len(faults), "seconds": seconds} | counts)
    )
    return 1 if faults else 0


if __name__ == "__main__":
    exit_with(main)
