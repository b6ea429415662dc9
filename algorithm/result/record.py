"""`case.json`, beside the results of a case: of which file, by which model and version they were made.

`predict --resume` and `watch` skip a case by it; the row in it goes into `results.csv` again.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acouslic import __version__
from acouslic.errors import AcouslicError
from acouslic.scanner.dicom_header import is_dicom
from acouslic.sockets import FRAME_NUMBER_FILE
from acouslic.write import write_json
from algorithm.model.manifest import MANIFEST_FILE, read_manifest
from algorithm.result.outputs import RECORD_FILE
from algorithm.result.table import ResultRow

_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Maker:
    """What makes results: equal makers give the same result for the same file."""

    version: str
    model: str
    """Its name."""
    model_sha256: str
    """Of the manifest, which holds the hash of every other file."""
    settings: Mapping[str, Any]
    """Those of the command line that change results."""

    @classmethod
    def of(cls, model_dir: Path, settings: Mapping[str, Any]) -> "Maker":
        """This program with the model in `model_dir`. Raises AcouslicError as `read_manifest`."""
        name = read_manifest(model_dir).name
        digest = hashlib.sha256((model_dir / MANIFEST_FILE).read_bytes()).hexdigest()
        return cls(__version__, name, digest, dict(settings))


def write_record(folder: Path, source: Path, maker: Maker, row: ResultRow) -> None:
    """Write `case.json` into `folder`. Raises AcouslicError where it cannot be written."""
    content = {
        "schema_version": _SCHEMA_VERSION,
        "source": _source(source),
        "made_by": dataclasses.asdict(maker),
        "row": dataclasses.asdict(row),
    }
    write_json(folder / RECORD_FILE, content)


def recorded_row(case_dir: Path, source: Path, maker: Maker) -> ResultRow | None:
    """The row of a complete result in `case_dir` that `maker` made of the file at `source` as it is now, else None."""
    return _row(case_dir, source, maker) if (case_dir / FRAME_NUMBER_FILE).is_file() else None


def failed_row(folder: Path, source: Path, maker: Maker) -> ResultRow | None:
    """The row of a failure that `write_record` put into `folder`, of the file as it is now, else None."""
    row = _row(folder, source, maker)
    return row if row is not None and row.error else None


def _row(folder: Path, source: Path, maker: Maker) -> ResultRow | None:
    try:
        content = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        if content["schema_version"] != _SCHEMA_VERSION or content["made_by"] != dataclasses.asdict(maker):
            return None
        return ResultRow(**content["row"]) if content["source"] == _source(source) else None
    except (OSError, ValueError, KeyError, TypeError, AcouslicError):
        # No record, a damaged one, or one of another version of the program: the case is analysed again.
        return None


def _source(path: Path) -> dict[str, Any]:
    """What tells the file from a later one of the same name; a folder's own, where the frames are files in it."""
    try:
        status = path.stat()
    except OSError as error:
        raise AcouslicError(f"{path} could not be read: {error.strerror}") from None
    # The name of a DICOM file, or of a folder of them, may be a patient's.
    hidden = path.is_dir() or is_dicom(path)
    name = hashlib.sha256(os.fsencode(path)).hexdigest() if hidden else str(path)
    return {"path": name, "size_bytes": status.st_size, "modified_ns": status.st_mtime_ns}
