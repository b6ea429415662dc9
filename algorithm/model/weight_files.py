"""Files of weights: safetensors mapped into memory, and what is refused wherever weights are read."""

import os
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from acouslic.errors import AcouslicError
from acouslic.strict_json import reason, shown

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class FileTensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file, mapped into memory a part at a time.

    The pages of a mapping count as the process's memory as long as it lives. So the file is mapped anew after every
    64 MiB of tensors, and who takes one after the other, as merging does, holds no more than that of the file.
    It stays the file that was there at first, also where another has taken its name since, as a new model does.
    Raises AcouslicError where the file is not safetensors.
    """

    MAPPED_BYTES = 1 << 26

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _unreadable(path, error) from None
        weakref.finalize(self, os.close, self._descriptor)
        self._names = list(self._map().keys())
        self._mapped, self._taken_bytes = self._map(), 0

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        if self._taken_bytes > self.MAPPED_BYTES:
            self._mapped, self._taken_bytes = self._map(), 0
        tensor: Tensor = self._mapped.get_tensor(name)
        self._taken_bytes += tensor.numel() * tensor.element_size()
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _map(self) -> safe_open:
        try:
            return safe_open(f"/dev/fd/{self._descriptor}", framework="pt")
        except (OSError, SafetensorError) as error:
            raise _unreadable(self.path, error) from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, memory-mapped. Raises AcouslicError where it is none."""
    try:
        # By its number: a folder's name that is not UTF-8 is none to safetensors.
        with path.open("rb") as file:
            return load_file(f"/dev/fd/{file.fileno()}")
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from None


def refuse_lfs_pointer(path: Path) -> None:
    """Raises AcouslicError where `path` holds Git LFS's few lines about a file in place of the file."""
    try:
        with path.open("rb") as file:
            begins = file.read(len(_LFS_POINTER))
    except OSError:
        return  # whoever reads the file says why
    if begins == _LFS_POINTER:
        raise AcouslicError(f"{path} is a Git LFS pointer, not the weights: fetch them with `git lfs pull`")


def refuse_damaged(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises AcouslicError, naming the tensor, for floating point numbers of an unusual kind, NaN or infinity.

    A sum shows either and takes 1 ms for 40 MB; only where it overflows are the numbers looked at one by one.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        if tensor.dtype not in FLOATING:
            raise AcouslicError(
                f"{where}: tensor {shown(name)} is {tensor.dtype}, expected float32, float16 or bfloat16"
            )
        if torch.isfinite(tensor.sum()):
            continue
        finite = torch.isfinite(tensor)
        if not finite.all():
            raise AcouslicError(
                f"{where}: tensor {shown(name)} holds NaN or infinity ({int((~finite).sum()):,} of "
                f"{tensor.numel():,} numbers): the file is damaged or its training diverged"
            )


def _unreadable(path: Path, error: Exception) -> AcouslicError:
    try:
        refuse_lfs_pointer(path)
    except AcouslicError as pointer:
        return pointer
    return AcouslicError(f"{path} is not a readable safetensors file: {reason(error)}")
