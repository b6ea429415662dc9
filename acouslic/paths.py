"""What lies at a path, as far as this user may look: `pathlib`'s own questions raise where nobody may."""

import os
from pathlib import Path


def sees_folder(path: Path) -> bool:
    """Whether a folder is seen there; links are followed."""
    return os.path.isdir(path)  # noqa: PTH112


def sees_file(path: Path) -> bool:
    """Whether a file is seen there; links are followed."""
    return os.path.isfile(path)  # noqa: PTH113
