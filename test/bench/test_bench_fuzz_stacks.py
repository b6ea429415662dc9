"""The fuzz of the stack readers, on few files; the command runs thousands."""

from pathlib import Path

from bench.fuzz_stacks import fuzz, good_files, verdicts


def test_damaged_stacks_are_refused_where_the_libraries_refuse_them(tmp_path: Path) -> None:
    """No fault in 60 files, of which some are accepted and some refused."""
    faults, counts = fuzz(60, 7, tmp_path)

    assert faults == []
    assert counts["ours accepted"] > 0
    assert counts["ours refused"] > counts["refused by the libraries"] * 0.9 > 10


def test_verdicts_go_on_after_a_reader_that_died(tmp_path: Path) -> None:
    """A file that ends SimpleITK's process is one verdict, the next file has its own."""
    good = good_files(tmp_path)[0][0]
    deadly = tmp_path / "x.mhd"
    deadly.write_text("NDims = 3\nDimSize = 3 2 2\nElementType = MET_UCHAR\nElementDataFile = f%02d.raw 1 2\n")
    for number in (1, 2):
        (tmp_path / f"f{number:02d}.raw").write_bytes(bytes(6))

    assert verdicts([deadly, good], "simpleitk") == ["died", "accepted"]
