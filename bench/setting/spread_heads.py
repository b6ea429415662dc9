"""Gives a random artifact opinions: heads that tell the frames of one case apart, as trained heads do.

Random heads hardly do: a random tower embeds the frames of one case nearly alike. Which frame is best would then depend
on the last bits, and so would every comparison of chosen frames and of rank correlations. Here each member's heads look
along the directions in which its embeddings of the case's frames differ most, scaled to logits of unit spread.
"""

import contextlib
import dataclasses
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from algorithm.engine.device import choose_device, choose_precision, set_cpu_threads
from algorithm.engine.ensemble import Ensemble
from algorithm.frames.frame_stream import FrameStream
from algorithm.frames.preprocess import normalise
from algorithm.frames.resized_frames import ResizedFrames
from algorithm.model.artifact import HEADS_FILE, load_artifact
from algorithm.model.file_hashes import hash_file
from algorithm.model.manifest import MANIFEST_FILE, FileRecord, manifest_to_json

FRAMES_LOOKED_AT = 24
LOGIT_SPREAD = 1.5


@torch.inference_mode()
def spread_heads(model: Path, sweep: Path, device_name: str | None) -> None:
    """Replace the presence and optimality heads of the artifact in `model` by ones that tell `sweep`'s frames apart.

    Presence looks along the first principal direction of a member's own embeddings, optimality along the second.
    """
    set_cpu_threads()
    device, _ = choose_device(device_name)
    artifact = load_artifact(model, verify_hashes=False)
    manifest = artifact.manifest
    ensemble = Ensemble.from_artifact(artifact, device, choose_precision(device, manifest.half_precision).dtype)
    with contextlib.closing(FrameStream(sweep)) as stream:
        resized = ResizedFrames(stream, manifest.tower.image_size, manifest.preprocessing, device)
        resized.finish()
    at = torch.linspace(0, len(resized.frames) - 1, min(FRAMES_LOOKED_AT, len(resized.frames))).long().to(device)
    parts = []
    for frames in resized.frames[at].split(8):
        images = normalise(frames, manifest.preprocessing, ensemble.dtype)
        embedding = ensemble.tower.run(images, range(ensemble.members), order="sequential").embedding
        assert embedding is not None
        parts.append(embedding.float().cpu())
    files = dict(manifest.files)
    for k, embedding in enumerate(torch.cat(parts, dim=1)):
        name = f"members/{k}/{HEADS_FILE}"
        heads = load_file(model / name)
        for head, rank in (("presence", 0), ("optimality", 1)):
            if f"{head}.weight" in heads:
                heads[f"{head}.weight"], heads[f"{head}.bias"] = direction_head(embedding, rank)
        save_file(heads, model / name, metadata={"format": "pt"})
        (model / name).chmod(0o644)
        files[name] = FileRecord(hash_file(model / name), (model / name).stat().st_size)
    changed = dataclasses.replace(manifest, files=files)
    (model / MANIFEST_FILE).write_text(manifest_to_json(changed), encoding="utf-8")


def direction_head(embedding: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Weight (1, width) and bias (1,) of a head whose logits of `embedding` (frames, width) have mean 0 and the spread
    LOGIT_SPREAD, along its principal direction number `rank`. Its sign is such that it does not depend on the method.
    """
    mean = embedding.mean(dim=0)
    _, _, directions = torch.linalg.svd(embedding - mean, full_matrices=False)
    direction = directions[rank]
    direction = direction * direction[direction.abs().argmax()].sign()
    weight = direction * (LOGIT_SPREAD / ((embedding - mean) @ direction).std())
    return weight[None].contiguous(), -(mean @ weight)[None]


if __name__ == "__main__":
    spread_heads(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
