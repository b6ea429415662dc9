"""What strangers' text may do in a table, a message and a log: nothing."""

import csv
import io
import sys

import pytest

from acouslic.printable import one_line, printable, printable_lines
from acouslic.streams import UnfailingFile, set_up_streams
from acouslic.table import csv_text, plain_cell


@pytest.mark.parametrize("text", ["=1+1", "+49 30", "-x", "@SUM(A1)", "'=1", "'", "=\x1b"])
def test_text_is_no_formula_and_comes_back(text):
    """What a spreadsheet would calculate is led by an apostrophe, and `plain_cell` gives the text back."""
    ((cell,),) = csv.reader(io.StringIO(csv_text([[text]]), newline=""))
    assert cell.startswith("'")
    assert plain_cell(cell) == printable(text)


@pytest.mark.parametrize("text", ["case 1", "", "3-4", "a=b", "Fötus"])
def test_other_text_stays(text):
    """Nothing is added to what no spreadsheet calculates."""
    assert csv_text([["x", text]]) == f"x,{text}\n"
    assert plain_cell(text) == text


def test_numbers_stay_numbers():
    """Negative ones too; None is empty, truth in small letters."""
    assert csv_text([[-1, -0.5, None, True, False, "a,b"]]) == '-1,-0.5,,true,false,"a,b"\n'


def test_control_characters_are_escaped_in_a_cell():
    """A line end in a note starts no row, an escape sequence colours no terminal, a tab hides no formula."""
    assert csv_text([["a\nb\x1b[2J", "\t=1", "\r=1"]]) == "a\\nb\\x1b[2J,\\t=1,\\r=1\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [("Fötus №1", "Fötus №1"), ("\x1b]0;x\x07", "\\x1b]0;x\\x07"), ("\x9b", "\\x9b"), ("\u202e", "\\u202e")],
)
def test_what_is_printable_stays_and_the_rest_is_escaped(text, shown):
    """Both kinds of control characters, and those that turn the direction of writing."""
    assert printable(text) == shown


def test_a_line_is_cut_and_lines_stay_lines():
    """A long message ends in dots; a traceback keeps its line ends and nothing else."""
    assert one_line("x" * 5000, 100) == "x" * 97 + "..."
    assert printable_lines("a\nb\r\x1bc") == "a\nb\\r\\x1bc"


def test_a_full_device_takes_everything():
    """Nothing is raised, whatever is written."""
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123 - a device, by its descriptor
        assert UnfailingFile(full.fileno()).write(b"lost") == 4


def test_streams_of_others_are_kept(capsys):
    """A stream that a test has put in place of the process's own stays, and setting up twice changes nothing."""
    before = sys.stdout
    set_up_streams()
    set_up_streams()
    assert sys.stdout is before
    print("Fötus")
    assert capsys.readouterr().out == "Fötus\n"
