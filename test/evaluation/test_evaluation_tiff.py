"""A submitted mask that is a TIFF: its directories are checked before any of its pixels is decoded."""

import io
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from acouslic.errors import AcouslicError
from acouslic.reading.tiff import open_tiff
from evaluation.inputs.case_truth import CaseTruth
from evaluation.inputs.masks import read_predicted_mask

FRAMES, ROWS, COLUMNS = 6, 20, 30
MASK = np.pad(np.ones((8, 12), np.uint8), ((6, 6), (9, 9)))


def tiff(frames: int = FRAMES, **options: Any) -> bytes:
    """A stack whose frame 3 shows the mask."""
    stack = np.zeros((frames, ROWS, COLUMNS), np.uint8)
    stack[min(3, frames - 1)] = MASK
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, stack, photometric="minisblack", metadata=None, **options)
    return buffer.getvalue()


def first_directory(content: bytes) -> tuple[int, int]:
    """(its offset, the offset of the pointer to the next one) in a little-endian classic TIFF."""
    start = struct.unpack_from("<I", content, 4)[0]
    return start, start + 2 + 12 * struct.unpack_from("<H", content, start)[0]


@pytest.fixture
def truth() -> CaseTruth:
    """A case without annotation."""
    return CaseTruth(
        case="case",
        subject_id=None,
        frame_labels=np.zeros(FRAMES, np.uint8),
        sweep_ac_mm=(None,) * 6,
        rows=ROWS,
        columns=COLUMNS,
        spacing_mm=(0.28, 0.28),
        annotated_frames=np.zeros(0, np.int64),
        packed_masks=np.zeros((0, ROWS, 4), np.uint8),
    )


@pytest.mark.parametrize("options", [{}, {"bigtiff": True}, {"byteorder": ">"}, {"compression": "zlib"}])
def test_pages_of_every_form(tmp_path: Path, truth: CaseTruth, options: dict[str, Any]) -> None:
    """Classic and 64-bit, both byte orders: the pages' sizes, and the mask of the chosen one."""
    path = tmp_path / "mask.tif"
    path.write_bytes(tiff(**options))
    header = open_tiff(path, FRAMES).header
    assert (header.frames, header.rows, header.columns) == (FRAMES, ROWS, COLUMNS)
    assert np.array_equal(read_predicted_mask(path, truth, 3), MASK == 1)
    assert not read_predicted_mask(path, truth, 2).any()


def test_a_mask_in_colour(tmp_path: Path, truth: CaseTruth) -> None:
    """Also one whose channels are equal: a mask has one."""
    path = tmp_path / "mask.tif"
    stack = np.repeat(np.zeros((FRAMES, ROWS, COLUMNS, 1), np.uint8), 3, axis=-1)
    tifffile.imwrite(path, stack, photometric="rgb", metadata=None)
    with pytest.raises(AcouslicError, match="is stored in colour; expected one grey channel"):
        read_predicted_mask(path, truth, 3)


def test_a_chain_in_a_circle(tmp_path: Path, truth: CaseTruth) -> None:
    """A page that names itself as its next would keep a library busy for ever."""
    content = bytearray(tiff())
    start, pointer = first_directory(content)
    struct.pack_into("<I", content, pointer, start)
    path = tmp_path / "mask.tif"
    path.write_bytes(content)
    with pytest.raises(AcouslicError, match=r"case case: the mask cannot be read: .*in a circle"):
        read_predicted_mask(path, truth, 3)


@pytest.mark.parametrize("frames", [2, 5, 7, 500])
def test_other_numbers_of_pages(tmp_path: Path, truth: CaseTruth, frames: int) -> None:
    """As many pages as the case has frames, or one."""
    path = tmp_path / "mask.tif"
    path.write_bytes(tiff(frames))
    with pytest.raises(AcouslicError, match=r"case case: the mask"):
        read_predicted_mask(path, truth, 1)
    assert open_tiff(path, frames).header.frames == frames
    with pytest.raises(AcouslicError, match="more than 1 pages"):
        open_tiff(path, 1)


def test_a_later_page_of_another_size(tmp_path: Path, truth: CaseTruth) -> None:
    """A huge page behind a good one is found before it is decoded."""
    content = bytearray(tiff())
    second = struct.unpack_from("<I", content, first_directory(content)[1])[0]
    for place in range(second + 2, second + 2 + 12 * struct.unpack_from("<H", content, second)[0], 12):
        if struct.unpack_from("<H", content, place)[0] in (256, 257):
            struct.pack_into("<HII", content, place + 2, 4, 1, 60_000)
    path = tmp_path / "mask.tif"
    path.write_bytes(content)
    with pytest.raises(AcouslicError, match="20 x 30 as the first, got 60000 x 60000 in frame 1"):
        read_predicted_mask(path, truth, 3)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"II*",
        b"XX*\0\x08\0\0\0",
        b"II+\0\x08\0\0\0" + b"\xff" * 8,
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff",
        b"II*\0\x08\0\0\0\0\0\0\0\0\0",
        b"II*\0\0\0\0\0",
    ],
)
def test_damaged_directories(tmp_path: Path, truth: CaseTruth, content: bytes) -> None:
    """Cut off, too many tags, no tags, offsets beyond the end, no page at all."""
    path = tmp_path / "mask.tif"
    path.write_bytes(content)
    with pytest.raises(AcouslicError, match="case case: the mask"):
        read_predicted_mask(path, truth, 3)


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}])
def test_mutated_tiffs(tmp_path: Path, truth: CaseTruth, options: dict[str, Any]) -> None:
    """300 mutations of directories and pixels: refused or read, no crash, no hang."""
    rng, good = random.Random(20260716), tiff(**options)
    path = tmp_path / "mask.tif"
    refused = 0
    for _ in range(150):
        content = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content[: rng.randrange(len(content))] if rng.random() < 0.1 else content)
        try:
            assert read_predicted_mask(path, truth, 3).shape == (ROWS, COLUMNS)
        except AcouslicError:
            refused += 1
    assert 30 < refused < 150
