"""What kind of file it is: by its first bytes, held against what its name says."""

from pathlib import Path

from acouslic.errors import AcouslicError
from acouslic.sockets import STACK_SUFFIXES, stack_suffix

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_SIGNATURES = (
    (128, b"DICM", "DICOM"), (344, b"n+1\0", "NIfTI"), (4, b"n+2\0", "NIfTI"), (344, b"ni1\0", "half a NIfTI"),
    (0, b"\x89PNG", "PNG"), (0, b"\xff\xd8\xff", "JPEG"), (0, b"NRRD000", "NRRD"), (0, b"\x1f\x8b", "gzip"),
    (0, b"PK\x03\x04", "zip"), (0, b"II*\0", "TIFF"), (0, b"MM\0*", "TIFF"), (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"), (8, b"AVI ", "video"), (4, b"ftyp", "video"),
)  # fmt: skip
"""(offset, bytes there, kind)."""
_KIND_OF_SUFFIX = {
    ".mha": "MetaImage", ".mhd": "MetaImage", ".tif": "TIFF", ".tiff": "TIFF", ".nii": "NIfTI", ".nii.gz": "NIfTI",
    ".nrrd": "NRRD", ".nhdr": "NRRD", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".dcm": "DICOM",
    ".mp4": "video", ".avi": "video",
}  # fmt: skip


def kind_of(path: Path) -> str:
    """`MetaImage`, `TIFF`, `NIfTI`, `NRRD`, `PNG`, `JPEG`, `DICOM` or `video`, as name and first bytes of a file say.

    Raises AcouslicError where they say different things, where the kind is not read here, and where the path leads to
    nothing, to something that is not a regular file, or to a file that may not be read.
    """
    start = _first_bytes(path)
    if start.startswith(_LFS_POINTER):
        raise AcouslicError(f"{path} is a Git LFS pointer, not the file itself: fetch that with `git lfs pull`")
    found = next((kind for at, signature, kind in _SIGNATURES if start[at : at + len(signature)] == signature), None)
    suffix = stack_suffix(path.name)
    # Scanners write DICOM files under any name; elsewhere the suffix says what is meant.
    expected = _KIND_OF_SUFFIX.get(suffix) or ("DICOM" if found == "DICOM" else None)
    if expected is None:
        what = f"{path} holds {found}" if found else f"{path} is no image of a known kind"
        raise AcouslicError(f"{what}; expected a sweep stack ({', '.join(STACK_SUFFIXES)})")
    # A MetaImage begins with any of its keys; a compressed NIfTI shows what it is only once it is inflated.
    if found != {"MetaImage": None, "NIfTI": "gzip" if suffix == ".nii.gz" else "NIfTI"}.get(expected, expected):
        raise AcouslicError(f"{path} holds {found or f'no {expected}'}; expected what its suffix {suffix} says")
    return expected


def _first_bytes(path: Path) -> bytes:
    try:
        # Opening a pipe or a device would wait for somebody to write to it.
        if path.exists() and not path.is_file():
            raise AcouslicError(f"{path} is not a regular file; expected a sweep stack ({', '.join(STACK_SUFFIXES)})")
        with path.open("rb") as file:
            return file.read(512)
    except FileNotFoundError:
        raise AcouslicError(f"{path} does not exist") from None
    except OSError as error:
        raise AcouslicError(f"{path} could not be read: {error.strerror or error}") from error
