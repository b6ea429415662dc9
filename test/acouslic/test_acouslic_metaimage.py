"""Our MetaImage decoder: equal to SimpleITK on good files, one clear sentence for each kind of bad one."""

import itertools
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from acouslic.errors import AcouslicError
from acouslic.stack import open_stack, read_stack

SHAPE = (21, 20, 30)
FRAMES = np.random.default_rng(0).integers(0, 128, SHAPE).astype(np.uint8)
PLAIN = {
    "ObjectType": "Image",
    "NDims": "3",
    "DimSize": "30 20 21",
    "ElementSpacing": "0.3 0.25 1.5",
    "ElementType": "MET_UCHAR",
}


def _write(
    path: Path, pixels: bytes = FRAMES.tobytes(), *, drop: str = "", data_file: str = "LOCAL", **fields: str
) -> Path:
    """A MetaImage by hand: the plain header with fields changed, then the pixels."""
    lines = {key: value for key, value in (PLAIN | fields).items() if key != drop}
    text = "".join(f"{key} = {value}\n" for key, value in lines.items())
    path.write_bytes(f"{text}ElementDataFile = {data_file}\n".encode() + pixels)
    return path


def _compressed(path: Path, stored: bytes, announced: int | None = None) -> Path:
    size = str(len(stored) if announced is None else announced)
    return _write(path, stored, CompressedData="True", CompressedDataSize=size)


def _refused(path: Path) -> str:
    """The one sentence with which a file is refused, on opening or on reading."""
    with pytest.raises(AcouslicError) as caught:
        read_stack(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"])
def test_files_of_simpleitk_are_read_equally(tmp_path: Path, dtype: str, compressed: bool, suffix: str) -> None:
    """Every pixel type, compressed or not, in one file or two: the same values and spacing as SimpleITK's."""
    image = SimpleITK.GetImageFromArray(FRAMES.astype(dtype))
    image.SetSpacing((0.3, 0.25, 1.5))
    path = tmp_path / f"sweep{suffix}"
    SimpleITK.WriteImage(image, str(path), compressed)

    stack = read_stack(path)

    theirs = SimpleITK.ReadImage(str(path))
    assert stack.frames.dtype == np.uint8
    assert np.array_equal(stack.frames, SimpleITK.GetArrayFromImage(theirs))
    assert (*stack.header.spacing_mm[::-1], stack.header.frame_spacing) == theirs.GetSpacing()
    assert stack.header.spacing_note is None


@pytest.mark.parametrize(("dtype", "pixel_type"), [(">i2", "MET_SHORT"), (">f4", "MET_FLOAT"), (">u4", "MET_UINT")])
@pytest.mark.parametrize("key", ["BinaryDataByteOrderMSB", "ElementByteOrderMSB"])
def test_big_endian_pixels_are_turned(tmp_path: Path, dtype: str, pixel_type: str, key: str) -> None:
    """Either name of the byte order flag is followed."""
    path = _write(tmp_path / "x.mha", FRAMES.astype(dtype).tobytes(), ElementType=pixel_type, **{key: "True"})

    assert np.array_equal(read_stack(path).frames, FRAMES)


@pytest.mark.parametrize("wrapper", [zlib.MAX_WBITS, 16 + zlib.MAX_WBITS])
def test_compressed_size_may_be_absent(tmp_path: Path, wrapper: int) -> None:
    """Without CompressedDataSize the rest of the file is the stream, in a zlib or a gzip wrapper."""
    compressor = zlib.compressobj(wbits=wrapper)
    stored = compressor.compress(FRAMES.tobytes()) + compressor.flush()

    path = _write(tmp_path / "x.mha", stored, CompressedData="True")

    assert np.array_equal(read_stack(path).frames, FRAMES)


@pytest.mark.parametrize(("header_size", "prefix"), [("0", b""), ("-1", b"junk"), ("4", b"junk")])
def test_header_size_of_a_raw_file_is_skipped(tmp_path: Path, header_size: str, prefix: bytes) -> None:
    """0 skips nothing, -1 whatever is too much at the start, a number so many bytes."""
    (tmp_path / "x.raw").write_bytes(prefix + FRAMES.tobytes())
    path = _write(tmp_path / "x.mhd", b"", data_file="x.raw", HeaderSize=header_size)

    assert np.array_equal(read_stack(path).frames, FRAMES)


def test_pixels_beside_a_header_may_have_any_name(tmp_path: Path) -> None:
    """The header names the file in UTF-8, as SimpleITK writes it; so does a pattern of names, and one that begins with
    `./`."""
    path = tmp_path / "Bäuche.mhd"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(FRAMES), str(path))
    assert (tmp_path / "Bäuche.raw").is_file()
    assert np.array_equal(read_stack(path).frames, FRAMES)
    for number, frame in enumerate(FRAMES):
        (tmp_path / f"Bäuche{number}.raw").write_bytes(frame.tobytes())
    for here in ("", "./"):
        path = _write(tmp_path / "pattern.mhd", b"", data_file=f"{here}Bäuche%d.raw 0 {len(FRAMES) - 1} 1")
        assert np.array_equal(read_stack(path).frames, FRAMES)
    assert np.array_equal(read_stack(_write(tmp_path / "x.mhd", b"", data_file="./Bäuche.raw")).frames, FRAMES)


def test_windows_line_ends_and_unknown_keys_are_read(tmp_path: Path) -> None:
    """Headers written on Windows, and what the platform adds, do no harm."""
    path = _write(tmp_path / "x.mha", SmallestImagePixelValue="0", Comment="a = b")
    header, pixels = path.read_bytes().split(b"LOCAL\n", 1)
    path.write_bytes(header.replace(b"\n", b"\r\n") + b"LOCAL\r\n" + pixels)

    assert np.array_equal(read_stack(path).frames, FRAMES)


@pytest.mark.parametrize("chunk_frames", [1, 8, 21, 100])
@pytest.mark.parametrize("pixel_type", ["MET_UCHAR", "MET_SHORT"])
def test_frames_are_there_when_their_range_is_yielded(tmp_path: Path, chunk_frames: int, pixel_type: str) -> None:
    """The ranges are in order and cover all frames; what has come is filled, what has not is untouched."""
    dtype = "u1" if pixel_type == "MET_UCHAR" else "<i2"
    path = _write(
        tmp_path / "x.mha",
        zlib.compress(FRAMES.astype(dtype).tobytes()),
        ElementType=pixel_type,
        CompressedData="True",
    )
    destination = np.full(SHAPE, 255, dtype=np.uint8)
    seen: list[int] = []

    for indices in open_stack(path).read_into(destination, chunk_frames):
        assert np.array_equal(destination[: indices.stop], FRAMES[: indices.stop])
        assert (destination[indices.stop :] == 255).all()
        seen += indices

    assert seen == list(range(21))


def test_chunks_come_in_one_buffer(tmp_path: Path) -> None:
    """Chunks hold the frames in order and share one buffer; a second run starts anew."""
    reader = open_stack(_write(tmp_path / "x.mha"))

    for _ in range(2):
        copies, buffers = [], set()
        for indices, frames in reader.iter_chunks(8):
            assert len(frames) == len(indices)
            copies.append(frames.copy())
            buffers.add(frames.ctypes.data)
        assert np.array_equal(np.concatenate(copies), FRAMES)
        assert len(buffers) == 1


def test_wrong_destination_is_a_programming_error(tmp_path: Path) -> None:
    """The destination must be a contiguous uint8 array of the stack's shape."""
    reader = open_stack(_write(tmp_path / "x.mha"))

    for destination in (
        np.empty((20, 20, 30), np.uint8),
        np.empty(SHAPE, np.int8),
        np.empty((21, 20, 60), np.uint8)[..., ::2],
    ):
        with pytest.raises(ValueError, match="destination"):
            next(reader.read_into(destination))


@pytest.mark.parametrize("value", [256, -1])
def test_integer_outside_the_bytes_is_refused_with_its_frame(tmp_path: Path, value: int) -> None:
    """The first offending frame and value are named, in a chunk that is not the first."""
    frames = FRAMES.astype("<i2")
    frames[18, 3, 4] = value

    message = _refused(_write(tmp_path / "x.mha", frames.tobytes(), ElementType="MET_SHORT"))

    assert f"got {value} (int16) in frame 18" in message


@pytest.mark.parametrize("value", [0.5, float("nan"), float("inf"), 255.001, -0.25])
def test_fraction_is_refused_with_its_frame(tmp_path: Path, value: float) -> None:
    """A float stack is accepted only where every value is a whole number in 0..255."""
    frames = FRAMES.astype("<f8")
    frames[2, 0, 0] = value

    message = _refused(_write(tmp_path / "x.mha", frames.tobytes(), ElementType="MET_DOUBLE"))

    assert f"got {value} (float64) in frame 2" in message


def test_a_single_image_is_a_stack_of_one_frame(tmp_path: Path) -> None:
    """Two dimensions are one frame, with the spacing of both."""
    path = _write(tmp_path / "x.mha", FRAMES[0].tobytes(), NDims="2", DimSize="30 20", ElementSpacing="0.3 0.25")

    stack = read_stack(path)

    assert np.array_equal(stack.frames, FRAMES[:1])
    assert stack.header.spacing_mm == (0.25, 0.3)
    assert stack.header.frame_spacing == 1.0
    with pytest.raises(AcouslicError, match="is a single 2-D image of 20 x 30 pixels; expected a stack of frames"):
        open_stack(path, stills=False)


@pytest.mark.parametrize("dim_size", ["30 20 21 1", "30 20 1 21"])
def test_four_dimensions_with_one_volume_are_a_stack(tmp_path: Path, dim_size: str) -> None:
    """Whichever of the last two is the frames; two volumes are refused."""
    spacing = {"NDims": "4", "ElementSpacing": "0.3 0.25 1.5 1"}

    assert np.array_equal(read_stack(_write(tmp_path / "x.mha", DimSize=dim_size, **spacing)).frames, FRAMES)
    assert "holds 3 volumes of 7 frames" in _refused(_write(tmp_path / "y.mha", DimSize="30 20 7 3", **spacing))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_grey_in_colour_is_read_with_a_note(tmp_path: Path, channels: int, compressed: bool) -> None:
    """Channels that are equal are one; opacity counts only where it is not complete. Real colour names its frame."""
    pixels = np.repeat(FRAMES[..., None], channels, axis=-1)
    if channels != 3:
        pixels[..., -1] = 255
    fields = {"ElementNumberOfChannels": str(channels), "CompressedData": str(compressed)}

    def written(name: str) -> Path:
        stored = zlib.compress(pixels.tobytes()) if compressed else pixels.tobytes()
        return _write(tmp_path / name, stored, **fields)

    stack = read_stack(written("grey.mha"))
    assert np.array_equal(stack.frames, FRAMES)
    assert stack.header.notes == (
        "grey.mha stores grey frames in colour; its channels are equal, and one of them is used",
    )
    pixels[18, 3, 4, 1] ^= 1
    assert "frame 18" in _refused(written("colour.mha"))


def _listed(folder: Path, value: str, frames: np.ndarray = FRAMES, names: str = "", **fields: str) -> Path:
    for number, frame in enumerate(frames, start=1):
        (folder / f"f{number:02d}.raw").write_bytes(frame.tobytes())
    return _write(folder / "x.mhd", names.encode(), data_file=value, **fields)


LIST_NAMES = "".join(f"f{number:02d}.raw\n" for number in range(1, 22))


@pytest.mark.parametrize(
    ("value", "names"),
    [("LIST", LIST_NAMES), ("LIST 2", LIST_NAMES), ("LIST 2D", LIST_NAMES), ("f%02d.raw 1 21 1", "")],
)
def test_one_file_a_frame_is_read_as_simpleitk_reads_it(tmp_path: Path, value: str, names: str) -> None:
    """A list of files and a pattern of names. (Of a pattern without its step SimpleITK 2.5.7 dies.)"""
    path = _listed(tmp_path, value, names=names)

    stack = read_stack(path)

    assert np.array_equal(stack.frames, SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))))
    assert np.array_equal(stack.frames, FRAMES)
    assert stack.header.spacing_mm == (0.25, 0.3)


def test_a_pattern_of_names_may_begin_as_a_list(tmp_path: Path) -> None:
    """`LIST` is a word of its own there."""
    for number, frame in enumerate(FRAMES, start=1):
        (tmp_path / f"LIST{number}.raw").write_bytes(frame.tobytes())
    assert np.array_equal(read_stack(_write(tmp_path / "x.mhd", b"", data_file="LIST%d.raw 1 21 1")).frames, FRAMES)


@pytest.mark.parametrize(
    ("value", "names", "message"),
    [
        ("LIST", LIST_NAMES[8:], "names 20 files for its 21 frames"),
        ("LIST", "../f01.raw\n" + LIST_NAMES[8:], "must name a file in the same folder"),
        ("LIST", "f\x1b01.raw\n" + LIST_NAMES[8:], "must name a file in the same folder"),
        ("LIST", "absent.raw\n" + LIST_NAMES[8:], "absent.raw, which could not be read"),
        ("LIST 3", LIST_NAMES, "is not one file a frame"),
        ("f%02d.raw 1 20 1", "", "names 20 files for its 21 frames"),
        ("f%02d.raw 1", "", "is no pattern of names"),
        ("f%s.raw 1 21 1", "", "is no pattern of names"),
        ("f%02d.raw 2 22 1", "", "f22.raw, which could not be read"),
    ],
)
def test_a_list_that_cannot_be_is_refused(tmp_path: Path, value: str, names: str, message: str) -> None:
    """Too few names, names that lead elsewhere, files that are not there."""
    assert message in _refused(_listed(tmp_path, value, names=names))


def test_a_truncated_file_of_a_list_is_refused(tmp_path: Path) -> None:
    """It is named, and so is one that is compressed, which nothing could be held against."""
    path = _listed(tmp_path, "LIST", names=LIST_NAMES)
    (tmp_path / "f07.raw").write_bytes(bytes(599))

    assert "expected 600 bytes of pixels in f07.raw, but it has 599" in _refused(path)
    assert "compressed and spread" in _refused(_listed(tmp_path, "LIST", names=LIST_NAMES, CompressedData="True"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"NDims": "5", "DimSize": "30 20 21 1 1"}, "NDims = 3, got NDims = '5'"),
        ({"NDims": "x"}, "got NDims = 'x'"),
        ({"DimSize": "30 20"}, "DimSize must be 3 whole numbers"),
        ({"DimSize": "30 20 -21"}, "DimSize must be 3 whole numbers"),
        ({"DimSize": "30 20 2.5"}, "DimSize must be 3 whole numbers"),
        ({"DimSize": f"30 20 {'9' * 5000}"}, "DimSize must be 3 whole numbers"),
        ({"DimSize": "30 20 0"}, "no frames"),
        ({"DimSize": "0 20 21"}, "no pixels"),
        ({"DimSize": "999999999 999999999 999999999"}, "header announces 999,999,997"),
        ({"DimSize": "30 20 22"}, "header announces 13,200 bytes of pixels, but x.mha holds 12,600"),
        ({"DimSize": "30 20 20"}, "header announces 12,000 bytes of pixels, but x.mha holds 12,600"),
        ({"ElementType": "MET_LONG_LONG"}, "ElementType 'MET_LONG_LONG' is not one of"),
        ({"ElementType": "MET_UCHAR_ARRAY"}, "ElementType 'MET_UCHAR_ARRAY' is not one of"),
        ({"ElementNumberOfChannels": "3"}, "header announces 37,800 bytes of pixels, but x.mha holds 12,600"),
        ({"ElementNumberOfChannels": "9"}, "one grey channel"),
        ({"ElementNumberOfChannels": "0"}, "one grey channel"),
        ({"ElementNumberOfChannels": "x"}, "must be a whole number"),
        ({"ObjectType": "Tube"}, "expected Image"),
        ({"BinaryData": "False"}, "convert it with SimpleITK"),
        ({"TransformMatrix": "1 0 0 0 1 0 0 0 0"}, "TransformMatrix must be 9 numbers"),
        ({"TransformMatrix": "1 0 0 0 \x7f0 0 0 0 1"}, "TransformMatrix must be 9 numbers"),
        ({"Orientation": "1 0 0 0 1 0 0 0"}, "Orientation must be 9 numbers"),
        ({"CompressedData": "maybe"}, "CompressedData must be True or False"),
        ({"HeaderSize": "-2"}, "HeaderSize = -2 is not supported"),
        ({"HeaderSize": "x"}, "HeaderSize must be a whole number"),
        ({"HeaderSize": "3"}, "header is wrong"),
        ({"HeaderSize": "-1", "DimSize": "30 4 106"}, "header is wrong"),
        ({"data_file": "a\x1b[31mb.raw"}, "in the same folder, not 'a\\x1b[31mb.raw'"),
        ({"data_file": "../x.raw"}, "in the same folder"),
        ({"data_file": "./../x.raw"}, "in the same folder"),
        ({"data_file": "./"}, "in the same folder"),
        ({"data_file": "/etc/passwd"}, "in the same folder"),
        ({"data_file": ".."}, "in the same folder"),
        ({"data_file": ""}, "in the same folder"),
        ({"data_file": "absent.raw"}, "absent.raw, which could not be read"),
        ({"drop": "NDims"}, "has no NDims"),
        ({"drop": "DimSize"}, "has no DimSize"),
        ({"drop": "ElementType"}, "has no ElementType"),
    ],
)
def test_header_that_cannot_be_is_refused(tmp_path: Path, fields: dict[str, str], message: str) -> None:
    """Each impossible or exotic header has its own sentence."""
    path = _write(tmp_path / "x.mha", **fields)

    assert message in _refused(path)


@pytest.mark.parametrize("spacing", ["nan 0.28 1", "0 0.28 1", "-0.28 0.28 1", "0.28 inf 1", "0.28 0.28", "a b c", ""])
@pytest.mark.parametrize("key", ["ElementSpacing", "ElementSize"])
def test_spacing_that_cannot_be_is_refused(tmp_path: Path, key: str, spacing: str) -> None:
    """Zero, negative, NaN, infinite, missing or unreadable numbers are damage, not silence."""
    path = _write(tmp_path / "x.mha", drop="" if key == "ElementSpacing" else "ElementSpacing", **{key: spacing})

    assert f"{key} must be 3 positive numbers" in _refused(path)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"drop": "ElementSpacing"}, "states no pixel spacing"),
        ({"ElementSpacing": "1 1 1"}, "stands for unknown"),
        ({"ElementSpacing": "0.28 1 1"}, "stands for unknown"),
        ({"ElementSpacing": "0.00028 0.00028 1"}, "no ultrasound scanner"),
        ({"ElementSpacing": "280 280 1"}, "no ultrasound scanner"),
    ],
)
def test_silent_or_implausible_spacing_is_assumed_and_noted(tmp_path: Path, fields: dict[str, str], why: str) -> None:
    """The challenge's 0.28 mm stands in, and a note says so."""
    header = open_stack(_write(tmp_path / "x.mha", **fields)).header

    assert header.spacing_mm == (0.28, 0.28)
    assert header.spacing_note is not None
    assert why in header.spacing_note
    assert "0.28 mm is assumed" in header.spacing_note


@pytest.mark.parametrize("key", ["ElementSpacing", "ElementSize"])
def test_a_spacing_in_another_unit_than_mm_is_refused(tmp_path: Path, key: str) -> None:
    """DistanceUnits, which ITK does not look at, is mm, a question mark or absent."""
    for unit in ("mm", "?", "cm", "um"):
        drop = "" if key == "ElementSpacing" else "ElementSpacing"
        path = _write(tmp_path / "x.mha", drop=drop, DistanceUnits=unit, **{key: "0.3 0.3 1"})
        if unit in ("mm", "?"):
            assert open_stack(path).header.spacing_mm == (0.3, 0.3)
        else:
            assert _refused(path) == f"{path} states its pixel spacing in {unit}: save it in mm"


def test_element_size_stands_in_for_spacing(tmp_path: Path) -> None:
    """ElementSize counts where ElementSpacing is absent, and only there."""
    alone = open_stack(_write(tmp_path / "a.mha", drop="ElementSpacing", ElementSize="0.2 0.4 1")).header
    beside = open_stack(_write(tmp_path / "b.mha", ElementSize="0.2 0.4 1")).header

    assert alone.spacing_mm == (0.4, 0.2)
    assert beside.spacing_mm == (0.25, 0.3)


@pytest.mark.parametrize("cut", [0, 1, 40, 150, 170, 1000, 11_000])
def test_truncated_file_is_refused(tmp_path: Path, cut: int) -> None:
    """Wherever a raw or a compressed file is cut off, it is refused."""
    for path in (_write(tmp_path / "raw.mha"), _compressed(tmp_path / "zip.mha", zlib.compress(FRAMES.tobytes()))):
        whole = path.read_bytes()
        assert cut < len(whole)
        path.write_bytes(whole[:cut])
        _refused(path)


def test_compressed_pixels_that_end_early_are_refused(tmp_path: Path) -> None:
    """A stream cut off, one without its checksum, and a complete one of too few frames, each say what is wrong."""
    stored = zlib.compress(FRAMES.tobytes())

    assert "end early" in _refused(_compressed(tmp_path / "cut.mha", stored[:-500]))
    assert "without their checksum" in _refused(_compressed(tmp_path / "sum.mha", stored[:-2]))
    assert "the header is wrong" in _refused(_compressed(tmp_path / "few.mha", zlib.compress(FRAMES[:-1].tobytes())))


def test_compressed_pixels_past_the_header_are_refused(tmp_path: Path) -> None:
    """One byte too many is enough, and no more than that is ever inflated."""
    assert "inflate past" in _refused(_compressed(tmp_path / "more.mha", zlib.compress(FRAMES.tobytes() + b"\0")))
    assert "inflate past" in _refused(_compressed(tmp_path / "bomb.mha", zlib.compress(bytes(50_000_000))))


def test_small_file_cannot_announce_a_huge_stack(tmp_path: Path) -> None:
    """A header that asks for more than its compressed bytes could hold is refused before anything is allocated."""
    path = _write(tmp_path / "x.mha", zlib.compress(bytes(1000)), CompressedData="True", DimSize="744 562 20000")

    with pytest.raises(AcouslicError, match="header announces"):
        open_stack(path)


def test_stack_beyond_any_sweep_is_refused(tmp_path: Path) -> None:
    """A sparse file of 9 GB that agrees with its header is still no sweep."""
    path = _write(tmp_path / "x.mha", b"", DimSize="30000 30000 10")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 9_000_000_000)

    with pytest.raises(AcouslicError, match="more than the"):
        open_stack(path)


@pytest.mark.parametrize(("dim_size", "frames"), [("30000 30000 1", 1), ("8000 8000 130", 130)])
def test_the_bound_counts_bytes(tmp_path: Path, dim_size: str, frames: int) -> None:
    """Doubles of 8 bytes: fewer pixels than the bound has bytes are still too many, in one frame and in all."""
    columns, rows, frames = map(int, dim_size.split())
    path = _write(tmp_path / "x.mha", b"", DimSize=dim_size, ElementType="MET_DOUBLE")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + columns * rows * frames * 8)

    with pytest.raises(AcouslicError, match="pixels of 8 bytes are more than the"):
        open_stack(path)


def test_garbage_around_and_inside_the_stream_is_refused(tmp_path: Path) -> None:
    """What follows the stream, a wrong announced size, a flipped bit and plain noise are all found."""
    stored = zlib.compress(FRAMES.tobytes())
    flipped = bytearray(stored)
    flipped[len(stored) // 2] ^= 1

    assert "something follows" in _refused(_compressed(tmp_path / "a.mha", stored + b"tail"))
    assert "truncated or its header" in _refused(_compressed(tmp_path / "b.mha", stored + b"tail", len(stored)))
    assert "truncated or its header" in _refused(_compressed(tmp_path / "c.mha", stored, len(stored) + 1))
    assert "damaged" in _refused(_compressed(tmp_path / "d.mha", bytes(flipped)))
    assert "damaged" in _refused(_compressed(tmp_path / "e.mha", b"\xff" * 1000))


def test_repeated_key_is_refused(tmp_path: Path) -> None:
    """Two lines of one name could mean either."""
    path = _write(tmp_path / "x.mha")
    path.write_bytes(b"NDims = 2\n" + path.read_bytes())

    assert "two lines 'NDims'" in _refused(path)


def test_endless_header_is_not_read_to_its_end(tmp_path: Path) -> None:
    """A text whose ElementDataFile line comes after more than four mebibytes is given up before."""
    path = _write(tmp_path / "x.mha")
    for filler in ("".join(f"Key{number} = 1\n" for number in range(400_000)), f"Key = {'1' * (5 << 20)}\n"):
        path.write_bytes(filler.encode() + _write(path).read_bytes())

        assert "not a MetaImage" in _refused(path)


def test_no_single_byte_of_a_header_crashes_the_reader(tmp_path: Path) -> None:
    """Whatever byte of the header is changed, the file is read or refused with a sentence."""
    path = _write(tmp_path / "x.mha", CompressedData="False")
    whole = path.read_bytes()
    header_bytes = whole.index(b"LOCAL\n") + 6
    for position, value in itertools.product(range(header_bytes), b"\x00\xff=9 \n-"):
        path.write_bytes(whole[:position] + bytes([value]) + whole[position + 1 :])
        try:
            read_stack(path)
        except AcouslicError as error:
            assert len(str(error)) < 1000  # noqa: PT017 - not raising is fine, too
