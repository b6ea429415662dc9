"""Half precision: how far it takes an artifact's probabilities from float32's.

    python -m training precision MODEL SWEEP... [--frames 128] [--whole-cases] [--device cpu|cuda]

The command measures on frames spread evenly over the sweeps and writes what it found into the artifact's manifest;
`export` does the same on validation frames. The algorithm then does not use a type that takes a probability further
than it may (`algorithm.engine.device.choose_precision`).

With `--whole-cases` it also analyses each sweep in float32 and in the half types that the device is fast in, and writes
down what these change: the chosen frame, the frames called positive, the millimetres. A type that changes nothing is
used then, however far it takes a single probability. One that changes something is tried again with the frames near a
decision asked again in float32 (`algorithm/judgement/recheck.py`), and is used so if nothing changes then. Give
validation cases, five at least. `export --whole_cases 5` does the same on cases of the cache. What was written down of
whole cases stays until they are analysed anew; with frames asked again only while no fewer of them are.
"""

import argparse
import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acouslic.errors import AcouslicError
from acouslic.write import check_writable, write_text
from algorithm.engine.device import (
    MOST_RECORDED_DIFFERENCE,
    choose_device,
    half_types,
    keep_exact_sums,
    set_cpu_threads,
)
from algorithm.engine.ensemble import Ensemble
from algorithm.frames.frame_stream import FrameStream
from algorithm.frames.preprocess import normalise
from algorithm.frames.resized_frames import ResizedFrames
from algorithm.judgement.review import load_case_head, review_case
from algorithm.model.artifact import Artifact, load_artifact
from algorithm.model.manifest import MANIFEST_FILE, HalfPrecision, Manifest, manifest_to_json, read_manifest
from algorithm.process.memory import is_out_of_memory
from training.export.consequence import CONSEQUENCES, case_of_sweep, measure_whole_cases
from training.export.model_card import renew_card_beside

FRAMES = 128
_BATCH = 8


def measure_half_precision(folder: Path, frames: Tensor, device: torch.device) -> HalfPrecision:
    """The largest difference of a probability from float32's for the artifact in `folder`, in each half type.

    `frames` are square images, uint8 (N, S, S), at least one. What is compared is presence and optimality of every
    member and of a gate that is made of them, and presence as a case head sees it, the frames taken for one case; not
    the masks, nor a student, whose gate's settings leave room for rounding. A type in which something is not a number
    counts as 1. Members run one after another, as they do in all large batches. On a CPU float16 takes four times as
    long as float32.
    Raises AcouslicError where the probabilities are not numbers in float32 either, or memory does not suffice.
    """
    return measure_artifact(load_artifact(folder), frames, device)


def measure_artifact(artifact: Artifact, frames: Tensor, device: torch.device) -> HalfPrecision:
    """As `measure_half_precision`, for an artifact that is read already."""
    keep_exact_sums()
    try:
        return _measure(artifact, frames, device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise AcouslicError(
            f"the memory of {device} does not hold {artifact.folder}: free some, or use --device cpu"
        ) from None


def _measure(artifact: Artifact, frames: Tensor, device: torch.device) -> HalfPrecision:
    exact = _probabilities(artifact, frames, device, torch.float32)
    if not exact.isfinite().all():
        raise AcouslicError(
            f"{artifact.folder} gives probabilities that are not numbers in float32: its weights are damaged"
        )
    found = {}
    for dtype in (torch.float16, torch.bfloat16):
        difference = (_probabilities(artifact, frames, device, dtype) - exact).abs().max()
        found[str(dtype).removeprefix("torch.")] = float(difference.nan_to_num(1.0, 1.0).clamp(max=1.0))
    return HalfPrecision(len(frames), found["float16"], found["bfloat16"])


def describe(measured: HalfPrecision) -> str:
    """One sentence for people about what was measured."""
    assert measured.float16 is not None
    assert measured.bfloat16 is not None
    parts = [
        f"{name} {difference:.4f}{'' if difference <= MOST_RECORDED_DIFFERENCE else ' (too much by itself)'}"
        for name, difference in (("float16", measured.float16), ("bfloat16", measured.bfloat16))
    ]
    return f"largest difference of a probability from float32 on {measured.frames} frames: {', '.join(parts)}"


def refused_types(measured: HalfPrecision, device: torch.device) -> list[str]:
    """The half types that `device` is fast in and that take a probability too far by themselves."""
    names = [str(dtype).removeprefix("torch.") for dtype in half_types(device)[0]]
    return [name for name in names if (getattr(measured, name) or 0.0) > MOST_RECORDED_DIFFERENCE]


def _probabilities(artifact: Artifact, frames: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """All that the ensemble says of the frames, one row a probability (rows, N), float32 on the CPU."""
    ensemble = Ensemble.from_artifact(artifact, device, dtype, order="sequential")
    head = load_case_head(artifact)
    parts, embeddings = [], []
    for batch in frames.to(device).split(_BATCH):
        images = normalise(batch, ensemble.manifest.preprocessing, dtype)
        scores = ensemble.score(images)
        rows = [scores.presence_probability, scores.optimality_probability]
        if ensemble.manifest.scoring.mode == "gated" and ensemble.manifest.scoring.gate != "student":
            gate = ensemble.gate(images)
            opinions = (gate.presence_probability, gate.optimality_probability)
            rows += [opinion[None] for opinion in opinions if opinion is not None]
        parts.append(torch.cat(rows).cpu())
        if scores.embedding is not None:
            embeddings.append(scores.embedding.float().cpu())
    said = torch.cat(parts, dim=1)
    if head is None:
        return said
    members, count = ensemble.members, len(frames)
    presence, embedding = said[:members].numpy(), torch.cat(embeddings, dim=1).numpy()
    reviewed = review_case(head, presence, embedding, [range(count)], np.zeros(count, bool))
    return torch.cat([said, torch.from_numpy(reviewed[None]).float()])


def _spread_frames(sweep: Path, manifest: Manifest, count: int) -> Tensor:
    """`count` frames of a stack or as many as it has, spread evenly, as square images."""
    with contextlib.closing(FrameStream(sweep)) as stream:
        resized = ResizedFrames(stream, manifest.tower.image_size, manifest.preprocessing, torch.device("cpu"))
        resized.finish()
    length = len(resized.frames)
    return resized.frames[[index * length // min(count, length) for index in range(min(count, length))]]


def _still_known(before: HalfPrecision, measured: HalfPrecision) -> dict[str, Any]:
    """What the record `before` says of whole cases, by field, beside new differences of the same weights: what changes
    them, or how frames are read, lets it go. With frames asked again it holds where as many are or more."""
    known: dict[str, Any] = {name: getattr(before, name) for name in CONSEQUENCES}
    for name in ("float16", "bfloat16"):
        old, new = getattr(before, name), getattr(measured, name)
        if old is not None and new < old:
            known[f"{name}_rechecked_consequence"] = None
    return known


def main(arguments: Sequence[str]) -> int:
    """The command `python -m training precision`."""
    parser = argparse.ArgumentParser(prog="acouslic train precision", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder of the artifact")
    parser.add_argument("sweeps", type=Path, nargs="+", metavar="SWEEP", help="stacks that it was not trained on")
    parser.add_argument("--frames", type=int, default=FRAMES, help=f"how many frames in all (default: {FRAMES})")
    parser.add_argument(
        "--whole-cases",
        action="store_true",
        help="also measure what half precision changes in the answers to whole cases",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a usable GPU, else the CPU")
    options = parser.parse_args(arguments)
    if options.frames < len(options.sweeps):
        raise AcouslicError(f"--frames {options.frames}: at least one frame a sweep is needed")
    manifest = read_manifest(options.model)  # before `check_writable`, which makes a folder that is missing
    check_writable(options.model)
    set_cpu_threads()
    device, _ = choose_device(options.device)
    each = options.frames // len(options.sweeps)
    frames = torch.cat([_spread_frames(sweep, manifest, each) for sweep in options.sweeps])
    measured = measure_half_precision(options.model, frames, device)
    print(describe(measured), flush=True)
    known = _still_known(manifest.half_precision, measured)
    measured = dataclasses.replace(measured, **known)
    if options.whole_cases:
        cases = [case_of_sweep(sweep) for sweep in options.sweeps]
        measured = measure_whole_cases(measured, load_artifact(options.model), cases, device)
    elif any(known.values()):
        print("what half precision changes in whole cases stays as it was recorded; --whole-cases measures it anew")
    path = options.model / MANIFEST_FILE
    write_text(path, manifest_to_json(dataclasses.replace(manifest, half_precision=measured)))
    print(f"written into {path}: pack the model again")
    renew_card_beside(options.model)
    return 0
