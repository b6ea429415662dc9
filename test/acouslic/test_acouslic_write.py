"""Writing results: the mask stack as others read it, all or nothing on failure, and the check afterwards."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from acouslic.errors import AcouslicError
from acouslic.sockets import FRAME_NUMBER_FILE, SEGMENTATION_FILE
from acouslic.stack import StackHeader, read_stack
from acouslic.write import check_outputs, check_writable, write_bytes, write_json, write_mask_stack

MASK = np.zeros((20, 30), dtype=bool)
MASK[5:15, 8:25] = True
HEADER = StackHeader(
    Path("in.mha"), 12, 20, 30, "MET_UCHAR", spacing_mm=(0.25, 0.3), spacing_note=None, frame_spacing=1.5
)


def _outputs(folder: Path, frame_index: int | None = 7, mask: np.ndarray = MASK) -> Path:
    """Both sockets of a case, as a run writes them."""
    frame_number = -1 if frame_index is None else frame_index
    write_mask_stack(folder / SEGMENTATION_FILE, mask, frame_index, 12, (0.25, 0.3), 1.5)
    write_json(folder / FRAME_NUMBER_FILE, frame_number)
    return folder


@pytest.mark.parametrize("frames", [1, 2, 12])
@pytest.mark.parametrize("place", ["first", "middle", "last", None])
def test_mask_stack_is_read_alike_by_simpleitk_and_by_us(tmp_path: Path, frames: int, place: str | None) -> None:
    """uint8, the mask in its frame and zeros elsewhere, the spacing to the last digit; read by both decoders."""
    frame_index = None if place is None else {"first": 0, "middle": frames // 2, "last": frames - 1}[place]
    mask = np.zeros_like(MASK) if place is None else MASK
    expected = np.zeros((frames, 20, 30), dtype=np.uint8)
    expected[frame_index or 0] = mask
    path = tmp_path / "output.mha"

    write_mask_stack(path, mask, frame_index, frames, (0.1 + 0.2, 1 / 3), 1.5)

    image = SimpleITK.ReadImage(str(path))
    assert image.GetPixelID() == SimpleITK.sitkUInt8
    assert image.GetSpacing() == (1 / 3, 0.1 + 0.2, 1.5)
    assert np.array_equal(SimpleITK.GetArrayFromImage(image), expected)
    assert np.array_equal(read_stack(path).frames, expected)


def test_header_has_the_keys_that_simpleitk_writes(tmp_path: Path) -> None:
    """The same keys in the same order, and the same values but for the compressed size."""
    write_mask_stack(tmp_path / "ours.mha", MASK, 3, 12, (0.25, 0.5), 1.5)
    image = SimpleITK.GetImageFromArray(read_stack(tmp_path / "ours.mha").frames)
    image.SetSpacing((0.5, 0.25, 1.5))
    SimpleITK.WriteImage(image, str(tmp_path / "theirs.mha"), True)

    ours, theirs = (
        (tmp_path / name).read_bytes().split(b"LOCAL\n")[0].decode().splitlines() for name in ("ours.mha", "theirs.mha")
    )

    assert [line for line in ours if "DataSize" not in line] == [line for line in theirs if "DataSize" not in line]
    assert len(ours) == len(theirs)


def test_whole_case_is_written_small(tmp_path: Path) -> None:
    """840 x 562 x 744: less than half a mebibyte, and the mask where it belongs."""
    mask = np.zeros((562, 744), dtype=np.uint8)
    mask[200:400, 300:500] = 255
    path = tmp_path / "output.mha"

    write_mask_stack(path, mask, 839, 840, (0.28, 0.28))

    assert path.stat().st_size < 2**19
    view = SimpleITK.GetArrayViewFromImage(image := SimpleITK.ReadImage(str(path)))
    assert image.GetSize() == (744, 562, 840)
    assert view[839].sum() == 200 * 200
    assert view.sum(dtype=np.int64) == 200 * 200


def test_platform_importer_reads_exactly_one_image(tmp_path: Path) -> None:
    """panimg, the platform's own importer, makes one image with our values of the segmentation folder."""
    from panimg import convert

    folder = _outputs(tmp_path / "output") / "images/fetal-abdomen-segmentation"

    result = convert(input_directory=folder, output_directory=tmp_path / "imported")

    assert not result.file_errors
    (image,) = result.new_images
    (file,) = result.new_image_files
    assert (image.width, image.height, image.depth) == (30, 20, 12)
    assert (image.voxel_width_mm, image.voxel_height_mm) == (0.3, 0.25)
    assert image.segments == {0, 1}
    imported = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file.file)))
    assert np.array_equal(imported[7], MASK)
    assert imported.sum() == MASK.sum()


@pytest.mark.parametrize("frame_index", [-1, 12])
def test_frame_outside_the_stack_is_a_programming_error(tmp_path: Path, frame_index: int) -> None:
    """A frame must lie in the stack; a mask without a frame must be empty."""
    with pytest.raises(ValueError, match="does not fit"):
        write_mask_stack(tmp_path / "x.mha", MASK, frame_index, 12, (1, 1))
    with pytest.raises(ValueError, match="needs a frame"):
        write_mask_stack(tmp_path / "x.mha", MASK, None, 12, (1, 1))


def test_a_path_that_is_not_utf_8_is_read_back_from_json(tmp_path: Path) -> None:
    """As a cache's in the record of a run, which is written when hours of training are over."""
    name = os.fsdecode(b"cache_\xff")
    write_json(tmp_path / "run.json", {"cache": name, "note": "\u00b15 %"})
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8")) == {"cache": name, "note": "\u00b15 %"}


def test_json_is_strict_and_readable(tmp_path: Path) -> None:
    """A bare integer is a bare integer, letters stay letters, and NaN is refused before anything is written."""
    write_json(tmp_path / "a.json", 54)
    write_json(tmp_path / "b.json", {"note": "±5 %"})

    assert (tmp_path / "a.json").read_text() == "54\n"
    assert "±" in (tmp_path / "b.json").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "c.json", float("nan"))
    assert not (tmp_path / "c.json").exists()


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that turns out full at the last moment: one sentence, the old content, no temporary file."""
    path = tmp_path / "x.json"
    write_json(path, "old")

    def full(_: int) -> None:
        assert [item.name for item in tmp_path.iterdir()] != ["x.json"]
        assert path.read_text() == '"old"\n'
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AcouslicError, match=r"x\.json could not be written: No space left on device"):
        write_json(path, "new")

    assert [item.name for item in tmp_path.iterdir()] == ["x.json"]
    assert path.read_text() == '"old"\n'


def test_a_file_that_two_write_at_once_is_whole_all_the_same(tmp_path: Path) -> None:
    """As the table of two runs into one folder: nobody fails, whoever reads meanwhile finds all of one of them, and
    nothing is left beside it."""
    path, contents = tmp_path / "results.csv", [letter * 300_000 for letter in (b"a", b"b")]
    write_bytes(path, contents[0])

    def write_often(content: bytes) -> None:
        for _ in range(25):
            write_bytes(path, content)

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write_often, content) for content in contents]
        while not all(writer.done() for writer in writers):
            assert path.read_bytes() in contents
    assert [writer.result() for writer in writers] == [None, None]
    assert [item.name for item in tmp_path.iterdir()] == ["results.csv"]


def test_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends the program while it writes, the temporary file goes and the reason is passed on."""

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_json(tmp_path / "x.json", 1)

    assert not list(tmp_path.iterdir())


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB of which nothing is free. Only root can mount one; the next test needs no root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mount.returncode != 0:
        pytest.skip(f"a small tmpfs could not be mounted: {mount.stderr.decode().strip()}")
    try:
        with pytest.raises(OSError, match="No space"):
            (folder / "filler").write_bytes(bytes(2**20))
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_is_one_sentence_and_no_file(full_disk: Path) -> None:
    """On a disk that is really full neither the mask nor the number leaves anything behind."""
    with pytest.raises(AcouslicError, match=r"output\.mha could not be written: No space left on device"):
        write_mask_stack(full_disk / "output.mha", MASK, 3, 12, (0.28, 0.28))
    with pytest.raises(AcouslicError, match="No space left on device"):
        write_json(full_disk / "number.json", 3)

    assert [item.name for item in full_disk.iterdir()] == ["filler"]


def test_file_too_large_for_its_process_is_one_sentence_and_no_file(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk where nothing can be mounted."""
    code = (
        "import resource, sys; from pathlib import Path; from acouslic.errors import AcouslicError\n"
        "from acouslic.write import write_bytes\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    write_bytes(Path(sys.argv[1]), bytes(100_000))\n"
        "except AcouslicError as error:\n    sys.exit(str(error))\n"
    )
    root = Path(__file__).resolve().parents[2]

    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.bin")], cwd=root, capture_output=True, text=True, check=False
    )

    assert run.returncode == 1
    assert "x.bin could not be written: File too large" in run.stderr
    assert not list(tmp_path.iterdir())


def test_unwritable_folder_is_one_sentence(tmp_path: Path) -> None:
    """A folder that cannot be made, because its name is a file's, and one that takes no files even from root."""
    (tmp_path / "taken").touch()

    for path in (tmp_path / "taken" / "x.json", Path("/proc/x.json")):
        with pytest.raises(AcouslicError, match=r"x\.json could not be written"):
            write_bytes(path, b"1")


def test_a_folder_is_tried_by_many_at_once(tmp_path: Path) -> None:
    """The parts of a cohort begin together in one folder: none takes the other's trial away, and nothing is left."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(check_writable, [tmp_path / "new" / "results"] * 2000))
    assert not list((tmp_path / "new" / "results").iterdir())
    with pytest.raises(AcouslicError, match=r"/proc/x could not be written: No such file"):
        check_writable(Path("/proc/x"))


@pytest.mark.parametrize("frame_index", [0, 7, 11, None])
def test_outputs_as_written_pass_their_check(tmp_path: Path, frame_index: int | None) -> None:
    """What a run writes is accepted, the case without a frame included."""
    mask = np.zeros_like(MASK) if frame_index is None else MASK

    check_outputs(_outputs(tmp_path, frame_index, mask), HEADER)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0), (0.01, 0.01), (5.0, 5.0), (0.3, 2.5)])
def test_a_spacing_that_no_file_is_believed_passes_the_check(tmp_path: Path, spacing_mm: tuple[float, float]) -> None:
    """`--spacing-mm` may give what is taken for unknown in a file: the check compares what the mask itself states."""
    header = dataclasses.replace(HEADER, spacing_mm=spacing_mm)
    write_mask_stack(tmp_path / SEGMENTATION_FILE, MASK, 7, 12, spacing_mm, 1.5)
    write_json(tmp_path / FRAME_NUMBER_FILE, 7)

    check_outputs(tmp_path, header)
    # Both read as 0.28 mm.
    write_mask_stack(tmp_path / SEGMENTATION_FILE, MASK, 7, 12, (4.0, 4.0), 1.5)
    with pytest.raises(AcouslicError, match=r"after writing, got \(4\.0, 4\.0, 1\.5\)"):
        check_outputs(tmp_path, header)


@pytest.mark.parametrize("frame_number", [12, -2, 7.0, True, None, "7"])
def test_frame_number_out_of_range_fails_the_check(tmp_path: Path, frame_number: object) -> None:
    """Anything but a whole number in -1..11 is found."""
    _outputs(tmp_path)
    (tmp_path / FRAME_NUMBER_FILE).write_text(json.dumps(frame_number))

    with pytest.raises(AcouslicError, match=r"expected a frame number in -1\.\.11"):
        check_outputs(tmp_path, HEADER)


@pytest.mark.parametrize("name", [FRAME_NUMBER_FILE, SEGMENTATION_FILE])
def test_missing_output_fails_the_check(tmp_path: Path, name: str) -> None:
    """Each of the two files must be there."""
    _outputs(tmp_path)
    (tmp_path / name).unlink()

    with pytest.raises(AcouslicError):
        check_outputs(tmp_path, HEADER)


def test_second_file_beside_the_mask_fails_the_check(tmp_path: Path) -> None:
    """The platform would import it as a second image, hidden or not."""
    (_outputs(tmp_path) / SEGMENTATION_FILE).with_name(".left.mha").touch()

    with pytest.raises(AcouslicError, match="alone"):
        check_outputs(tmp_path, HEADER)


def test_mask_of_wrong_content_fails_the_check(tmp_path: Path) -> None:
    """A value of 2, a mask in another frame, another type, shape or spacing, and damage are each found."""
    path = _outputs(tmp_path) / SEGMENTATION_FILE
    stack = np.zeros((12, 20, 30), dtype=np.uint8)

    def message(frames: np.ndarray, spacing: tuple[float, float, float] = (0.3, 0.25, 1.5)) -> str:
        image = SimpleITK.GetImageFromArray(frames)
        image.SetSpacing(spacing)
        SimpleITK.WriteImage(image, str(path), True)
        with pytest.raises(AcouslicError) as caught:
            check_outputs(tmp_path, HEADER)
        return str(caught.value)

    stack[7, 3, 3] = 2
    assert "unexpected value 2 in frame 7" in message(stack)
    stack[7, 3, 3], stack[8, 3, 3] = 1, 1
    assert "unexpected value 1 in frame 8" in message(stack)
    stack[8] = 0
    assert "got MET_SHORT" in message(stack.astype(np.int16))
    assert "expected MET_UCHAR of (12, 20, 30) after writing" in message(stack[:11])
    assert "expected spacing (0.25, 0.3, 1.5)" in message(stack, (0.3, 0.25, 1.0))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(AcouslicError, match="truncated"):
        check_outputs(tmp_path, HEADER)
