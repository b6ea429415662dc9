"""`case.json`, beside the results of a case: of which file, by which model and version they were made.

`predict --resume` and `watch` skip a case by it; the row in it goes into `results.csv` again.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acouslic import __version__
from acouslic.paths import sees_file
from acouslic.sockets import FRAME_NUMBER_FILE
from acouslic.write import write_json
from algorithm.model.manifest import MANIFEST_FILE, read_manifest
from algorithm.result.outputs import RECORD_FILE
from algorithm.result.source import Source, source_of
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


def write_record(folder: Path, source: Source, maker: Maker, row: ResultRow) -> None:
    """Write `case.json` into `folder`; `source` is what the files were before they were opened, since they may change
    while they are read. Raises AcouslicError where it cannot be written."""
    content = {
        "schema_version": _SCHEMA_VERSION,
        "source": dict(source),
        "made_by": dataclasses.asdict(maker),
        "row": dataclasses.asdict(row),
    }
    write_json(folder / RECORD_FILE, content)


def recorded_row(case_dir: Path, source: Path, maker: Maker) -> ResultRow | None:
    """The row of a complete result in `case_dir` that `maker` made of the stack at `source` as it is now, else None."""
    is_complete = sees_file(case_dir / FRAME_NUMBER_FILE)
    return _row(case_dir, source, maker) if is_complete else None


def rows_of_complete(output_dir: Path) -> list[ResultRow]:
    """The rows of all complete results in `output_dir`, in the order of their names, whatever has made them of what."""
    # One without a frame number is what a killed process has left.
    return [row for row in _rows_in(output_dir) if sees_file(output_dir / row.case / FRAME_NUMBER_FILE)]


def rows_of_failed(failed_dir: Path) -> list[ResultRow]:
    """Likewise of all failures that `write_record` put into folders of `failed_dir`."""
    return [row for row in _rows_in(failed_dir) if row.error]


def origin_of(folder: Path) -> object:
    """Who made the result in `folder` of which files, and at what age: results of equal origin say the same. None where
    no record tells."""
    try:
        content = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        return content["made_by"], content["source"], content["row"]["gestational_age"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def failed_row(folder: Path, source: Path, maker: Maker) -> ResultRow | None:
    """The row of a failure that `write_record` put into `folder`, of the stack as it is now, else None."""
    row = _row(folder, source, maker)
    return row if row is not None and row.error else None


def _rows_in(folder: Path) -> list[ResultRow]:
    """Of all records in the folders of a folder that are called as their case; damaged ones are left out."""
    rows = []
    for record in sorted(folder.glob(f"*/{RECORD_FILE}")):
        try:
            row = ResultRow(**json.loads(record.read_text(encoding="utf-8"))["row"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if row.case == record.parent.name:
            rows.append(row)
    return rows


def _row(folder: Path, source: Path, maker: Maker) -> ResultRow | None:
    try:
        content = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        if content["schema_version"] != _SCHEMA_VERSION or content["made_by"] != dataclasses.asdict(maker):
            return None
        return ResultRow(**content["row"]) if content["source"] == source_of(source) else None
    except (OSError, ValueError, KeyError, TypeError):
        # No record, a damaged one, or one of another version of the program: the case is analysed again.
        return None
