"""Paths that a stranger names: only what lies inside the folder it may name things in."""

import stat
from pathlib import Path, PurePosixPath

from acouslic.errors import AcouslicError
from acouslic.sockets import SOCKET_SUFFIXES
from acouslic.strict_json import shown

MASK_SUFFIXES = tuple(suffix for suffix in SOCKET_SUFFIXES if suffix != ".mhd")
"""A mask is one file: a `.mhd` names a second one."""

_LONGEST_NAME, _LONGEST_PATH = 200, 1000
_MOST_FILES = 1000


def checked_name(value: object, what: str) -> str:
    """A name that can be one component of a path: text of 1 to 200 printable characters, no separator, no dots alone.

    `what` opens the sentence of the AcouslicError raised for anything else.
    """
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_NAME or not value.isprintable():
        raise AcouslicError(f"{what} must be a text of 1 to {_LONGEST_NAME} printable characters, not {shown(value)}")
    if "/" in value or "\\" in value or value in (".", ".."):
        raise AcouslicError(f"{what} must be the name of a file or folder, not {shown(value)}")
    return value


def checked_relative_path(value: object, what: str) -> PurePosixPath:
    """A relative path without `..`, as `checked_name` for each of its components."""
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_PATH:
        raise AcouslicError(f"{what} must be a text of 1 to {_LONGEST_PATH} characters, not {shown(value)}")
    parts = value.split("/")
    for part in parts:
        if part == "":
            raise AcouslicError(f"{what} must be a relative path, not {shown(value)}")
        checked_name(part, f"{what}: each part")
    return PurePosixPath(*parts)


def regular_file_inside(root: Path, relative: PurePosixPath, what: str) -> Path:
    """`root / relative`, resolved; it must be a regular file that no symlink leads out of `root`.

    `root` itself must already be resolved. Raises AcouslicError, its sentence opened by `what`.
    """
    path = _resolved_inside(root, relative, what)
    if not stat.S_ISREG(path.stat().st_mode):
        raise AcouslicError(f"{what}: {relative} is not a regular file")
    return path


def one_mask_inside(root: Path, relative: PurePosixPath, what: str) -> Path:
    """The one image in the folder `root / relative`, under the conditions of `regular_file_inside`.

    Other files in the folder do not count. Raises AcouslicError where there is no image or more than one.
    """
    folder = _resolved_inside(root, relative, what)
    if not folder.is_dir():
        raise AcouslicError(f"{what}: {relative} is not a folder; expected one that holds the mask")
    names: list[str] = []
    try:
        for count, item in enumerate(folder.iterdir()):
            if count == _MOST_FILES:
                raise AcouslicError(f"{what}: {relative} holds more than {_MOST_FILES} files; expected one image")
            if item.suffix.lower() in MASK_SUFFIXES and not item.name.startswith("."):
                names.append(item.name)
    except OSError as error:
        raise AcouslicError(f"{what}: {relative} could not be read: {error.strerror}") from None
    if len(names) != 1:
        found = ", ".join(shown(name) for name in sorted(names)[:3]) or "none"
        raise AcouslicError(
            f"{what}: {relative} must hold exactly one image ({', '.join(MASK_SUFFIXES)}), found {found}"
        )
    return regular_file_inside(root, relative / names[0], what)


def _resolved_inside(root: Path, relative: PurePosixPath, what: str) -> Path:
    try:
        path = (root / relative).resolve(strict=True)
    except FileNotFoundError:
        raise AcouslicError(f"{what}: {relative} is missing") from None
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "symlinks in a circle"
        raise AcouslicError(f"{what}: {relative} cannot be read: {reason}") from None
    if not path.is_relative_to(root):
        raise AcouslicError(f"{what}: {relative} is a link that leads out of the job's own folder")
    return path
