"""One case of the release becomes one case of the cache: its masks first, then its frames, with the findings."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from acouslic.ellipse import circumference_mm, fit_seen_outline
from acouslic.errors import ShortageError
from acouslic.fov import field_of_view
from acouslic.geometry import SWEEPS_PER_CASE, sweep_ranges
from acouslic.release import CaseCircumferences, Release
from acouslic.stack import StackHeader, open_stack
from acouslic.write import why_not_written, write_json
from algorithm.frames.preprocess import labels_to_square, resize_frames
from algorithm.model.networks import PreprocessingConfig
from training.release.cache import BLACK, NOT_PADDING, REPEATED, CaseRecord, Finding, read_record, record_to_json

BLACK_LEVEL = 4
"""A frame is black where no pixel is brighter: padding that went through a lossy codec is not all zeros."""
CIRCUMFERENCE_TOLERANCE = 0.10
"""The csv and the masks of a sweep disagree where no annotated frame's ellipse comes this close to the csv's value."""


@dataclass(frozen=True)
class PrepareConfig:
    """What `prepare` is asked for."""

    raw: Path
    out: Path
    image_size: int = 224
    antialias: bool = False
    allow_unannotated: bool = False
    jobs: int = 1


@dataclass(frozen=True)
class CaseTask:
    """One case, as it is handed to a process."""

    config: PrepareConfig
    row: CaseCircumferences

    @property
    def sources(self) -> dict[str, Path]:
        """The files it is made of."""
        release = Release(self.config.raw)
        return {"image": release.image_path(self.row.uuid), "mask": release.mask_path(self.row.uuid)}

    @property
    def folder(self) -> Path:
        """Where it lies when it is complete."""
        return self.config.out / "cases" / self.row.uuid

    @property
    def partial_folder(self) -> Path:
        """Where it grows."""
        return self.config.out / "cases" / f".{self.row.uuid}.partial"

    def source_stamps(self) -> dict[str, tuple[int, int]]:
        """Size and modification time of its files."""
        stats = {name: path.stat() for name, path in self.sources.items()}
        return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}

    def is_done(self) -> bool:
        """Whether the cache holds it, made of the files and the row that are there now."""
        if not (self.folder / "case.json").is_file():
            return False
        record = read_record(self.folder)
        same_row = (record.subject_id, record.sweep_ac_mm) == (self.row.subject_id, self.row.sweep_ac_mm)
        return same_row and record.sources == self.source_stamps()


def check_masks(task: CaseTask) -> list[str]:
    """Read a case's masks into its partial folder; returns the problems found, none where all is well."""
    stamp = task.source_stamps()["mask"]
    reader = open_stack(task.sources["mask"])
    labels = np.zeros(reader.header.frames, np.uint8)
    mask_frames: list[int] = []
    masks = [np.empty((0, task.config.image_size, task.config.image_size), np.uint8)]
    circumferences: list[float] = []
    fov = field_of_view(reader.header.rows, reader.header.columns)
    for indices, chunk in reader.iter_chunks():
        for frame_index, mask in zip(indices, chunk, strict=True):
            if not mask.any():
                continue
            values = np.flatnonzero(np.bincount(mask.ravel(), minlength=3))
            problem = _label_problem(values[values > 0].tolist())
            if problem:
                return [f"{task.sources['mask']}, frame {frame_index} (counted from 0): {problem}"]
            labels[frame_index] = values[-1]
            mask_frames.append(frame_index)
            masks.append(labels_to_square(torch.from_numpy(mask[None]), task.config.image_size).numpy())
            ellipse = fit_seen_outline(mask, fov)
            circumferences.append(circumference_mm(ellipse, reader.header.spacing_mm) if ellipse else np.nan)
    if not mask_frames and not task.config.allow_unannotated:
        return [f"{task.sources['mask']} has no annotated frame: remove case {task.row.uuid} from the table, or accept "
                "such cases with --allow-unannotated"]  # fmt: skip
    with disk_errors(task.partial_folder):
        shutil.rmtree(task.partial_folder, ignore_errors=True)
        task.partial_folder.mkdir(parents=True)
        np.save(task.partial_folder / "labels.npy", labels)
        np.save(task.partial_folder / "mask_frames.npy", np.array(mask_frames, np.int32))
        np.save(task.partial_folder / "masks.npy", np.concatenate(masks))
        np.save(task.partial_folder / "circumferences_mm.npy", np.array(circumferences))
        np.save(task.partial_folder / "mask_stamp.npy", np.array(stamp))
    return []


def _label_problem(values: list[int]) -> str | None:
    """What is wrong with the non-zero values of one frame's mask."""
    if values[-1] > 2:
        return f"label {values[-1]}; expected 0 (nothing), 1 (optimal) or 2 (suboptimal)"
    return "labels 1 and 2 in one frame; expected one of them" if len(values) > 1 else None


def prepare_frames(task: CaseTask) -> None:
    """Resize a case's frames, finish its folder and put it in place."""
    folder, size = task.partial_folder, task.config.image_size
    # Masks were read before, perhaps hours: one that has changed since is read again by the next run.
    size_bytes, changed_ns = np.load(folder / "mask_stamp.npy").tolist()
    stamps = task.source_stamps() | {"mask": (size_bytes, changed_ns)}
    reader = open_stack(task.sources["image"])
    header = reader.header
    preprocessing = PreprocessingConfig(antialias=task.config.antialias)
    padding = np.zeros(header.frames, np.uint8)
    sweep_starts = {sweep.start for sweep in sweep_ranges(header.frames)}
    previous = np.zeros((header.rows, header.columns), np.uint8)
    with disk_errors(folder), (folder / "frames.npy").open("wb") as file:
        # Written as a plain file: on a full disk a memory map would end the process without a word.
        shape = (header.frames, size, size)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for indices, chunk in reader.iter_chunks():
            for frame_index, frame in zip(indices, chunk, strict=True):
                padding[frame_index] = _padding_kind(frame, None if frame_index in sweep_starts else previous)
                previous[:] = frame
            file.write(resize_frames(torch.from_numpy(chunk), size, preprocessing).numpy().data)
    labels, mask_frames = np.load(folder / "labels.npy"), np.load(folder / "mask_frames.npy")
    circumferences = np.load(folder / "circumferences_mm.npy")
    record = CaseRecord(
        uuid=task.row.uuid,
        subject_id=task.row.subject_id,
        frame_count=header.frames,
        rows=header.rows,
        columns=header.columns,
        spacing_mm=header.spacing_mm,
        sweep_ac_mm=task.row.sweep_ac_mm,
        findings=tuple(_find(header, task.row, labels, padding, dict(zip(mask_frames, circumferences, strict=True)))),
        sources=stamps,
    )
    with disk_errors(folder):
        np.save(folder / "padding.npy", padding)
        (folder / "circumferences_mm.npy").unlink()
        (folder / "mask_stamp.npy").unlink()
        write_json(folder / "case.json", record_to_json(record))
        shutil.rmtree(task.folder, ignore_errors=True)
        folder.rename(task.folder)


def _padding_kind(frame: NDArray[np.uint8], previous: NDArray[np.uint8] | None) -> int:
    if frame.max() <= BLACK_LEVEL:
        return BLACK
    return REPEATED if previous is not None and np.array_equal(frame, previous) else NOT_PADDING


def _find(
    header: StackHeader,
    row: CaseCircumferences,
    labels: NDArray[np.uint8],
    padding: NDArray[np.uint8],
    circumference_of: dict[int, float],
) -> Iterator[Finding]:
    """Hold a case's table row, masks and frames against each other."""
    if header.spacing_note:
        yield Finding(None, header.spacing_note)
    if not circumference_of:
        yield Finding(None, "no frame is annotated")
    sweeps = sweep_ranges(header.frames)
    for number in range(1, SWEEPS_PER_CASE + 1):
        frames = sweeps[number - 1] if number <= len(sweeps) else range(0)
        value_mm = row.sweep_ac_mm[number - 1]
        measured = [circumference_of[frame] for frame in frames if labels[frame]]
        fitted = np.array([value for value in measured if not np.isnan(value)])
        if value_mm is not None and not measured:
            yield Finding(number, f"the csv has {value_mm:.1f} mm, but no frame is annotated")
        elif value_mm is None and measured:
            yield Finding(number, f"{len(measured)} frames are annotated, but the csv has no value")
        elif value_mm is not None and not fitted.size:
            yield Finding(number, "no annotated frame has an ellipse")
        elif value_mm is not None and not np.min(np.abs(fitted / value_mm - 1)) <= CIRCUMFERENCE_TOLERANCE:
            yield Finding(number, f"the csv has {value_mm:.1f} mm, the masks {fitted.min():.1f} to {fitted.max():.1f}")
        labelled_padding = [frame for frame in frames if labels[frame] and padding[frame]]
        if labelled_padding:
            yield Finding(number, f"{len(labelled_padding)} annotated frames are black or repeated")


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raises ShortageError in place of an OSError, for people."""
    try:
        yield
    except OSError as error:
        raise ShortageError(f"{folder} could not be written: {why_not_written(error)}") from None
