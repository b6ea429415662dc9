"""The index of the reference: made once, of annotated frames only, and used for no other stack."""

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from acouslic.errors import AcouslicError
from acouslic.release import CaseCircumferences, write_circumferences
from evaluation import pack
from evaluation.__main__ import main
from evaluation.inputs import ground_truth
from evaluation.inputs.ground_truth import find_official, find_release, read_truth


@pytest.fixture
def release(challenge: Any, tmp_path: Path) -> Path:
    """A raw release of two cases without images."""
    rows = []
    for case, subject in (("uuid-b", "s2"), ("uuid-a", "s1")):
        stack = challenge.stack({50: challenge.disc(), 141: 2 * challenge.disc(25, 18).astype(np.uint8)})
        challenge.write_image(tmp_path / "raw/masks/stacked_fetal_abdomen" / f"{case}.mha", stack)
        rows.append(CaseCircumferences(case, subject, (101.5, None, None, 303.25, None, None)))
    (tmp_path / "raw/circumferences").mkdir()
    write_circumferences(tmp_path / "raw/circumferences/fetal_abdominal_circumferences_per_sweep.csv", rows)
    return tmp_path / "raw"


def test_truth_of_a_stack(release: Path, challenge: Any) -> None:
    """Labels of all frames, masks of the annotated ones, circumferences, subject, size and spacing."""
    truth = read_truth(find_release(release)["uuid-a"])
    assert (truth.case, truth.subject_id, truth.sweep_ac_mm) == (
        "uuid-a",
        "s1",
        (101.5, None, None, 303.25, None, None),
    )
    assert (truth.frames, truth.rows, truth.columns) == (challenge.frames, challenge.rows, challenge.columns)
    assert truth.spacing_mm == pytest.approx((0.28, 0.28))
    assert dict(enumerate(truth.frame_labels)) == dict.fromkeys(range(challenge.frames), 0) | {50: 1, 141: 2}
    assert np.array_equal(truth.mask(50), challenge.disc())
    assert np.array_equal(truth.mask(141), challenge.disc(25, 18))
    assert not truth.mask(51).any()
    assert not truth.mask(-1).any()
    assert np.array_equal(truth.mask(141 - challenge.frames), challenge.disc(25, 18))
    assert truth.annotated_sweeps() == (True, False)
    with pytest.raises(IndexError):
        truth.mask(challenge.frames)


def test_a_frame_with_both_labels_is_optimal(challenge: Any) -> None:
    """Any pixel of label 1 makes a frame optimal; its mask holds both labels."""
    challenge.add_truth("a", {})
    both = challenge.disc(20, 20, (5, 5)).astype(np.uint8) + 2 * challenge.disc(40, 20, (5, 5)).astype(np.uint8)
    path = challenge.ground_truth_dir / "a/fetal_abdomen_stacked_masks/a.mha"
    challenge.write_image(path, challenge.stack({7: both}))
    truth = read_truth(find_official(challenge.ground_truth_dir)["a"])
    assert truth.frame_labels[7] == 1
    assert np.array_equal(truth.mask(7), both > 0)


def test_a_reference_with_another_label_is_refused(challenge: Any) -> None:
    """3 is no label."""
    challenge.add_truth("a", {7: 3})
    with pytest.raises(AcouslicError, match="frame 7 holds a label other than 0, 1 and 2"):
        read_truth(find_official(challenge.ground_truth_dir)["a"])


def test_the_index_is_made_once(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a cache folder a stack is decoded the first time only, and again when the file's content is another."""
    decoded: list[Path] = []
    build = ground_truth.build_index
    monkeypatch.setattr(
        ground_truth, "build_index", lambda path, digest: (decoded.append(path), build(path, digest))[1]
    )
    source, cache = find_release(release)["uuid-a"], tmp_path / "cache"
    first, second = read_truth(source, cache), read_truth(source, cache)
    assert len(decoded) == 1
    for name in ("frame_labels", "annotated_frames", "packed_masks"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    assert (first.rows, first.columns, first.spacing_mm) == (second.rows, second.columns, second.spacing_mm)
    source.mask_path.write_bytes((release / "masks/stacked_fetal_abdomen/uuid-b.mha").read_bytes())
    read_truth(source, cache)
    assert len(decoded) == 1, "the same content, so the same index"
    text = source.mask_path.read_bytes().replace(b"0.28", b"0.29")
    source.mask_path.write_bytes(text)
    assert read_truth(source, cache).spacing_mm == pytest.approx((0.29, 0.29))
    assert len(decoded) == 2


def test_pixels_beside_a_label_stack_are_part_of_it(release: Path, tmp_path: Path) -> None:
    """A stack whose pixels lie in a file of their own: where those change, no index of before is used, and they are
    packed too."""
    for case in ("uuid-a", "uuid-b"):
        path = release / "masks/stacked_fetal_abdomen" / f"{case}.mha"
        stack = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path))
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(stack), path.with_suffix(".mhd"))
        path.with_suffix(".mhd").rename(path)
    source, cache = find_release(release)["uuid-a"], tmp_path / "cache"
    assert read_truth(source, cache).frame_labels.any()
    pixels = source.mask_path.with_suffix(".raw")
    pixels.write_bytes(bytes(pixels.stat().st_size))
    assert not read_truth(source, cache).frame_labels.any()
    pack.pack(find_release(release), tmp_path / "packed.tar.gz")
    with tarfile.open(tmp_path / "packed.tar.gz") as archive:
        archive.extractall(tmp_path / "phase", filter="data")
    assert not read_truth(find_official(tmp_path / "phase")["uuid-a"]).frame_labels.any()


def encrypted(index: bytes) -> bytes:
    """The index, one flipped bit of which says that a member is encrypted."""
    place = index.index(b"PK\x01\x02") + 8
    return index[:place] + b"\x01" + index[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda _: b"PK\x03\x04 nothing",
        lambda index: index[:-30],
        lambda index: index.replace(b"spacing_mm", b"spacing_nm"),
        encrypted,
    ],
)
def test_a_damaged_index_is_made_anew(release: Path, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """An empty, a broken and a cut-off index are replaced, and one with a flipped bit."""
    source, cache = find_release(release)["uuid-a"], tmp_path / "cache"
    expected = read_truth(source, cache)
    (path,) = cache.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert np.array_equal(read_truth(source, cache).packed_masks, expected.packed_masks)
    (path,) = cache.iterdir()
    assert path.stat().st_size > 100


def test_pack_is_deterministic_and_official(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same bytes twice, whatever the clock and the names around; the official layout; every member ours to read."""
    archives = [tmp_path / "one" / "ground_truth.tar.gz", tmp_path / "two.tar.gz"]
    for archive in archives:
        assert main(["pack", "--raw", str(release), "--out", str(archive)]) == 0
        for path in release.rglob("*"):
            path.touch()
    assert archives[0].read_bytes() == archives[1].read_bytes()
    assert archives[0].read_bytes()[3:8] == bytes(5), "gzip's header would hold a name and a time"
    assert "2 cases" in capsys.readouterr().out
    with tarfile.open(archives[0]) as archive:
        members = archive.getmembers()
        archive.extractall(tmp_path / "extracted", filter="data")
    names = [member.name for member in members]
    assert names == [
        "ground_truth",
        *(
            f"ground_truth/{case}{name}".format(case)
            for case in ("uuid-a", "uuid-b")
            for name in (
                "",
                "/fetal_abdominal_circumference.json",
                "/fetal_abdomen_stacked_masks",
                f"/fetal_abdomen_stacked_masks/{case}.mha",
                "/frame_index.npz",
            )
        ),
        "ground_truth/subjects.json",
    ]
    assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(0, 0, 0, "")}


def test_what_was_packed_reads_as_the_release(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Extracted, it gives the same truth, subjects included, and from its index: no stack is decoded again."""
    expected = {case: read_truth(source) for case, source in find_release(release).items()}
    pack.pack(find_release(release), tmp_path / "packed.tar.gz")
    with tarfile.open(tmp_path / "packed.tar.gz") as archive:
        archive.extractall(tmp_path / "phase", filter="data")
    monkeypatch.setattr(ground_truth, "build_index", lambda *_: pytest.fail("the index that was packed is not used"))
    sources = find_official(tmp_path / "phase")
    assert list(sources) == list(expected)
    for case, source in sources.items():
        truth = read_truth(source)
        assert (truth.subject_id, truth.sweep_ac_mm) == (expected[case].subject_id, expected[case].sweep_ac_mm)
        assert np.array_equal(truth.packed_masks, expected[case].packed_masks)
        assert np.array_equal(truth.frame_labels, expected[case].frame_labels)


def test_a_packed_index_of_another_stack_is_not_used(release: Path, tmp_path: Path) -> None:
    """Who exchanges the label stack and forgets the index gets the stack's truth."""
    pack.pack(find_release(release), tmp_path / "packed.tar.gz")
    with tarfile.open(tmp_path / "packed.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    source = find_official(tmp_path)["uuid-a"]
    source.mask_path.write_bytes(source.mask_path.read_bytes().replace(b"0.28", b"0.31"))
    assert read_truth(source).spacing_mm == pytest.approx((0.31, 0.31))


def test_pack_leaves_nothing_where_it_fails(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged mask ends it with one sentence, and no archive or half of one is left."""
    mask = release / "masks/stacked_fetal_abdomen/uuid-b.mha"
    mask.write_bytes(mask.read_bytes()[:-5])
    out = tmp_path / "out"
    assert main(["pack", "--raw", str(release), "--out", str(out / "ground_truth.tar.gz")]) == 1
    assert "uuid-b.mha" in capsys.readouterr().err
    assert not list(out.iterdir())


def test_pack_does_not_begin_where_a_folder_is_in_the_way(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The archive's name is looked at before hundreds of stacks are."""
    assert main(["pack", "--raw", str(release), "--out", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "is a folder: name the archive to write" in said.err
    assert said.out == ""


@pytest.mark.parametrize("missing", ["masks/stacked_fetal_abdomen/uuid-a.mha", "circumferences"])
def test_an_incomplete_release(release: Path, missing: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A missing mask or table is named."""
    path = release / missing
    path.rename(tmp_path / "gone")
    assert main(["pack", "--raw", str(release), "--out", str(tmp_path / "x.tar.gz")]) == 1
    assert capsys.readouterr().err.count("is missing") == 1
