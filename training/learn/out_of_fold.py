"""What a trained member says about the cases it did not learn from: the ground for calibration and thresholds."""

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from acouslic.errors import AcouslicError
from acouslic.write import write_bytes
from algorithm.frames.preprocess import normalise
from algorithm.model.networks import PreprocessingConfig
from training.frames.dataset import FrameTable
from training.learn.autocast import autocast_type
from training.network.fast_layers import merged
from training.network.model import Network, all_rows

_BATCH = 64


@dataclass(frozen=True)
class OutOfFold:
    """One row a frame, cases one after another; no row is left out."""

    uuid: NDArray[np.str_]
    """(cases,)"""
    frame_counts: NDArray[np.int64]
    """(cases,)"""
    label: NDArray[np.uint8]
    """(frames,)"""
    black: NDArray[np.bool_]
    """(frames,): without a single pixel above zero; inference gives them presence 0. All False for a run of an earlier
    version, which did not record it."""
    presence_logit: NDArray[np.float32]
    """(frames,)"""
    optimality_logit: NDArray[np.float32]
    """(frames,); empty without an optimality head."""
    mask_rows: NDArray[np.int64]
    """(annotated frames,): their rows; empty without a decoder."""
    mask_probability: NDArray[np.uint8]
    """(annotated frames, G, G), 0..255 for 0..1."""

    def mask_places(self) -> list[tuple[str, int]]:
        """Case and frame of each mask, in their order; [] without any."""
        first_row = np.concatenate([[0], np.cumsum(self.frame_counts)])
        at = np.searchsorted(first_row, self.mask_rows, side="right") - 1
        return list(zip(self.uuid[at].tolist(), (self.mask_rows - first_row[at]).tolist(), strict=True))


def score_out_of_fold(
    network: Network,
    table: FrameTable,
    preprocessing: PreprocessingConfig,
    device: torch.device,
    limit: int | None = None,
) -> OutOfFold:
    """Score every frame of a table; with `limit` only the first ones and the first annotated one, the rest 0.

    It computes under autocast to the half type that training would choose on `device`, whatever the training itself
    used: temperatures and thresholds come from thousands of frames, and its rounding hardly changes them.
    """
    network = network.to(device).eval()
    rows = np.arange(len(table))
    if limit is not None:
        rows = np.unique(np.concatenate([rows[:limit], np.flatnonzero(table.label > 0)[:1]]))
    presence, optimality = np.zeros(len(table), np.float32), np.zeros(len(table), np.float32)
    black = np.zeros(len(table), bool)
    mask_rows: list[int] = []
    masks: list[NDArray[np.uint8]] = []
    dtype, _ = autocast_type(device)
    with merged(network):
        for start in range(0, len(rows), _BATCH):
            chosen = rows[start : start + _BATCH]
            batch = table.read(chosen)
            black[chosen] = (batch.frames.flatten(1).amax(1) == 0).numpy()
            annotated = torch.nonzero(batch.label > 0)[:, 0]
            images = normalise(batch.frames.to(device), preprocessing, torch.float32)
            wanted = all_rows(images) if network.judges_by_mask else annotated.to(device)
            has_masks = network.has_decoder and len(wanted) > 0
            with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                output = network(images, wanted if has_masks else None)
                presence[chosen] = network.presence_of(output).float().cpu().numpy()
            if output.optimality is not None:
                optimality[chosen] = output.optimality.float().cpu().numpy()
            if output.mask is not None and len(annotated):
                mask = output.mask[annotated.to(device)] if network.judges_by_mask else output.mask
                masks.append((mask.float().sigmoid() * 255).round().to(torch.uint8).cpu().numpy())
                mask_rows.extend(chosen[annotated.numpy()].tolist())
    return OutOfFold(
        uuid=np.array([case.uuid for case in table.cases]),
        frame_counts=np.array([case.frame_count for case in table.cases]),
        label=table.label,
        black=black,
        presence_logit=presence,
        optimality_logit=optimality if network.has_optimality else optimality[:0],
        mask_rows=np.array(mask_rows, np.int64),
        mask_probability=np.concatenate(masks) if masks else np.zeros((0, 1, 1), np.uint8),
    )


def write_out_of_fold(path: Path, scored: OutOfFold) -> None:
    """Write it as a compressed `.npz` without objects in it."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **vars(scored))
    write_bytes(path, buffer.getvalue())


def read_out_of_fold(path: Path) -> OutOfFold:
    """The reverse. Raises AcouslicError where the file is missing or another.

    Runs of earlier versions do not say which frames are black. They are read as having none, as they were then;
    `acouslic train calibrate` on their exported model looks at the frames.
    """
    try:
        # Opened here: NumPy leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            values = {name: content[name] for name in content.files}
        return OutOfFold(**({"black": np.zeros(len(values["label"]), bool)} | values))
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise AcouslicError(f"{path} is not the scores of a finished run: {error}") from None
