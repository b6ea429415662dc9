"""What streams, signals and shortages do to a run: they change neither its result nor the reason of its failure."""

import contextlib
import errno
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from acouslic.errors import AcouslicError
from acouslic.sockets import FRAME_NUMBER_FILE
from algorithm.process.messages import LogFormatter, complain, explain
from algorithm.result.outputs import prepare_output


@pytest.fixture
def run_process(platform_case, tiny_model, repository):
    """`run_process(*arguments, stdout=..., closed=...)`: the real process in exec mode; exit code and stderr."""

    def run(*arguments, stdout=subprocess.PIPE, prepare=None):
        variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository), "MODEL_DIR": str(tiny_model)}
        variables |= {"INPUT_DIR": str(platform_case.input_dir), "OUTPUT_DIR": str(platform_case.output_dir)}
        ended = subprocess.run(
            [sys.executable, "-m", "algorithm", *map(str, arguments)],
            env=variables,
            stdout=stdout,
            stderr=subprocess.PIPE,
            preexec_fn=prepare,
            timeout=300,
            check=False,
        )
        return ended.returncode, ended.stderr.decode().splitlines()

    return run


def close_stdout():
    """In the child: as `>&-` does."""
    os.close(1)


@pytest.fixture(params=["closed", "full", "broken pipe"])
def bad_stdout(request):
    """Keywords of `run_process` for a stdout that takes nothing."""
    if request.param == "closed":
        yield {"stdout": None, "prepare": close_stdout}
        return
    if request.param == "full":
        descriptor = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, descriptor = os.pipe()
        os.close(reading)
    yield {"stdout": descriptor}
    os.close(descriptor)


def test_a_good_run_stays_good_without_stdout(bad_stdout, run_process, platform_case, speckle):
    """Exit code 0, all results, and nothing on stderr, which the platform would take for a fault."""
    platform_case.write_sweep(speckle())
    assert run_process(**bad_stdout) == (0, [])
    assert len(platform_case.written()) == 4


def test_the_reason_of_a_failure_survives_without_stdout(bad_stdout, run_process):
    """One sentence that says what is missing, instead of what became of the log."""
    code, errors = run_process(**bad_stdout)
    assert code == 1
    assert len(errors) == 1
    assert "expected exactly one image" in errors[0]


def test_a_file_never_takes_the_number_of_a_closed_stream(platform_case, repository):
    """With stdout closed, what a library prints to descriptor 1 does not end up in the next file that is opened."""
    path = platform_case.output_dir / "opened.txt"
    code = (
        "import os, sys; from acouslic.streams import set_up_streams; set_up_streams()\n"
        f"file = open({str(path)!r}, 'w'); os.write(1, b'a message'); print('another'); file.close()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=repository, preexec_fn=close_stdout, check=True)
    assert path.read_bytes() == b""


def test_serve_ends_well_without_a_reader(start_server_with, platform_case, speckle):
    """Its stdout is a broken pipe: invokes are answered 201, and SIGTERM ends it with 0 instead of an abort."""
    platform_case.write_sweep(speckle())
    server = start_server_with()
    server.wait_until_ready()
    assert server.ask("POST", "/invoke")[0] == 201
    code, _ = server.stop()
    assert code == 0
    assert server.errors.read_text() == ""


def test_serve_ends_where_its_log_has_no_room(tmp_path, repository):
    """A pipe that is full and that nobody reads does not keep it from ending, and a second signal removes no result."""
    result = tmp_path / FRAME_NUMBER_FILE
    result.write_text("7")
    code = (
        "import sys, time; from pathlib import Path; from algorithm.serve import Service, _stop_on_signals\n"
        "folder = Path(sys.argv[1]); _stop_on_signals(Service(folder, folder), folder)\n"
        "print('ready', file=sys.stderr, flush=True)\nwhile True: time.sleep(0.01)"
    )
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=repository, stdout=writing, stderr=subprocess.PIPE
    )
    try:
        assert process.stderr.readline() == b"ready\n"
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writing, bytes(4096))
        os.set_blocking(writing, True)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        assert os.get_blocking(writing), "others who write there find it as it was"
    finally:
        process.kill()
        process.communicate()
        os.close(reading)
        os.close(writing)
    assert result.read_text() == "7"


@pytest.fixture
def start_server_with(start_server, monkeypatch):
    """`start_server`, with a stdout that nobody reads."""
    popen = subprocess.Popen

    def with_broken_stdout(command, **keywords):
        reading, writing = os.pipe()
        os.close(reading)
        process = popen(command, **(keywords | {"stdout": writing}))
        os.close(writing)
        return process

    def start():
        monkeypatch.setattr(subprocess, "Popen", with_broken_stdout)
        return start_server()

    return start


def test_a_signal_after_the_result_is_not_heard(platform_case, speckle, tiny_model, run_algorithm, monkeypatch):
    """SIGTERM once the result is complete: exit code 0, nothing on stderr, the results stay."""
    platform_case.write_sweep(speckle())
    from acouslic.interrupts import Interrupts

    end = Interrupts.end

    def end_and_stop(interrupts):
        end(interrupts)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Interrupts, "end", end_and_stop)
    folders = {"INPUT_DIR": platform_case.input_dir, "OUTPUT_DIR": platform_case.output_dir, "MODEL_DIR": tiny_model}
    ended = run_algorithm(**folders)
    assert (ended.code, ended.stderr) == (0, "")
    assert len(platform_case.written()) == 4


def test_predict_waits_for_its_import_of_torch(platform_case, speckle, tiny_model, repository, tmp_path):
    """SIGTERM while torch is imported: the import ends first, then the program does, with one sentence and 143.

    Interrupted inside, it aborted with a C++ trace once in forty times.
    """
    path = platform_case.write_sweep(speckle())
    program = f"""
import sys, signal, os
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch._C":
            print("importing", flush=True); os.kill(os.getpid(), signal.SIGTERM)
            sys.meta_path.remove(self)
sys.meta_path.insert(0, Watch())
from algorithm.__main__ import run
import atexit
run(["predict", {str(path)!r}, "--output", {str(tmp_path / "out")!r}, "--model", {str(tiny_model)!r}])
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, timeout=300, check=False
    )
    assert "importing" in ended.stdout
    assert ended.returncode == 143
    (sentence,) = ended.stderr.splitlines()
    assert sentence.startswith("stopped by a signal before the result was complete; 0 of 1 cases")
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["results.csv"]


def test_predict_stopped_in_a_case_keeps_the_others(platform_case, speckle, tiny_model, run_algorithm, monkeypatch):
    """Stopped in the second of three: the first is complete and in the table, the second has no folder, not even an
    empty one; `--resume` does the other two and leaves the first alone."""
    folder = platform_case.input_dir / "stacks"
    folder.mkdir()
    for seed, name in enumerate("abc"):
        platform_case.write_sweep(speckle(seed=seed)).rename(folder / f"{name}.mha")
    from algorithm import predict as module

    write, output = module.write_preview, platform_case.output_dir

    def stop_in_b(result, path, frame):
        write(result, path, frame)
        if result.case == "b":
            os.kill(os.getpid(), signal.SIGTERM)

    arguments = ["predict", folder, "--output", output, "--model", tiny_model, "--resume"]
    with monkeypatch.context() as patched:
        patched.setattr(module, "write_preview", stop_in_b)
        ended = run_algorithm(*arguments)
    assert ended.code == 143
    assert "1 of 3 cases are complete" in ended.stderr
    assert sorted(item.name for item in output.iterdir()) == ["a", "results.csv"]
    assert [line.split(",")[0] for line in (output / "results.csv").read_text().splitlines()] == ["case", "a"]
    made_at = (output / "a" / "case.json").stat().st_mtime_ns

    ended = run_algorithm(*arguments)
    assert (ended.code, ended.stderr) == (0, "")
    assert "1 of 3 cases are complete and are skipped" in ended.stdout
    assert (output / "a" / "case.json").stat().st_mtime_ns == made_at
    assert [line.split(",")[0] for line in (output / "results.csv").read_text().splitlines()] == ["case", *"abc"]

    (folder / "b.mha").touch()
    assert "2 of 3 cases are complete" in run_algorithm(*arguments).stdout


def test_parts_divide_the_cases(platform_case, speckle, tiny_model, run_algorithm):
    """Two commands, as on two machines without Ray: each its own cases, table and page; together all of them."""
    folder = platform_case.input_dir / "stacks"
    folder.mkdir()
    for name in "abc":
        platform_case.write_sweep(speckle()).rename(folder / f"{name}.mha")
    output = platform_case.output_dir
    for part in "01":
        words = ["predict", folder, "--output", output, "--model", tiny_model, "--num-parts", "2", "--part-id", part]
        assert run_algorithm(*words).code == 0
    rows = {path.name: path.read_text().splitlines()[1:] for path in output.glob("*.csv")}
    assert {name: [row[0] for row in found] for name, found in rows.items()} == {
        "results.part-0-of-2.csv": ["a", "c"],
        "results.part-1-of-2.csv": ["b"],
    }
    assert all((output / name / "fetal-abdomen-frame-number.json").is_file() for name in "abc")
    for table in rows:
        page = (output / table.replace("results", "index").replace(".csv", ".html")).read_text()
        assert f"for a spreadsheet: {table}." in page


def test_a_killed_predict_leaves_only_a_hidden_folder(platform_case, speckle, tiny_model, repository, tmp_path):
    """SIGKILL while the results of a case are written: no folder of the case; the next run removes what is hidden."""
    path = platform_case.write_sweep(speckle())
    words = ["predict", str(path), "--output", str(tmp_path / "out"), "--model", str(tiny_model)]
    program = f"""
import os, signal
from algorithm import predict
predict.write_record = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
from algorithm.__main__ import run
run({words!r})
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=repository, stdout=subprocess.DEVNULL, check=False)
    assert ended.returncode == -signal.SIGKILL
    (hidden,) = [item for item in (tmp_path / "out").iterdir() if item.is_dir()]
    assert hidden.name.startswith(".")
    subprocess.run([sys.executable, "-m", "algorithm", *words], cwd=repository, stdout=subprocess.DEVNULL, check=True)
    assert sorted(item.name for item in (tmp_path / "out").iterdir()) == ["f3a", "index.html", "results.csv"]


def test_no_control_character_reaches_log_or_message(capsys):
    """Whatever a file's name or a header's value holds; a traceback keeps its own lines."""
    hostile = "a\x1b[31m\nERROR: all well\u202e"
    record = logging.LogRecord("x", logging.INFO, __file__, 1, "case %s", (hostile,), None)
    assert LogFormatter().format(record) == "case a\\x1b[31m\\nERROR: all well\\u202e"
    try:
        raise ValueError(hostile)
    except ValueError:
        failed = logging.LogRecord("x", logging.ERROR, __file__, 1, "failed", None, sys.exc_info())
    text = LogFormatter().format(failed)
    assert "\x1b" not in text
    assert text.splitlines()[1].startswith("Traceback")
    sentence = explain(AcouslicError(hostile))
    assert sentence.isprintable()
    complain(hostile)
    assert capsys.readouterr().err == "a\\x1b[31m\\nERROR: all well\\u202e\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("can't start new thread"), "no further thread can be started"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "does not hold the program's libr"),
        (OSError("libtorch_cpu.so: cannot allocate memory"), "does not hold the program's libraries"),
        (OSError(errno.EMFILE, "Too many open files"), "too many files are open"),
        (MemoryError(), "the main memory does not suffice"),
    ],
)
def test_a_shortage_is_named_as_what_it_is(error, said, caplog):
    """And is no bug of ours; the log has the traceback."""
    sentence = explain(error)
    assert said in sentence
    assert "a bug" not in sentence
    assert caplog.records[0].exc_info


def test_threads_run_out_before_torch(run_process, platform_case, speckle):
    """A limit of address space that leaves no room for a thread's stack: one sentence that names a shortage."""
    platform_case.write_sweep(speckle())

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20))

    code, errors = run_process(prepare=limit)
    assert code == 1
    assert "a bug in this program" not in errors[-1]
    assert platform_case.written() == []


def test_a_read_only_output_folder_is_named(tmp_path, monkeypatch):
    """Such a file system refuses even to remove what is not there; the sentence speaks of writing."""

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("unlink", "mkdir", "open"):
        monkeypatch.setattr(Path, name, refuse)
    with pytest.raises(AcouslicError, match=r"could not be written: Read-only file system; mount it writable"):
        prepare_output(tmp_path)
