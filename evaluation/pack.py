"""`python -m evaluation pack`: the platform's ground truth archive from the raw release."""

import argparse
import gzip
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from acouslic.errors import AcouslicError
from acouslic.release import SWEEP_COLUMNS
from acouslic.write import replacing
from evaluation.inputs.ground_truth import (
    CIRCUMFERENCE_FILE,
    INDEX_FILE,
    MASKS_FOLDER,
    OFFICIAL_FOLDER,
    SUBJECTS_FILE,
    TruthSource,
    build_index,
    file_sha256,
    find_release,
    index_bytes,
    stack_files,
    subjects_json,
)

_GZIP_LEVEL = 6
_FILE_MODE, _FOLDER_MODE = 0o644, 0o755


def main(arguments: Sequence[str]) -> int:
    """The command line. Raises AcouslicError where the release is incomplete or the archive cannot be written."""
    parser = argparse.ArgumentParser(
        prog="acouslic evaluate pack",
        description="Make the archive of a phase's ground truth. The same release gives the same bytes.",
    )
    parser.add_argument("--raw", type=Path, required=True, help="folder of the raw release (masks/, circumferences/)")
    parser.add_argument("--out", type=Path, required=True, help="the archive to write, ground_truth.tar.gz")
    options = parser.parse_args(arguments)
    if options.out.is_dir():
        raise AcouslicError(f"{options.out} is a folder: name the archive to write, such as ground_truth.tar.gz in it")
    sources = find_release(options.raw)
    pack(sources, options.out)
    print(
        f"{options.out}: {len(sources)} cases, {options.out.stat().st_size:,} bytes, sha256 {file_sha256(options.out)}"
    )
    return 0


def pack(sources: dict[str, TruthSource], out: Path) -> None:
    """Write the archive: the official layout inside `ground_truth/`, `subjects.json`, an index beside each label stack.

    Names are sorted; times, owners and modes are fixed, so that the same release gives the same bytes. Written under a
    temporary name: an interrupted run leaves no archive.
    """
    with replacing(out) as file:
        _write_archive(sources, file)


def _write_archive(sources: dict[str, TruthSource], file: BinaryIO) -> None:
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0, compresslevel=_GZIP_LEVEL) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        _add_folder(archive, OFFICIAL_FOLDER)
        for number, case in enumerate(sorted(sources), start=1):
            for name, content in _case_files(sources[case]):
                _add(archive, f"{OFFICIAL_FOLDER}/{case}/{name}", content)
            print(f"[{number}/{len(sources)}] {case}", flush=True)
        subjects = {case: source.subject_id for case, source in sources.items() if source.subject_id is not None}
        _add(archive, f"{OFFICIAL_FOLDER}/{SUBJECTS_FILE}", _json_bytes(subjects_json(subjects)))


def _case_files(source: TruthSource) -> Iterator[tuple[str, bytes | Path | None]]:
    """(name in the case's folder, content or the file that holds it; None is a folder)."""
    yield "", None
    circumferences = dict(zip(SWEEP_COLUMNS, source.sweep_ac_mm, strict=True))
    yield CIRCUMFERENCE_FILE, _json_bytes(circumferences)
    yield MASKS_FOLDER, None
    files = stack_files(source.mask_path)
    for path in files:
        yield f"{MASKS_FOLDER}/{path.name}", path
    yield INDEX_FILE, index_bytes(build_index(source.mask_path, file_sha256(*files)))


def _json_bytes(value: object) -> bytes:
    return (json.dumps(value, allow_nan=False) + "\n").encode("ascii")


def _add(archive: tarfile.TarFile, name: str, content: bytes | Path | None) -> None:
    if content is None:
        _add_folder(archive, name)
    elif isinstance(content, Path):
        with content.open("rb") as file:
            archive.addfile(_member(name, content.stat().st_size), file)
    else:
        archive.addfile(_member(name, len(content)), io.BytesIO(content))


def _add_folder(archive: tarfile.TarFile, name: str) -> None:
    member = tarfile.TarInfo(name.rstrip("/"))
    member.type, member.mode = tarfile.DIRTYPE, _FOLDER_MODE
    archive.addfile(member)


def _member(name: str, size_bytes: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size_bytes, _FILE_MODE
    return member
