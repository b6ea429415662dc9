"""sha256 of files, of the largest one in a thread while torch is imported: that keeps one core busy, this another."""

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from algorithm.model.manifest import TOWER_FILE

_PART_BYTES = 1 << 24
"""Read and hashed at once, without Python's lock: an import that holds it lets the next part wait for milliseconds."""


@dataclass(frozen=True)
class _Begun:
    """A hash that is being computed."""

    state: tuple[int, ...]
    """Of the file when it was begun."""
    sha256: "Future[str]"


_begun: dict[Path, _Begun] = {}


def begin_hashing(folder: Path) -> None:
    """Begin the hash of the tower's file in an artifact's `folder`, for whoever asks for it first. What is wrong with
    the file is said then."""
    path = folder / TOWER_FILE
    try:
        state = _state(path)
    except OSError:
        return
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hash")
    _begun[path] = _Begun(state, pool.submit(_hash, path))
    pool.shutdown(wait=False)


def hash_file(path: Path) -> str:
    """The sha256 of a file, as hexadecimal digits. Raises OSError where it cannot be read."""
    begun = _begun.pop(path, None)
    # A file that has changed since is hashed anew.
    if begun is not None and begun.state == _state(path):
        sha256 = begun.sha256.result()
        if begun.state == _state(path):
            return sha256
    return _hash(path)


def _hash(path: Path) -> str:
    digest, part = hashlib.sha256(), memoryview(bytearray(_PART_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(part):
            digest.update(part[:count])
    return digest.hexdigest()


def _state(path: Path) -> tuple[int, ...]:
    """Which file it is, and when it was changed last."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
