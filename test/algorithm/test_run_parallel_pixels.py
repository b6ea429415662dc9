"""Pixels inflated on several cores: the same as on one, and the same sentences for what is damaged."""

import contextlib
import gzip
import subprocess
import sys
import zlib

import numpy as np
import pytest

from acouslic.errors import AcouslicError
from acouslic.stack import open_stack, read_stack
from acouslic.write import write_mask_stack
from algorithm.frames import parallel_pixels
from algorithm.frames.frame_stream import FrameStream
from algorithm.frames.parallel_pixels import open_pixels_on_several_cores

SHAPE = (64, 300, 400)
FRAMES = np.random.default_rng(0).rayleigh(30, SHAPE).clip(0, 255).astype(np.uint8)
COMPRESSED = zlib.compress(FRAMES.tobytes(), 2)


@pytest.fixture(autouse=True)
def on_two_threads(monkeypatch):
    """On any machine, for a file of 5 MB."""
    monkeypatch.setattr(parallel_pixels, "LEAST_CORES", 1)
    monkeypatch.setattr(parallel_pixels, "MOST_THREADS", 2)
    monkeypatch.setattr(parallel_pixels, "LEAST_STORED_BYTES", 1 << 20)


@pytest.fixture
def stumbles(monkeypatch):
    """How often the strict decoder had to take over."""
    counted = []
    original = parallel_pixels._ParallelPixels._leave_to_strict
    monkeypatch.setattr(
        parallel_pixels._ParallelPixels, "_leave_to_strict", lambda self: (counted.append(1), original(self))[1]
    )
    return counted


def written(path, stored):
    """A compressed stack with these stored bytes."""
    frames, rows, columns = SHAPE
    fields = {
        "ObjectType": "Image",
        "NDims": 3,
        "CompressedData": True,
        "CompressedDataSize": len(stored),
        "ElementSpacing": "0.3 0.3 1",
        "DimSize": f"{columns} {rows} {frames}",
        "ElementType": "MET_UCHAR",
        "ElementDataFile": "LOCAL",
    }
    path.write_bytes("".join(f"{key} = {value}\n" for key, value in fields.items()).encode() + stored)
    return path


def decoded(path, chunk_frames=16):
    """All frames, decoded on several cores."""
    reader = open_stack(path, opener=open_pixels_on_several_cores)
    return np.concatenate([frames for _, frames in reader.iter_own_chunks(chunk_frames)])


@pytest.mark.parametrize("chunk_frames", [1, 16, 64])
def test_the_same_pixels(tmp_path, stumbles, chunk_frames):
    """Every frame as on one core, without its help."""
    assert np.array_equal(decoded(written(tmp_path / "a.mha", COMPRESSED), chunk_frames), FRAMES)
    assert not stumbles


def test_it_is_what_the_algorithm_reads_with(tmp_path, stumbles, monkeypatch):
    """A stream of frames is decoded by it."""
    opened = []
    original = parallel_pixels._ParallelPixels.__init__
    monkeypatch.setattr(
        parallel_pixels._ParallelPixels, "__init__", lambda self, *words: (opened.append(1), original(self, *words))[1]
    )
    with contextlib.closing(FrameStream(written(tmp_path / "a.mha", COMPRESSED))) as stream:
        assert np.array_equal(np.concatenate([frames for _, frames in stream.chunks()]), FRAMES)
    assert opened
    assert not stumbles


def test_closing_early_ends_its_threads(tmp_path):
    """Whoever stops reading is not held up."""
    stream = FrameStream(written(tmp_path / "a.mha", COMPRESSED))
    next(stream.chunks())
    stream.close()
    assert not stream._thread.is_alive()


def test_an_exit_without_closing_is_clean(tmp_path, repository):
    """Whoever forgets to close: the interpreter ends without an abort, whatever the threads are doing."""
    path = written(tmp_path / "a.mha", COMPRESSED)
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from algorithm.frames import frame_stream, parallel_pixels\n"
        "parallel_pixels.LEAST_CORES = parallel_pixels.LEAST_STORED_BYTES = 1\n"
        "frame_stream.MAX_AHEAD_BYTES = 1\n"
        "next(frame_stream.FrameStream(Path(sys.argv[1])).chunks())\n"
    )
    command = [sys.executable, "-c", program, str(path)]
    ended = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("wrapper", ["gzip", "raw", "small", "few cores", "limited"])
def test_other_files_are_left_to_one_core(tmp_path, monkeypatch, wrapper):
    """What is no zlib stream, is small, or finds few cores or a limited address space never meets it."""
    monkeypatch.setattr(parallel_pixels, "_ParallelPixels", None)
    path = tmp_path / "a.mha"
    if wrapper == "raw":
        written(path, FRAMES.tobytes())
        path.write_bytes(
            path.read_bytes().replace(b"CompressedData = True\n", b"").replace(b"CompressedDataSize", b"X")
        )
    else:
        written(path, gzip.compress(FRAMES.tobytes(), 2) if wrapper == "gzip" else COMPRESSED)
    if wrapper == "small":
        monkeypatch.setattr(parallel_pixels, "LEAST_STORED_BYTES", 1 << 30)
    if wrapper == "limited":
        monkeypatch.setattr("resource.getrlimit", lambda _: (8 << 30, 8 << 30))
    if wrapper == "few cores":
        monkeypatch.setattr(parallel_pixels, "LEAST_CORES", 10_000)
    assert np.array_equal(decoded(path), FRAMES)


def test_a_mask_of_zeros(tmp_path, monkeypatch):
    """A stream of few bytes that inflates a thousandfold."""
    monkeypatch.setattr(parallel_pixels, "LEAST_STORED_BYTES", 1)
    path = tmp_path / "mask.mha"
    write_mask_stack(path, np.ones(SHAPE[1:], dtype=bool), 3, SHAPE[0], (0.3, 0.3))
    assert np.array_equal(decoded(path), read_stack(path).frames)


MIDDLE = len(COMPRESSED) // 2
DAMAGE = {
    "cut off": COMPRESSED[:MIDDLE],
    "without its checksum": COMPRESSED[:-4],
    "wrong checksum": COMPRESSED[:-1] + bytes([COMPRESSED[-1] ^ 1]),
    "a bit turned": COMPRESSED[:MIDDLE] + bytes([COMPRESSED[MIDDLE] ^ 16]) + COMPRESSED[MIDDLE + 1 :],
    "noise inside": COMPRESSED[:MIDDLE] + bytes(range(256)) * 4096 + COMPRESSED[MIDDLE + (1 << 20) :],
    "something follows": COMPRESSED + b"more",
    "a second stream follows": COMPRESSED + COMPRESSED[:100_000],
    "too long": zlib.compress(FRAMES.tobytes() + b"\0", 2),
    "too short": zlib.compress(FRAMES.tobytes()[:-1], 2),
}


@pytest.mark.parametrize("stored", DAMAGE.values(), ids=DAMAGE)
def test_damage_has_the_sentence_of_one_core(tmp_path, stumbles, stored):
    """Whatever is wrong, on however many cores: the same words."""
    path = written(tmp_path / "a.mha", stored)
    with pytest.raises(AcouslicError) as expected:
        read_stack(path)
    with pytest.raises(AcouslicError) as found:
        decoded(path)
    assert str(found.value) == str(expected.value)
    assert stumbles


def gives_up_after_two(monkeypatch, after_each=lambda _: None):
    """Let the parallel decoder stop at its third read; `after_each` gets what each read before that has filled."""
    original, left = parallel_pixels._ParallelPixels._read, [2]

    def read(self, destination):
        left[0] -= 1
        if left[0] < 0:
            self._stumbled = True
            return 0
        filled = original(self, destination)
        after_each(destination)
        return filled

    monkeypatch.setattr(parallel_pixels._ParallelPixels, "_read", read)


def test_a_file_that_changes_meanwhile(tmp_path, monkeypatch):
    """Where the strict decoder finds other pixels than those that are out already, the file is to blame."""

    def spoil(pixels):
        pixels[0] ^= 1

    gives_up_after_two(monkeypatch, spoil)
    with pytest.raises(AcouslicError, match=r"a\.mha was changed while it was read"):
        decoded(written(tmp_path / "a.mha", COMPRESSED))


def test_a_decoder_that_gives_up_on_a_good_file(tmp_path, stumbles, monkeypatch):
    """The strict decoder goes on where the other one stopped."""
    gives_up_after_two(monkeypatch)
    assert np.array_equal(decoded(written(tmp_path / "a.mha", COMPRESSED)), FRAMES)
    assert stumbles == [1]
