"""Invoke mode: the server as the platform drives it."""

import concurrent.futures
import contextlib
import http.client
import itertools
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile

from acouslic.errors import AcouslicError
from algorithm import serve as serve_module
from algorithm.serve import Service


def test_a_life_of_a_server(start_server, platform_case, speckle, tmp_path):
    """Health turns 200; invokes follow a symbolic link that changes; a failed one spoils nothing; SIGTERM ends it."""
    first, bad, second = tmp_path / "first", tmp_path / "bad", tmp_path / "second"
    for folder, frames in ((first, 24), (second, 30)):
        platform_case.write_sweep(speckle(frames))
        shutil.copytree(platform_case.input_dir, folder)
    shutil.copytree(first, bad)
    next((bad / "images/stacked-fetal-ultrasound").iterdir()).write_bytes(b"no image")
    link = tmp_path / "link"
    link.symlink_to(first)
    server = start_server(input_dir=link)

    statuses = server.wait_until_ready()
    assert set(statuses[:-1]) <= {503}
    assert server.ask("GET", "/nothing")[0] == 404
    assert server.ask("GET", "/health/")[0] == 404
    assert server.ask("GET", "/invoke")[0] == 405
    assert server.ask("POST", "/health")[2]["Allow"] == "GET, HEAD"
    assert platform_case.written() == []

    def stack_bytes():
        return (platform_case.output_dir / "images/fetal-abdomen-segmentation/output.mha").read_bytes()

    status, body, _ = server.ask("POST", "/invoke")
    assert (status, body) == (201, "")
    assert len(platform_case.written()) == 4
    assert b"DimSize = 60 40 24" in stack_bytes()

    link.unlink()
    link.symlink_to(bad)
    status, body, _ = server.ask("POST", "/invoke")
    assert status == 500
    assert "f3a.mha" in body
    assert server.errors.read_text().splitlines()[-1] == body.strip()
    assert platform_case.written() == []

    link.unlink()
    link.symlink_to(second)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: server.ask("POST", "/invoke")[0], range(2)))
    assert answers == [201, 201]
    assert b"DimSize = 60 40 30" in stack_bytes()
    assert server.ask("GET", "/health")[0] == 200
    assert len(server.errors.read_text().splitlines()) == 1

    code, seconds = server.stop()
    assert code == 0
    assert seconds < 5
    assert len(platform_case.written()) == 4


def test_sigterm_ends_a_running_invoke(start_server, platform_case):
    """While a case of 840 frames is being computed: the process ends within 5 s, and no file is left."""
    platform_case.write_sweep(np.random.default_rng(0).integers(0, 255, (840, 120, 160), dtype=np.uint8))
    server = start_server("--batch-frames", "1")
    server.wait_until_ready()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        invoked = pool.submit(server.ask, "POST", "/invoke")
        while "case case 1: 840 frames" not in server.log.read_text():
            assert not invoked.done()
            time.sleep(0.01)
        time.sleep(0.3)
        assert server.ask("GET", "/health")[0] == 200
        assert not invoked.done()
        code, seconds = server.stop()
        with pytest.raises((OSError, http.client.HTTPException)):
            invoked.result(timeout=10)
    assert code == 0
    assert seconds < 5
    assert platform_case.written() == []
    assert server.log.read_text().splitlines()[-1] == "stopped by SIGTERM"
    assert server.errors.read_text() == ""


def test_a_model_that_cannot_be_loaded_ends_the_server(start_server, tiny_model, tmp_path):
    """A flipped byte in the weights: exit code 1 and one sentence, so that the platform does not wait for 300 s."""
    damaged = shutil.copytree(tiny_model, tmp_path / "damaged")
    content = bytearray((damaged / "tower.safetensors").read_bytes())
    content[-1] ^= 1
    (damaged / "tower.safetensors").write_bytes(content)
    server = start_server(model_dir=damaged)
    assert server.process.wait(timeout=600) == 1
    (sentence,) = server.errors.read_text().splitlines()
    assert "tower.safetensors" in sentence
    assert "sha256" in sentence


def ask(service, method, path):
    """Call the WSGI application without a server."""
    answered = []

    def start_response(status, headers):
        answered.append((status, dict(headers)))

    body = b"".join(service({"REQUEST_METHOD": method, "PATH_INFO": path}, start_response))
    ((status, headers),) = answered
    assert headers["Content-Length"] == str(len(body))
    return status, body.decode(), headers


def test_before_the_model_is_loaded(platform_case):
    """Health and invoke both answer 503, with text."""
    service = Service(platform_case.input_dir, platform_case.output_dir)
    for method, path in (("GET", "/health"), ("POST", "/invoke")):
        status, body, _ = ask(service, method, path)
        assert status == "503 Service Unavailable"
        assert body == "the model is being loaded\n"


def test_a_mistake_of_ours_answers_500_and_the_next_request_works(platform_case, speckle, capsys):
    """An unexpected exception is a 500 with a sentence; a file that was there is gone; then a good invoke is a 201."""
    platform_case.write_sweep(speckle())
    service = Service(platform_case.input_dir, platform_case.output_dir)

    class Pipeline:
        broken = True

        def run_stream(self, _, output_dir, case, *, writing):
            assert case == "case 1"
            with writing:
                (output_dir / "frame-quality-scores.json").write_text("{}")
            if self.broken:
                raise ZeroDivisionError("no\nway")

    service.pipeline = Pipeline()
    status, body, _ = ask(service, "POST", "/invoke")
    assert status == "500 Internal Server Error"
    assert body.startswith("a bug in this program: ZeroDivisionError: no way")
    assert capsys.readouterr().err.splitlines()[-1] == body.strip()
    assert platform_case.written() == []
    service.pipeline.broken = False
    assert ask(service, "POST", "/invoke")[:2] == ("201 Created", "")


def test_every_case_runs_in_one_thread(platform_case, speckle):
    """Requests come in threads of their own, but all cases share one, as CUDA's libraries like it."""
    platform_case.write_sweep(speckle())
    service = Service(platform_case.input_dir, platform_case.output_dir)
    threads = []

    class Pipeline:
        def run_stream(self, *_, **__):
            threads.append(threading.current_thread())

    service.pipeline = Pipeline()
    requests = [threading.Thread(target=ask, args=(service, "POST", "/invoke")) for _ in range(3)]
    for request in requests:
        request.start()
    for request in requests:
        request.join()
    assert len(threads) == 3
    assert len(set(threads)) == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", "404 Not Found"),
        ("POST", "/invoke/", "404 Not Found"),
        ("GET", "/invoke", "405 Method Not Allowed"),
        ("PUT", "/health", "405 Method Not Allowed"),
        ("HEAD", "/health", "503 Service Unavailable"),
    ],
)
def test_other_paths_and_methods(method, path, status, platform_case):
    """Unknown paths are 404, wrong methods 405, nothing redirects."""
    assert ask(Service(platform_case.input_dir, platform_case.output_dir), method, path)[0] == status


@pytest.fixture
def in_process(platform_case, speckle, monkeypatch):
    """A server in this process whose cases end when `release` is set: `(service, port, release)`."""
    monkeypatch.setattr(serve_module, "_IDLE_S", 1)
    platform_case.write_sweep(speckle())
    release = threading.Event()

    class Pipeline:
        def run_stream(self, *_, **__):
            assert release.wait(60)

    service = Service(platform_case.input_dir, platform_case.output_dir)
    service.pipeline = Pipeline()
    listener = serve_module._listen(0)
    server = serve_module.create_server(service, listener)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield service, server.effective_port, release
    release.set()
    server.asyncore.close_all(server._map, ignore_all=True)
    server.task_dispatcher.shutdown()
    thread.join(10)


def request(port, method, path, timeout_s=60):
    """Status and seconds of one request over a connection of its own."""
    start = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        response.read()
        return response.status, time.monotonic() - start
    finally:
        connection.close()


def test_under_load_health_answers_and_what_is_too_much_is_told_so(in_process):
    """Ten invokes and 150 silent connections: five invokes are taken, five answered 503 at once, and health answers
    meanwhile; when the case ends, the five get their 201."""
    _, port, release = in_process
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(150)]
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        invoked = [pool.submit(request, port, "POST", "/invoke") for _ in range(10)]
        refused = list(itertools.islice(concurrent.futures.as_completed(invoked, timeout=30), 5))
        answered = [request(port, "GET", "/health") for _ in range(20)]
        assert {future.result()[0] for future in refused} == {503}
        assert sum(future.done() for future in invoked) == 5
        assert {status for status, _ in answered} == {200}
        assert statistics.median(seconds for _, seconds in answered) < 0.1
        release.set()
        assert sorted(future.result()[0] for future in invoked) == [201] * 5 + [503] * 5
    for connection in idle:
        connection.close()


_REFERENCE = """
import waitress

def answer(environ, start_response):
    start_response("200 OK", [("Content-Length", "6")])
    return [b"ready\\n"]

server = waitress.create_server(answer, host="127.0.0.1", port=0)
print(server.effective_port, flush=True)
server.run()
"""


@pytest.fixture
def reference_port():
    """Of a server that does nothing but answer: what it is late by, the machine was."""
    process = subprocess.Popen([sys.executable, "-c", _REFERENCE], stdout=subprocess.PIPE, text=True)
    with process:
        yield int(process.stdout.readline())
        process.kill()


def waited_s(session):
    """For how long so far the threads of a session's processes were ready and had no core, all together: on a machine
    that much else shares an answer is late by that."""
    waited_ns = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            if int(stat.read_text().rpartition(")")[2].split()[3]) == session:
                for task in stat.parent.glob("task/*/schedstat"):
                    waited_ns += int(task.read_text().split()[1])
    return waited_ns / 1e9


def asked(server, method, path):
    """Status of one request, and the seconds of it that were not spent waiting for a core."""
    before = waited_s(server.process.pid)
    status, seconds = request(server.port, method, path)
    return status, seconds - max(0, waited_s(server.process.pid) - before)


def test_every_health_check_is_answered_within_100_ms(start_server, platform_case, speckle, reference_port):
    """Of a server that computes: eight invokes wait, the first of them the first since it started, and 100 connections
    are silent. 100 ms later than the slowest answer of the bare server would be too late."""
    platform_case.write_sweep(speckle(1120))
    server = start_server("--batch-frames", "8")
    server.wait_until_ready()
    waits, reference = [], []
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(100)]
    with concurrent.futures.ThreadPoolExecutor(9) as pool:
        invoked = [pool.submit(request, server.port, "POST", "/invoke") for _ in range(8)]
        running = pool.submit(lambda: [future.result()[0] for future in invoked])
        while not running.done():
            status, seconds = asked(server, "GET", "/health")
            assert status == 200
            waits.append(seconds)
            reference.append(request(reference_port, "GET", "/")[1])
            time.sleep(0.002)
    for connection in idle:
        connection.close()
    assert sorted(running.result()) == [201] * 5 + [503] * 3
    assert len(waits) > 50
    assert max(waits) < 0.1 + max(reference), f"median {statistics.median(waits)}"


def test_health_is_answered_within_100_ms_from_the_first_connection_on(
    start_server, platform_case, speckle, reference_port
):
    """While torch is imported too: no connection is refused or cut once the port listens, every answer is 503 until all
    are 200, and a case that is asked for then is analysed. A connection from before is closed, not answered 503 ever
    after."""
    platform_case.write_sweep(speckle(12))
    server = start_server()
    while (listening := socket.socket()).connect_ex(("127.0.0.1", server.port)):
        listening.close()
        assert server.process.poll() is None, server.errors.read_text()
        time.sleep(0.002)
    early = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    early.sock = listening
    early.request("GET", "/health")
    first = early.getresponse()
    assert (first.status, first.read()) == (503, b"the model is being loaded\n")
    statuses, waits, reference = [], [], []
    while 200 not in statuses[:-100]:
        status, seconds = asked(server, "GET", "/health")
        if status == 200 not in statuses:
            assert request(server.port, "POST", "/invoke")[0] == 201
        statuses.append(status)
        waits.append(seconds)
        reference.append(request(reference_port, "GET", "/")[1])
    assert [status for status, _ in itertools.groupby(statuses)] == [503, 200]
    assert statuses.count(503) > 50
    assert max(waits) < 0.1 + max(reference), f"median {statistics.median(waits)}"
    listening.settimeout(20)
    assert listening.recv(1) == b""
    early.close()


def test_whoever_ends_the_server_while_it_loads_frees_the_port(start_server):
    """Killed without a word to its stand-in, which answered in its place: the stand-in ends too."""
    server = start_server()
    while True:
        with contextlib.suppress(OSError):
            assert server.ask("GET", "/health")[0] == 503
            break
        time.sleep(0.002)
    assert "ready" not in server.log.read_text().splitlines()
    server.process.kill()
    server.process.wait()
    deadline = time.monotonic() + 20
    while True:
        try:
            serve_module._listen(server.port).close()
            break
        except AcouslicError:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert server.errors.read_text() == ""


def test_the_first_case_imports_nothing(platform_case, speckle, tiny_model, repository, tmp_path):
    """Neither a .mha nor a .tif: whoever asks for health would wait for the import. Only codecs, which are compiled and
    small, come as they are needed."""
    script = """
import sys
from pathlib import Path
from algorithm.serve import Service

source, output, model, *stacks = map(Path, sys.argv[1:])
service = Service(source, output)
service.load(model, device="cpu", batch_frames=None)
known = set(sys.modules)
answers = []
folder = source / "images/stacked-fetal-ultrasound"
for stack in stacks:
    for old in folder.iterdir():
        old.unlink()
    stack.rename(folder / stack.name)
    service({"REQUEST_METHOD": "POST", "PATH_INFO": "/invoke"}, lambda status, _: answers.append(status))
written = {name for name, module in sys.modules.items() if (getattr(module, "__file__", None) or "").endswith(".py")}
print(answers, sorted(written - known))
"""
    first, tif = tmp_path / "a.mha", tmp_path / "b.tif"
    platform_case.write_sweep(speckle(12)).rename(first)
    tifffile.imwrite(tif, speckle(12), compression="zlib", photometric="minisblack")
    words = [platform_case.input_dir, platform_case.output_dir, tiny_model, first, tif]
    ended = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)], cwd=repository, capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines()[-1] == "['201 Created', '201 Created'] []"


def test_a_silent_connection_is_dropped(in_process):
    """The server closes it; a connection that waits for its invoke stays."""
    _, port, release = in_process
    with concurrent.futures.ThreadPoolExecutor(1) as pool, socket.create_connection(("127.0.0.1", port)) as silent:
        invoked = pool.submit(request, port, "POST", "/invoke")
        silent.settimeout(20)
        assert silent.recv(1) == b""
        assert not invoked.done()
        release.set()
        assert invoked.result()[0] == 201


def test_a_large_body_is_refused_unread(in_process):
    """One of 300 MB is answered 413 when only its size has been said; one of 64 kB is none of our business."""
    _, port, _ = in_process
    for size, status in ((300_000_000, b"413"), (65_537, b"413"), (65_536, b"404")):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.settimeout(20)
            connection.sendall(f"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode())
            if size == 65_536:
                connection.sendall(bytes(size))
            assert connection.recv(100).split()[1] == status
