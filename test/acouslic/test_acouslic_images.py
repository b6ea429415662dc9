"""What an ultrasound user has beside MetaImage and TIFF: NIfTI, NRRD, stills; and files that are none of these."""

import builtins
import gzip
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import SimpleITK

from acouslic.errors import AcouslicError
from acouslic.reading.kinds import kind_of
from acouslic.sockets import case_name, stack_suffix
from acouslic.stack import open_stack, read_stack

FRAMES = np.random.default_rng(0).integers(0, 200, (7, 40, 50)).astype(np.uint8)
VOLUMES = [
    ("x.nii", False),
    ("x.nii.gz", True),
    ("x.nrrd", False),
    ("x.nrrd", True),
    ("x.nhdr", False),
    ("x.nhdr", True),
]


def _refused(path: Path) -> str:
    with pytest.raises(AcouslicError) as caught:
        read_stack(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()
    return str(caught.value)


def _volume(path: Path, frames: np.ndarray = FRAMES, *, compressed: bool = False, vector: bool = False) -> Path:
    image = SimpleITK.GetImageFromArray(frames, isVector=vector)
    image.SetSpacing((0.3, 0.25, 1.5))
    SimpleITK.WriteImage(image, str(path), compressed)
    return path


def test_frames_that_are_stored_as_values_of_a_pixel_are_named_so(tmp_path: Path) -> None:
    """A sequence as Slicer writes it, its frames along an axis of the kind `list`, is not said to be in colour."""
    frames, rows, columns = FRAMES.shape
    header = f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: {columns} {rows} {frames}\nkinds: domain domain list\n"
    (tmp_path / "x.nrrd").write_bytes(f"{header}encoding: raw\n\n".encode() + FRAMES.tobytes())
    assert f"holds {frames} values a pixel" in _refused(tmp_path / "x.nrrd")


@pytest.mark.parametrize(
    ("fields", "unit"),
    [
        ('spacings: 0.03 0.03 1\nunits: "cm" "cm" "s"', "cm"),
        ('space dimension: 3\nspace directions: (0.3,0,0) (0,0.3,0) (0,0,1)\nspace units: "um" "um" ""', "um"),
        ('spacings: 0.3 0.3 1\nunits: "mm" "mm" "s"', None),
        ("spacings: 0.3 0.3 1", None),
    ],
)
def test_an_nrrd_in_another_unit_than_mm_is_refused(tmp_path: Path, fields: str, unit: str | None) -> None:
    """Of its axes or of the space that they lie in; time is no length."""
    frames, rows, columns = FRAMES.shape
    header = f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: {columns} {rows} {frames}\n{fields}\nencoding: raw\n\n"
    path = tmp_path / "x.nrrd"
    path.write_bytes(header.encode() + FRAMES.tobytes())
    if unit is None:
        assert read_stack(path).header.spacing_mm == (0.3, 0.3)
    else:
        assert _refused(path) == f"{path} states its pixel spacing in {unit}: save it in mm"


@pytest.mark.parametrize(("name", "compressed"), VOLUMES)
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8"])
def test_volumes_are_read_as_simpleitk_reads_them(tmp_path: Path, name: str, compressed: bool, dtype: str) -> None:
    """Values, order of the axes and spacing; in chunks as well."""
    path = _volume(tmp_path / name, FRAMES.astype(dtype), compressed=compressed)

    stack = read_stack(path)

    assert np.array_equal(stack.frames, FRAMES)
    assert stack.header.spacing_mm == pytest.approx((0.25, 0.3))
    assert stack.header.spacing_note is None
    assert stack.header.frame_spacing == 1.5
    assert np.array_equal(np.concatenate([chunk.copy() for _, chunk in open_stack(path).iter_chunks(3)]), FRAMES)


@pytest.mark.parametrize(("name", "compressed"), VOLUMES)
def test_names_that_are_no_utf8_are_read(tmp_path: Path, repository: Path, name: str, compressed: bool) -> None:
    """In a process of its own, which SimpleITK ended at such a name."""
    (tmp_path / "plain").mkdir()
    _volume(tmp_path / "plain" / name, compressed=compressed)
    folder = (tmp_path / "plain").rename(tmp_path / os.fsdecode(b"B\xe4uche"))
    program = (
        "import os, sys; from pathlib import Path; from acouslic.stack import read_stack; "
        "print(int(read_stack(Path(os.fsdecode(sys.argv[1]))).frames.sum()))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, folder / name], cwd=repository, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{FRAMES.sum()}\n", "")


def test_pixels_beside_a_header_may_have_any_name(tmp_path: Path) -> None:
    """The header names the file in UTF-8, as SimpleITK writes it."""
    assert np.array_equal(read_stack(_volume(tmp_path / "Bäuche.nhdr")).frames, FRAMES)
    assert (tmp_path / "Bäuche.raw").is_file()


@pytest.mark.parametrize("name", ["x.nii", "x.nrrd"])
def test_a_volume_of_four_dimensions_or_two(tmp_path: Path, name: str) -> None:
    """One volume of a series is a stack, one slice is a stack of one frame, two volumes are neither."""
    one = SimpleITK.GetImageFromArray(FRAMES)
    SimpleITK.WriteImage(SimpleITK.JoinSeries([one]), str(tmp_path / name))
    assert np.array_equal(read_stack(tmp_path / name).frames, FRAMES)
    SimpleITK.WriteImage(one[:, :, 2], str(tmp_path / name))
    assert np.array_equal(read_stack(tmp_path / name).frames, FRAMES[2:3])
    SimpleITK.WriteImage(SimpleITK.JoinSeries([one, one]), str(tmp_path / name))
    assert "expected one stack of frames" in _refused(tmp_path / name)


@pytest.mark.parametrize("name", ["x.nii", "x.nrrd"])
def test_grey_volumes_in_colour_are_read_with_a_note(tmp_path: Path, name: str) -> None:
    """Equal channels are one; real colour is refused."""
    colour = np.stack([FRAMES] * 3, axis=-1)
    stack = read_stack(_volume(tmp_path / name, colour, vector=True))
    assert np.array_equal(stack.frames, FRAMES)
    assert len(stack.header.notes) == 1
    colour[5, 2, 2, 1] += 1
    assert "got colour in frame 5" in _refused(_volume(tmp_path / name, colour, vector=True))


@pytest.mark.parametrize(("name", "compressed"), VOLUMES)
@pytest.mark.parametrize("missing", [1, 9, 1000, 13_000])
def test_truncated_volumes_are_refused(tmp_path: Path, name: str, compressed: bool, missing: int) -> None:
    """SimpleITK fills a NIfTI that is cut off with zeros, and takes a stream without its checksum."""
    path = _volume(tmp_path / name, compressed=compressed)
    pixels = path if path.suffix != ".nhdr" else tmp_path / ("x.raw.gz" if compressed else "x.raw")
    content = pixels.read_bytes()
    pixels.write_bytes(content[: len(content) - missing])

    message = _refused(path)

    assert "truncated" in message or "end early" in message or "damaged" in message


@pytest.mark.parametrize("name", ["x.nii.gz", "x.nrrd"])
def test_a_flipped_bit_of_a_compressed_volume_is_refused(tmp_path: Path, name: str) -> None:
    """By the checksum of its stream."""
    path = _volume(tmp_path / name, compressed=True)
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 0x10
    path.write_bytes(content)

    _refused(path)


def test_a_small_compressed_volume_cannot_announce_or_hold_a_huge_one(tmp_path: Path) -> None:
    """A header that announces too much, and a stream that holds too much, are refused before SimpleITK is asked."""
    whole = gzip.decompress(_volume(tmp_path / "x.nii.gz", compressed=True).read_bytes())
    path = tmp_path / "y.nii.gz"
    path.write_bytes(gzip.compress(whole + bytes(30_000_000)))
    assert "inflate past" in _refused(path)
    header = bytearray(whole)
    header[42:48] = np.array([20_000, 20_000, 20_000], "<i2").tobytes()
    path.write_bytes(gzip.compress(bytes(header)))
    assert "allowed" in _refused(path)


@pytest.mark.parametrize("offset", [0, 100])
def test_a_nifti_whose_pixels_begin_within_its_header_is_refused(tmp_path: Path, offset: int) -> None:
    """They begin at byte 352 or later; SimpleITK reads them from 348 on then, each four columns off."""
    path = _volume(tmp_path / "x.nii")
    content = bytearray(path.read_bytes())
    content[108:112] = np.array(offset, "<f4").tobytes()
    path.write_bytes(content)
    assert "its header is damaged" in _refused(path)


def test_pixels_beside_a_header_may_be_said_to_be_here(tmp_path: Path) -> None:
    """`./x.raw`, as Teem names it, is `x.raw`."""
    path = _volume(tmp_path / "x.nhdr")
    path.write_text(path.read_text().replace("x.raw", "./x.raw"))
    assert np.array_equal(read_stack(path).frames, FRAMES)


@pytest.mark.parametrize("named", ["../x.raw", "./../x.raw", "/etc/passwd", "a\x1b[31m.raw", "LIST", "f%03d.raw 1 7 1"])
def test_a_header_cannot_name_pixels_elsewhere(tmp_path: Path, named: str) -> None:
    """The pixels of a .nhdr lie beside it, in one file; control characters are not passed on."""
    path = _volume(tmp_path / "x.nhdr")
    path.write_text(path.read_text().replace("x.raw", named))

    assert "in the same folder" in _refused(path)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.JPEG"])
@pytest.mark.parametrize("colour", [False, True])
def test_one_still_is_a_stack_of_one_frame(tmp_path: Path, name: str, colour: bool) -> None:
    """Grey, and grey that was saved in colour, which a note says."""
    frame = cv2.GaussianBlur(FRAMES[0], (0, 0), 3)
    path = tmp_path / name
    cv2.imwrite(str(path), cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR) if colour else frame)

    stack = read_stack(path)

    assert np.array_equal(stack.frames[0], cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    assert stack.header.spacing_mm == (0.28, 0.28)
    assert stack.header.spacing_note == f"{name} states no pixel spacing; 0.28 mm is assumed"
    assert len(stack.header.notes) == colour


@pytest.mark.parametrize("name", ["x.png", "x.jpg"])
def test_stills_that_are_cut_off_or_in_colour_are_refused(tmp_path: Path, name: str) -> None:
    """A JPEG that is cut off would decode to a picture that is grey from there on."""
    path = tmp_path / name
    cv2.imwrite(str(path), np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8))
    assert "got colour in frame 0" in _refused(path)
    cv2.imwrite(str(path), FRAMES[0])
    content = path.read_bytes()
    for kept in (5, 30, len(content) // 2, len(content) - 3):
        path.write_bytes(content[:kept])
        assert "damaged" in _refused(path) or "cut off" in _refused(path)


def test_a_still_with_a_transparent_pixel_is_refused(tmp_path: Path) -> None:
    """Opacity counts only where it is not complete."""
    pixels = np.dstack([FRAMES[0]] * 3 + [np.full_like(FRAMES[0], 255)])
    cv2.imwrite(str(tmp_path / "x.png"), pixels)
    assert np.array_equal(read_stack(tmp_path / "x.png").frames, FRAMES[:1])
    pixels[3, 3, 3] = 254
    cv2.imwrite(str(tmp_path / "x.png"), pixels)
    assert "transparent" in _refused(tmp_path / "x.png")


def test_a_png_that_announces_too_much_is_refused(tmp_path: Path) -> None:
    """Before it is decoded."""
    cv2.imwrite(str(tmp_path / "x.png"), FRAMES[0])
    content = bytearray((tmp_path / "x.png").read_bytes())
    content[16:24] = np.array([60_000, 60_000], ">u4").tobytes()
    (tmp_path / "x.png").write_bytes(content)
    assert "allowed" in _refused(tmp_path / "x.png")


@pytest.mark.parametrize("name", ["x.mha", "x.mhd", "x.tif", "x.nii", "x.png"])
def test_a_git_lfs_pointer_is_named_as_what_it_is(tmp_path: Path, name: str) -> None:
    """A clone without `git lfs pull` leaves three lines of text in place of a file."""
    (tmp_path / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 350912345\n"
    )
    assert "is a Git LFS pointer, not the file itself: fetch that with `git lfs pull`" in _refused(tmp_path / name)


def test_a_file_that_may_not_be_read_is_not_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permission denied is said as such, also where it is the folder that denies it."""
    path = tmp_path / "x.mha"
    path.touch()

    def deny(*_: object, **__: object) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)
    with pytest.raises(AcouslicError, match=r"x\.mha could not be read: Permission denied"):
        open_stack(path)
    monkeypatch.setattr(Path, "exists", deny)
    with pytest.raises(AcouslicError, match=r"x\.mha could not be read: Permission denied"):
        open_stack(path)
    assert builtins.open is open


def test_suffixes_of_two_parts_are_one(tmp_path: Path) -> None:
    """A case is called as its file without the whole suffix."""
    assert [stack_suffix(name) for name in ("a.nii.gz", "a.NII", "a.gz", ".mha", "a.b.mha")] == [
        ".nii.gz", ".nii", "", "", ".mha",
    ]  # fmt: skip
    assert [case_name(name) for name in ("a.nii.gz", "a.mha.tif", "a.gz", "b/a.PNG")] == ["a", "a.mha", "a.gz", "a"]
    cv2.imwrite(str(tmp_path / "x.PNG"), FRAMES[0])
    assert kind_of(tmp_path / "x.PNG") == "PNG"
