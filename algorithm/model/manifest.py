"""The artifact's `manifest.json`: everything a run needs to know that is not a tensor.

One frozen dataclass a section. Parsing is strict: an unknown schema version, an unknown or missing field, a wrong
type or an impossible value is refused with the field's path. Defaults are those of a submitted run; a written
manifest always states every field.
"""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from acouslic.errors import AcouslicError

SCHEMA_VERSION = 2
MANIFEST_FILE = "manifest.json"
TOWER_FILE = "tower.safetensors"

Section = TypeVar("Section")


@dataclass(frozen=True)
class TowerConfig:
    """A CLIP visual transformer, in open_clip's terms. `tower.py` builds it."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    output_dim: int
    """Length of the embedding after the projection."""
    pre_norm: bool = True
    """LayerNorm before the first block (open_clip: not `no_ln_pre`)."""
    layer_scale: bool = False
    norm_eps: float = 1e-5
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    pool: Literal["tok", "avg"] = "tok"
    norm_after_pool: bool = False
    """`ln_post` on the pooled vector instead of on all tokens (open_clip: `final_ln_after_pool`)."""
    kept_patches: tuple[int, ...] | None = None
    """Row-major indices of the patches the tower sees, ascending; None is all of them. An artifact may only declare
    fewer where it was trained so: padding and the outside of the fan carry nothing."""

    @property
    def grid_size(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    def check(self) -> None:
        """Raises ValueError where the numbers do not fit together."""
        positive = ("image_size", "patch_size", "width", "layers", "heads", "mlp_width", "output_dim", "norm_eps")
        for name in positive:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.kept_patches is not None:
            kept = self.kept_patches
            if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= self.grid_size**2:
                raise ValueError(f"kept_patches must be ascending indices in 0..{self.grid_size**2 - 1}, at least one")


@dataclass(frozen=True)
class PreprocessingConfig:
    """How a frame becomes the tower's input: pad to a centred square, resize, normalise. `preprocess.py` does it."""

    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    antialias: bool = False
    """Cubic resize with (True) or without (False, as OpenCV's INTER_CUBIC and the published code) antialiasing."""

    def check(self) -> None:
        """Raises ValueError for a standard deviation that is not positive."""
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, not {self.std}")


@dataclass(frozen=True)
class DecoderConfig:
    """A UNETR-style mask decoder. `decoder.py` builds it."""

    taps: tuple[int, int, int, int]
    """Blocks whose outputs it reads, counted from 1, in ascending order."""
    grid_size: int
    """Side of the token grid it works on; 14 shrinks a 16 x 16 grid bilinearly as the published code does. The
    mask logits have 16 times this side."""
    filters: int = 32

    def check(self) -> None:
        """Raises ValueError for taps out of order or sizes that are not positive."""
        if list(self.taps) != sorted(set(self.taps)) or self.taps[0] < 1:
            raise ValueError(f"taps must be ascending block numbers from 1, not {self.taps}")
        if self.grid_size <= 0 or self.filters <= 0:
            raise ValueError("grid_size and filters must be positive")


@dataclass(frozen=True)
class MemberConfig:
    """One member of the ensemble: an optional adapter on the shared tower, and any of the heads.

    Its files lie in `members/<k>/`, k its position in the manifest: `adapter_config.json` and
    `adapter_model.safetensors` in PEFT's format where `adapter` is true, `heads.safetensors` with the tensors
    `presence.{weight,bias}`, `optimality.{weight,bias}` and `decoder.*` of the heads it has.
    """

    adapter: bool
    presence: bool
    optimality: bool
    decoder: DecoderConfig | None = None
    presence_temperature: float = 1.0
    """Calibration: probabilities are sigmoid(logit / temperature)."""
    optimality_temperature: float = 1.0
    presence_mask_fraction: float = 0.01
    """For a member without a presence head, whose decoder then judges presence: probability 0.5 is reached where
    this fraction of the mask's pixels exceeds 0.5 (the published FETALCLIP_SEG rule)."""

    def check(self) -> None:
        """Raises ValueError for a member that cannot judge a frame, or a temperature that is not positive."""
        if not self.presence and self.decoder is None:
            raise ValueError("a member needs a presence head or a decoder")
        if min(self.presence_temperature, self.optimality_temperature) <= 0:
            raise ValueError("temperatures must be positive")
        if not 0 < self.presence_mask_fraction < 1:
            raise ValueError("presence_mask_fraction must lie between 0 and 1")


@dataclass(frozen=True)
class Thresholds:
    """Operating points on the ensemble's probabilities, chosen on validation cases."""

    presence: float = 0.5
    """Of a frame, in context where there is one."""
    optimality: float = 0.5
    mask: float = 0.5
    suitable: float = 0.5
    """A case is `suitable` where the chosen frame's presence probability, by itself, reaches this and its mask has an
    ellipse."""

    def check(self) -> None:
        """Raises ValueError for a threshold outside [0, 1]."""
        for item in dataclasses.fields(self):
            if not 0 <= getattr(self, item.name) <= 1:
                raise ValueError(f"{item.name} must lie in [0, 1], not {getattr(self, item.name)}")


@dataclass(frozen=True)
class ScoringConfig:
    """Which frames the whole ensemble sees. `score.py` follows it."""

    mode: Literal["exhaustive", "gated"] = "exhaustive"
    """`exhaustive`: every member scores every frame, the reference. `gated`: a gate scores every `stride`-th frame,
    the whole ensemble those near what could win."""
    gate: Literal["average", "member"] = "average"
    """The gate: one pass through the members' averaged adapters and heads, or through member `gate_member`."""
    gate_member: int = 0
    stride: int = 4
    margin_frames: int = 3
    """Frames refined on each side of a frame that could win."""
    refine_ratio: float = 0.5
    """A gated frame could win where its quality reaches this share of the best of the case."""
    refine_presence: tuple[float, float] = (0.1, 0.9)
    """Frames whose gate probability, in context, lies between these are refined too: they decide F1."""
    max_refined_fraction: float = 0.2
    """At most this share of the frames is refined, the best first."""

    def check(self) -> None:
        """Raises ValueError for settings outside their range."""
        if self.stride < 1 or self.margin_frames < 0 or self.gate_member < 0:
            raise ValueError("stride must be at least 1, margin_frames and gate_member at least 0")
        if not 0 <= self.refine_presence[0] <= self.refine_presence[1] <= 1:
            raise ValueError("refine_presence must be two ascending probabilities")
        if not 0 < self.max_refined_fraction <= 1 or not 0 <= self.refine_ratio <= 1:
            raise ValueError("max_refined_fraction and refine_ratio must lie in (0, 1] and [0, 1]")


@dataclass(frozen=True)
class CaseContext:
    """How the best frame of a case sets the scale for the others, fitted on validation cases by `training export`.

    logit(presence in context) = slope x logit(presence) + best_slope x clip(logit(best presence), best_range) + offset

    A frame is judged against what the same probe shows of the same fetus elsewhere: a network that is sure of one
    patient's planes is sure of the frames beside them too, and one that doubts them doubts all.
    """

    slope: float
    best_slope: float
    offset: float
    best_range: tuple[float, float]
    """Logits of the best frames that were seen in fitting: beyond them nothing is known of their effect."""

    def check(self) -> None:
        """Raises ValueError for a slope that would turn the order of frames round, and a range that is none."""
        if self.slope <= 0:
            raise ValueError(f"slope must be positive, not {self.slope}")
        if self.best_range[0] > self.best_range[1]:
            raise ValueError("best_range must be ascending")


@dataclass(frozen=True)
class SelectionConfig:
    """How the frame is chosen and outlined. `select_frame.py` and `segment.py` follow it."""

    smoothing_sigma_frames: float = 2.0
    """Gaussian smoothing of probabilities along a sweep; 0 is none."""
    context: CaseContext | None = None
    """None judges each frame without a look at the rest of its case."""
    suboptimal_credit: float = 0.6
    """What a suboptimal frame is worth where an optimal one exists: quality = presence x (credit + (1 - credit) x
    optimality), the expected WFSS of the frame."""
    candidates: int = 5
    """So many best frames, apart from each other, are segmented in turn until a mask has an ellipse."""
    neighbour_frames: int = 2
    """Frames on each side of the chosen one that are measured for the interval."""
    when_unsuitable: Literal["best_guess", "no_frame"] = "best_guess"
    """What the frame number says for an unsuitable case. -1 scores zero in the challenge; a guess never scores less."""
    mask_shape: Literal["ellipse", "component"] = "ellipse"
    """The mask is the ellipse fitted to the cleaned component, or the component itself."""

    def check(self) -> None:
        """Raises ValueError for settings outside their range."""
        if self.smoothing_sigma_frames < 0 or self.neighbour_frames < 0 or self.candidates < 1:
            raise ValueError("smoothing and neighbour_frames must be at least 0, candidates at least 1")
        if not 0 <= self.suboptimal_credit <= 1:
            raise ValueError("suboptimal_credit must lie in [0, 1]")


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
    split_sha256: str | None = None


@dataclass(frozen=True)
class FileRecord:
    """What a file of the artifact must be."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class HalfPrecision:
    """How far half precision takes presence and optimality from float32's: the largest difference, as measured."""

    frames: int = 0
    """On so many frames; 0 where it was not measured."""
    float16: float | None = None
    bfloat16: float | None = None

    def check(self) -> None:
        """Raises ValueError for what cannot have been measured."""
        if self.frames < 0:
            raise ValueError(f"frames must not be negative: {self.frames}")
        for name in ("float16", "bfloat16"):
            difference = getattr(self, name)
            if difference is not None and not 0 <= difference <= 1:
                raise ValueError(f"{name} must lie in 0..1, not {difference}")
            if (difference is None) != (self.frames == 0):
                raise ValueError(f"{name} goes with a number of frames, and none without")


@dataclass(frozen=True)
class Manifest:
    """The whole of `manifest.json`."""

    schema_version: int
    name: str
    tower: TowerConfig
    preprocessing: PreprocessingConfig
    members: tuple[MemberConfig, ...]
    thresholds: Thresholds
    scoring: ScoringConfig
    selection: SelectionConfig
    provenance: Provenance
    half_precision: HalfPrecision = field(default_factory=HalfPrecision)
    files: dict[str, FileRecord] = field(default_factory=dict)
    """Relative path (posix) to what the file must be; every file of the artifact except the manifest."""

    def check(self) -> None:
        """Raises ValueError where sections contradict each other."""
        if not self.members:
            raise ValueError("members must hold at least one member")
        if not any(member.decoder for member in self.members):
            raise ValueError("members: at least one must carry a decoder, or no mask can be drawn")
        for index, member in enumerate(self.members):
            if member.decoder and member.decoder.taps[-1] > self.tower.layers:
                raise ValueError(f"members[{index}].decoder.taps reach beyond the tower's {self.tower.layers} blocks")
        if self.scoring.gate_member >= len(self.members):
            raise ValueError(
                f"scoring.gate_member {self.scoring.gate_member} is not one of {len(self.members)} members"
            )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the artifact in `folder`.

    Raises AcouslicError where it is missing, is not JSON, has another schema version, or any field is unknown,
    missing, of a wrong type or out of range.
    """
    path = folder / MANIFEST_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AcouslicError(
            f"{path} is missing: mount or extract a model artifact (a folder with {MANIFEST_FILE}) there"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise AcouslicError(f"{path} is not a readable JSON file: {error}") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if type(version) is not int or version != SCHEMA_VERSION:
        raise AcouslicError(
            f"{path}: schema_version is {version!r}, this program reads {SCHEMA_VERSION}; export the model again"
        )
    return _parse_section(Manifest, content, str(path), "")


def manifest_to_json(manifest: Manifest) -> str:
    """The manifest as it is written: every field, sorted as declared, one trailing newline."""
    return json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False) + "\n"


def _parse_section(section: type[Section], value: Any, path: str, where: str) -> Section:
    """Build a dataclass from JSON, strictly; `where` is the dotted path for messages."""
    here = where or "the manifest"
    if not isinstance(value, dict):
        raise AcouslicError(f"{path}: {here} must be an object, not {type(value).__name__}")
    fields = {item.name: item for item in dataclasses.fields(section)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(section)
    unknown = sorted(set(value) - set(fields))
    missing = sorted(set(fields) - set(value))
    if unknown or missing:
        problem = f"unknown field {unknown[0]!r}" if unknown else f"field {missing[0]!r} is missing"
        raise AcouslicError(f"{path}: {problem} in {here}; this program reads schema {SCHEMA_VERSION}")
    parsed = {
        name: _parse_value(hints[name], value[name], path, f"{where}.{name}" if where else name) for name in fields
    }
    result = section(**parsed)
    check = getattr(result, "check", None)
    if check is not None:
        try:
            check()
        except ValueError as error:
            raise AcouslicError(f"{path}: in {here}: {error}") from None
    return result


def _parse_value(hint: Any, value: Any, path: str, where: str) -> Any:
    """One JSON value as the annotated type, or an error naming the field."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _parse_value(inner, value, path, where)
    if dataclasses.is_dataclass(hint):
        return _parse_section(typing.cast(type, hint), value, path, where)
    if origin is Literal:
        if value in arguments and isinstance(value, str):
            return value
        raise AcouslicError(f"{path}: {where} must be one of {', '.join(map(repr, arguments))}, not {value!r}")
    if origin is tuple and isinstance(value, list):
        many = len(arguments) == 2 and arguments[1] is Ellipsis
        if many or len(arguments) == len(value):
            kinds = [arguments[0]] * len(value) if many else list(arguments)
            return tuple(
                _parse_value(kind, item, path, f"{where}[{i}]")
                for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
            )
    if origin is dict and isinstance(value, dict):
        return {key: _parse_value(arguments[1], item, path, f"{where}[{key!r}]") for key, item in value.items()}
    if hint is float and type(value) in (int, float) and abs(value) < float("inf"):
        return float(value)
    if hint in (int, bool, str) and type(value) is hint:
        return value
    name = getattr(hint, "__name__", None) if origin is None else str(hint)
    raise AcouslicError(f"{path}: {where} must be {name}, not {value!r}")
