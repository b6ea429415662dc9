"""Cine video and folders of PNG: one sweep each, whose pixel size the user gives."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from acouslic.errors import AcouslicError
from acouslic.stack import open_stack, read_stack

ROWS, COLUMNS = 96, 128


def pictures(count: int = 12) -> np.ndarray:
    """Smooth frames that move: uint8 (count, ROWS, COLUMNS)."""
    y, x = np.mgrid[:ROWS, :COLUMNS]
    frames = [120 + 70 * np.sin((x + 5 * k) / 11) + 40 * np.cos(y / 9) for k in range(count)]
    return np.clip(np.array(frames), 0, 255).astype(np.uint8)


def video(path: Path, frames: np.ndarray, codec: str, pixel_format: str, pixel_aspect: Fraction | None = None) -> Path:
    """Frames, grey (n, rows, columns) or RGB (n, rows, columns, 3), as a video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(25))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if codec == "mpeg4":
            stream.bit_rate = 8_000_000
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="gray" if frame.ndim == 2 else "rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def _refused(path: Path) -> str:
    with pytest.raises(AcouslicError) as caught:
        read_stack(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format", "tolerance"),
    [("x.avi", "ffv1", "gray", 0), ("x.avi", "mjpeg", "yuvj420p", 20), ("x.mp4", "mpeg4", "yuv420p", 24)],
)
def test_a_video_is_one_sweep(tmp_path: Path, name: str, codec: str, pixel_format: str, tolerance: int) -> None:
    """Every frame, in order, equal where nothing was lost and near where the codec loses; a note says it is video."""
    frames = pictures()

    stack = read_stack(video(tmp_path / name, frames, codec, pixel_format))

    assert stack.frames.shape == frames.shape
    assert np.abs(stack.frames.astype(int) - frames).max() <= tolerance
    assert stack.header.sweeps == [range(12)]
    assert stack.header.spacing_note == f"{name} states no pixel spacing; 0.28 mm is assumed"
    assert any("is a video" in note for note in stack.header.notes)


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_a_video_that_was_cut_has_the_frames_that_it_shows(tmp_path: Path, codec: str) -> None:
    """As phones and `ffmpeg -ss 0.16 -c copy` cut it: four frames before the cut stay in the file, since the others
    refer to them, and the file says not to show them."""
    frames = pictures()
    whole, shorter = video(tmp_path / "whole.mp4", frames, codec, "yuv420p"), tmp_path / "shorter.mp4"
    with av.open(str(whole)) as source, av.open(str(shorter), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        begins = sorted(packet.pts for packet in packets)[4]
        for packet in packets:
            packet.pts, packet.dts, packet.stream = packet.pts - begins, packet.dts - begins, stream
            container.mux(packet)

    stack = read_stack(shorter)

    assert np.array_equal(stack.frames, read_stack(whole).frames[4:])
    assert stack.header.sweeps == [range(8)]


def test_a_video_that_is_shown_turned_is_refused(tmp_path: Path) -> None:
    """As of a telephone held upside down: its frames are stored otherwise than people see them."""
    path = video(tmp_path / "x.mp4", pictures(), "mpeg4", "yuv420p")
    content = path.read_bytes()
    # The matrix of the track's header (ISO/IEC 14496-12, 8.3.2), 40 bytes behind its name: by 180 degrees.
    at = content.index(b"tkhd") + 44
    upright = struct.unpack_from(">9i", content, at)
    assert upright == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", -(1 << 16), 0, 0, 0, -(1 << 16), 0, 0, 0, 1 << 30)
    path.write_bytes(content[:at] + turned + content[at + len(turned) :])
    assert "is to be shown turned by" in _refused(path)


@pytest.mark.parametrize("name", ["x.avi", "x.mp4"])
def test_a_video_of_pixels_that_are_not_square_is_refused(tmp_path: Path, name: str) -> None:
    """No single size could be given for them; 1:1, or nothing at all, is square."""
    frames = pictures()
    for aspect in (Fraction(16, 11), Fraction(1)):
        path = video(tmp_path / name, frames, "mpeg4", "yuv420p", aspect)
        if aspect == 1:
            assert read_stack(path).header.frames == len(frames)
        else:
            assert _refused(path) == f"{path} has pixels of 16:11, which are not square: save it with square pixels"


def test_a_video_may_have_a_time_as_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A colon within a path that does not begin at the root."""
    frames = pictures()
    video(tmp_path / "10:22:33.avi", frames, "ffv1", "gray")
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(read_stack(Path("10:22:33.avi")).frames, frames)


def test_a_video_in_colour_is_refused(tmp_path: Path) -> None:
    """As of Doppler."""
    colour = np.repeat(pictures()[..., None], 3, axis=-1)
    colour[4:, 20:60, 20:60] = (220, 20, 20)
    path = video(tmp_path / "x.avi", colour, "mjpeg", "yuvj444p")
    assert "got colour in frame 4" in _refused(path)


@pytest.mark.parametrize("name", ["x.avi", "x.mp4"])
def test_a_video_that_is_cut_off_or_damaged_is_refused(tmp_path: Path, name: str) -> None:
    """Wherever it ends."""
    path = video(tmp_path / name, pictures(), "mpeg4", "yuv420p")
    content = path.read_bytes()
    for share in (0.02, 0.3, 0.8):
        path.write_bytes(content[: int(len(content) * share)])
        _refused(path)


def test_a_folder_of_png_is_one_sweep(tmp_path: Path) -> None:
    """In the order of the numbers in their names; grey in colour has one note; another size is refused by name."""
    frames = pictures()
    for number, frame in enumerate(frames):
        picture = frame if number % 2 else cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR)
        cv2.imwrite(str(tmp_path / f"f{number}.png"), picture)

    stack = read_stack(tmp_path)

    assert np.array_equal(stack.frames, frames)
    assert stack.header.sweeps == [range(12)]
    assert len(stack.header.notes) == 1
    cv2.imwrite(str(tmp_path / "f10.png"), frames[10][1:])
    assert "f10.png: expected pictures of 96 x 128 as f0.png, got 95 x 128" in _refused(tmp_path)


def test_a_raised_digit_in_a_name_is_no_number(tmp_path: Path) -> None:
    """Alone between two numbers, where it was taken for one."""
    frames = pictures(2)
    cv2.imwrite(str(tmp_path / "1²2.png"), frames[0])
    cv2.imwrite(str(tmp_path / "2.png"), frames[1])
    assert np.array_equal(read_stack(tmp_path).frames, frames)


def test_a_pixel_size_that_is_given_stands_in_place_of_the_files(tmp_path: Path) -> None:
    """Without a note where the file states none, with one where it states another."""
    cv2.imwrite(str(tmp_path / "x.png"), pictures(1)[0])
    header = open_stack(tmp_path / "x.png", spacing_mm=(0.2, 0.2)).header
    assert (header.spacing_mm, header.spacing_note) == ((0.2, 0.2), None)

    path = tmp_path / "x.mha"
    text = f"NDims = 3\nDimSize = {COLUMNS} {ROWS} 1\nElementType = MET_UCHAR\nElementSpacing = 0.3 0.3 1\n"
    path.write_bytes(f"{text}ElementDataFile = LOCAL\n".encode() + pictures(1).tobytes())
    header = open_stack(path, spacing_mm=(0.2, 0.2)).header
    assert header.spacing_mm == (0.2, 0.2)
    assert header.spacing_note == "x.mha states a pixel spacing of 0.3 x 0.3 mm, but 0.2 x 0.2 mm was given and is used"
    assert open_stack(path, spacing_mm=(0.3, 0.3)).header.spacing_note is None
