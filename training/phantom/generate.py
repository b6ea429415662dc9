"""Blind sweeps of our own making, laid out as the raw release: for the demo model, tests and the built-in case.

    python -m training generate --out DIR --cases 40 --seed 1 --jobs 2 [--platform]

Everything in them is constructed: tissue, bodies, motion, labels (`draw_case.py` is where to start). In some
sweeps the abdomen passes through the plane: its section grows and shrinks as an ellipsoid's does. Sections near the
full one are labelled optimal (1), those around them suboptimal (2). Unlabelled distractors are the passes that only
graze the abdomen, heads and limbs. Run lengths, their place in the sweep, the circumferences and the share of sweeps
with a target follow the statistics of ACOUSLIC-AI, but no figure measured on these sweeps is one of ACOUSLIC-AI.

Runs without torch. One seed gives the same files whatever the number of jobs.
"""

import argparse
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from acouslic.errors import AcouslicError
from acouslic.geometry import COLUMNS, FRAMES_PER_SWEEP, ROWS, SWEEPS_PER_CASE
from acouslic.reading.metaimage import header_text
from acouslic.release import CaseCircumferences, Release, write_circumferences
from acouslic.sockets import SWEEP_FOLDER, SWEEP_SLUG
from acouslic.workers import map_over
from acouslic.write import write_bytes, write_json
from training.phantom.draw_case import GeneratedCase, generate_case

SMALLEST_ROWS = 80
"""In frames with fewer, a pixel would be more than 2 mm, which readers rightly take for a damaged header."""
SHARED_SUBJECT_SHARE = 0.07
"""The share of cases that are of the same subject as the case before."""


def write_stack(path: Path, stack: NDArray[np.uint8], spacing_mm: float) -> None:
    """Write a stack uint8 (frame, row, column) as one compressed `.mha`, whole or not at all.

    Run-length zlib: on speckle it is as small as the default strategy at level 1, and three times faster.
    """
    compressor = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    pieces = [compressor.compress(np.ascontiguousarray(frame).data) for frame in stack]
    pixels = b"".join([*pieces, compressor.flush()])
    frames, rows, columns = stack.shape
    header = header_text(frames, rows, columns, (spacing_mm, spacing_mm, spacing_mm), len(pixels))
    write_bytes(path, header.encode("ascii") + pixels)


def write_case(root: Path, case: GeneratedCase, *, platform: bool) -> None:
    """Write a case's stacks into a release's folders; with `platform` also `platform/<uuid>/` as `/input` would be."""
    release = Release(root)
    write_stack(release.mask_path(case.uuid), case.labels, case.spacing_mm)
    write_stack(release.image_path(case.uuid), case.frames, case.spacing_mm)
    if platform:
        folder = root / "platform" / case.uuid
        name = f"{case.uuid}.mha"
        write_bytes(folder / SWEEP_FOLDER / name, release.image_path(case.uuid).read_bytes())
        write_json(folder / "inputs.json", [_platform_input(case.uuid, name)])


def _platform_input(case_uuid: str, name: str) -> dict[str, Any]:
    """The entry of `inputs.json` for a sweep, with both spellings of the socket."""
    socket = {
        "slug": SWEEP_SLUG,
        "kind": "Image",
        "super_kind": "Image",
        "relative_path": SWEEP_FOLDER,
    }
    image = {"pk": case_uuid, "name": name}
    return {"socket": socket, "interface": socket, "image": image, "value": None, "file": None, "pk": 1}


@dataclass(frozen=True)
class _Job:
    index: int
    subject: int
    arguments: argparse.Namespace


def _run_job(job: _Job) -> CaseCircumferences:
    """Draw and write one case; returns its row of the table."""
    options = job.arguments
    cv2.setNumThreads(1)
    case = generate_case(
        (options.seed, 0, job.index),
        subject_seed=(options.seed, 1, job.subject),
        subject_id=f"{job.subject:03d}",
        sweeps=options.sweeps,
        frames_per_sweep=options.frames_per_sweep,
        rows=options.rows,
        columns=round(options.rows * COLUMNS / ROWS),
    )
    write_case(options.out, case, platform=options.platform)
    return CaseCircumferences(case.uuid, case.subject_id, case.sweep_ac_mm)


def generate(options: argparse.Namespace) -> list[CaseCircumferences]:
    """Draw and write all cases, then the table in the cases' order."""
    shared = np.random.default_rng((options.seed, 2)).random(options.cases) < SHARED_SUBJECT_SHARE
    subjects = np.cumsum(~shared) - int(not shared[0])
    jobs = [_Job(index, int(subject), options) for index, subject in enumerate(subjects)]
    rows: list[CaseCircumferences] = []
    with map_over(options.jobs) as map_jobs:
        for row in map_jobs(_run_job, jobs):
            rows.append(row)
            annotated = sum(value is not None for value in row.sweep_ac_mm)
            print(f"{len(rows)}/{len(jobs)} {row.uuid}: {annotated} sweeps with a target", flush=True)
    write_circumferences(Release(options.out).circumferences_path, rows)
    return rows


def main(arguments: list[str]) -> int:
    """The command `python -m training generate`."""
    parser = argparse.ArgumentParser(prog="acouslic generate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the release to write")
    parser.add_argument("--cases", type=_positive, default=1, help="how many to draw (%(default)s)")
    parser.add_argument(
        "--seed", type=int, default=1, help="0 or more; one seed gives the same files everywhere (%(default)s)"
    )
    parser.add_argument("--jobs", type=_positive, default=1, help="processes; each needs about 0.6 GB (%(default)s)")
    parser.add_argument("--platform", action="store_true", help="also write platform/<uuid>/ as the platform's /input")
    parser.add_argument(
        "--sweeps", type=_positive, default=SWEEPS_PER_CASE, help="sweeps of a case, at most 6 (%(default)s)"
    )
    parser.add_argument(
        "--frames-per-sweep",
        type=_positive,
        default=FRAMES_PER_SWEEP,
        help="frames of each sweep (%(default)s); with another number readers cannot tell where a sweep ends, and with "
        "fewer than 60 a case may have no labelled frame",
    )
    parser.add_argument(
        "--rows",
        type=_positive,
        default=ROWS,
        help=f"{SMALLEST_ROWS} or more; the challenge has 562, the default; columns follow",
    )
    options = parser.parse_args(arguments)
    if options.sweeps > SWEEPS_PER_CASE:
        parser.error(f"--sweeps must be at most {SWEEPS_PER_CASE}, not {options.sweeps}")
    if options.seed < 0:
        parser.error(f"--seed must be 0 or more, not {options.seed}")
    if options.rows < SMALLEST_ROWS:
        parser.error(f"--rows must be {SMALLEST_ROWS} or more, not {options.rows}")
    table = Release(options.out).circumferences_path
    if table.exists():
        raise AcouslicError(f"{table} exists already: choose another --out, or delete the old release")
    rows = generate(options)
    print(f"{len(rows)} case{'' if len(rows) == 1 else 's'} in {options.out}")
    return 0


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value
