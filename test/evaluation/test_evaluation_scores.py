"""The reader of a stranger's frame-quality-scores.json."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acouslic.errors import AcouslicError
from evaluation.inputs.frame_scores import LIMIT_BYTES, read_frame_scores

FRAMES = 4


def document(**changes: Any) -> dict[str, Any]:
    value: dict[str, Any] = {
        "schema_version": 1,
        "frames": FRAMES,
        "thresholds": {"presence": 0.5, "optimality": 0.25},
        "presence_probability": [0, 0.5, 1, 0.75],
        "optimality_probability": [0.0, 1.0, 0.5, 0.25],
        "refined_frames": [[1, 2]],
        "sweeps": [],
    }
    return value | changes


def write(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "frame-quality-scores.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(AcouslicError) as error:
        read_frame_scores(path, FRAMES, "case-7")
    message = str(error.value)
    assert message.startswith("case case-7: ")
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))
    return message


def test_a_good_file_gives_its_numbers(tmp_path: Path) -> None:
    """Both lists come back as float64, with the submission's own thresholds; integers 0 and 1 are probabilities."""
    scores = read_frame_scores(write(tmp_path, document()), FRAMES, "case-7")
    assert scores.presence_probability.dtype == np.float64
    assert scores.presence_probability.tolist() == [0.0, 0.5, 1.0, 0.75]
    assert scores.optimality_probability is not None
    assert scores.optimality_probability.tolist() == [0.0, 1.0, 0.5, 0.25]
    assert (scores.presence_threshold, scores.optimality_threshold) == (0.5, 0.25)


@pytest.mark.parametrize("thresholds", [{"presence": 0.5}, {"presence": 0.5, "optimality": None}])
def test_optimality_may_be_null_and_then_needs_no_threshold(tmp_path: Path, thresholds: dict[str, Any]) -> None:
    """A submission without optimal-plane scores says null."""
    path = write(tmp_path, document(optimality_probability=None, thresholds=thresholds))
    scores = read_frame_scores(path, FRAMES, "case-7")
    assert scores.optimality_probability is None
    assert scores.optimality_threshold is None


BAD_FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "too short": ({"presence_probability": [0.5] * 3}, "presence_probability must have one number a frame, 4, got 3"),
    "too long": ({"optimality_probability": [0.5] * 5}, "optimality_probability must have one number a frame, 4"),
    "empty": ({"presence_probability": []}, "got 0"),
    "above one": ({"presence_probability": [0, 0, 0, 1.0000001]}, "presence_probability[3] must be a number in 0..1"),
    "negative": ({"optimality_probability": [-1e-9, 0, 0, 0]}, "optimality_probability[0] must be a number in 0..1"),
    "true": ({"presence_probability": [0, True, 0, 0]}, "presence_probability[1] must be a number in 0..1, got True"),
    "text": ({"presence_probability": [0, 0, "0.5", 0]}, "got '0.5'"),
    "null inside": ({"presence_probability": [0, 0, None, 0]}, "presence_probability[2]"),
    "list inside": ({"presence_probability": [0, [0.5], 0, 0]}, "presence_probability[1]"),
    "object for list": ({"presence_probability": {"0": 0.5}}, "must be a list of 4 numbers"),
    "null presence": ({"presence_probability": None}, "must be a list of 4 numbers"),
    "other frames": ({"frames": 840}, "frames must be 4"),
    "float frames": ({"frames": 4.0}, "frames must be 4"),
    "true version": ({"schema_version": True}, "schema_version must be 1"),
    "version 2": ({"schema_version": 2}, "schema_version must be 1, got 2"),
    "no presence threshold": ({"thresholds": {"optimality": 0.5}}, "the field presence is missing"),
    "no optimality threshold": ({"thresholds": {"presence": 0.5}}, "the field optimality is missing"),
    "threshold out of range": ({"thresholds": {"presence": 2, "optimality": 0.5}}, "thresholds.presence must be"),
    "threshold list": ({"thresholds": [0.5, 0.5]}, "thresholds must be an object"),
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_a_wrong_field_is_refused_by_name(tmp_path: Path, name: str) -> None:
    """One sentence names the case, the field and what was found."""
    changes, expected = BAD_FIELDS[name]
    assert expected in refusal(write(tmp_path, document(**changes)))


@pytest.mark.parametrize(
    "field", ["schema_version", "frames", "thresholds", "presence_probability", "optimality_probability"]
)
def test_a_missing_field_is_refused(tmp_path: Path, field: str) -> None:
    """No field that is read has a default."""
    value = document()
    del value[field]
    assert f"the field {field} is missing" in refusal(write(tmp_path, value))


BAD_TEXTS: dict[str, tuple[str | bytes, str]] = {
    "NaN": (json.dumps(document()).replace("0.75", "NaN"), "NaN"),
    "Infinity": (json.dumps(document()).replace("0.75", "Infinity"), "Infinity"),
    "minus Infinity": (json.dumps(document()).replace("0.75", "-Infinity"), "-Infinity"),
    "overflowing float": (json.dumps(document()).replace("0.75", "1e999"), "too large"),
    "huge integer": (json.dumps(document()).replace("0.75", "9" * 1_000_000), "1000000 digits"),
    "twice the same key": ('{"schema_version": 1, "schema_version": 1}', "twice"),
    "twice the same inner key": (json.dumps(document()).replace('"optimality": ', '"presence": '), "twice"),
    "nested lists": ("[" * 500_000, "nested too deeply"),
    "nested objects": ('{"a":' * 300_000, "nested too deeply"),
    "closed nesting": ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
    "list": ("[]", "expected an object"),
    "null": ("null", "expected an object"),
    "nothing": ("", "not JSON"),
    "cut off": (json.dumps(document())[:-20], "not JSON"),
    "two values": (json.dumps(document()) * 2, "not JSON"),
    "UTF-16": (json.dumps(document()).encode("utf-16"), "not UTF-8"),
    "binary": (b"\x89PNG\r\n\x1a\n\xff\xfe", "not UTF-8"),
    "null bytes": (b"\0" * 100, "not JSON"),
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_what_is_not_strict_json_is_refused(tmp_path: Path, name: str) -> None:
    """What Python's parser would let through, crash on or take minutes for is one sentence."""
    content, expected = BAD_TEXTS[name]
    assert expected in refusal(write(tmp_path, content))


def test_a_text_with_line_breaks_and_controls_stays_one_plain_line(tmp_path: Path) -> None:
    """Strangers' text is shown escaped and cut, so that it can neither forge a log line nor fill the screen."""
    hostile = "\x1b[31m\nERROR: all well\u202e" + "x" * 10_000
    message = refusal(write(tmp_path, document(presence_probability=[0, hostile, 0, 0])))
    assert message.isascii()
    assert "\x1b" not in message


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    """A sparse gigabyte costs neither time nor memory."""
    path = tmp_path / "frame-quality-scores.json"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    assert f"{LIMIT_BYTES:,}" in refusal(path)


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    """A folder, a pipe nobody writes to, an endless device, a missing file."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe, Path("/dev/zero"), tmp_path / "missing", tmp_path / "null\0byte"):
        refusal(path)
