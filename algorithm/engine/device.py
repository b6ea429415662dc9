"""Where and in which precision to compute: decided here, each decision with the reason that goes into the log."""

import warnings
from pathlib import Path
from typing import NamedTuple

import torch

from acouslic.errors import AcouslicError
from algorithm.model.manifest import Consequence, HalfPrecision
from algorithm.process.cores import usable_cores

MOST_HALF_DIFFERENCE = 0.02
"""Of a probability from float32's: what half precision may cost."""
MOST_RECORDED_DIFFERENCE = MOST_HALF_DIFFERENCE / 2
"""In an artifact's manifest, which knows the largest of a sample: of the demo's 50 cases the largest is twice that of
640 of their frames."""

MOST_RECHECKED_DIFFERENCE = 0.1
"""A type that moves a probability further is not asked at all: too many frames would be near a decision."""
_LOGIT_A_PROBABILITY = 4.0
"""Where a probability is 0.5, its logit moves four times as far."""

FEWEST_CASES = 5
"""So many whole cases have to agree before a type is taken for what it changes in them."""
LEAST_FRAME_F1 = 0.9995
"""So that the F1 against the truth stays within 0.001 (`Consequence.frame_f1`)."""
MOST_CIRCUMFERENCE_DIFFERENCE_MM = 0.1


class Precision(NamedTuple):
    """In which precision the members of an artifact compute."""

    dtype: torch.dtype
    reason: str
    recheck_margin: float | None = None
    """Frames whose logit lies this near a decision are asked again in float32 (`judgement/recheck.py`); None: no frame
    is."""


def choose_device(wanted: str | None = None) -> tuple[torch.device, str]:
    """The first usable GPU, else the CPU, or the one that is `wanted` ("cpu", "cuda"). With the reason.

    A GPU is usable where a small product on it comes out right: a driver that is too old, a torch without CUDA, a torch
    without kernels for the card, or a card that is taken all end on the CPU, and the reason says which. Raises
    AcouslicError with it where a GPU is wanted.
    """
    if wanted == "cpu":
        return torch.device("cpu"), "cpu was asked for"
    device, reason = _look_for_gpu()
    if wanted is not None and device.type != "cuda":
        raise AcouslicError(f"a GPU was asked for but cannot be used: {reason}")
    return device, reason


def _look_for_gpu() -> tuple[torch.device, str]:
    if torch.version.cuda is None and torch.version.hip is None:
        return torch.device("cpu"), "this torch is built without GPU support"
    # An old driver is announced as a warning, which would end up on stderr: it belongs into the reason.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        told = (
            str(caught[0].message).split("(Triggered")[0].strip().replace("\n", " ") if caught else "no GPU was found"
        )
        return torch.device("cpu"), told
    name = "the GPU"
    try:
        device = torch.device("cuda", torch.cuda.current_device())
        name = torch.cuda.get_device_name(device)
        ones = torch.ones(8, 8, device=device, dtype=torch.float16)
        works = bool((ones @ ones == 8).all())
    except RuntimeError as error:
        return torch.device("cpu"), f"{name} cannot be used by this torch: {str(error).splitlines()[0]}"
    if not works:
        return torch.device("cpu"), f"{name} computes wrong products"
    return device, f"{name} is there"


def choose_precision(device: torch.device, measured: HalfPrecision | None = None) -> Precision:
    """The first of `device`'s half types that keeps the artifact's answers those of float32, else float32, with the
    reason.

    `measured` is what the artifact's manifest says of half precision. A type that was not measured is trusted; one that
    moves a probability too far is taken all the same where it changed nothing in whole cases (`changes_nothing`), by
    itself or with the frames near a decision asked again in float32.
    """
    types, reason = half_types(device)
    reasons = [reason]
    for dtype in types:
        name = str(dtype).removeprefix("torch.")
        difference = None if measured is None else getattr(measured, name)
        if measured is None or difference is None:
            return Precision(dtype, "; ".join([*reasons, f"{name} was not measured for this artifact"]))
        if difference <= MOST_RECORDED_DIFFERENCE:
            within = f"{name} is within {difference:.4f} of float32 for this artifact"
            return Precision(dtype, "; ".join([*reasons, within]))
        against = [f"{name} is {difference:.3f} off for this artifact, more than {MOST_RECORDED_DIFFERENCE}"]
        for rechecked in (False, True):
            consequence: Consequence | None = getattr(measured, consequence_field(dtype, rechecked=rechecked))
            margin = recheck_margin(difference) if rechecked else None
            if consequence is None or (rechecked and margin is None):
                continue
            how = f"{name}, with the frames near a decision in float32," if rechecked else name
            if changes_nothing(consequence):
                agreed = f"{how} gives the answers of float32 in {consequence.cases} cases of this artifact"
                return Precision(dtype, "; ".join([*reasons, agreed]), margin)
            against.append(f"in {consequence.cases} cases {how} {describe_consequence(consequence)}")
        reasons += against
    return Precision(torch.float32, "; ".join(reasons))


def consequence_field(dtype: torch.dtype, *, rechecked: bool) -> str:
    """The field of `HalfPrecision` that says what a half type changes in whole cases."""
    return f"{str(dtype).removeprefix('torch.')}{'_rechecked' if rechecked else ''}_consequence"


def recheck_margin(difference: float | None) -> float | None:
    """How near a decision a logit has to lie to be asked again in float32, where a half type moves a probability by up
    to `difference`; None where that is not known, nothing, or too far for it.

    It is the largest logit's difference of a single frame; smoothing along the sweep halves what a decision sees of it.
    """
    if not difference or difference > MOST_RECHECKED_DIFFERENCE:
        return None
    return _LOGIT_A_PROBABILITY * difference


def changes_nothing(consequence: Consequence) -> bool:
    """Whether a half type may be taken for what it changed in whole cases: the same frame in each, the same frames
    called positive but for one in two thousand, and 0.1 mm, in FEWEST_CASES cases at least."""
    return (
        consequence.cases >= FEWEST_CASES
        and consequence.other_frames == 0
        and consequence.frame_f1 >= LEAST_FRAME_F1
        and consequence.circumference_difference_mm <= MOST_CIRCUMFERENCE_DIFFERENCE_MM
    )


def describe_consequence(consequence: Consequence) -> str:
    """What a half type changed, in a few words for people."""
    return (
        f"chooses another frame in {consequence.other_frames}, calls {consequence.changed_frames} of "
        f"{consequence.positive_frames} frames otherwise, and measures up to "
        f"{consequence.circumference_difference_mm:.2f} mm apart"
    )


def half_types(device: torch.device) -> tuple[tuple[torch.dtype, ...], str]:
    """The half types that `device` is fast in, the preferred one first, with the reason.

    On a GPU float16 goes first: it has three more bits than bfloat16, and took 2 to 6 % longer on an H100
    (bench/LOG.md, 29); what it lacks is range, which the residual stream has in float32.
    """
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        card = f"compute capability {major}.{minor}"
        if major >= 8:
            return (torch.float16, torch.bfloat16), f"{card} has tensor cores for float16 and bfloat16"
        if (major, minor) >= (5, 3):
            return (torch.float16,), f"{card} has float16 but no fast bfloat16"
        return (), f"{card} has no fast half precision"
    if not torch.backends.mkldnn.is_available():
        return (), "this torch is built without oneDNN"
    native = sorted({"avx512_bf16", "amx_bf16"} & cpu_flags())
    if not native:
        return (), "the CPU has no bfloat16 instructions"
    return (torch.bfloat16,), f"the CPU has {', '.join(native)}"


def keep_exact_sums() -> None:
    """Let a GPU sum in float32, and twice in the same order: torch's defaults trade that for a few per cent.

    TF32 would round the float32 heads and decoders to 10 bits, reduced-precision reductions the partial sums of long
    half-precision products; both would count against the parity bounds.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cudnn.deterministic = True


def set_cpu_threads() -> tuple[int, str]:
    """Let torch use as many threads as this process may use cores; returns their number and the reason.

    Torch itself counts the machine's cores; in a container with a quota that is too many, and oversubscribed threads
    wait for each other.
    """
    threads, reason = usable_cores()
    torch.set_num_threads(threads)
    return threads, reason


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> set[str]:
    """The instruction set extensions of the first CPU; empty where the system does not say."""
    try:
        for line in path.read_text().splitlines():
            if line.startswith("flags"):
                return set(line.partition(":")[2].split())
    except OSError:
        pass
    return set()
