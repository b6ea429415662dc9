"""The folder that a benchmark puts its artifacts, cases and results in."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def workspace(folder: Path | None) -> Iterator[Path]:
    """The folder asked for, kept, or a temporary one."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        yield Path(temporary)
