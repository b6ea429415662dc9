"""A watched folder: each complete new file once, whatever happens to the watcher."""

import errno
import http.server
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from acouslic.errors import AcouslicError, ShortageError
from acouslic.interrupts import Interrupts
from acouslic.sockets import FRAME_NUMBER_FILE
from algorithm import watch
from algorithm.__main__ import _settings_of, main
from algorithm.arguments import make_parser
from algorithm.case_list import sweep_of_file
from algorithm.health import check_server, is_server_here
from algorithm.predict import PredictSettings
from algorithm.process.messages import JsonFormatter, log_line
from algorithm.result.record import Maker, recorded_row, write_record
from algorithm.result.source import source_of
from algorithm.result.table import ResultRow
from algorithm.watch import check_heartbeat


class Watcher:
    """A real `python -m algorithm watch`."""

    def __init__(self, root, model, repository):
        self.incoming, self.output = root / "incoming", root / "results"
        self.incoming.mkdir(exist_ok=True)
        self.errors = root / "stderr.txt"
        command = [sys.executable, "-m", "algorithm", "watch", str(self.incoming), str(self.output)]
        command += ["--model", str(model), "--every", "0.1", "--settled", "1", "--log-format", "json"]
        with self.errors.open("ab") as errors, (root / "stdout.txt").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=repository, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=errors
            )

    def wait_for(self, *cases):
        """Until the table lists exactly these cases."""
        deadline = time.monotonic() + 240
        rows = []
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.errors.read_text()
            table = self.output / "results.csv"
            rows = [line.split(",")[0] for line in table.read_text().splitlines()[1:]] if table.is_file() else []
            if sorted(rows) == sorted(cases):
                return
            time.sleep(0.1)
        raise AssertionError(f"the table lists {rows}, not {cases}")

    def stop(self, number=signal.SIGTERM):
        """Its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


def test_each_complete_file_is_analysed_once(platform_case, speckle, tiny_model, repository, tmp_path):
    """A file that still grows waits; a damaged one is told once; a killed watcher and one that is started again do
    nothing twice; a file that is mended is analysed; SIGTERM ends it with 0."""
    good = {
        name: shutil.move(platform_case.write_sweep(speckle(seed=seed)), tmp_path / f"{name}.mha")
        for seed, name in enumerate("abc")
    }
    first = Watcher(tmp_path, tiny_model, repository)
    shutil.copy(good["a"], first.incoming / "a.mha")
    (first.incoming / "damaged.mha").write_bytes(good["b"].read_bytes()[:-100])
    growing = (first.incoming / "growing.mha").open("wb")
    content = good["c"].read_bytes()
    ended = threading.Event()

    def grow():
        for start in range(0, len(content), len(content) // 8 + 1):
            growing.write(content[start : start + len(content) // 8 + 1])
            growing.flush()
            time.sleep(0.4)
        growing.close()
        ended.set()

    threading.Thread(target=grow).start()
    first.wait_for("a", "damaged", "growing")
    assert ended.is_set()
    check_heartbeat(first.output, 60)
    assert sorted(item.name for item in first.output.iterdir() if item.is_dir()) == [".failed", "a", "growing"]
    assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    made_at = (first.output / "a" / "case.json").stat().st_mtime_ns

    second = Watcher(tmp_path, tiny_model, repository)
    shutil.copy(good["b"], second.incoming / "b.mha")
    second.wait_for("a", "b", "damaged", "growing")
    shutil.copy(good["b"], second.incoming / "damaged.mha")
    deadline = time.monotonic() + 120
    while not (second.output / "damaged" / "case.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert second.stop() == 0
    assert (second.output / "a" / "case.json").stat().st_mtime_ns == made_at
    assert [line.split(":")[0] for line in second.errors.read_text().splitlines()] == ["damaged"]
    records = [json.loads(line) for line in (tmp_path / "stdout.txt").read_text().splitlines()]
    said = [record["message"].split(":")[0] for record in records if record["logger"] == "algorithm.watch"]
    assert [name for name in said if name in ("a", "b", "damaged", "growing")] in (
        ["a", "growing", "b", "damaged"],
        ["a", "growing", "damaged", "b"],
    )


def test_records_are_not_read_again_unless_a_file_has_changed(platform_case, speckle, tmp_path, monkeypatch):
    """A folder of thousands of cases that are done costs a look at their files a pass, not a reading of their
    records; a stack that is written anew, and a result that is taken away, are seen."""
    settings = PredictSettings(output_dir=tmp_path / "out", model_dir=tmp_path)
    maker = Maker("0", "m", "x", {})
    stacks = tmp_path / "stacks"
    stacks.mkdir()
    for name in "ab":
        stack = platform_case.write_sweep(speckle(4)).rename(stacks / f"{name}.mha")
        case_dir = settings.output_dir / name
        case_dir.mkdir(parents=True)
        (case_dir / FRAME_NUMBER_FILE).write_text("3")
        write_record(case_dir, source_of(stack), maker, ResultRow(name))
    read = []

    def counted(case_dir, *rest):
        read.append(case_dir.name)
        return recorded_row(case_dir, *rest)

    monkeypatch.setattr("algorithm.watch.recorded_row", counted)
    watcher = watch._Watcher(stacks, settings, maker, None, None)
    assert [list(watcher._new(0.0)) for _ in range(3)] == [[], [], []]
    assert sorted(read) == ["a", "b"]
    os.utime(stacks / "a.mha", (1, 1))
    (settings.output_dir / "b" / FRAME_NUMBER_FILE).unlink()
    assert [sweep.case for sweep in watcher._new(0.0)] == ["a", "b"]
    assert sorted(read) == ["a", "a", "b", "b"]


def test_a_file_without_a_case_is_told_once_it_is_complete(
    platform_case, speckle, write_ultrasound, tmp_path, monkeypatch, capsys
):
    """A DICOM file whose header is still being written is no fault, and its header is read once when it is there; one
    that stays damaged is told once. A stack whose results would be in the way of the table is never analysed."""
    settings = PredictSettings(output_dir=tmp_path / "out", model_dir=tmp_path)
    stacks = tmp_path / "stacks"
    stacks.mkdir()
    write_ultrasound(tmp_path / "whole.dcm", 4)
    content = (tmp_path / "whole.dcm").read_bytes()
    dicom = stacks / "a.dcm"
    dicom.write_bytes(content[:300])
    watcher = watch._Watcher(stacks, settings, Maker("0", "m", "x", {}), None, None)
    assert list(watcher._new(60.0)) == []
    assert capsys.readouterr().err == ""
    assert [list(watcher._new(0.0)) for _ in range(2)] == [[], []]
    assert capsys.readouterr().err.count("a.dcm") == 1

    dicom.write_bytes(content)
    read = []

    def counted(path):
        read.append(path)
        return sweep_of_file(path)

    monkeypatch.setattr("algorithm.watch.sweep_of_file", counted)
    assert [[sweep.path for sweep in watcher._new(0.0)] for _ in range(2)] == [[dicom], [dicom]]
    assert read == [dicom]

    platform_case.write_sweep(speckle(4)).rename(stacks / "results.csv.mha")
    assert [sweep.path for sweep in watcher._new(0.0)] == [dicom]
    assert "the case name 'results.csv', which no folder can have" in capsys.readouterr().err


def test_dicom_of_any_name_is_taken_and_what_is_left_is_told_once(
    write_ultrasound, platform_case, speckle, tmp_path, capsys
):
    """Scanners write `IM0001`. Folders, stills, lists and other files are told once each when they rest; not the pixels
    beside a header, the results themselves, and a file that is hidden. A folder may be called as a patient. A FIFO is
    not waited for."""
    stacks = tmp_path / "stacks"
    settings = PredictSettings(output_dir=stacks / "out", model_dir=tmp_path)
    for folder in ("out", "study", "out/a"):
        (stacks / folder).mkdir(parents=True, exist_ok=True)
    platform_case.write_sweep(speckle(4)).rename(stacks / "a.mha")
    write_ultrasound(stacks / "IM0001", 4)
    write_ultrasound(stacks / "DICOMDIR", 4)
    (stacks / "m.mhd").write_text(HEADER)
    for name in ("m.raw", "still.png", "list.csv", ".hidden"):
        (stacks / name).touch()
    os.mkfifo(stacks / "pipe")
    watcher = watch._Watcher(stacks, settings, Maker("0", "m", "x", {}), None, None)
    assert [sweep.path.name for sweep in watcher._new(60.0)] == []
    assert capsys.readouterr().err == ""
    for _ in range(2):
        assert [sweep.path.name for sweep in watcher._new(0.0)] == ["IM0001", "a.mha", "m.mhd"]
        (stacks / "study" / "more").touch()
    told = [line.split(" is not analysed: ")[0] for line in capsys.readouterr().err.splitlines()]
    assert told == [
        *(str(stacks / name) for name in ("DICOMDIR", "list.csv", "pipe", "still.png")),
        f"a folder in {stacks}",
    ]

    settings = PredictSettings(output_dir=stacks, model_dir=tmp_path)
    for name in ("results.csv", "out/case.json", "study/case.json"):
        (stacks / name).touch()
    watcher = watch._Watcher(stacks, settings, Maker("0", "m", "x", {}), None, None)
    list(watcher._new(0.0))
    told = [line.split(" is not analysed: ")[0] for line in capsys.readouterr().err.splitlines()]
    assert told == [str(stacks / name) for name in ("DICOMDIR", "list.csv", "pipe", "still.png")]


def test_a_watched_folder_that_vanishes_ends_the_watcher(watcher, tmp_path):
    """As when a mount drops: one sentence that says what to do."""
    first = watcher()
    assert list(first._new(0.0)) == []
    (tmp_path / "stacks").rmdir()
    with pytest.raises(AcouslicError, match=r"stacks could not be read: .*\): mount it or make it again, and start"):
        list(first._new(0.0))


def test_copies_of_a_dicom_file_are_told_without_their_names(write_ultrasound, watcher, tmp_path, capsys):
    """They may be a patient's; one of the copies is analysed."""
    looking = watcher()
    write_ultrasound(tmp_path / "stacks" / "DOE_JANE.dcm", 4)
    shutil.copy(tmp_path / "stacks" / "DOE_JANE.dcm", tmp_path / "stacks" / "DOE_JANE_copy.dcm")
    (sweep,), (again,) = looking._new(0.0), looking._new(0.0)
    assert sweep == again
    sentence = f"{tmp_path / 'stacks'} holds several files that are DICOM {sweep.case}: keep one of them\n"
    assert capsys.readouterr().err == sentence


class ReadingPipeline:
    """Stands in for the pipeline: reads a stack to its end, calls `meanwhile`, and finds nothing to say of it."""

    def __init__(self, meanwhile=lambda: None):
        self.meanwhile = meanwhile

    def run_stream(self, stream, *_, **__):
        try:
            for _ in stream.chunks():
                pass
        finally:
            self.meanwhile()
        raise AcouslicError("the stack was read to its end")


@pytest.fixture
def watcher(tmp_path):
    """`watcher(pipeline)`: one of `stacks`, into `out`, that knows only what the results there say."""
    (tmp_path / "stacks").mkdir()
    settings = PredictSettings(output_dir=tmp_path / "out", model_dir=tmp_path)
    maker = Maker("0", "m", "x", {})

    def make(pipeline=None):
        return watch._Watcher(tmp_path / "stacks", settings, maker, pipeline or ReadingPipeline(), Interrupts())

    return make


def analysed(watcher):
    """The cases that a look finds new, each analysed, with what came of it."""
    found = [sweep.case for sweep in watcher._new(5.0) if watcher._analyse(sweep) is None]
    errors = {row.case: row.error for row in watcher._table.rows}
    return {case: errors[case] for case in found}


def settle(*paths):
    """As if nobody had written to these files for a while."""
    for path in paths:
        os.utime(path, (time.time() - 100,) * 2)


HEADER = """NDims = 3
DimSize = 60 40 4
ElementType = MET_UCHAR
ElementDataFile = m.raw
"""


def test_a_header_may_come_before_its_pixels(watcher, tmp_path):
    """A `.mhd` whose pixels are missing fails, and is analysed when they are there, by the same watcher and by one that
    is started again; so it is when other pixels take their place, and while they are written it waits."""
    header, pixels = tmp_path / "stacks" / "m.mhd", tmp_path / "stacks" / "m.raw"
    header.write_text(HEADER)
    settle(header)
    first = watcher()
    assert "could not be read" in analysed(first)["m"]
    assert [analysed(first), analysed(watcher())] == [{}, {}]
    pixels.write_bytes(bytes(60 * 40 * 4))
    assert analysed(first) == {}
    settle(pixels)
    assert [sweep.case for sweep in watcher()._new(5.0)] == ["m"]
    assert analysed(first) == {"m": "the stack was read to its end"}
    pixels.write_bytes(b"\1" * (60 * 40 * 4))
    os.utime(pixels, (time.time() - 50,) * 2)
    assert [sweep.case for sweep in watcher()._new(5.0)] == ["m"]
    assert list(analysed(first)) == ["m"]
    assert [analysed(first), analysed(watcher())] == [{}, {}]


def test_a_file_that_is_completed_while_it_is_analysed_is_analysed_again(watcher, platform_case, speckle, tmp_path):
    """What was read is not what lies there now: the record is of the file as it was when it was opened."""
    whole = platform_case.write_sweep(speckle(4)).read_bytes()
    stack = tmp_path / "stacks" / "a.mha"
    stack.write_bytes(whole[:-100])
    settle(stack)

    def complete():
        if stack.read_bytes() != whole:
            stack.write_bytes(whole)
            settle(stack)

    first = watcher(ReadingPipeline(complete))
    assert "truncated" in analysed(first)["a"]
    assert analysed(first) == {"a": "the stack was read to its end"}
    assert [analysed(first), analysed(watcher())] == [{}, {}]


def test_a_file_that_is_removed_while_it_is_analysed_ends_nothing(watcher, platform_case, speckle, tmp_path, capsys):
    """The watcher goes on and says so; nothing is kept of a failure that cannot come again."""
    stack = platform_case.write_sweep(speckle(4)).rename(tmp_path / "stacks" / "a.mha")
    settle(stack)
    first = watcher(ReadingPipeline(stack.unlink))
    assert list(analysed(first)) == ["a"]
    assert "a: its file was removed while it was analysed" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("case.json"))
    assert analysed(first) == {}


def _denied():
    """What a reader makes of a file that may not be read: to give permission changes no file."""
    denied = AcouslicError("in/a.mha could not be read: Permission denied")
    denied.__context__ = PermissionError(errno.EACCES, "Permission denied")
    return denied


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        OSError(errno.EMFILE, "Too many open files"),
        ShortageError("out/a could not be written: No space left on device"),
        _denied(),
    ],
)
def test_what_the_machine_lacks_is_no_failure_of_the_file(
    error, watcher, platform_case, speckle, tmp_path, monkeypatch, capsys
):
    """Nothing is recorded: a watcher that is started again tries at once, the same one after a while."""
    stack = platform_case.write_sweep(speckle(4)).rename(tmp_path / "stacks" / "a.mha")
    settle(stack)

    def fail():
        raise error

    first = watcher(ReadingPipeline(fail))
    assert list(analysed(first)) == ["a"]
    assert "a: failed: " in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("case.json"))
    assert analysed(first) == {}
    assert [sweep.case for sweep in watcher()._new(5.0)] == ["a"]
    monkeypatch.setattr(watch, "RETRY_S", 0.0)
    second = watcher(ReadingPipeline(fail))
    assert [list(analysed(second)) for _ in range(2)] == [["a"], ["a"]]


def test_a_signal_that_became_another_error_is_no_failure_of_the_file(watcher, platform_case, speckle, tmp_path):
    """C code that an interrupt meets may raise what it likes: the watcher ends, and nothing is recorded."""
    stack = platform_case.write_sweep(speckle(4)).rename(tmp_path / "stacks" / "a.mha")
    settle(stack)

    def interrupted():
        first._interrupts.number = signal.SIGTERM
        raise RuntimeError("a callback has failed")

    first = watcher(ReadingPipeline(interrupted))
    with pytest.raises(KeyboardInterrupt):
        analysed(first)
    assert not list((tmp_path / "out").rglob("case.json"))
    assert not (tmp_path / "out" / "results.csv").exists()


def test_a_link_that_leads_nowhere_ends_no_watcher(watcher, platform_case, speckle, tmp_path):
    """Neither as a stack nor beside one: a name too long, a link to itself. The stack beside it is analysed."""
    stack = platform_case.write_sweep(speckle(4)).rename(tmp_path / "stacks" / "a.mha")
    settle(stack)
    for name, target in (("b.mha", "n" * 300), ("a.txt", "n" * 300), ("a.lock", "a.lock")):
        (tmp_path / "stacks" / name).symlink_to(target)
    assert list(analysed(watcher())) == ["a"]


def test_a_restart_keeps_the_rows_of_stacks_that_have_left_the_folder(watcher, platform_case, speckle, tmp_path):
    """Whoever empties the folder that stacks come into has the results still, and their rows: the table of the next
    watcher has them too, before and after it finds something new. What is half there is no result."""
    maker, output = Maker("earlier", "m", "x", {}), tmp_path / "out"
    for name in ("gone", "half", ".hidden"):
        (output / name).mkdir(parents=True)
        write_record(output / name, source_of(tmp_path / "gone.mha"), maker, ResultRow("gone", circumference_mm=250.0))
    (output / "gone" / FRAME_NUMBER_FILE).write_text("3")
    (output / ".hidden" / FRAME_NUMBER_FILE).write_text("3")
    (output / "results.csv").write_text("case\ngone\n")

    def rows():
        return [line.split(",")[0] for line in (output / "results.csv").read_text().splitlines()[1:]]

    started = watcher()
    started.begin()
    assert rows() == ["gone"]
    settle(platform_case.write_sweep(speckle(4)).rename(tmp_path / "stacks" / "new.mha"))
    assert list(analysed(started)) == ["new"]
    assert rows() == ["gone", "new"]


def test_a_restart_keeps_the_rows_of_failures_whose_stacks_have_left(watcher, tmp_path):
    """With the reason; one that somebody else has done since has the row of its result."""
    maker, output = Maker("earlier", "m", "x", {}), tmp_path / "out"
    for case in ("b", "done"):
        write_record(output / ".failed" / case, {}, maker, ResultRow(case, error="is cut off"))
    write_record(output / "done", {}, maker, ResultRow("done", circumference_mm=250.0))
    (output / "done" / FRAME_NUMBER_FILE).write_text("3")
    watcher().begin()
    table = (output / "results.csv").read_text().splitlines()[1:]
    assert [(line.split(",")[0], line.endswith(",is cut off")) for line in table] == [("b", True), ("done", False)]


def test_a_long_look_renews_the_sign_of_life(watcher, platform_case, speckle, tmp_path, monkeypatch):
    """With very many files on a slow disk one look takes minutes; `health` must not call it dead."""
    (tmp_path / "out").mkdir()
    for name in "ab":
        shutil.copy(platform_case.write_sweep(speckle(4)), tmp_path / "stacks" / f"{name}.mha")
    clock = [1000.0]
    monkeypatch.setattr(watch, "time", SimpleNamespace(time=time.time, monotonic=lambda: clock[0]))
    first = watcher()
    first._beat()
    for _ in first._new(0.0):
        check_heartbeat(tmp_path / "out", 60)
        os.utime(tmp_path / "out" / ".watching", (0, 0))
        clock[0] += 100


def test_a_full_disk_ends_no_watcher(watcher, platform_case, speckle, tmp_path, monkeypatch, capsys):
    """Neither the record of a failure nor the table can be written: it is told, and done when there is room."""
    stack = platform_case.write_sweep(speckle(4)).rename(tmp_path / "stacks" / "a.mha")
    settle(stack)
    first = watcher()
    with monkeypatch.context() as full:
        for name in ("algorithm.result.record.write_json", "algorithm.result.table.write_text"):
            full.setattr(name, lambda path, _: (_ for _ in ()).throw(ShortageError(f"{path.name}: no space left")))
        assert list(analysed(first)) == ["a"]
        assert [list(first._new(5.0)) for _ in range(3)] == [[], [], []]
    said = capsys.readouterr().err
    assert (said.count("case.json: no space left"), said.count("results.csv: no space left")) == (1, 1)
    assert list(first._new(5.0)) == []
    assert "the stack was read to its end" in (tmp_path / "out" / "results.csv").read_text()
    assert [sweep.case for sweep in watcher()._new(5.0)] == ["a"]


def test_a_file_from_the_future_is_analysed_when_it_rests(watcher, platform_case, speckle, tmp_path, monkeypatch):
    """Its clock is ahead: it is complete when it has not changed between looks for long enough."""
    stack = platform_case.write_sweep(speckle(4)).rename(tmp_path / "stacks" / "a.mha")
    os.utime(stack, (time.time() + 3600,) * 2)
    clock = [1000.0]
    monkeypatch.setattr(watch, "time", SimpleNamespace(time=time.time, monotonic=lambda: clock[0]))
    first = watcher()
    found = []
    for _ in range(4):
        found.append([sweep.case for sweep in first._new(5.0)])
        clock[0] += 3
        if len(found) == 1:
            os.utime(stack, (time.time() + 7200,) * 2)
    assert found == [[], [], [], ["a"]]


def test_a_refused_file_is_told_again_when_it_is_another_one(watcher, platform_case, speckle, tmp_path, capsys):
    """Two files of one case name: the second is refused once, and so is the next that comes under its name."""
    for name in ("a.mha", "a.mhd"):
        shutil.copy(platform_case.write_sweep(speckle(4)), tmp_path / "stacks" / name)
    first = watcher()
    for modified_s in (1000, 2000):
        os.utime(tmp_path / "stacks" / "a.mhd", (modified_s,) * 2)
        for _ in range(2):
            list(first._new(5.0))
        assert capsys.readouterr().err.count("a.mhd is not analysed") == 1


def test_an_output_folder_that_is_removed_ends_the_watcher(watcher, tmp_path):
    """In one sentence: a folder made again may lie beneath the disk that is missing."""
    (tmp_path / "out").mkdir()
    first = watcher()
    first._beat()
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(AcouslicError, match="out was removed while the watcher ran"):
        first._beat()
    first._beat_meanwhile(0.5)
    assert not (tmp_path / "out").exists()


def test_a_watcher_is_told_what_predict_is_told(tmp_path):
    """Pixel size, DICOM results and pages: what holds for every case is asked for alike."""
    words = ["--spacing-mm", "0.5", "--dicom", "--no-page", "--verbose", "--device", "cpu", "--batch-frames", "3"]
    watched = _settings_of(make_parser().parse_args(["watch", "in", "out", *words]), tmp_path)
    predicted = _settings_of(make_parser().parse_args(["predict", "in", "--output", "out", *words]), tmp_path)
    assert watched == predicted
    assert (watched.spacing_mm, watched.dicom, watched.page, watched.verbose) == (0.5, True, False, True)


def test_a_watcher_that_is_silent_is_not_alive(tmp_path):
    """No heartbeat, an old one, and one of the future, which a watcher that has died would have for ever."""
    with pytest.raises(AcouslicError, match="no watcher has written there"):
        check_heartbeat(tmp_path, 60)
    (tmp_path / ".watching").touch()
    check_heartbeat(tmp_path, 60)
    os.utime(tmp_path / ".watching", (0, time.time() - 100))
    with pytest.raises(AcouslicError, match="100 s old"):
        check_heartbeat(tmp_path, 60)
    os.utime(tmp_path / ".watching", (0, time.time() + 3600))
    with pytest.raises(AcouslicError, match=r"3\d\d\d s ahead, which is no sign of life"):
        check_heartbeat(tmp_path, 60)


def test_health_asks_the_server():
    """200 is well; another status and no server are not, and the sentence says which."""
    answers = [200, 503]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(answers.pop(0))
            self.end_headers()
            self.wfile.write(b"the model is being loaded")

        def log_message(self, *_):
            """Nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        check_server(server.server_port)
        with pytest.raises(AcouslicError, match="answers 503: the model is being loaded"):
            check_server(server.server_port)
        server.shutdown()
        thread.join()
    with pytest.raises(AcouslicError, match="nothing answers on port"):
        check_server(server.server_port)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python3 -m algorithm serve --port 80", True),
        ("/opt/python -P -m acouslic_cli serve", True),
        ("/opt/bin/python3 /opt/bin/acouslic serve --port 80", True),
        ("/opt/bin/python3 -P acouslic serve", True),
        ("/opt/bin/python3 /opt/bin/acouslic predict /data/acouslic serve", False),
        ("/opt/bin/python3 /opt/bin/acouslic", False),
        ("python3 -m algorithm predict serve --output x", False),
        ("python3 -m algorithm health", False),
    ],
)
def test_a_server_is_known_by_its_command(command, expected, tmp_path):
    """A container that runs `predict` holds no server, and is not called unwell for that."""
    for number, words in (("1", "sh -c true"), ("7", command), ("self", "python3 -m algorithm serve")):
        (tmp_path / number).mkdir()
        (tmp_path / number / "cmdline").write_bytes(words.replace(" ", "\0").encode() + b"\0")
    assert is_server_here(tmp_path) is expected


def test_no_server_is_well_only_where_that_is_asked(monkeypatch, capsys):
    """`health --if-serving` beside no server: 0; `health`: 1 and a sentence; beside one that does not answer: 1."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    monkeypatch.setattr("algorithm.health.is_server_here", lambda: False)
    assert main(["health", "--port", port, "--if-serving"]) == 0
    assert main(["health", "--port", port]) == 1
    monkeypatch.setattr("algorithm.health.is_server_here", lambda: True)
    assert main(["health", "--port", port, "--if-serving"]) == 1
    assert capsys.readouterr().err.count("nothing answers on port") == 2


def test_a_log_of_json_lines():
    """Each record is one object of plain ASCII; the timings of a case lend their fields."""
    formatter = JsonFormatter()

    def lines(message):
        text = formatter.format(logging.LogRecord("algorithm.x", logging.INFO, __file__, 1, message, (), None))
        assert text.isascii()
        assert text.isprintable()
        return json.loads(text)

    assert lines("a\x1b[31m\nb\x9b\x7f")["message"] == "a\x1b[31m\nb\x9b\x7f"
    done = lines('{"event": "case done", "frames": 24}')
    assert (done["event"], done["frames"], done["level"], done["logger"]) == ("case done", 24, "INFO", "algorithm.x")
    assert done["time"].endswith("+00:00")


def test_a_line_beside_the_log_has_its_format(monkeypatch):
    """What a signal handler writes by itself is an object too, where the log is made of objects."""
    handler = logging.StreamHandler()
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    assert log_line(logging.getLogger("algorithm.serve"), "stopped by SIGTERM") == "stopped by SIGTERM\n"
    handler.setFormatter(JsonFormatter())
    said = json.loads(log_line(logging.getLogger("algorithm.serve"), "stopped by SIGTERM"))
    assert (said["message"], said["logger"], said["level"]) == ("stopped by SIGTERM", "algorithm.serve", "INFO")
