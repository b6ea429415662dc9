"""The cache that training reads: frames at training size, memory-mapped, with labels, masks and ids::

    CACHE/index.json                     schema, image size, preprocessing, the cases in the order of the csv
    CACHE/report.json                    counts and findings of the checks, see `prepare.py`
    CACHE/cases/<uuid>/case.json         ids, spacing, circumferences, findings
                       frames.npy        uint8 (F, S, S), grey levels, padded to a square and resized: `preprocess.py`
                       labels.npy        uint8 (F,), 0 nothing, 1 optimal plane, 2 suboptimal plane
                       padding.npy       uint8 (F,), 0 a frame of its own, 1 black, 2 equal to the frame before it
                       mask_frames.npy   int32 (A,), the annotated frames, ascending: where labels are not 0
                       masks.npy         uint8 (A, S, S), their labels 0, 1, 2, on the grid of `frames`

F is 840 in the release, S the training size (224). A case is 42 MB and 50 kB an annotated frame: 300 cases take 13 GB.
"""

import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acouslic.errors import AcouslicError
from acouslic.geometry import sweep_ranges

SCHEMA_VERSION = 1
INDEX_FILE = "index.json"
NOT_PADDING, BLACK, REPEATED = 0, 1, 2


@dataclass(frozen=True)
class Finding:
    """Something about a case that a person should know; training goes on."""

    sweep: int | None
    """Sweep number from 1; None where the whole case is meant."""
    text: str


@dataclass(frozen=True)
class CaseRecord:
    """What `case.json` holds."""

    uuid: str
    subject_id: str
    frame_count: int
    rows: int
    columns: int
    """Shape of the frames before the resize."""
    spacing_mm: tuple[float, float]
    """(row, column), before the resize."""
    sweep_ac_mm: tuple[float | None, ...]
    """The csv's circumferences of the six sweeps; None where it has none."""
    findings: tuple[Finding, ...]
    sources: dict[str, tuple[int, int]]
    """Size in bytes and modification time in ns of `image` and `mask` when they were read."""


@dataclass(frozen=True)
class CachedCase:
    """One case of a cache. Its arrays are opened when they are first used, read-only; copies of this object in other
    processes open their own."""

    folder: Path
    record: CaseRecord

    @property
    def uuid(self) -> str:
        """The case's uuid."""
        return self.record.uuid

    @property
    def subject_id(self) -> str:
        """The subject's id in the csv."""
        return self.record.subject_id

    @property
    def frame_count(self) -> int:
        """F, the number of frames."""
        return self.record.frame_count

    @functools.cached_property
    def frames(self) -> NDArray[np.uint8]:
        """uint8 (F, S, S), memory-mapped."""
        return self._open("frames")

    @functools.cached_property
    def labels(self) -> NDArray[np.uint8]:
        """uint8 (F,): 0, 1 (optimal) or 2 (suboptimal)."""
        return np.array(self._open("labels"))

    @functools.cached_property
    def padding(self) -> NDArray[np.uint8]:
        """uint8 (F,): NOT_PADDING, BLACK or REPEATED."""
        return np.array(self._open("padding"))

    @functools.cached_property
    def black(self) -> NDArray[np.bool_]:
        """bool (F,): frames without a single pixel above zero at training size, as inference finds them. Of `padding`'s
        black ones those that a codec left a trace in are not among them. Reads all frames once."""
        return np.asarray(self.frames.reshape(self.frame_count, -1).max(axis=1) == 0)

    @functools.cached_property
    def mask_frames(self) -> NDArray[np.int32]:
        """int32 (A,): the annotated frames, ascending."""
        return np.array(self._open("mask_frames"))

    @functools.cached_property
    def masks(self) -> NDArray[np.uint8]:
        """uint8 (A, S, S), memory-mapped: labels of the annotated frames."""
        return self._open("masks")

    @property
    def sweeps(self) -> list[range]:
        """The frames of each sweep."""
        return sweep_ranges(self.frame_count)

    @functools.cached_property
    def sweep_of_frame(self) -> NDArray[np.int32]:
        """int32 (F,): the sweep (0, 1, ...) of each frame."""
        return np.repeat(np.arange(len(self.sweeps), dtype=np.int32), [len(sweep) for sweep in self.sweeps])

    @property
    def sweep_ac_mm(self) -> tuple[float | None, ...]:
        """The csv's circumference for each sweep that the case has; None where it has none."""
        return self.record.sweep_ac_mm[: len(self.sweeps)]

    def mask(self, frame_index: int) -> NDArray[np.uint8]:
        """uint8 (S, S): the labels of one frame, zeros where it is not annotated."""
        at = int(np.searchsorted(self.mask_frames, frame_index))
        if at < len(self.mask_frames) and self.mask_frames[at] == frame_index:
            return np.array(self.masks[at])
        return np.zeros(self.frames.shape[1:], np.uint8)

    def __getstate__(self) -> dict[str, Any]:
        """Without the arrays: a pickled memory map would carry the whole case."""
        return {"folder": self.folder, "record": self.record}

    def _open(self, name: str) -> NDArray[Any]:
        path = self.folder / f"{name}.npy"
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise AcouslicError(f"{path} cannot be read: {error}; delete its folder and prepare again") from None


@dataclass(frozen=True)
class CacheIndex:
    """What `index.json` holds, besides its schema version. It is written when `prepare` starts."""

    image_size: int
    """S, side of the frames."""
    antialias: bool
    """The one setting of the resize."""
    cases: tuple[str, ...]
    """The uuids in the order of the csv."""


class Cache:
    """A prepared cache.

    Raises AcouslicError where the folder is no cache, is of another schema, or lacks a case that its index names:
    prepare was then interrupted, and running it again goes on where it stopped.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = read_index(folder)
        self.cases = tuple(
            CachedCase(folder / "cases" / uuid, read_record(folder / "cases" / uuid)) for uuid in self.index.cases
        )
        self._by_uuid = {case.uuid: case for case in self.cases}

    @property
    def image_size(self) -> int:
        """S, side of the frames."""
        return self.index.image_size

    def case(self, uuid: str) -> CachedCase:
        """One case by its uuid. Raises AcouslicError where the cache does not hold it."""
        if uuid not in self._by_uuid:
            raise AcouslicError(f"{self.folder} holds no case {uuid}; prepare the release that has it")
        return self._by_uuid[uuid]


def read_index(folder: Path) -> CacheIndex:
    """The `index.json` of a cache. Raises AcouslicError where it is missing, damaged or of another schema."""
    path = folder / INDEX_FILE
    content = _read_json(path, "prepare the release first: acouslic train prepare")
    if content.get("schema_version") != SCHEMA_VERSION:
        raise AcouslicError(
            f"{path}: schema_version is {content.get('schema_version')!r}, this program reads {SCHEMA_VERSION}; "
            "prepare into a new folder"
        )
    try:
        return CacheIndex(content["image_size"], content["antialias"], tuple(content["cases"]))
    except (KeyError, TypeError) as error:
        raise AcouslicError(f"{path} is not a cache's index: {error}; prepare into a new folder") from None


def index_to_json(index: CacheIndex) -> dict[str, Any]:
    """The content of `index.json`."""
    return {"schema_version": SCHEMA_VERSION, **asdict(index)}


def read_record(case_folder: Path) -> CaseRecord:
    """The `case.json` of a finished case. Raises AcouslicError where it is missing or not what `prepare` writes."""
    path = case_folder / "case.json"
    content = _read_json(path, "prepare was interrupted or the case was removed: run it again")
    try:
        return CaseRecord(
            uuid=content["uuid"],
            subject_id=content["subject_id"],
            frame_count=content["frame_count"],
            rows=content["rows"],
            columns=content["columns"],
            spacing_mm=tuple(content["spacing_mm"]),
            sweep_ac_mm=tuple(content["sweep_ac_mm"]),
            findings=tuple(Finding(**finding) for finding in content["findings"]),
            sources={name: tuple(stamp) for name, stamp in content["sources"].items()},
        )
    except (KeyError, TypeError) as error:
        raise AcouslicError(f"{path} is not a case record: {error}; delete its folder and prepare again") from None


def record_to_json(record: CaseRecord) -> dict[str, Any]:
    """The content of `case.json`."""
    return asdict(record)


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AcouslicError(f"{path} is missing; {remedy}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise AcouslicError(f"{path} is not a readable JSON file: {error}; {remedy}") from None
    if not isinstance(content, dict):
        raise AcouslicError(f"{path} must hold a JSON object, not {type(content).__name__}; {remedy}")
    return content
