"""Opening a stack: files of other kinds, pipes, sweeps, and how much memory reading takes."""

import os
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from acouslic.errors import AcouslicError
from acouslic.geometry import index_of_sweep
from acouslic.reading.metaimage import header_text
from acouslic.stack import StackHeader, read_stack

FRAMES = np.random.default_rng(0).integers(0, 128, (21, 20, 30)).astype(np.uint8)


def _refused(path: Path) -> str:
    with pytest.raises(AcouslicError) as caught:
        read_stack(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("x.img", bytes(344) + b"ni1\0", "half a NIfTI"),
        ("x.gz", b"\x1f\x8b\x08", "gzip"),
        ("renamed.dcm", b"\x89PNG\r\n\x1a\n", "PNG"),
        ("renamed.mp4", bytes(128) + b"DICM", "DICOM"),
        ("renamed.jpg", b"\x89PNG\r\n\x1a\n", "PNG"),
        ("renamed.png", b"\xff\xd8\xff\xe0", "JPEG"),
        ("renamed.nii", b"NRRD0004\n", "NRRD"),
        ("renamed.nii.gz", bytes(344) + b"n+1\0", "NIfTI"),
        ("renamed.nrrd", b"hello", "no NRRD"),
        ("x.zip", b"PK\x03\x04", "zip"),
        ("x.txt", b"hello", "no image of a known kind"),
        ("renamed.mha", bytes(344) + b"n+1\0", "NIfTI"),
        ("renamed.mha", b"II*\0", "TIFF"),
        ("renamed.tif", bytes(128) + b"DICM", "DICOM"),
        ("renamed.tif", b"ObjectType = Image\n", "no TIFF"),
    ],
)
def test_file_of_another_kind_is_named(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    """What was found is named by its content, whatever the suffix says."""
    path = tmp_path / name
    path.write_bytes(content)

    message = _refused(path)

    assert kind in message
    assert "expected" in message


@pytest.mark.parametrize("name", ["x.mha", "x.mhd", "x.tif", "x.png"])
def test_missing_file_and_folder_are_refused(tmp_path: Path, name: str) -> None:
    """A path that leads nowhere, or to a folder."""
    assert "does not exist" in _refused(tmp_path / name)
    (tmp_path / name).mkdir()
    assert "is not a regular file" in _refused(tmp_path / name)


def _root() -> Path:
    return Path(__file__).resolve().parents[2]


_MEASURE = """
import sys
from pathlib import Path
import tifffile  # which reading a TIFF imports
import acouslic.stack
def peak_mib():  # not getrusage, whose peak an exec'd child inherits
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
before = peak_mib()
path, how = Path(sys.argv[1]), sys.argv[2]
if how == "whole":
    frames = acouslic.stack.read_stack(path).frames
    assert frames[-1, -1, -1] == 7
else:
    for _, frames in acouslic.stack.open_stack(path).iter_chunks():
        pass
    assert frames[-1, -1, -1] == 7
print(peak_mib() - before)
"""


@pytest.mark.parametrize("kind", ["raw.mha", "compressed.mha", "short.mha", "pages.tif"])
def test_reading_never_holds_a_second_copy(tmp_path: Path, kind: str) -> None:
    """200 MB of pixels: reading whole takes them once plus at most 100 MiB, in chunks at most 100 MiB in all."""
    shape = (420, 600, 800)
    stack_mib = 420 * 600 * 800 / 2**20
    path = tmp_path / kind
    frame = np.arange(600 * 800, dtype=np.uint32).reshape(600, 800).astype(np.uint8) % 200
    frame[-1, -1] = 7
    if kind == "pages.tif":
        tifffile.imwrite(path, np.broadcast_to(frame, shape), photometric="minisblack")
    else:
        element, stored = ("MET_SHORT", frame.astype("<i2")) if kind == "short.mha" else ("MET_UCHAR", frame)
        compressor = zlib.compressobj(1) if kind == "compressed.mha" else None
        with path.open("wb") as file:
            file.write(
                f"NDims = 3\nDimSize = 800 600 420\nElementType = {element}\nElementSpacing = 0.28 0.28 1\n"
                f"CompressedData = {compressor is not None}\nElementDataFile = LOCAL\n".encode()
            )
            for _ in range(420):
                file.write(compressor.compress(stored.tobytes()) if compressor else stored.tobytes())
            file.write(compressor.flush() if compressor else b"")

    taken_mib = {
        how: float(
            subprocess.run(
                [sys.executable, "-c", _MEASURE, str(path), how],
                cwd=_root(),
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for how in ("whole", "chunks")
    }

    assert stack_mib - 1 < taken_mib["whole"] < stack_mib + 100
    assert taken_mib["chunks"] < 100


@pytest.mark.parametrize("name", ["x.mha", "x.tif"])
def test_pipes_are_refused_without_waiting_for_a_writer(tmp_path: Path, name: str) -> None:
    """Opening a pipe nobody writes to would hang, beyond the reach of signals."""
    os.mkfifo(tmp_path / name)
    assert "is not a regular file" in _refused(tmp_path / name)


def test_a_header_that_leads_to_a_pipe_is_refused(tmp_path: Path) -> None:
    """So would opening the one that a `.mhd` names for its pixels."""
    header = header_text(2, 3, 4, (0.28, 0.28, 1.0), 24).replace("LOCAL", "x.raw")
    header = header.replace("CompressedData = True", "CompressedData = False")
    (tmp_path / "x.mhd").write_text(header.replace("CompressedDataSize = 24\n", ""), encoding="ascii")
    os.mkfifo(tmp_path / "x.raw")
    assert "x.raw, which is not a regular file" in _refused(tmp_path / "x.mhd")


def test_sweeps_are_the_headers_where_it_tells_them_apart() -> None:
    """Lengths of any kind become ranges; without them the challenge's sweeps hold."""
    header = StackHeader(Path("x"), 300, 20, 30, "uint8", spacing_mm=(0.28, 0.28), spacing_note=None)

    assert header.sweeps == [range(140), range(140, 280), range(280, 300)]
    told = replace(header, sweep_lengths=(1, 250, 49))
    assert told.sweeps == [range(1), range(1, 251), range(251, 300)]
    assert [index_of_sweep(frame, told.sweeps) for frame in (0, 1, 250, 251, 299)] == [0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="in none of 3 sweeps"):
        index_of_sweep(300, told.sweeps)
