"""What a benchmark runs on: an artifact with the scoring settings asked for, a case, and the case cut short."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

from acouslic.errors import AcouslicError
from acouslic.geometry import COLUMNS, FRAMES_PER_SWEEP, ROWS, SWEEPS_PER_CASE
from acouslic.release import Release
from acouslic.sockets import SWEEP_FOLDER
from acouslic.stack import open_stack
from algorithm.model.file_hashes import hash_file
from algorithm.model.manifest import (
    MANIFEST_FILE,
    HalfPrecision,
    Manifest,
    ScoringConfig,
    manifest_to_json,
    read_manifest,
)
from algorithm.model.typed_json import check_bounds
from bench.setting.machine import REPOSITORY
from training.phantom.generate import write_stack

RANDOM_REFINED_FRACTION = 0.1
"""Random weights leave nearly every frame ambiguous to the gate, so of a random artifact this share is refined, and no
more. A trained model leaves less: the demo 4.8 % at the default settings, and 12 % of one case of fifty
(gate_loss.py)."""


def random_model(
    folder: Path,
    sweep: Path,
    *,
    config: str,
    members: int,
    adapted_blocks: str,
    device: str | None,
    keep_share: float = 1.0,
    student: bool = False,
) -> Path:
    """The random artifact of these sizes whose heads tell the frames of `sweep` apart, in a folder of its own below
    `folder`; one that is there already is kept."""
    name = f"{config}-{members}-members-{adapted_blocks}-blocks" + (f"-{keep_share:g}" if keep_share < 1 else "")
    name += "-student" if student else ""
    model = folder / f"{name}-for-{stack_name(sweep)}"
    if not (model / MANIFEST_FILE).is_file():
        unfinished = folder / f"{name}-unfinished"
        options = {"--config": config, "--members": members, "--adapted-blocks": adapted_blocks, "--out": unfinished}
        options["--keep-share"] = keep_share
        words = [str(word) for pair in options.items() for word in pair] + (["--student"] if student else [])
        run_python("bench.setting.random_artifact", *words)
        run_python("bench.setting.spread_heads", str(unfinished), str(sweep), *([] if device is None else [device]))
        unfinished.rename(model)
    return model


def stack_name(sweep: Path) -> str:
    """What to call that which is made of a stack and kept: by its content, since generated cases have one name."""
    return f"{sweep.stem}-{hash_file(sweep)[:8]}"


def with_scoring(model: Path, folder: Path, scoring: ScoringConfig) -> Path:
    """The artifact `model` with other scoring settings, in `folder`: its own manifest, links to all other files."""
    return _with_manifest(model, folder, dataclasses.replace(read_manifest(model), scoring=scoring))


def with_precision_refused(model: Path, folder: Path) -> Path:
    """The artifact `model` in `folder`, with a manifest that finds no half precision good enough: it runs in float32
    everywhere."""
    refused = HalfPrecision(frames=1, float16=1.0, bfloat16=1.0)
    return _with_manifest(model, folder, dataclasses.replace(read_manifest(model), half_precision=refused))


def _with_manifest(model: Path, folder: Path, manifest: Manifest) -> Path:
    if folder.resolve() == model.resolve():
        raise AcouslicError(f"{model} is where this benchmark makes an artifact of its own: name another --work")
    # Links of an earlier run, to another model. What is below a folder comes after it.
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_symlink():
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    for name in manifest.files:
        link = folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((model / name).resolve())
    (folder / MANIFEST_FILE).write_text(manifest_to_json(manifest), encoding="utf-8")
    return folder


def scoring_of(
    model: Path, *, random: bool, mode: str | None = None, refined_fraction: float | None = None
) -> ScoringConfig:
    """The settings to run `model` with: its manifest's, or for a `random` one gated with a stated refined share, by its
    student where it has one."""
    manifest = read_manifest(model)
    scoring = manifest.scoring
    if random:
        scoring = ScoringConfig(mode="gated", max_refined_fraction=RANDOM_REFINED_FRACTION)
        if manifest.student is not None:
            scoring = dataclasses.replace(scoring, gate="student", stride=1)
    if mode is not None:
        scoring = dataclasses.replace(scoring, mode=mode)  # type: ignore[arg-type]
    if refined_fraction is not None:
        scoring = dataclasses.replace(scoring, max_refined_fraction=refined_fraction)
    check_bounds(scoring)
    return scoring


def generated_sweep(folder: Path, *, frames: int, rows: int = ROWS) -> Path:
    """A generated stack of this many frames, drawn once: whole sweeps of 140, or one shorter one."""
    sweeps, left = divmod(frames, FRAMES_PER_SWEEP)
    if frames > FRAMES_PER_SWEEP and (left or sweeps > SWEEPS_PER_CASE):
        most = FRAMES_PER_SWEEP * SWEEPS_PER_CASE
        raise AcouslicError(f"a generated case has at most {most} frames, a multiple of {FRAMES_PER_SWEEP} above that")
    release = Release(folder / f"generated-{frames}-frames-{rows}-rows")
    if not release.circumferences_path.is_file():
        sizes = {"--sweeps": max(1, sweeps), "--frames-per-sweep": min(frames, FRAMES_PER_SWEEP), "--rows": rows}
        words = [str(word) for pair in sizes.items() for word in pair]
        run_python("training", "generate", "--out", str(release.root), *words)
    (uuid,) = release.cases()
    return release.image_path(uuid)


def speckle_sweep(path: Path, *, frames: int, rows: int = ROWS) -> Path:
    """A stack of speckle of any number of frames at `path`, the same every time; compressed."""
    noise = np.random.default_rng(0).rayleigh(40, (16, rows, round(rows * COLUMNS / ROWS))).clip(0, 255)
    few = noise.astype(np.uint8)
    write_stack(path, few[np.arange(frames) % len(few)], 0.28 * ROWS / rows)
    return path


def varied_sweep(path: Path, *, frames: int, rows: int = ROWS) -> Path:
    """A stack at `path` whose frames differ as images of different things do: blobs of any size under speckle."""
    columns = round(rows * COLUMNS / ROWS)
    random = np.random.default_rng(0)
    stack = np.empty((frames, rows, columns), np.uint8)
    for frame in stack:
        side = int(random.integers(2, 12))
        blobs = cv2.resize(random.uniform(0, 200, (side, side)), (columns, rows), interpolation=cv2.INTER_CUBIC)
        frame[:] = (blobs * random.rayleigh(random.uniform(0.2, 0.8), (rows, columns))).clip(0, 255)
    write_stack(path, stack, 0.28 * ROWS / rows)
    return path


def shortened(sweep: Path, path: Path, frames: int) -> Path:
    """Some frames of the stack `sweep`, spread evenly over it, written to `path`."""
    reader = open_stack(sweep)
    count = reader.header.frames
    if count < frames:
        raise AcouslicError(f"{sweep} has {count} frames, fewer than the {frames} to take out")
    wanted = {index * count // frames for index in range(frames)}
    kept = [
        frame.copy()
        for indices, chunk in reader.iter_chunks()
        for index, frame in zip(indices, chunk, strict=True)
        if index in wanted
    ]
    write_stack(path, np.stack(kept), reader.header.spacing_mm[1])
    return path


def platform_input(folder: Path, sweep: Path) -> Path:
    """An input folder as the platform lays it out, with the stack as a link, the only one."""
    link = folder / SWEEP_FOLDER / sweep.name
    link.parent.mkdir(parents=True, exist_ok=True)
    for earlier in link.parent.iterdir():
        earlier.unlink()
    link.symlink_to(sweep.resolve())
    return folder


def run_python(module: str, *arguments: str) -> str:
    """`python -m module arguments` from the repository; its stdout. Raises AcouslicError with its last words."""
    ended = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise AcouslicError(f"python -m {module} failed: {last_line(ended.stderr)}")
    return ended.stdout


def last_line(text: str) -> str:
    """The last line that says anything."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it said nothing")
