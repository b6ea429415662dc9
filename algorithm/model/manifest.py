"""The artifact's `manifest.json`: everything a run needs to know that is not a tensor.

One frozen dataclass a section, with the bounds of its numbers in their types; those of the networks are in
`networks.py`. Reading is strict (`typed_json.py`): an unknown schema version, an unknown or missing field, a wrong type
or an impossible value is refused with the field's path. Defaults are those of a submitted run; a written manifest
always states every field.
"""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from acouslic.errors import AcouslicError
from acouslic.strict_json import shown
from algorithm.model.networks import (
    CaseHeadConfig,
    FrameChanges,
    MemberConfig,
    PreprocessingConfig,
    Share,
    StudentConfig,
    TowerConfig,
)
from algorithm.model.typed_json import convert, read_object, read_typed_file, refuse_other_fields

SCHEMA_VERSION = 9
"""4 added the student and the case head, 5 `selection.one_run_a_sweep`, 6 `selection.most_positive_frames`, 7
`scoring.rounds` and `scoring.scale_frames`, 8 what half precision changes where frames are asked again in float32, 9
`selection.circumference_error`. Older manifests are read as ones without."""
MANIFEST_FILE = "manifest.json"
_MISSING = (
    f"mount or extract a model artifact (a folder with {MANIFEST_FILE}) there, or name the folder of one (--model, "
    "MODEL_DIR)"
)
TOWER_FILE = "tower.safetensors"
STUDENT_FILE = "student.safetensors"
CASE_HEAD_FILE = "case_head.safetensors"

Frames = Annotated[int, Meta(ge=0, le=100_000)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z", description="64 hexadecimal digits")]
Line = Annotated[
    str,
    Meta(
        max_length=4000,
        pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*\Z",
        description="one line without control characters",
    ),
]
"""For what is logged."""


@dataclass(frozen=True)
class Thresholds:
    """Operating points on the ensemble's probabilities, chosen on validation cases."""

    presence: Share = 0.5
    """Of a frame by itself; 0.5 where the selection reads it in its case: half-way, as one of a run or of so many."""
    optimality: Share = 0.5
    mask: Share = 0.5
    suitable: Share = 0.5
    """A case is `suitable` where the chosen frame's presence probability, by itself, reaches this and its mask has an
    ellipse."""


@dataclass(frozen=True)
class ScoringConfig:
    """Which frames the whole ensemble sees. `score.py` and `refine.py` follow it."""

    mode: Literal["exhaustive", "gated"] = "exhaustive"
    """`exhaustive`: every member scores every frame, the reference. `gated`: a gate scores every `stride`-th frame,
    the whole ensemble those near what could win."""
    gate: Literal["average", "member", "student"] = "average"
    """The gate: one pass through the members' averaged adapters and heads, through member `gate_member`, or through
    the artifact's student."""
    gate_member: Annotated[int, Meta(ge=0)] = 0
    """The member that is the gate `member`, counted from 0."""
    stride: Annotated[int, Meta(ge=1)] = 4
    """The gate looks at every `stride`-th frame; 1 for a student, which looks at every frame."""
    margin_frames: Frames = 3
    """Frames refined on each side of a frame that could win."""
    refine_ratio: Share = 0.5
    """A gated frame could win where its quality reaches this share of the best of the case."""
    refine_presence: tuple[Share, Share] = (0.1, 0.9)
    """Frames whose gate probability, as it is read, lies between these are refined too: they decide F1."""
    max_refined_fraction: Annotated[float, Meta(gt=0, le=1)] = 0.2
    """At most this share of the frames is refined, the best first."""
    rounds: Annotated[int, Meta(ge=1, le=100)] = 1
    """At most so often frames are chosen for refinement. From the second round on what the ensemble has said by then
    decides, and frames beside those that it calls positive are refined too, so that runs are followed to their ends.
    Where there is more than one, the best frame of each sweep is refined before the first. The rounds end when no
    further frame is chosen."""
    scale_frames: Annotated[int, Meta(ge=0, le=1000)] = 0
    """How many frames from the middle of the ranking are refined first, where the case's own scale decides which frames
    are positive: a gate whose median is not the ensemble's would move every threshold."""

    def __post_init__(self) -> None:
        """Raises ValueError for a range that is none, and for a student that would not look at every frame."""
        if self.refine_presence[0] > self.refine_presence[1]:
            raise ValueError("refine_presence must be two ascending probabilities")
        if self.gate == "student" and self.stride != 1:
            raise ValueError(f"a student looks at every frame: stride must be 1, not {self.stride}")


@dataclass(frozen=True)
class HalfWay:
    """How a case sets the scale for its frames: half-way between an absolute threshold and one relative to its best.

    A frame is positive where logit(presence) >= (top - depth x (top - median)) / 2; `top` is the mean of the case's
    `top_frames` highest logits, `median` that of all its frames. Scaling all logits changes nothing. `select_frame.py`
    follows it, `training export` and `training calibrate` choose the numbers on validation cases.

    A frame is judged against what the same probe shows of the same fetus elsewhere: a network that is sure of one
    patient's planes is sure of the frames beside them too, and one that doubts them doubts all.
    """

    depth: Share
    """How far from top to median the relative threshold lies: the median over validation cases of where each case's
    own best threshold lies."""
    top_frames: Annotated[int, Meta(ge=1, le=10_000)] = 8
    """How many of the case's highest logits its top is the mean of."""


@dataclass(frozen=True)
class SelectionConfig:
    """How the frame is chosen and outlined. `select_frame.py` and `segment.py` follow it."""

    smoothing_sigma_frames: Annotated[float, Meta(ge=0, le=10_000)] = 1.5
    """Gaussian smoothing of logits along a sweep of 140 frames, and the same share of any other, from which frames are
    called positive; 0 is none."""
    choice_sigma_frames: Annotated[float, Meta(ge=0, le=10_000)] = 1.5
    """The same, from which the frame is chosen."""
    half_way: HalfWay | None = None
    """None (`null`) calls frames positive without a look at the rest of their case."""
    one_run_a_sweep: bool = False
    """Only the strongest of a sweep's runs of positive frames stays positive: a probe that passes once over the belly
    meets the abdomen once. `training export` sets it where the annotated sweeps have one run each."""
    most_positive_frames: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    """At most so many frames of a case with sweeps of 140 are called positive, the likeliest ones: a network that is
    sure of a whole sweep is wrong. `training export` sets it from the validation cases; None is any number."""
    suboptimal_credit: Share = 1.0
    """How far the choice leaves optimality out: quality = presence x (credit + (1 - credit) x optimality). 0.6, what a
    suboptimal frame is worth in the challenge, makes it the expected WFSS of the frame; but where members were trained
    on real pixels, presence alone chose better (training/RESULTS.md)."""
    candidates: Annotated[int, Meta(ge=1, le=10_000)] = 5
    """How many of the best frames, apart from each other, are outlined in turn until a mask has an ellipse."""
    neighbour_frames: Annotated[int, Meta(ge=0, le=1000)] = 2
    """Frames on each side of the chosen one that are measured for the interval."""
    circumference_error: Annotated[float, Meta(ge=0, lt=1)] | None = None
    """The interval reaches at least so far: within this error, relative to the larger of measured and true, nine of ten
    validation sweeps lay. `training export` sets it; None is an interval of members and neighbouring frames alone."""
    when_unsuitable: Literal["best_guess", "no_frame"] = "best_guess"
    """What the frame number says for an unsuitable case. -1 scores zero in the challenge; a guess never scores less."""
    mask_shape: Literal["ellipse", "component"] = "ellipse"
    """The mask is the ellipse fitted to the cleaned component, or the component itself."""


@dataclass(frozen=True)
class Provenance:
    """Where the weights come from and what may be done with them."""

    tower: str
    tower_licence: str
    training_data: str
    training_data_licence: str
    made_by: str
    """The command, version and commit that made the artifact."""
    notes: str = ""
    split_sha256: Sha256 | None = None
    """Of the split whose first fold the first member was validated on, and so on; of members in another order, or of
    several splits, a hash that is no split's."""


@dataclass(frozen=True)
class FileRecord:
    """What a file of the artifact must be."""

    sha256: Sha256
    size_bytes: Annotated[int, Meta(ge=0)]


@dataclass(frozen=True)
class Consequence(FrameChanges):
    """What a half type changed in the answers to whole cases, against float32.

    `other_frames` also counts the cases in which only one of the two answers had a circumference. Where about as many
    frames are truly positive, the F1 against the truth differs by at most twice what `frame_f1` is below 1.
    """

    circumference_difference_mm: Annotated[float, Meta(ge=0, le=1e6)]
    """The largest of any case; 0 where none has a circumference."""


@dataclass(frozen=True)
class HalfPrecision:
    """The largest difference between presence or optimality in half precision and in float32, as measured; and
    what half precision changes in the answers to whole cases, where that was measured."""

    frames: Annotated[int, Meta(ge=0)] = 0
    """On how many frames; 0 where it was not measured."""
    float16: Share | None = None
    bfloat16: Share | None = None
    float16_consequence: Consequence | None = None
    bfloat16_consequence: Consequence | None = None
    float16_rechecked_consequence: Consequence | None = None
    """The same with the frames near a decision asked again in float32 (`judgement/recheck.py`)."""
    bfloat16_rechecked_consequence: Consequence | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot have been measured."""
        for name in ("float16", "bfloat16"):
            if (getattr(self, name) is None) != (self.frames == 0):
                raise ValueError(f"{name} goes with a number of frames, and none without")


@dataclass(frozen=True)
class Manifest:
    """The whole of `manifest.json`."""

    schema_version: int
    name: Line
    tower: TowerConfig
    preprocessing: PreprocessingConfig
    members: Annotated[tuple[MemberConfig, ...], Meta(max_length=64)]
    thresholds: Thresholds
    scoring: ScoringConfig
    selection: SelectionConfig
    provenance: Provenance
    half_precision: HalfPrecision = field(default_factory=HalfPrecision)
    student: StudentConfig | None = None
    case_head: CaseHeadConfig | None = None
    files: dict[str, FileRecord] = field(default_factory=dict)
    """Relative path (posix) to what the file must be; every file of the artifact except the manifest."""

    def __post_init__(self) -> None:
        """Raises ValueError where sections contradict each other."""
        if not self.members:
            raise ValueError("members must hold at least one member")
        for index, member in enumerate(self.members):
            if member.decoder and member.decoder.taps[-1] > self.tower.layers:
                raise ValueError(f"members[{index}].decoder.taps reach beyond the tower's {self.tower.layers} blocks")
        if self.scoring.gate_member >= len(self.members):
            raise ValueError(
                f"scoring.gate_member {self.scoring.gate_member} is not one of {len(self.members)} members"
            )
        selection = self.selection
        in_their_case = selection.half_way or selection.one_run_a_sweep or selection.most_positive_frames is not None
        if in_their_case and self.thresholds.presence != 0.5:
            raise ValueError(
                f"thresholds.presence is {self.thresholds.presence:g}, but selection reads frames in their case, where "
                "0.5 is the threshold: it must be 0.5"
            )
        if self.scoring.gate == "student" and self.student is None:
            raise ValueError("scoring.gate is 'student', but there is no student")
        if self.case_head is not None and self.scoring.mode != "exhaustive":
            raise ValueError(
                "a case head looks at every frame as all members see it: scoring.mode must be 'exhaustive'"
            )


def untuned_manifest(
    name: str,
    tower: TowerConfig,
    members: Iterable[MemberConfig],
    provenance: Provenance,
    preprocessing: PreprocessingConfig | None = None,
) -> Manifest:
    """Of members before anything is fitted to them: thresholds, scoring and selection at their defaults."""
    return Manifest(
        SCHEMA_VERSION,
        name,
        tower,
        preprocessing or PreprocessingConfig(),
        tuple(members),
        Thresholds(),
        ScoringConfig(),
        SelectionConfig(),
        provenance,
    )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the artifact in `folder`.

    Raises AcouslicError where it is missing, is not JSON, has another schema version, no member has a decoder, or any
    field is unknown, missing, of a wrong type or out of range.
    """
    path = folder / MANIFEST_FILE
    content = read_typed_file(path, missing=_MISSING)
    found = _as_current(read_object(content, path))
    version = found.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:
        raise AcouslicError(
            f"{path}: schema_version is {shown(version)}, this program reads {SCHEMA_VERSION}; export the model again"
        )
    manifest = convert(found, Manifest, path)
    refuse_other_fields(found, manifest, path)
    if not any(member.decoder for member in manifest.members):
        raise AcouslicError(f"{path}: at least one of the members must carry a decoder, or no mask can be drawn")
    return manifest


_RECHECKED = {"float16_rechecked_consequence", "bfloat16_rechecked_consequence"}


def _as_current(found: dict[str, object]) -> dict[str, object]:
    """A manifest of schema 3 to 8 with the fields that came later; anything else, and one that states such a field
    already, as it is."""
    version, selection, scoring = (found.get(name) for name in ("schema_version", "selection", "scoring"))
    if type(version) is not int:
        return found
    if version == 3 and not {"student", "case_head"} & found.keys():
        version, found = 4, found | {"student": None, "case_head": None}
    if version == 4 and isinstance(selection, dict) and "one_run_a_sweep" not in selection:
        selection = selection | {"one_run_a_sweep": False}
        version, found = 5, found | {"selection": selection}
    if version == 5 and isinstance(selection, dict) and "most_positive_frames" not in selection:
        selection = selection | {"most_positive_frames": None}
        version, found = 6, found | {"selection": selection}
    if version == 6 and isinstance(scoring, dict) and not {"rounds", "scale_frames"} & scoring.keys():
        version, found = 7, found | {"scoring": scoring | {"rounds": 1, "scale_frames": 0}}
    half = found.get("half_precision")
    if version == 7 and isinstance(half, dict) and not _RECHECKED & half.keys():
        version, found = 8, found | {"half_precision": half | dict.fromkeys(sorted(_RECHECKED))}
    if version == 8 and isinstance(selection, dict) and "circumference_error" not in selection:
        version, found = 9, found | {"selection": selection | {"circumference_error": None}}
    return found | {"schema_version": version}


def manifest_to_json(manifest: Manifest) -> str:
    """The manifest as it is written: every field, sorted as declared, one trailing newline."""
    return json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False) + "\n"
