"""One exhaustive pass over a case, recorded, and any gated run of it replayed from the record.

The replay goes through `algorithm.judgement.score.score_case` itself: a stand-in for the ensemble looks up what the
real one said.
"""

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acouslic.errors import AcouslicError
from acouslic.stack import open_stack
from algorithm.engine.ensemble import Ensemble, GateScores, MemberScores
from algorithm.frames.frame_stream import FrameStream
from algorithm.frames.preprocess import normalise
from algorithm.frames.resized_frames import ResizedFrames
from algorithm.judgement.score import FrameScores, score_case
from algorithm.model.manifest import Manifest, ScoringConfig, manifest_to_json
from algorithm.model.networks import PreprocessingConfig
from algorithm.model.student import Student

_IDENTITY = PreprocessingConfig(mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
"""Leaves grey levels as they are, which here spell a frame's number."""
Network = Callable[[Tensor], list[Tensor]]
"""From normalised images to probabilities: presence, and optimality, empty where there is none."""


@dataclass(frozen=True)
class Record:
    """What every member, the averaged gate and the student say about every frame of a case, and what is true."""

    case: str
    labels: NDArray[np.uint8]
    """(F,): 0, 1 optimal, 2 suboptimal."""
    blank: NDArray[np.bool_]
    """(F,)"""
    presence: NDArray[np.float32]
    """(members, F)"""
    optimality: NDArray[np.float32]
    """(members with an optimality head, F)"""
    gate_presence: NDArray[np.float32]
    """(F,) of the averaged gate; empty where the artifact cannot have one."""
    gate_optimality: NDArray[np.float32]
    """(F,); empty where it has none."""
    members_s: float
    """Seconds of all members on all frames, after a first batch that is not counted, scaled to all frames."""
    gate_s: float
    """Likewise of the averaged gate."""
    student_presence: NDArray[np.float32]
    """(F,); empty without a student."""
    student_optimality: NDArray[np.float32]
    """(F,); empty where it has none."""
    student_s: float
    """Likewise of the student."""

    def save(self, path: Path) -> None:
        """Write to a `.npz` file."""
        np.savez(path, **dataclasses.asdict(self))

    @staticmethod
    def load(path: Path) -> "Record":
        """Read what `save` has written."""
        with np.load(path) as file:
            arrays = {field.name: file[field.name] for field in dataclasses.fields(Record)}
        scalars = {name: arrays[name].item() for name in ("case", "members_s", "gate_s", "student_s")}
        return Record(**(arrays | scalars))


@torch.inference_mode()
def record_case(
    ensemble: Ensemble,
    case: str,
    image_path: Path,
    mask_path: Path,
    *,
    with_gate: bool,
    batch_frames: int,
    student: Student | None = None,
) -> Record:
    """Everything about one case of a release. The ensemble's manifest asks for the averaged gate if `with_gate`;
    `student` computes where and in what it does. Raises AcouslicError for a case of black frames alone."""
    tower, preprocessing = ensemble.manifest.tower, ensemble.manifest.preprocessing
    with contextlib.closing(FrameStream(image_path)) as stream:
        resized = ResizedFrames(stream, tower.image_size, preprocessing, ensemble.device)
        blank = resized.blank()
    if blank.all():
        raise AcouslicError(f"{image_path} has only black frames: there is none to choose")

    ask = partial(
        _ask_all,
        frames=resized.frames,
        preprocessing=preprocessing,
        dtype=ensemble.dtype,
        batch_frames=batch_frames,
    )
    none = [np.zeros(0, np.float32)] * 2
    of_members, members_s = ask(partial(_members_say, ensemble))
    of_gate, gate_s = ask(partial(_gate_says, ensemble)) if with_gate else (none, 0.0)
    of_student, student_s = (none, 0.0) if student is None else ask(partial(_student_says, student))
    return Record(
        case=case,
        labels=frame_labels(mask_path),
        blank=blank,
        presence=of_members[0],
        optimality=of_members[1],
        gate_presence=of_gate[0],
        gate_optimality=of_gate[1],
        members_s=members_s,
        gate_s=gate_s,
        student_presence=of_student[0],
        student_optimality=of_student[1],
        student_s=student_s,
    )


def _ask_all(
    network: Network, frames: Tensor, preprocessing: PreprocessingConfig, dtype: torch.dtype, batch_frames: int
) -> tuple[list[NDArray[np.float32]], float]:
    """Presence and optimality of all frames, uint8 (F, S, S); seconds as in `Record.members_s`."""
    parts, seconds = [], []
    for start in range(0, len(frames), batch_frames):
        batch = frames[start : start + batch_frames]
        begun = time.perf_counter()
        scores = network(normalise(batch, preprocessing, dtype))
        parts.append([values.cpu().numpy() for values in scores])
        seconds.append((time.perf_counter() - begun) / len(batch))
    counted = seconds[1:] or seconds
    whole_s = sum(counted) / len(counted) * len(frames)
    return [np.concatenate(list(values), axis=-1) for values in zip(*parts, strict=True)], whole_s


def _members_say(ensemble: Ensemble, images: Tensor) -> list[Tensor]:
    scores = ensemble.score(images)
    return [scores.presence_probability, scores.optimality_probability]


def _gate_says(ensemble: Ensemble, images: Tensor) -> list[Tensor]:
    scores = ensemble.gate(images)
    optimality = scores.optimality_probability
    return [scores.presence_probability, images.new_empty(0) if optimality is None else optimality]


def _student_says(student: Student, images: Tensor) -> list[Tensor]:
    presence, optimality = student(images)
    return [presence.sigmoid(), presence.new_empty(0) if optimality is None else optimality.sigmoid()]


def frame_labels(mask_path: Path) -> NDArray[np.uint8]:
    """The label of each frame (F,) of a mask stack: its largest value, frames having one label at most."""
    return np.concatenate([chunk.max((1, 2)) for _, chunk in open_stack(mask_path).iter_chunks()])


class RecordedEnsemble:
    """Answers `score_case` from a record, for frames that spell their number (`spelled_frames`)."""

    dtype = torch.float32

    def __init__(self, record: Record, manifest: Manifest, scoring: ScoringConfig) -> None:
        self.manifest = dataclasses.replace(manifest, preprocessing=_IDENTITY, scoring=scoring)
        self._record = record
        self._has_optimality = [k for k, member in enumerate(manifest.members) if member.optimality]

    def trunk(self, images: Tensor) -> Tensor | None:  # noqa: ARG002 - as the ensemble's
        """A record holds results only."""
        return None

    def score(
        self,
        images: Tensor,
        trunk: Tensor | None = None,  # noqa: ARG002 - as the ensemble's
        *,
        keep: bool = False,  # noqa: ARG002 - likewise
    ) -> MemberScores:
        """All members, from the record."""
        at = _read_numbers(images)
        record = self._record
        return MemberScores(torch.from_numpy(record.presence[:, at]), torch.from_numpy(record.optimality[:, at]))

    def gate(self, images: Tensor, trunk: Tensor | None = None) -> GateScores:  # noqa: ARG002 - as the ensemble's
        """The averaged gate, the student, or the member that the settings make the gate."""
        at, record, scoring = _read_numbers(images), self._record, self.manifest.scoring
        if scoring.gate != "member":
            presence, optimality = record.gate_presence, record.gate_optimality
            if scoring.gate == "student":
                presence, optimality = record.student_presence, record.student_optimality
            return GateScores(
                torch.from_numpy(presence[at]), torch.from_numpy(optimality[at]) if len(optimality) else None
            )
        k = scoring.gate_member
        found = None
        if k in self._has_optimality:
            found = torch.from_numpy(record.optimality[self._has_optimality.index(k), at])
        return GateScores(torch.from_numpy(record.presence[k, at]), found)


def replay(record: Record, manifest: Manifest, scoring: ScoringConfig) -> FrameScores:
    """What `score_case` makes of the case with these settings."""
    ensemble, frames = RecordedEnsemble(record, manifest, scoring), spelled_frames(len(record.labels))
    return score_case(ensemble, frames, scoring, batch_frames=4096, blank=lambda: record.blank)


def spelled_frames(count: int) -> Tensor:
    """uint8 (count, 1, 2) frames whose two grey levels are their own number, high byte first."""
    numbers = torch.arange(count)
    return torch.stack([numbers // 256, numbers % 256], dim=-1)[:, None].to(torch.uint8)


def _read_numbers(images: Tensor) -> NDArray[np.int64]:
    high, low = images[:, 0, 0].round().long().T
    return np.asarray((256 * high + low).numpy())


def record_release(
    ensemble: Ensemble,
    cases: Sequence[tuple[str, Path, Path]],
    cache: Path | None,
    *,
    with_gate: bool,
    batch_frames: int,
    student: Student | None = None,
) -> list[Record]:
    """Records of all cases (name, image, mask). One that the folder `cache` has of the same model, in the same type and
    of the same files, is read from there, but not where the averaged gate is wanted and was not asked."""
    records = []
    manifest = dataclasses.replace(ensemble.manifest, scoring=ScoringConfig())
    for number, (case, image_path, mask_path) in enumerate(cases, start=1):
        files = [(stat.st_size, stat.st_mtime_ns) for stat in (image_path.stat(), mask_path.stat())]
        question = f"{manifest_to_json(manifest)} {ensemble.dtype} {files}"
        kept = None if cache is None else cache / f"{case}-{hashlib.sha256(question.encode()).hexdigest()[:16]}.npz"
        if kept is not None and kept.is_file():
            record = Record.load(kept)
            if len(record.gate_presence) or not with_gate:
                records.append(record)
                continue
        start = time.perf_counter()
        record = record_case(
            ensemble, case, image_path, mask_path, with_gate=with_gate, batch_frames=batch_frames, student=student
        )
        records.append(record)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            record.save(kept)
        print(f"{number}/{len(cases)} {case}: {time.perf_counter() - start:.1f} s", flush=True)
    return records
