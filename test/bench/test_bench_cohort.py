"""What `bench/cohort.py` and `bench/nodes.py` hold a run against whose workers died."""

import argparse
import json

import pytest

from acouslic.errors import AcouslicError
from bench.cohort import measure_speed
from bench.setting.cohort_run import compare_results


def write_run(root, cases):
    """A folder of results: the frame of each case."""
    root.mkdir()
    for case, frame in cases.items():
        masks = root / case / "images/fetal-abdomen-segmentation"
        masks.mkdir(parents=True)
        (masks / "output.mha").write_text(f"mask of frame {frame}")
        (root / case / "fetal-abdomen-frame-number.json").write_text(str(frame))
        row = {"case": case, "frame_number": frame, "seconds": len(root.name) / 7}
        (root / case / "case.json").write_text(json.dumps({"row": row}))
    (root / "results.csv").write_text("".join(f"{name},\n" for name in ("case", *sorted(cases))))
    return root


@pytest.mark.parametrize(
    ("disturb", "fault"),
    [
        (lambda _: None, None),
        (lambda out: (out / "results.csv").write_text("case,\na,\na,\nb,\n"), "lists 3 cases, 2 of them different"),
        (lambda out: (out / "b/fetal-abdomen-frame-number.json").unlink(), "b: None, but undisturbed"),
        (lambda out: (out / "b/images/fetal-abdomen-segmentation/output.mha").write_text("other"), "b: another mask"),
        (lambda out: (out / ".b.part").mkdir(), "left behind: .b.part"),
    ],
)
def test_what_is_lost_twice_or_different_is_found(disturb, fault, tmp_path):
    """A case that is listed twice, missing, or another than undisturbed, and what a dead worker left; times differ."""
    undisturbed = write_run(tmp_path / "undisturbed", {"a": 3, "b": 5})
    output = write_run(tmp_path / "out", {"a": 3, "b": 5})
    disturb(output)
    found = compare_results(output, undisturbed)
    assert bool(found) == bool(fault)
    assert not fault or fault in found[0]


def test_two_cores_are_not_compared_with_one_where_there_is_one(tmp_path, monkeypatch):
    """Both workers would share it, and the ratio would say that a second one gains nothing."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3})
    with pytest.raises(AcouslicError, match="only one may be used here"):
        measure_speed(tmp_path, argparse.Namespace())
