"""The files that a case is read from, and what tells them from later ones of the same names."""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acouslic.errors import AcouslicError
from acouslic.paths import sees_folder
from acouslic.printable import printable
from acouslic.scanner.dicom_header import is_dicom
from acouslic.scanner.folder import case_files
from acouslic.sockets import stack_suffix

Source = Mapping[str, Any]
"""What `source_of` says, as `case.json` holds it."""

Stamp = tuple[int, int, int]
"""Inode, bytes and nanoseconds of the last writing: what changes when a file does."""


def source_files(path: Path) -> list[Path]:
    """The stack at `path`, then what else its pixels lie in: the files that a header names, whether they are there or
    not, or the DICOM files or pictures of a folder. A header that cannot be read names none yet.
    """
    try:
        if path.is_dir():
            dicom, pictures = case_files(path)
            return [path, *(dicom or pictures)]
        return [path, *_named_files(path)]
    except (AcouslicError, OSError):
        return [path]


def source_of(path: Path) -> Source:
    """What tells the files of a case from later ones, however the way to them is spelled. Files that are not there have
    no size, and nothing is raised."""
    files = source_files(path)
    is_folder = sees_folder(path)
    # Of a folder its files count: its own time changes with whatever else is put there.
    counted = files[1:] if is_folder else files
    stamps = [(file.name, stamp_of(file)) for file in counted]
    there = [stamp for _, stamp in stamps if stamp is not None]
    # The name of a DICOM file, or of a folder of them, may be a patient's.
    hidden = is_folder or is_dicom(path) or not there
    source: dict[str, Any] = {
        "path": hashlib.sha256(os.fsencode(_absolute(path))).hexdigest() if hidden else printable(_absolute(path)),
        "size_bytes": sum(size for _, size, _ in there) if there else None,
        "modified_ns": max((modified for _, _, modified in there), default=None),
    }
    if len(files) > 1:
        listed = [f"{os.fsencode(name)!r} {None if stamp is None else stamp[1:]}" for name, stamp in stamps]
        source["files_sha256"] = hashlib.sha256("\n".join(listed).encode()).hexdigest()
    return source


def is_there(path: Path) -> bool:
    """Whether a file or folder can still be looked at."""
    return stamp_of(path) is not None


def without_name(sentence: str, path: Path, source: Source, case: str) -> str:
    """A sentence without the name of the file or folder at `path`, where `source` hides it: it may be a patient's."""
    if path.suffix.lower() != ".dcm" and (source["size_bytes"] is None or source["path"] == printable(_absolute(path))):
        return sentence
    # What the case is called is no secret, but what its folder lies in may be.
    names = {str(path), path.name} - {case, case + stack_suffix(path.name)}
    patterns = [_as_named(printable(name)) for name in sorted(names, key=len, reverse=True) if name.strip("./")]
    if not patterns:
        return sentence
    # In one pass: the case's own name, once put in, may hold the file's.
    whole = rf"(?<![\w.-])(?:{'|'.join(patterns)})(?![\w-]|\.\w)"
    return re.sub(whole, lambda _: f"the file of case {case}", sentence)


def _as_named(name: str) -> str:
    """A pattern of what a sentence names so: a number by itself may be that of a frame, and is a name in a path."""
    text = re.escape(name)
    return rf"^{text}|(?<=/){text}|{text}(?=/)" if name.isdecimal() else text


def stamp_of(path: Path) -> Stamp | None:
    """What changes when the file does; None where there is none that can be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _absolute(path: Path) -> str:
    """The same for `in/a`, `./in/../in/a` and `$PWD/in/a`; links stay as they are."""
    return os.path.abspath(path)  # noqa: PTH100


def _named_files(path: Path) -> list[Path]:
    """The other files that a stack's header names its pixels in."""
    suffix = path.suffix.lower()
    if suffix in (".mha", ".mhd"):
        from acouslic.reading.metaimage import named_files

        return named_files(path)
    if suffix in (".nrrd", ".nhdr"):
        from acouslic.reading.whole_file import named_file

        named = named_file(path)
        return [] if named is None else [named]
    return []
