"""A model card: what an artifact's manifest knows, as a page for people, with room for what only its makers know.

    acouslic train card MODEL [--metrics scores/metrics.json] [--out CARD.md]

The card lies beside the artifact's folder, whose own files are fixed by its manifest.
"""

import argparse
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from acouslic.errors import AcouslicError
from acouslic.write import write_text
from algorithm.model.file_hashes import hash_file
from algorithm.model.manifest import MANIFEST_FILE, read_manifest
from training.export.pack import refuse_inside

_TEMPLATE = "model_card.md.jinja"
_MEASURES = ("score", "wfss", "DiceCoefficientSoft", "DiceCoefficient", "HausdorffDistance", "nae_circumference")
"""Those of `metrics.json` that a card shows, where they are there."""
_SEAL = re.compile(r"\n<!-- As written by `acouslic train card`: ([0-9a-f]{64}) -->\n\Z")
"""The last line of a card: the sha256 of all before it, so that what somebody filled in is never replaced."""
_DESCRIBED_ELSEWHERE = ("tower", "members", "provenance", "files")


def card_path(model_dir: Path) -> Path:
    """Beside the folder, with its name."""
    folder = model_dir.resolve()
    return folder.with_name(f"{folder.name}.md")


def write_card(model_dir: Path, path: Path, metrics_path: Path | None = None) -> None:
    """Write the card of the artifact in `model_dir`, with the means of an evaluation's `metrics.json` if one is given.

    Raises AcouslicError where the manifest or the metrics cannot be read, where the card cannot be written, or where
    `path` is no file or is not as this function wrote it: somebody has filled it in.
    """
    refuse_inside(model_dir, path)
    text = render_card(model_dir, metrics_path)
    if why := why_kept(path):
        raise AcouslicError(f"{path} {why}: move it away, or name another file with --out")
    sealed = f"\n<!-- As written by `acouslic train card`: {hashlib.sha256(text.encode()).hexdigest()} -->\n"
    write_text(path, text + sealed)


def why_kept(path: Path) -> str:
    """Why what lies at `path` is not replaced by a card, in words that follow its name; empty where it may be."""
    if path.exists() and not path.is_file():
        return "is no file"
    return "has been filled in" if path.exists() and not is_untouched(path) else ""


def is_untouched(path: Path) -> bool:
    """Whether the card at `path` is as `write_card` left it."""
    text = path.read_text(encoding="utf-8", errors="replace")
    seal = _SEAL.search(text)
    return seal is not None and hashlib.sha256(text[: seal.start()].encode()).hexdigest() == seal[1]


def write_card_beside(model_dir: Path) -> None:
    """The card of an artifact that has just been made; what may not be replaced stays, and that is said."""
    path = card_path(model_dir)
    if why := why_kept(path):
        print(f"{path} {why} and stays as it is: `acouslic train card {model_dir} --out FILE` writes the new card")
        return
    write_card(model_dir, path)
    print(f"{path}: the model card; fill in what only you know")


def renew_card_beside(model_dir: Path) -> None:
    """The card of an artifact whose manifest has changed, where one lies beside it."""
    if card_path(model_dir).exists():
        write_card_beside(model_dir)


def render_card(model_dir: Path, metrics_path: Path | None = None) -> str:
    """The card's text. Raises AcouslicError as `write_card`."""
    manifest = asdict(read_manifest(model_dir))
    metrics = {} if metrics_path is None else _read_metrics(metrics_path)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"text": _in_cell, "yes": lambda value: "yes" if value else "no"}
    return environment.get_template(_TEMPLATE).render(
        **{name: manifest[name] for name in ("name", "schema_version", "tower", "members", "provenance")},
        circumference_error=manifest["selection"].get("circumference_error"),
        size_mb=sum(record["size_bytes"] for record in manifest["files"].values()) / 1e6,
        manifest_sha256=hash_file(model_dir / MANIFEST_FILE),
        settings={
            section.replace("_", " "): list(_flat(values))
            for section, values in manifest.items()
            if isinstance(values, dict) and section not in _DESCRIBED_ELSEWHERE
        },
        results=[(name, metrics[name]["mean"]) for name in _MEASURES if _has_mean(metrics.get(name))],
        case_count=metrics.get("case_count", "?"),
        metrics_file="" if metrics_path is None else metrics_path.name,
    )


def main(arguments: list[str]) -> int:
    """The command `acouslic train card`."""
    parser = argparse.ArgumentParser(prog="acouslic train card", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder of the artifact")
    parser.add_argument("--metrics", type=Path, help="metrics.json of `acouslic evaluate`, whose means the card shows")
    parser.add_argument(
        "--out", type=Path, help="the card to write (default: beside the folder, with its name and .md)"
    )
    options = parser.parse_args(arguments)
    path = options.out or card_path(options.model)
    write_card(options.model, path, options.metrics)
    print(path)
    return 0


def _read_metrics(path: Path) -> dict[str, Any]:
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AcouslicError(f"{path} could not be read as an evaluation's metrics.json: {error}") from None
    if not isinstance(metrics, dict) or not _has_mean(metrics.get("score")):
        raise AcouslicError(f"{path} is no metrics.json of an evaluation: it has no score.mean")
    return metrics


def _has_mean(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("mean"), int | float)


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Each value with its path."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield before + key, "none" if value is None else str(value)


def _in_cell(text: str) -> str:
    """Text that stays text in a cell of a table: no markup of HTML, no further cell, one line."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "\\|")
    return " ".join(escaped.split())
