"""The challenge's sockets: where a case lies in `/input` and where each result goes in `/output`."""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from acouslic.errors import AcouslicError

SWEEP_SLUG = "stacked-fetal-ultrasound"
SEGMENTATION_SLUG = "fetal-abdomen-segmentation"
FRAME_NUMBER_SLUG = "fetal-abdomen-frame-number"

INPUTS_FILE = "inputs.json"
SWEEP_FOLDER = f"images/{SWEEP_SLUG}"
SOCKET_SUFFIXES = (".mha", ".mhd", ".tif", ".tiff")
"""What the platform hands over."""
_VOLUME_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr")
STACK_SUFFIXES = (*SOCKET_SUFFIXES, *_VOLUME_SUFFIXES, ".png", ".jpg", ".jpeg", ".dcm", ".mp4", ".avi")
"""What a person may have: more than the platform."""
SEGMENTATION_FILE = f"images/{SEGMENTATION_SLUG}/output.mha"
FRAME_NUMBER_FILE = f"{FRAME_NUMBER_SLUG}.json"
# Ours, beside the two sockets: the platform ignores them, our evaluation reads the first.
SCORES_FILE = "frame-quality-scores.json"
CIRCUMFERENCE_FILE = "fetal-abdominal-circumference.json"

NO_FRAME = -1
"""The frame number that says "no suitable frame"."""


@dataclass(frozen=True)
class SweepInput:
    """One case as the platform hands it over."""

    path: Path
    """The sweep stack. Its parents may be symlinks that change between cases, so it is never resolved."""
    case: str
    """What the case is called: `image.name` of `inputs.json` without its suffix, else the file's own stem."""
    gestational_age: str = ""
    """As a list of cases gives it, such as 28w3d; empty where it is not known."""


def find_sweep_input(input_dir: Path) -> SweepInput:
    """The one sweep stack of a case in `input_dir` (the platform's `/input`).

    Raises AcouslicError unless the socket's folder holds exactly one `.mha`, `.mhd`, `.tif` or `.tiff`; hidden files do
    not count, and neither do the `.raw` or `.zraw` beside a `.mhd`. `inputs.json` may be missing, but where it is there
    it must list the socket, under `socket` or, in old jobs, `interface`.
    """
    entry = _sweep_entry(input_dir / INPUTS_FILE)
    folder = input_dir / _relative_folder(input_dir / INPUTS_FILE, entry)
    try:
        files = sorted(item for item in folder.iterdir() if item.is_file() and not item.name.startswith("."))
    except OSError as error:
        raise AcouslicError(f"{folder} could not be read ({error.strerror}): expected one sweep stack there") from None
    images = [item for item in files if item.suffix.lower() in SOCKET_SUFFIXES]
    if len(images) != 1:
        names = ", ".join(item.name for item in images or files) or "nothing"
        raise AcouslicError(f"{folder}: expected exactly one image ({', '.join(SOCKET_SUFFIXES)}), found {names}")
    image = entry.get("image")
    name = image.get("name") if isinstance(image, dict) else None
    case = case_name(name) if isinstance(name, str) else ""
    return SweepInput(images[0], case if case.strip(".") else images[0].stem)


def case_name(image_name: str) -> str:
    """The name of a case from the name of its image: without folders and without an image's suffix.

    Raises AcouslicError for a name with bytes that are no UTF-8 or with line ends, which no table and log can hold.
    """
    name = PurePosixPath(image_name).name
    case = name[: len(name) - len(stack_suffix(name))]
    if not case.isprintable():
        raise AcouslicError(f"the name {image_name!r} holds characters that cannot be written out: rename the file")
    return case


def stack_suffix(name: str) -> str:
    """The suffix of a file's name in small letters, where it is one of STACK_SUFFIXES, else an empty text."""
    fitting = [suffix for suffix in STACK_SUFFIXES if name.lower().endswith(suffix) and len(name) > len(suffix)]
    return max(fitting, key=len, default="")


def _sweep_entry(path: Path) -> dict[str, Any]:
    """The entry of the sweep's socket in `inputs.json`; empty where there is no such file."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise AcouslicError(f"{path} is not a readable JSON file: {error}") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise AcouslicError(f"{path}: expected a list of sockets, got {type(entries).__name__}")
    matching = [entry for entry in entries if socket_of(entry).get("slug") == SWEEP_SLUG]
    if len(matching) != 1:
        raise AcouslicError(f"{path}: expected one entry for the socket {SWEEP_SLUG}, got {len(matching)}")
    return matching[0]


def socket_of(entry: dict[str, Any]) -> dict[str, Any]:
    """What an input or output of a job says of its socket; {} where nothing. New jobs say `socket`, old ones
    `interface`, those between say both alike."""
    socket = entry.get("socket") or entry.get("interface")
    return socket if isinstance(socket, dict) else {}


def _relative_folder(path: Path, entry: dict[str, Any]) -> PurePosixPath:
    """Where the sweep lies inside the input folder."""
    text = socket_of(entry).get("relative_path", SWEEP_FOLDER)
    is_path = isinstance(text, str) and text.isprintable()
    if not is_path or PurePosixPath(text).is_absolute() or ".." in PurePosixPath(text).parts:
        raise AcouslicError(
            f"{path}: relative_path {text!r:.80} of {SWEEP_SLUG} leads out of the input folder, or is no path"
        )
    return PurePosixPath(text)
