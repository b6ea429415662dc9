"""The evaluation's words where the streams are of an old kind, or take nothing."""

import csv
import os
import subprocess
import sys

import pytest

from evaluation.outputs import per_case_csv


def run_evaluation(challenge, repository, **keywords):
    """The container's run with streams in ASCII; exit code and stderr."""
    variables = os.environ | challenge.environment() | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(repository)}
    ended = subprocess.run(
        [sys.executable, "-m", "evaluation"], env=variables, stderr=subprocess.PIPE, check=False, **keywords
    )
    return ended.returncode, ended.stderr.decode("utf-8").splitlines()


def test_a_name_that_is_not_ascii_is_told(challenge, repository):
    """The case is named in UTF-8, whatever the locale, instead of a traceback."""
    challenge.add_truth("Fötus №1", {3: 1})
    challenge.add_job("Fötus №2", 3)
    challenge.save()
    code, errors = run_evaluation(challenge, repository, stdout=subprocess.PIPE)
    assert code == 1
    assert len(errors) == 1
    assert "Fötus №" in errors[0]


def test_the_reason_survives_a_full_stdout(challenge, repository):
    """And nothing else is said."""
    challenge.save()
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
        code, errors = run_evaluation(challenge, repository, stdout=full)
    assert code == 1
    assert len(errors) == 1
    assert "Traceback" not in errors[0]


@pytest.mark.parametrize("case", ["=1+1", "@x", "-3", "+4", "plain"])
def test_a_case_is_no_formula(case, make_case_result):
    """A spreadsheet shows the name; numbers beside it stay numbers."""
    header, row = csv.reader(per_case_csv([make_case_result(case)]).splitlines())
    assert row[0] == (case if case == "plain" else f"'{case}")
    assert row[header.index("frame_number")] == "-1"
