"""The tower's hash is begun before torch is imported, and is never that of another content."""

import hashlib
import os
from pathlib import Path

import pytest

from acouslic.errors import AcouslicError
from algorithm.model import file_hashes
from algorithm.model.artifact import load_artifact
from algorithm.model.file_hashes import begin_hashing, hash_file
from algorithm.model.manifest import TOWER_FILE
from bench.setting.random_artifact import TOWERS, write_random_artifact


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read to be hashed."""
    names: list[str] = []
    hash_whole = file_hashes._hash

    def count(path: Path) -> str:
        names.append(path.name)
        return hash_whole(path)

    monkeypatch.setattr(file_hashes, "_hash", count)
    return names


def test_a_file_in_parts_has_the_hash_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it fills no part, or none at all."""
    monkeypatch.setattr(file_hashes, "_PART_BYTES", 1000)
    for size in (0, 1, 1000, 2500):
        content = os.urandom(size)
        path = tmp_path / f"{size}"
        path.write_bytes(content)
        assert hash_file(path) == hashlib.sha256(content).hexdigest()


def test_a_hash_that_was_begun_is_used_once(tmp_path: Path, hashed: list[str]) -> None:
    """The tower is read once for its hash, and again where it is asked for later."""
    write_random_artifact(tmp_path / "model", TOWERS["tiny"], members=1, seed=1)
    hashed.clear()
    begin_hashing(tmp_path / "model")
    load_artifact(tmp_path / "model")
    assert hashed.count(TOWER_FILE) == 1
    load_artifact(tmp_path / "model")
    assert hashed.count(TOWER_FILE) == 2


def test_a_file_that_changed_since_is_hashed_anew(tmp_path: Path, hashed: list[str]) -> None:
    """Also by another one of the same size and time."""
    path = tmp_path / TOWER_FILE
    path.write_bytes(b"before")
    begin_hashing(tmp_path)
    changed = tmp_path / "other"
    changed.write_bytes(b"behind")
    os.utime(changed, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    changed.replace(path)
    assert hash_file(path) == hashlib.sha256(b"behind").hexdigest()
    assert hashed == [TOWER_FILE, TOWER_FILE]


def test_damage_is_told_as_without(tmp_path: Path) -> None:
    """A missing file begins nothing; a changed byte is refused by the file's name."""
    begin_hashing(tmp_path)
    write_random_artifact(tmp_path / "model", TOWERS["tiny"], members=1, seed=1)
    path = tmp_path / "model" / TOWER_FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    begin_hashing(tmp_path / "model")
    with pytest.raises(AcouslicError, match=r"tower\.safetensors.*sha256"):
        load_artifact(tmp_path / "model")
