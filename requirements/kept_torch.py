"""Keeps the torch of a base image: run while the image builds, before and after pip installs the rest.

`record JSON CONSTRAINT` writes what is installed, and a constraint that lets pip install no other; `check JSON` fails
unless exactly that is still installed, file for file.
"""

import hashlib
import importlib.metadata
import json
import sys
from pathlib import Path


def installed_torch() -> dict[str, str]:
    """Version of the installed torch and the sha256 of its list of files, which holds the hash of every file."""
    try:
        distribution = importlib.metadata.distribution("torch")
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit(
            "The base image has no torch: choose one that has, such as the Dockerfile's default."
        ) from None
    record = distribution.read_text("RECORD") or ""
    return {"version": distribution.version, "record_sha256": hashlib.sha256(record.encode()).hexdigest()}


def main(word: str, json_path: Path, constraint_path: Path | None = None) -> None:
    """Carry out `record` or `check`."""
    torch = installed_torch()
    if word == "record":
        assert constraint_path is not None
        json_path.write_text(json.dumps(torch))
        constraint_path.write_text(f"torch=={torch['version']}\n")
    elif torch != (kept := json.loads(json_path.read_text())):
        raise SystemExit(f"The base image's torch was replaced: {kept} before, {torch} now.")
    print(f"torch {torch['version']}: {word}ed")


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
