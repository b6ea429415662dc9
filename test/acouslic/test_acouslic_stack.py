"""Opening a stack: TIFF, files of other kinds, and how much memory reading takes."""

import os
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import tifffile

from acouslic.errors import AcouslicError
from acouslic.geometry import index_of_sweep
from acouslic.reading.metaimage import header_text
from acouslic.reading.tiff import open_tiff
from acouslic.stack import StackHeader, open_stack, read_stack

FRAMES = np.random.default_rng(0).integers(0, 128, (21, 20, 30)).astype(np.uint8)


def _tiff(path: Path, frames: np.ndarray = FRAMES, **options: object) -> Path:
    tifffile.imwrite(path, frames, **({"photometric": "minisblack", "metadata": None} | options))
    return path


def _refused(path: Path) -> str:
    with pytest.raises(AcouslicError) as caught:
        read_stack(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4"])
def test_tiff_pages_are_read_as_simpleitk_reads_them(tmp_path: Path, dtype: str, compression: str | None) -> None:
    """Every pixel type with the usual compressions gives SimpleITK's values."""
    path = _tiff(tmp_path / "x.tif", FRAMES.astype(dtype), compression=compression)

    stack = read_stack(path)

    assert np.array_equal(stack.frames, SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))))
    assert stack.header.pixel_type == np.dtype(dtype).name


@pytest.mark.parametrize(
    "options",
    [{"bigtiff": True}, {"tile": (16, 16)}, {"rowsperstrip": 3}, {"byteorder": ">"}, {"metadata": {"axes": "TYX"}}],
)
def test_layouts_of_tiff_are_read(tmp_path: Path, options: dict[str, object]) -> None:
    """Big files, tiles, strips, the other byte order and foreign metadata."""
    assert np.array_equal(read_stack(_tiff(tmp_path / "x.TIFF", **options)).frames, FRAMES)


def test_doubles_are_read(tmp_path: Path) -> None:
    """64-bit values, which SimpleITK does not read, are whole numbers from 0 to 255 as well as others."""
    assert np.array_equal(read_stack(_tiff(tmp_path / "x.tif", FRAMES.astype("f8"))).frames, FRAMES)


def test_white_is_zero_is_turned(tmp_path: Path) -> None:
    """A file that stores black as 255 is shown as it is meant."""
    path = _tiff(tmp_path / "x.tif", 255 - FRAMES, photometric="miniswhite")

    assert np.array_equal(read_stack(path).frames, FRAMES)


@pytest.mark.parametrize("unit", ["NONE", "INCH", "CENTIMETER", None])
@pytest.mark.parametrize("resolution", [None, (10, 20), (10 / 0.28, 10 / 0.28), (0, 5), (5, 0)])
def test_tiff_pixel_size_is_simpleitks(
    tmp_path: Path, resolution: tuple[float, float] | None, unit: str | None
) -> None:
    """With every unit, without one, without a resolution, and with a zero one."""
    options = {"resolution": resolution, "resolutionunit": unit}
    path = _tiff(tmp_path / "x.tif", **{name: value for name, value in options.items() if value is not None})

    theirs = SimpleITK.ReadImage(str(path)).GetSpacing()

    assert open_tiff(path).header.spacing_mm == pytest.approx(theirs[1::-1], rel=1e-7)


ASCII, SHORT, FLOAT = 2, 3, 11
"""Tag types."""


def _tiff_with_resolution(path: Path, kind: int, count: int, value: bytes) -> Path:
    """A file whose resolution tags have another type, count and value (4 bytes, in place)."""
    _tiff(path, resolution=(10, 10), resolutionunit="CENTIMETER")
    with tifffile.TiffFile(path) as file:
        offsets = [file.pages.first.tags[name].offset for name in ("XResolution", "YResolution")]
    content = bytearray(path.read_bytes())
    for offset in offsets:
        content[offset + 2 : offset + 12] = struct.pack("<HI", kind, count) + value
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("kind", "value", "mm"), [(SHORT, struct.pack("<HH", 20, 0), 0.5), (FLOAT, struct.pack("<f", 40), 0.25)]
)
def test_tiff_resolution_as_a_plain_number_is_read(tmp_path: Path, kind: int, value: bytes, mm: float) -> None:
    """As SimpleITK reads it."""
    path = _tiff_with_resolution(tmp_path / "x.tif", kind, 1, value)

    assert SimpleITK.ReadImage(str(path)).GetSpacing()[:2] == pytest.approx((mm, mm))
    assert open_tiff(path).header.spacing_mm == (mm, mm)


@pytest.mark.parametrize(
    ("kind", "count", "value"), [(SHORT, 2, struct.pack("<HH", 3, 4)), (ASCII, 4, b"abc\0"), (7, 4, b"abcd")]
)
def test_tiff_resolution_that_is_no_number_is_refused(tmp_path: Path, kind: int, count: int, value: bytes) -> None:
    """Two numbers, text and bytes have a sentence, not a traceback."""
    message = _refused(_tiff_with_resolution(tmp_path / "x.tif", kind, count, value))

    assert "expected a resolution that is a number" in message


def test_tiff_resolution_is_the_spacing(tmp_path: Path) -> None:
    """Pixels per centimetre, columns and rows apart."""
    path = _tiff(tmp_path / "x.tif", resolution=(10 / 0.3, 10 / 0.25), resolutionunit="CENTIMETER")

    header = open_stack(path).header

    assert header.spacing_mm == pytest.approx((0.25, 0.3), rel=1e-6)
    assert header.spacing_note is None


@pytest.mark.parametrize(
    "options",
    [{}, *({"resolution": (dots, dots), "resolutionunit": "INCH"} for dots in (72, 96, 300, 25.4, 1))],
)
def test_tiff_without_a_scanners_resolution_is_assumed(tmp_path: Path, options: dict[str, object]) -> None:
    """No resolution, a screen's or printer's, 1 mm and an inch a pixel are no scanner's."""
    header = open_stack(_tiff(tmp_path / "x.tif", **options)).header

    assert header.spacing_mm == (0.28, 0.28)
    assert header.spacing_note is not None
    assert header.spacing_note.startswith("x.tif states")


def test_tiff_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    """Colour, values past 255 and pages of several sizes each have their sentence."""
    colour = np.zeros((5, 20, 30, 3), np.uint8)
    colour[3, 4, 5, 1] = 1

    assert "got colour in frame 3" in _refused(_tiff(tmp_path / "b.tif", colour, photometric="rgb"))
    assert "got 300 (uint16) in frame 4" in _refused(_tiff(tmp_path / "e.tif", _with(FRAMES.astype("u2"), 4, 300)))
    with tifffile.TiffWriter(tmp_path / "f.tif") as writer:
        writer.write(FRAMES[0], metadata=None)
        writer.write(FRAMES[0, 1:], metadata=None)
    assert "got 19 x 30 in frame 1" in _refused(tmp_path / "f.tif")


def _with(frames: np.ndarray, frame_index: int, value: int) -> np.ndarray:
    frames[frame_index, 5, 5] = value
    return frames


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9])
def test_truncated_tiff_is_refused(tmp_path: Path, share: float) -> None:
    """However much is missing."""
    path = _tiff(tmp_path / "x.tif", compression="zlib")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])

    _refused(path)


def test_reading_a_tiff_leaves_stderr_clean(tmp_path: Path) -> None:
    """Tags that nobody knows are no reason to warn: the platform shows stderr to the user."""
    path = _tiff(tmp_path / "x.tif", extratags=[(65000, "s", 0, "unknown", True)])
    code = f"from pathlib import Path; from acouslic.stack import read_stack; read_stack(Path({str(path)!r}))"

    run = subprocess.run([sys.executable, "-c", code], cwd=_root(), capture_output=True, text=True, check=True)

    assert run.stderr == ""


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


@pytest.mark.parametrize("writer", ["SimpleITK", "tifffile"])
def test_a_tiff_that_is_cut_off_is_refused(tmp_path: Path, writer: str) -> None:
    """Never taken for a shorter stack, though OpenCV counts only the pages that are left; a few spare bytes may go."""
    frames = np.random.default_rng(0).integers(0, 256, (12, 20, 30), dtype=np.uint8)
    path = tmp_path / "x.tif"
    if writer == "SimpleITK":
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(frames), str(path))
    else:
        _tiff(path, frames)
    content = path.read_bytes()
    assert read_stack(path).header.frames == 12
    for kept in range(8, len(content) - 40, 97):
        path.write_bytes(content[:kept])
        with pytest.raises(AcouslicError):
            read_stack(path)


def test_sweeps_are_the_headers_where_it_tells_them_apart() -> None:
    """Lengths of any kind become ranges; without them the challenge's sweeps hold."""
    header = StackHeader(Path("x"), 300, 20, 30, (0.28, 0.28), None, "uint8")

    assert header.sweeps == [range(140), range(140, 280), range(280, 300)]
    told = replace(header, sweep_lengths=(1, 250, 49))
    assert told.sweeps == [range(1), range(1, 251), range(251, 300)]
    assert [index_of_sweep(frame, told.sweeps) for frame in (0, 1, 250, 251, 299)] == [0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="in none of 3 sweeps"):
        index_of_sweep(300, told.sweeps)
