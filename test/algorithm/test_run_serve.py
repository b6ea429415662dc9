"""Invoke mode: the server as the platform drives it."""

import concurrent.futures
import http.client
import shutil
import threading
import time

import numpy as np
import pytest

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
