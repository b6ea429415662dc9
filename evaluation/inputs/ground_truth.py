"""The reference: where it lies, and the compact index that is made of it once.

Of a reference stack only the annotated frames matter, some 22 of 840. The index keeps those, bit-packed, beside the
labels of all frames. It names the SHA-256 of the stack it was made of and is used for no other.
"""

import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from acouslic.errors import AcouslicError
from acouslic.reading.metaimage import named_files
from acouslic.release import SWEEP_COLUMNS, Release, read_circumferences
from acouslic.sockets import SOCKET_SUFFIXES
from acouslic.stack import open_stack
from acouslic.strict_json import read_strict_json
from acouslic.write import write_bytes
from evaluation.inputs.case_truth import CaseTruth
from evaluation.inputs.safe_path import checked_name

OFFICIAL_FOLDER = "ground_truth"
MASKS_FOLDER = "fetal_abdomen_stacked_masks"
CIRCUMFERENCE_FILE = "fetal_abdominal_circumference.json"
SUBJECTS_FILE = "subjects.json"
INDEX_FILE = "frame_index.npz"
SUBJECTS_SCHEMA_VERSION = 1

_INDEX_VERSION = 1
_INDEX_FIELDS = {
    "version", "sha256", "frame_labels", "annotated_frames", "packed_masks", "columns", "spacing_mm",
}  # fmt: skip
_HASH_PIECE_BYTES = 1 << 20
_JSON_LIMIT_BYTES = 16 << 20
_HIGHEST_LABEL = 2
NPZ_ERRORS = (
    OSError, ValueError, EOFError, TypeError, AttributeError, KeyError, SyntaxError, RuntimeError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip
"""What numpy and zipfile raise for a damaged `.npz`; RuntimeError where a flipped bit says that it is encrypted."""


@dataclass(frozen=True)
class TruthSource:
    """Where the reference of a case lies."""

    case: str
    mask_path: Path
    sweep_ac_mm: tuple[float | None, ...]
    subject_id: str | None
    index_path: Path | None
    """An index that came with the reference; None where there is none."""


def find_official(folder: Path) -> dict[str, TruthSource]:
    """The cases of the platform's ground truth, sorted, with or without its further folder `ground_truth/`.

    Each is a folder with one label stack and one JSON of circumferences; hidden files do not count. `subjects.json` and
    an index in a case's folder are ours and may be missing. Raises AcouslicError where a case's folder lacks something,
    or none is there.
    """
    root = folder / OFFICIAL_FOLDER if (folder / OFFICIAL_FOLDER).is_dir() else folder
    try:
        names = sorted(item.name for item in root.iterdir() if item.is_dir() and not item.name.startswith("."))
    except OSError as error:
        raise AcouslicError(f"{root} could not be read: {error.strerror}; extract the ground truth there") from None
    if not names:
        raise AcouslicError(
            f"{root} holds no case; extract the ground truth there (python -m evaluation pack makes it)"
        )
    subjects = _read_subjects(root / SUBJECTS_FILE)
    return {name: _official_source(root / name, subjects.get(name)) for name in names}


def find_release(root: Path) -> dict[str, TruthSource]:
    """The cases of the raw release, sorted. Its images are not needed and not looked for.

    Raises AcouslicError where the table or a mask is missing.
    """
    release = Release(root)
    sources = {}
    for uuid, row in sorted(read_circumferences(release.circumferences_path).items()):
        path = release.mask_path(checked_name(uuid, f"{release.circumferences_path}: a uuid"))
        if not path.is_file():
            raise AcouslicError(f"{path} is missing, but {release.circumferences_path} lists case {uuid}")
        sources[uuid] = TruthSource(uuid, path, row.sweep_ac_mm, row.subject_id, None)
    if not sources:
        raise AcouslicError(f"{release.circumferences_path} lists no case")
    return sources


def read_truth(source: TruthSource, cache_dir: Path | None = None) -> CaseTruth:
    """The reference of a case, from an index where one fits the stack, else from the stack itself.

    With a `cache_dir` the index that was made is left there for the next time. Raises AcouslicError where the stack is
    damaged or holds another value than 0, 1 and 2.
    """
    digest = file_sha256(*stack_files(source.mask_path))
    cached = None if cache_dir is None else cache_dir / f"{source.case}.npz"
    for path in (source.index_path, cached):
        if path is not None:
            index = _load_index(path, digest)
            if index is not None:
                return _truth(source, index)
    index = build_index(source.mask_path, digest)
    if cached is not None:
        # Under a name of this process first: another run may be filling the same folder.
        own = cached.with_name(f"{source.case}.{os.getpid()}.npz")
        write_bytes(own, index_bytes(index))
        own.replace(cached)
    return _truth(source, index)


def build_index(mask_path: Path, digest: str) -> dict[str, np.ndarray]:
    """The arrays of the index of a label stack, decoded once, a few frames at a time: the label of each frame, and of
    the annotated ones the mask, a bit a pixel. `digest` is the stack's SHA-256 in hexadecimal.

    Raises AcouslicError where the stack is damaged or holds a label other than 0, 1 and 2.
    """
    reader = open_stack(mask_path)
    header = reader.header
    labels = np.zeros(header.frames, np.uint8)
    annotated, packed = [], []
    for indices, chunk in reader.iter_chunks():
        highest = chunk.max(axis=(1, 2))
        for position in np.flatnonzero(highest):
            frame = chunk[position]
            if highest[position] > _HIGHEST_LABEL:
                raise AcouslicError(f"{mask_path}: frame {indices[position]} holds a label other than 0, 1 and 2")
            labels[indices[position]] = 1 if (frame == 1).any() else 2
            annotated.append(indices[position])
            packed.append(np.packbits(frame != 0, axis=-1))
    spacing = (np.nan, np.nan) if header.spacing_note else header.spacing_mm
    shape = (len(packed), header.rows, (header.columns + 7) // 8)
    return {
        "version": np.array(_INDEX_VERSION),
        "sha256": np.array(digest),
        "frame_labels": labels,
        "annotated_frames": np.array(annotated, np.int64),
        "packed_masks": np.array(packed, np.uint8).reshape(shape),
        "columns": np.array(header.columns),
        "spacing_mm": np.array(spacing, np.float64),
    }


def index_bytes(index: Mapping[str, np.ndarray]) -> bytes:
    """The index as a compressed `.npz`; the same bytes for the same index."""
    buffer = io.BytesIO()
    # numpy stamps the members of an .npz with a fixed date, so that nothing of the clock gets in.
    np.savez_compressed(buffer, allow_pickle=False, **index)
    return buffer.getvalue()


def stack_files(mask_path: Path) -> list[Path]:
    """The files of a label stack: its own, and those beside it that a MetaImage names for its pixels."""
    return [mask_path, *(named_files(mask_path) if mask_path.suffix.lower() in (".mha", ".mhd") else [])]


def file_sha256(*paths: Path) -> str:
    """SHA-256 of files, one after another, in hexadecimal. Raises AcouslicError where one cannot be read."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                while piece := file.read(_HASH_PIECE_BYTES):
                    digest.update(piece)
        except OSError as error:
            raise AcouslicError(f"{path} could not be read: {error.strerror}") from None
    return digest.hexdigest()


def subjects_json(subjects: Mapping[str, str]) -> dict[str, Any]:
    """The content of `subjects.json`: whose case each is, for intervals that are resampled by subject."""
    return {"schema_version": SUBJECTS_SCHEMA_VERSION, "subjects": dict(sorted(subjects.items()))}


def _official_source(folder: Path, subject_id: str | None) -> TruthSource:
    masks = folder / MASKS_FOLDER
    paths = sorted(item for item in masks.glob("[!.]*") if item.suffix.lower() in SOCKET_SUFFIXES)
    if len(paths) != 1:
        raise AcouslicError(f"{masks} must hold exactly one label stack, found {len(paths)}")
    index_path = folder / INDEX_FILE
    return TruthSource(
        case=folder.name,
        mask_path=paths[0],
        sweep_ac_mm=_read_sweep_circumferences(folder / CIRCUMFERENCE_FILE),
        subject_id=subject_id,
        index_path=index_path if index_path.is_file() else None,
    )


def _read_sweep_circumferences(path: Path) -> tuple[float | None, ...]:
    content = read_strict_json(path, _JSON_LIMIT_BYTES, "ground truth")
    if not isinstance(content, dict):
        raise AcouslicError(f"{path} must hold an object with {SWEEP_COLUMNS[0]} .. {SWEEP_COLUMNS[-1]}")
    values = []
    for column in SWEEP_COLUMNS:
        value = content.get(column, "missing")
        if value is not None and (type(value) not in (int, float) or not value > 0):
            raise AcouslicError(f"{path}: {column} must be a positive number in mm or null")
        values.append(None if value is None else float(value))
    return tuple(values)


def _read_subjects(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    content = read_strict_json(path, _JSON_LIMIT_BYTES, "ground truth")
    if not isinstance(content, dict) or content.get("schema_version") != SUBJECTS_SCHEMA_VERSION:
        raise AcouslicError(f"{path} must be an object with schema_version {SUBJECTS_SCHEMA_VERSION}")
    subjects = content.get("subjects")
    if not isinstance(subjects, dict) or not all(isinstance(item, str) for item in subjects.values()):
        raise AcouslicError(f"{path}: subjects must map cases to subjects")
    return subjects


def _load_index(path: Path, digest: str) -> dict[str, np.ndarray] | None:
    """The arrays of an index; None where there is none, or it is damaged or of another stack: it is then made anew."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            index = {name: arrays[name] for name in arrays.files}
    except NPZ_ERRORS:
        return None
    if index.keys() != _INDEX_FIELDS or (str(index["version"]), str(index["sha256"])) != (str(_INDEX_VERSION), digest):
        return None
    return index


def _truth(source: TruthSource, index: Mapping[str, np.ndarray]) -> CaseTruth:
    row_mm, column_mm = map(float, index["spacing_mm"])
    return CaseTruth(
        case=source.case,
        subject_id=source.subject_id,
        frame_labels=index["frame_labels"],
        sweep_ac_mm=source.sweep_ac_mm,
        rows=index["packed_masks"].shape[1],
        columns=int(index["columns"]),
        spacing_mm=None if np.isnan(row_mm) else (row_mm, column_mm),
        annotated_frames=index["annotated_frames"],
        packed_masks=index["packed_masks"],
    )
