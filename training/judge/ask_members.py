"""What every member of an artifact says of the frames of cached cases, in logits, with their embeddings."""

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from acouslic.errors import AcouslicError
from acouslic.write import write_bytes
from algorithm.engine.batches import NotNumbersError
from algorithm.engine.ensemble import Ensemble
from algorithm.frames.preprocess import normalise
from algorithm.model.heads import presence_from_mask
from training.frames.dataset import FrameTable
from training.learn.out_of_fold import OutOfFold


@dataclass(frozen=True)
class Answers:
    """Of some rows of a table, by member."""

    presence: NDArray[np.float32]
    """(members, rows): logits."""
    optimality: NDArray[np.float32]
    """(members, rows): logits; NaN of members without the head."""
    embedding: NDArray[np.float32]
    """(members, rows, output_dim)."""
    mask_area: NDArray[np.float32]
    """(members, rows): share of the mask's pixels above 0.5; NaN of members without a decoder, and where only
    annotated frames were outlined."""
    masks: tuple[NDArray[np.uint8], ...]
    """A member: (annotated rows, G, G), 0..255 for 0..1; (0, 1, 1) without a decoder."""


_KEPT = ("presence", "optimality", "mask_area")
"""What `write_answers` keeps, beside the masks."""


@torch.inference_mode()
def ask_members(
    ensemble: Ensemble, table: FrameTable, rows: NDArray[np.int64], batch_frames: int, *, outline_all: bool = False
) -> Answers:
    """Every member's answers on `rows` of the table, int64 (R,), at least one; each frame goes through the network
    once. `outline_all` draws masks on frames without a label too.

    Raises NotNumbersError where an answer is NaN or infinite: nothing may be fitted to it.
    """
    starts = range(0, len(rows), batch_frames)
    parts = [_ask(ensemble, table, rows[start : start + batch_frames], outline_all) for start in starts]
    answers = Answers(
        presence=np.concatenate([part.presence for part in parts], axis=1),
        optimality=np.concatenate([part.optimality for part in parts], axis=1),
        embedding=np.concatenate([part.embedding for part in parts], axis=1),
        mask_area=np.concatenate([part.mask_area for part in parts], axis=1),
        masks=tuple(_join([part.masks[k] for part in parts]) for k in range(ensemble.members)),
    )
    judges = [k for k, config in enumerate(ensemble.manifest.members) if config.optimality]
    said = (answers.presence, answers.optimality[judges], answers.embedding)
    if not all(np.isfinite(values).all() for values in said):
        raise NotNumbersError(
            f"the model's answers are not numbers in {ensemble.dtype}: its weights are damaged or overflow; if they "
            "overflow, ask it on the CPU (--device cpu, of distil --machine.accelerator cpu)"
        )
    return answers


def write_answers(path: Path, answers: Answers) -> None:
    """Keep the answers to one case, but for the embeddings, as a compressed `.npz`."""
    arrays = {name: getattr(answers, name) for name in _KEPT}
    arrays |= {f"masks_{number}": masks for number, masks in enumerate(answers.masks)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue())


def read_answers(path: Path) -> Answers:
    """The reverse; without embeddings. Raises AcouslicError where the file is another."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            arrays = {name: content[name] for name in _KEPT}
            masks = tuple(content[f"masks_{number}"] for number in range(len(arrays["presence"])))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise AcouslicError(f"{path} is not the answers to a case ({error}): remove it") from None
    return Answers(**arrays, embedding=np.zeros((*arrays["presence"].shape, 0), np.float32), masks=masks)


def _ask(ensemble: Ensemble, table: FrameTable, rows: NDArray[np.int64], outline_all: bool) -> Answers:
    batch = table.read(rows)
    images = normalise(batch.frames.to(ensemble.device), ensemble.manifest.preprocessing, ensemble.dtype)
    annotated = torch.nonzero(batch.label > 0)[:, 0].to(ensemble.device)
    members = range(ensemble.members)
    configs = ensemble.manifest.members
    decoders = [config.decoder for config in configs]
    judged_by_mask = any(not config.presence for config in configs)
    wanted = annotated if not (outline_all or judged_by_mask) else torch.arange(len(rows), device=ensemble.device)
    taps = sorted({number for decoder in decoders if decoder for number in decoder.taps}) if len(wanted) else []
    output = ensemble.tower.run(images, list(members), taps=taps)
    embedding = output.embedding
    assert embedding is not None
    shape = (len(members), len(rows))
    presence, optimality, area = (np.full(shape, np.nan, np.float32) for _ in range(3))
    masks = []
    for k in members:
        heads, decoder = ensemble.heads[k], decoders[k]
        mask = None
        if decoder is not None and heads.decoder is not None and len(wanted):
            tokens = [output.taps[k][number][wanted].float() for number in decoder.taps]
            mask = heads.decoder(images[wanted].float(), tokens).sigmoid()
            if len(wanted) == len(rows):
                area[k] = (mask > 0.5).float().mean((1, 2)).cpu().numpy()
        if heads.presence is not None:
            presence[k] = heads.presence(embedding[k])[:, 0].cpu().numpy()
        elif mask is not None:
            presence[k] = presence_from_mask(mask, configs[k].presence_mask_fraction).cpu().numpy()
        if heads.optimality is not None:
            optimality[k] = heads.optimality(embedding[k])[:, 0].cpu().numpy()
        if mask is None or not len(annotated):
            masks.append(np.zeros((0, 1, 1), np.uint8))
        else:
            of_annotated = mask if len(wanted) == len(annotated) else mask[annotated]
            masks.append((of_annotated * 255).round().to(torch.uint8).cpu().numpy())
    return Answers(presence, optimality, embedding.cpu().numpy(), area, tuple(masks))


def _join(masks: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    drawn = [part for part in masks if len(part)]
    return np.concatenate(drawn) if drawn else np.zeros((0, 1, 1), np.uint8)


def of_member(answers: Sequence[Answers], member: int, table: FrameTable) -> OutOfFold:
    """What one member says of all frames of a table, whose cases `answers` are, as its run would have kept it. Which
    frames are black is seen in the frames, so answers need not have kept it."""
    optimality = np.concatenate([case.optimality[member] for case in answers])
    masks = _join([case.masks[member] for case in answers])
    return OutOfFold(
        uuid=np.array([case.uuid for case in table.cases]),
        frame_counts=np.array([case.frame_count for case in table.cases]),
        label=table.label,
        black=np.concatenate([case.black for case in table.cases]),
        presence_logit=np.concatenate([case.presence[member] for case in answers]),
        optimality_logit=optimality[:0] if np.isnan(optimality).any() else optimality,
        mask_rows=np.flatnonzero(table.label > 0) if len(masks) else np.zeros(0, np.int64),
        mask_probability=masks,
    )
