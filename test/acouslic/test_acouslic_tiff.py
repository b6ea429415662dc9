"""TIFF: pixels and pixel sizes as SimpleITK reads them, how pixels may be stored, and what is refused."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import tifffile

from acouslic.errors import AcouslicError
from acouslic.reading.tiff import open_tiff
from acouslic.stack import open_stack, read_stack

FRAMES = np.random.default_rng(0).integers(0, 128, (6, 48, 64)).astype(np.uint8)
FRAMES[:, :, :32] = np.arange(32)


def _tiff(path: Path, frames: np.ndarray = FRAMES, **options: Any) -> Path:
    tifffile.imwrite(path, frames, **({"photometric": "minisblack", "metadata": None} | options))
    return path


def _refused(path: Path) -> str:
    with pytest.raises(AcouslicError) as caught:
        read_stack(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def _parts(path: Path) -> list[tuple[int, int]]:
    """(offset, bytes) of every strip or tile of the file."""
    with tifffile.TiffFile(path) as file:
        return [pair for page in file.pages for pair in zip(page.dataoffsets, page.databytecounts, strict=True)]


def _change_tag(path: Path, code: int, new: bytes, *, page: int = 0, at: int = 8) -> None:
    """Overwrite bytes of the directory entry of a tag: its value from 8 on, its code from 0 on."""
    with tifffile.TiffFile(path) as file:
        offset = file.pages[page].tags[code].offset
    content = bytearray(path.read_bytes())
    content[offset + at : offset + at + len(new)] = new
    path.write_bytes(content)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits", "zstd", "lzma"])
@pytest.mark.parametrize("layout", [{}, {"rowsperstrip": 7}, {"tile": (32, 48)}, {"byteorder": ">"}])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_every_compression_in_every_layout(
    tmp_path: Path, dtype: str, layout: dict[str, Any], compression: str | None
) -> None:
    """Whole pages, strips whose last one is shorter, tiles that reach beyond the page, both byte orders."""
    path = _tiff(tmp_path / "x.tif", FRAMES.astype(dtype), compression=compression, **layout)

    assert np.array_equal(read_stack(path).frames, FRAMES)


@pytest.mark.parametrize("predictor", [True, False])
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_predictors_are_undone(tmp_path: Path, dtype: str, predictor: bool) -> None:
    """Horizontal differences, and those of floating point numbers."""
    path = _tiff(tmp_path / "x.tif", FRAMES.astype(dtype), compression="zlib", predictor=predictor, rowsperstrip=11)

    assert np.array_equal(read_stack(path).frames, FRAMES)


def test_jpeg_is_decoded_as_by_simpleitk(tmp_path: Path) -> None:
    """Grey JPEG within strips, and one that is cut off."""
    path = _tiff(tmp_path / "x.tif", compression="jpeg", rowsperstrip=16)
    assert np.array_equal(read_stack(path).frames, SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))))
    offset, length = _parts(path)[-1]
    content = bytearray(path.read_bytes())
    content[offset + length - 2 : offset + length] = b"ab"
    path.write_bytes(content)
    assert "frame 5 (counted from 0) is damaged: its strip or tile 2 holds a JPEG that is cut off" in _refused(path)


def test_black_and_white_is_read_as_before(tmp_path: Path) -> None:
    """One bit a pixel is 0 or 255, in either meaning of white."""
    bits = FRAMES > 60
    assert np.array_equal(read_stack(_tiff(tmp_path / "a.tif", bits)).frames, bits * np.uint8(255))
    path = _tiff(tmp_path / "b.tif", ~bits, photometric="miniswhite")
    assert np.array_equal(read_stack(path).frames, bits * np.uint8(255))


@pytest.mark.parametrize(
    ("options", "planar"),
    [({}, False), ({"compression": "zlib", "rowsperstrip": 10}, False), ({"planarconfig": "separate"}, True)],
)
def test_grey_in_colour_is_read_with_a_note(tmp_path: Path, options: dict[str, Any], planar: bool) -> None:
    """RGB pixel by pixel or plane by plane; real colour is refused and its frame named."""
    axis = 1 if planar else -1
    colour = np.stack([FRAMES] * 3, axis=axis)
    stack = read_stack(_tiff(tmp_path / "x.tif", colour, photometric="rgb", **options))
    assert np.array_equal(stack.frames, FRAMES)
    assert stack.header.notes == (
        "x.tif stores grey frames in colour; its channels are equal, and one of them is used",
    )
    np.moveaxis(colour, axis, -1)[4, 3, 3, 2] ^= 1
    assert "got colour in frame 4" in _refused(_tiff(tmp_path / "y.tif", colour, photometric="rgb", **options))


def test_a_grey_palette_is_read(tmp_path: Path) -> None:
    """Colours of a palette in place of pixels: the greys it stands for, and real colours refused."""
    greys = np.arange(255, -1, -1, dtype=np.uint16) * 257
    path = _tiff(tmp_path / "x.tif", photometric="palette", colormap=np.stack([greys] * 3))
    assert np.array_equal(read_stack(path).frames, 255 - FRAMES)
    colours = np.stack([greys, greys, np.zeros_like(greys)])
    assert "got colour" in _refused(_tiff(tmp_path / "y.tif", photometric="palette", colormap=colours))


def test_a_palette_of_8_bits_is_read_as_simpleitk_reads_it(tmp_path: Path) -> None:
    """Some writers put 0..255 where the format has 0..65535: not a black picture."""
    greys = np.arange(255, -1, -1, dtype=np.uint16)
    path = _tiff(tmp_path / "x.tif", photometric="palette", colormap=np.stack([greys] * 3))
    assert np.array_equal(read_stack(path).frames, 255 - FRAMES)
    assert np.array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))), 255 - FRAMES)


@pytest.mark.parametrize("writer", ["imagej", "shaped"])
def test_one_directory_for_all_frames(tmp_path: Path, writer: str) -> None:
    """ImageJ above 4 GB, and tifffile when asked to, write one directory and say the number of frames in words."""
    path = tmp_path / "x.tif"
    if writer == "imagej":
        description = f"ImageJ=1.54f\nimages={len(FRAMES)}\nslices={len(FRAMES)}\n"
        tifffile.imwrite(path, FRAMES[0], photometric="minisblack", metadata=None, description=description)
        with path.open("ab") as file:
            start = _parts(path)[0][0]
            file.truncate(start + FRAMES[0].nbytes)
            file.seek(0, os.SEEK_END)
            file.write(FRAMES[1:].tobytes())
    else:
        tifffile.imwrite(path, FRAMES, photometric="minisblack", truncate=True)
    with tifffile.TiffFile(path) as file:
        assert len(file.pages) == 1

    assert np.array_equal(read_stack(path).frames, FRAMES)
    path.write_bytes(path.read_bytes()[:-1])
    assert "announces 6 frames" in _refused(path)


@pytest.mark.parametrize("options", [{"imagej": True}, {"metadata": {}}, {"ome": True, "metadata": {"axes": "TYX"}}])
def test_a_chain_that_was_cut_within_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    """The pointer to the fourth page is wiped: the description still announces six frames."""
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, FRAMES, photometric="minisblack", **options)
    assert np.array_equal(read_stack(path).frames, FRAMES)
    with tifffile.TiffFile(path) as file:
        fourth = struct.pack("<I", file.pages[3].offset)
    content = path.read_bytes()
    assert content.count(fourth) == 1
    path.write_bytes(content.replace(fourth, bytes(4)))
    assert "announces 6 frames, its chain has 3" in _refused(path)


def test_frames_that_were_appended_are_read(tmp_path: Path) -> None:
    """A description may announce fewer frames than the chain has: its writer did not know of those that came later."""
    path = tmp_path / "x.tif"
    for _ in range(2):
        tifffile.imwrite(path, FRAMES, photometric="minisblack", append=True)
    assert len(read_stack(path).frames) == 12


def test_colours_of_a_plane_are_no_frames(tmp_path: Path) -> None:
    """OME counts the colours of a pixel as channels."""
    path = tmp_path / "x.ome.tif"
    tifffile.imwrite(path, np.stack([FRAMES] * 3, -1), photometric="rgb", ome=True, metadata={"axes": "TYXS"})
    assert np.array_equal(read_stack(path).frames, FRAMES)


@pytest.mark.parametrize("orientation", [2, 3, 4, 6])
def test_pages_that_are_turned_or_mirrored_are_refused(tmp_path: Path, orientation: int) -> None:
    """One that lies as it is shown is read, whether it says so or not."""
    turned, upright = (
        _tiff(tmp_path / f"{number}.tif", extratags=[(274, 3, 1, number, True)]) for number in (orientation, 1)
    )
    assert f"is stored turned or mirrored (Orientation {orientation})" in _refused(turned)
    assert np.array_equal(read_stack(upright).frames, FRAMES)


def test_one_directory_that_is_compressed_cannot_stand_for_many(tmp_path: Path) -> None:
    """A description that announces more than there is room for is refused, not read as one frame."""
    description = "ImageJ=1.54f\nimages=840\n"
    assert "compressed or tiled" in _refused(
        _tiff(tmp_path / "x.tif", FRAMES[0], compression="zlib", description=description)
    )
    assert "truncated" in _refused(_tiff(tmp_path / "y.tif", FRAMES[0], description=description))


@pytest.mark.parametrize("layout", [{}, {"rowsperstrip": 16}, {"tile": (32, 32)}])
@pytest.mark.parametrize("compression", ["zlib", "lzw", "lzma"])
def test_damage_within_any_strip_or_tile_is_refused(tmp_path: Path, compression: str, layout: dict[str, Any]) -> None:
    """Noise in place of most of its bytes, and another length than its pixels have, wherever in the file."""
    path = _tiff(tmp_path / "x.tif", compression=compression, **layout)
    whole, rng = path.read_bytes(), np.random.default_rng(1)
    for offset, length in _parts(path)[:: 5 if layout else 1]:
        content = bytearray(whole)
        content[offset + length // 3 : offset + length] = rng.bytes(length - length // 3)
        path.write_bytes(content)
        assert "is damaged: its strip or tile" in _refused(path)


def test_a_strip_that_inflates_to_too_much_takes_no_memory(tmp_path: Path) -> None:
    """A strip of a few megabytes that inflates to a gigabyte is refused after the bytes that its page has."""
    compressor = zlib.compressobj()
    start = compressor.compress(b"")
    bomb = start + (compressor.compress(bytes(1 << 20)) + compressor.flush(zlib.Z_FULL_FLUSH)) * 1024
    path = _tiff(tmp_path / "x.tif", FRAMES, compression="zlib")
    content = path.read_bytes()
    path.write_bytes(content + bomb)
    _change_tag(path, 273, struct.pack("<I", len(content)), page=3)
    _change_tag(path, 279, struct.pack("<I", len(bomb)), page=3)
    code = (
        "import sys; from pathlib import Path\n"
        "from acouslic.stack import read_stack\n"
        f"try: read_stack(Path({str(path)!r}))\n"
        "except Exception as error: print(type(error).__name__, 'frame 3' in str(error))\n"
        "print(int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) // 1024)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=_root(), capture_output=True, text=True, check=True)
    kind, frame, peak_mib = run.stdout.split()
    assert (kind, frame) == ("AcouslicError", "True")
    assert int(peak_mib) < 400


def _root() -> Path:
    return Path(__file__).resolve().parents[2]


def test_pages_of_another_size_are_refused_before_any_is_decoded(tmp_path: Path) -> None:
    """The header alone tells: opening is enough."""
    path = tmp_path / "x.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(FRAMES[0], photometric="minisblack", metadata=None)
        writer.write(np.zeros((480, 640), np.uint8), photometric="minisblack", metadata=None, compression="zlib")
    with pytest.raises(AcouslicError, match="to be 48 x 64 as the first, got 480 x 640 in frame 1"):
        open_stack(path)


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    """A sentence, not SIGBUS: nothing is mapped into memory."""
    path = _tiff(tmp_path / "x.tif", np.concatenate([FRAMES] * 20))
    chunks = open_stack(path).iter_chunks(4)
    next(chunks)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(AcouslicError, match="was changed while it was read"):
        for _ in chunks:
            pass


@pytest.mark.parametrize(
    ("code", "at", "new", "message"),
    [
        (273, 8, struct.pack("<I", 1 << 31), "frame 2 (counted from 0): strip or tile 0 is said to be"),
        (273, 8, struct.pack("<I", 0), "the file is truncated or damaged"),
        (279, 8, struct.pack("<I", 0), "the file is truncated or damaged"),
        (279, 8, struct.pack("<I", 48 * 64 - 1), "the file is truncated or damaged"),
        (278, 8, struct.pack("<I", 10), "needs 5 strips or tiles, but its directory lists 1"),
        (278, 8, struct.pack("<I", 0), "its strips have no rows"),
        (262, 0, struct.pack("<H", 265), "does not say what its values mean"),
        (262, 8, struct.pack("<H", 5), "got colour"),
        (277, 8, struct.pack("<H", 7), "got 7"),
        (258, 8, struct.pack("<H", 12), "expected pixels of 8 bits, got 12"),
        (259, 8, struct.pack("<H", 34712), "its compression (34712) is not read here"),
    ],
)
def test_directories_that_cannot_be_are_refused(tmp_path: Path, code: int, at: int, new: bytes, message: str) -> None:
    """What tifffile would mend, fill in or leave out: places outside the file, missing strips, unknown forms."""
    path = _tiff(tmp_path / "x.tif")
    _change_tag(path, code, new, page=2, at=at)

    with pytest.raises(AcouslicError) as caught:
        open_tiff(path)
    assert message in str(caught.value)


def test_tags_that_take_more_than_directories_need_are_not_read(tmp_path: Path) -> None:
    """A list of 100 million strips in a sparse file is refused before it is read."""
    path = _tiff(tmp_path / "x.tif")
    _change_tag(path, 273, struct.pack("<II", 100_000_000, 8), at=4)
    os.truncate(path, 1 << 30)

    with pytest.raises(AcouslicError, match="a tag that takes more than"):
        open_tiff(path)


def test_time_grows_with_the_number_of_pages(tmp_path: Path) -> None:
    """Every page is visited a constant number of times."""
    reads = []
    for pages in (50, 200):
        path = _tiff(tmp_path / "x.tif", np.zeros((pages, 8, 8), np.uint8), compression="zlib")
        count = 0

        def spy(event: str, _: object) -> None:
            nonlocal count
            count += event == "call"

        sys.setprofile(lambda _frame, event, arg: spy(event, arg))
        try:
            read_stack(path)
        finally:
            sys.setprofile(None)
        reads.append(count)
    assert reads[1] < 4.5 * reads[0]


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
    """With every unit, without one, without a resolution, and with a zero one, where theirs is 1."""
    options = {"resolution": resolution, "resolutionunit": unit}
    path = _tiff(tmp_path / "x.tif", **{name: value for name, value in options.items() if value is not None})

    theirs = SimpleITK.ReadImage(str(path)).GetSpacing()

    assert (open_tiff(path).header.spacing_mm or (1, 1)) == pytest.approx(theirs[1::-1], rel=1e-7)


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


@pytest.mark.parametrize("scale", [("mm", 1), ("cm", 10), ("micron", 1e-3), ("\\u00B5m", 1e-3), ("inch", 25.4)])
def test_the_unit_of_imagej_counts(tmp_path: Path, scale: tuple[str, float]) -> None:
    """Its resolution is per the unit that its description names, here 0.3 by 0.5 mm a pixel."""
    unit, unit_mm = scale
    options = {"resolution": (unit_mm / 0.3, unit_mm / 0.5), "metadata": {"unit": unit}}
    header = open_stack(_tiff(tmp_path / "x.tif", imagej=True, **options)).header
    assert header.spacing_mm == pytest.approx((0.5, 0.3), rel=1e-5)
    assert header.spacing_note is None


@pytest.mark.parametrize("sizes", [(0.5, 0.3, "mm"), (500.0, 300.0, None), (500.0, 300.0, "µm"), (0.05, 0.03, "cm")])
def test_the_physical_size_of_ome_counts(tmp_path: Path, sizes: tuple[float, float, str | None]) -> None:
    """In its unit, micrometres where it names none; whatever the tags say."""
    row, column, unit = sizes
    units = {} if unit is None else {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    options = {"metadata": {"axes": "ZYX", "PhysicalSizeX": column, "PhysicalSizeY": row} | units}
    tags = {"resolution": (72, 72), "resolutionunit": "INCH"}
    header = open_stack(_tiff(tmp_path / "x.ome.tif", ome=True, **options, **tags)).header
    assert header.spacing_mm == pytest.approx((0.5, 0.3))
    assert header.spacing_note is None


@pytest.mark.parametrize(
    "options",
    [
        {"imagej": True, "resolution": (2, 2), "metadata": {"unit": "pixel"}},
        {"imagej": True, "resolution": (2, 2), "metadata": {}},
        {"imagej": True, "metadata": {"unit": "mm"}, "resolution": (0, 2)},
        {"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "mm"}},
        {"ome": True, "metadata": {"axes": "ZYX"}, "resolution": (2, 2), "resolutionunit": "NONE"},
    ],
)
def test_a_description_without_a_unit_of_length_states_no_size(tmp_path: Path, options: dict[str, Any]) -> None:
    """Nor does one with a size for one axis alone; the note does not call that a spacing."""
    header = open_stack(_tiff(tmp_path / "x.tif", **options)).header
    assert header.spacing_note == "x.tif states no pixel spacing; 0.28 mm is assumed"


@pytest.mark.parametrize(("size", "said"), [("0", "expected a positive"), ("ab", "expected a pixel size that is a")])
def test_a_physical_size_that_cannot_be_is_refused(tmp_path: Path, size: str, said: str) -> None:
    """As a damaged resolution is."""
    metadata = {"axes": "ZYX", "PhysicalSizeX": size, "PhysicalSizeY": size}
    assert said in _refused(_tiff(tmp_path / "x.ome.tif", ome=True, metadata=metadata))


def test_tiff_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    """Colour, values past 255 and pages of several sizes each have their sentence."""
    colour = np.zeros((5, 20, 30, 3), np.uint8)
    colour[3, 4, 5, 1] = 1

    assert "got colour in frame 3" in _refused(_tiff(tmp_path / "b.tif", colour, photometric="rgb"))
    assert "got 300 (uint16) in frame 4" in _refused(_tiff(tmp_path / "e.tif", _with(FRAMES.astype("u2"), 4, 300)))
    with tifffile.TiffWriter(tmp_path / "f.tif") as writer:
        writer.write(FRAMES[0], metadata=None)
        writer.write(FRAMES[0, 1:], metadata=None)
    assert "got 47 x 64 in frame 1" in _refused(tmp_path / "f.tif")


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
