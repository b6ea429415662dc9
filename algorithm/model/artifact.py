"""The model artifact: a folder with a manifest, the shared tower and the members, read strictly.

    manifest.json                           manifest.py
    tower.safetensors                       the visual tower, once; half precision allowed
    members/<k>/adapter_config.json         PEFT's two files, where the member has an adapter
    members/<k>/adapter_model.safetensors
    members/<k>/heads.safetensors           presence.*, optimality.*, decoder.* of the heads it has
    student.safetensors                     the student, where there is one
    case_head.safetensors                   the case head, where there is one

Nothing but JSON and safetensors is ever parsed, and no other file may lie in the folder. Tensors are memory-mapped,
so that loading costs about what reading the files costs.
"""

import dataclasses
import gzip
import os
import shutil
import stat
import tarfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from acouslic.errors import AcouslicError, ShortageError
from acouslic.printable import printable
from acouslic.strict_json import reason, shown
from acouslic.write import check_writable, why_not_written
from algorithm.model.file_hashes import hash_file
from algorithm.model.heads import CaseHead, Heads
from algorithm.model.lora import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, LoraAdapter, read_adapter, write_adapter
from algorithm.model.manifest import (
    CASE_HEAD_FILE,
    MANIFEST_FILE,
    STUDENT_FILE,
    TOWER_FILE,
    FileRecord,
    Manifest,
    manifest_to_json,
    read_manifest,
)
from algorithm.model.networks import MemberConfig, TowerConfig
from algorithm.model.student import Student
from algorithm.model.tower import Tower, check_state, linear_shapes, without_weights
from algorithm.model.weight_files import FileTensors, read_tensors, refuse_damaged

HEADS_FILE = "heads.safetensors"


@dataclass(frozen=True)
class MemberState:
    """One member's weights."""

    adapter: LoraAdapter | None
    heads: dict[str, Tensor]
    """Named as in `heads.safetensors`: the state dict of `heads.Heads`."""


@dataclass(frozen=True)
class Artifact:
    """A checked artifact."""

    folder: Path
    manifest: Manifest
    tower_state: Mapping[str, Tensor]
    """The state dict of `tower.Tower`, in the file's precision, each tensor read from the file when it is asked for."""
    members: tuple[MemberState, ...]
    student: dict[str, Tensor] | None = None
    """The state dict of `student.Student`, where the manifest has one."""
    case_head: dict[str, Tensor] | None = None
    """The state dict of `heads.CaseHead`, likewise."""


def load_artifact(folder: Path, *, verify_hashes: bool = True) -> Artifact:
    """Read and check the artifact in `folder`; tensors are on the CPU, backed by the files.

    Raises AcouslicError, naming the file and field or tensor, for: a missing or wrong manifest, a file missing, too
    many, of another size or sha256, not safetensors, a tensor missing, unknown, of another shape or with NaN or
    infinity in it. Hashing runs in threads beside the rest; without `verify_hashes` only the sizes are checked.
    """
    manifest = read_manifest(folder)
    _check_files(folder, manifest)
    with ThreadPoolExecutor(max_workers=2) as pool:
        hashes = {}
        if verify_hashes:
            for name, record in manifest.files.items():
                if name.endswith(".json"):  # before it is parsed
                    _check_hash(folder / name, record, hash_file(folder / name))
                else:
                    hashes[name] = pool.submit(hash_file, folder / name)

        def check_hashes(names: Sequence[str]) -> None:
            for name in names:
                if name in hashes:
                    _check_hash(folder / name, manifest.files[name], hashes[name].result())

        tower_state = FileTensors(folder / TOWER_FILE)
        with without_weights():
            expected = Tower(manifest.tower).state_dict()
        check_state(tower_state, expected, str(folder / TOWER_FILE))
        # Beside the tower's hash, which keeps one core busy for longer.
        damage = pool.submit(refuse_damaged, FileTensors(folder / TOWER_FILE), str(folder / TOWER_FILE))
        shapes = linear_shapes(manifest.tower)
        members = []
        for k, member in enumerate(manifest.members):
            check_hashes(_member_files(k, member))
            members.append(_read_member(folder / "members" / str(k), member, manifest.tower, shapes))
        check_hashes([STUDENT_FILE, CASE_HEAD_FILE])
        with without_weights():
            student_layout = None if manifest.student is None else Student(manifest.student)
            head_config = manifest.case_head
            head_layout = None if head_config is None else CaseHead(head_config, manifest.tower.output_dim)
        student = _read_beside_members(folder / STUDENT_FILE, student_layout)
        case_head = _read_beside_members(folder / CASE_HEAD_FILE, head_layout)
        check_hashes([TOWER_FILE])
        damage.result()
    return Artifact(folder, manifest, tower_state, tuple(members), student, case_head)


def refuse_target(folder: Path) -> None:
    """Raises AcouslicError where `write_artifact` could not write to `folder`: to be asked before the work is done.

    The folder that it is to lie in is made if it is missing.
    """
    folder = folder.absolute()
    try:
        if folder.is_dir():
            if any(folder.iterdir()) and not (folder / MANIFEST_FILE).is_file():
                raise AcouslicError(f"{folder} is neither empty nor an artifact: choose another folder")
        elif folder.exists() or folder.is_symlink():
            raise AcouslicError(f"{folder} is no folder: choose another name")
    except OSError as error:  # Nobody may look there, or a name is too long.
        raise ShortageError(f"{folder} could not be written: {why_not_written(error)}") from None
    check_writable(folder.parent)


def write_artifact(
    folder: Path,
    manifest: Manifest,
    tower_state: Mapping[str, Tensor],
    members: Sequence[MemberState],
    student: Mapping[str, Tensor] | None = None,
    case_head: Mapping[str, Tensor] | None = None,
) -> Manifest:
    """Write an artifact to `folder` and return its manifest with `files` filled in (those given are ignored).

    It is written beside `folder`, read back with every check, and renamed into place, so that no half-written
    artifact is ever seen; an artifact that is there already is replaced. Raises AcouslicError as `refuse_target`, where
    the weights do not fit the manifest, and where the disk fills up.
    """
    folder = folder.absolute()
    refuse_target(folder)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    # Left by a killed process that had this number: in a container it is the same each time.
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _write_tensors(partial / TOWER_FILE, tower_state)
        for k, member in enumerate(members):
            member_folder = partial / "members" / str(k)
            member_folder.mkdir(parents=True)
            if member.adapter is not None:
                write_adapter(member_folder, member.adapter)
            _write_tensors(member_folder / HEADS_FILE, member.heads)
        for name, state in ((STUDENT_FILE, student), (CASE_HEAD_FILE, case_head)):
            if state is not None:
                _write_tensors(partial / name, state)
        names = sorted(path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file())
        files = {name: FileRecord(hash_file(partial / name), (partial / name).stat().st_size) for name in names}
        manifest = dataclasses.replace(manifest, files=files)
        (partial / MANIFEST_FILE).write_text(manifest_to_json(manifest), encoding="utf-8")
        for path in [partial, *partial.rglob("*")]:
            # safetensors writes for the owner alone, but a container mounts the folder and runs as another user.
            path.chmod(0o755 if path.is_dir() else 0o644)
        load_artifact(partial, verify_hashes=False)
        replaced = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
        if folder.exists():
            folder.rename(replaced)
        partial.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise ShortageError(f"{folder} could not be written: {why_not_written(error)}") from None
    except SafetensorError as error:
        raise ShortageError(f"{folder} could not be written: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def pack_artifact(folder: Path, tar_path: Path) -> None:
    """Pack the artifact in `folder` into `tar_path`, the `model.tar.gz` that the platform extracts to /opt/ml/model.

    The same artifact gives the same bytes: sorted names, no times, owners or modes of the disk. Raises AcouslicError
    where the artifact is not sound.
    """
    manifest = load_artifact(folder).manifest
    partial = tar_path.with_name(f".{tar_path.name}.partial-{os.getpid()}")
    try:
        # Level 1: weights hardly compress, and a higher level only takes longer.
        with (
            partial.open("wb") as raw,
            gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=raw, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
        ):
            for name in sorted([MANIFEST_FILE, *manifest.files]):
                entry = tarfile.TarInfo(name)
                entry.size = (folder / name).stat().st_size
                entry.mode = 0o644
                with (folder / name).open("rb") as content:
                    archive.addfile(entry, content)
        partial.rename(tar_path)
    finally:
        partial.unlink(missing_ok=True)


def _member_files(k: int, member: MemberConfig) -> list[str]:
    names = [ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, HEADS_FILE] if member.adapter else [HEADS_FILE]
    return [f"members/{k}/{name}" for name in names]


def _check_files(folder: Path, manifest: Manifest) -> None:
    """Raises AcouslicError unless the manifest lists, and the folder holds, exactly the files there should be."""
    expected = {TOWER_FILE}.union(*(_member_files(k, member) for k, member in enumerate(manifest.members)))
    expected |= {
        name
        for name, config in ((STUDENT_FILE, manifest.student), (CASE_HEAD_FILE, manifest.case_head))
        if config is not None
    }
    for name in sorted(set(manifest.files) ^ expected):
        problem = "is listed but not part of an artifact" if name not in expected else "is not listed"
        raise AcouslicError(f"{folder / MANIFEST_FILE}: files: {shown(name)} {problem}; export the model again")
    there = _files_below(folder)
    for name in sorted(there - expected - {MANIFEST_FILE}):
        raise AcouslicError(f"{folder / printable(name)} does not belong to the artifact: remove it")
    for name, record in manifest.files.items():
        if name not in there:
            raise AcouslicError(f"{folder / name} is missing: mount or extract the whole artifact")
        size_bytes = _readable_size_bytes(folder / name)
        if size_bytes != record.size_bytes:
            raise AcouslicError(
                f"{folder / name} has {size_bytes} bytes, the manifest says {record.size_bytes}: "
                "the file is incomplete or from another artifact"
            )


def _files_below(folder: Path) -> set[str]:
    """Relative path (posix) of everything below `folder` that is no folder."""

    def refuse(error: OSError) -> None:
        raise AcouslicError(f"{error.filename} cannot be read: {reason(error)}") from None

    found = set()
    for parent, folders, names in os.walk(folder, onerror=refuse):
        for name in folders:
            if (Path(parent) / name).is_symlink():
                raise AcouslicError(f"{Path(parent) / name} is a link to a folder: put the folder itself there")
        found |= {(Path(parent) / name).relative_to(folder).as_posix() for name in names}
    return found


def _readable_size_bytes(path: Path) -> int:
    """The size of a regular file that may be read; AcouslicError for any other."""
    try:
        # Not blocking: opening a pipe that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise AcouslicError(f"{path} cannot be read: {reason(error)}") from None
    status = os.fstat(descriptor)
    os.close(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise AcouslicError(f"{path} is not a regular file")
    return status.st_size


def _check_hash(path: Path, record: FileRecord, sha256: str) -> None:
    if sha256 != record.sha256:
        raise AcouslicError(
            f"{path}: its sha256 is {sha256}, the manifest says {record.sha256}: the file is damaged or from another "
            "artifact"
        )


def _read_member(
    folder: Path, member: MemberConfig, tower: TowerConfig, shapes: Mapping[str, tuple[int, int]]
) -> MemberState:
    adapter = read_adapter(folder, shapes) if member.adapter else None
    heads = read_tensors(folder / HEADS_FILE)
    with without_weights():
        expected = Heads(member, tower).state_dict()
    check_state(heads, expected, str(folder / HEADS_FILE))
    refuse_damaged(heads, str(folder / HEADS_FILE))
    for name, tensor in heads.items():
        if name.endswith("running_var") and (tensor < 0).any():
            raise AcouslicError(f"{folder / HEADS_FILE}: tensor {name!r} holds negative variances: the file is damaged")
    return MemberState(adapter, heads)


def _read_beside_members(path: Path, layout: nn.Module | None) -> dict[str, Tensor] | None:
    """The state dict of a network that an artifact has once, checked against its layout; None where it has none."""
    if layout is None:
        return None
    state = read_tensors(path)
    check_state(state, layout.state_dict(), str(path))
    refuse_damaged(state, str(path))
    return state


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    # Copies where tensors share storage (the split of packed attention weights): the format holds each on its own.
    detached = {
        name: tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    save_file(detached, path, metadata={"format": "pt"})
