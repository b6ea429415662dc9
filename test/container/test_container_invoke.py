"""Invoke mode in a real container: the server that the platform starts once and asks again and again."""

import json
import shutil
import time
from collections.abc import Iterator

import pytest

# Runs inside the container, because it has no network: one request, its status and body as JSON.
REQUEST = """
import json, sys, urllib.error, urllib.request
method, path, seconds = sys.argv[1:]
request = urllib.request.Request("http://127.0.0.1:4743" + path, method=method, data=b"" if method == "POST" else None)
try:
    with urllib.request.urlopen(request, timeout=float(seconds)) as answer:
        print(json.dumps([answer.status, answer.read().decode()]))
except urllib.error.HTTPError as error:
    print(json.dumps([error.code, error.read().decode()]))
except OSError as error:
    print(json.dumps([0, str(error)]))
"""


class Server:
    """A started container in invoke mode."""

    def __init__(self, docker, image, options):
        self.docker, self.container = docker, docker.create(image, (), options)
        docker("start", self.container)

    def request(self, method: str, path: str, seconds: float = 300) -> tuple[int, str]:
        """Status and body; status 0 where nobody answers."""
        answer = self.docker("exec", self.container, "python3", "-c", REQUEST, method, path, str(seconds))
        status, body = json.loads(answer.stdout)
        return status, body

    def wait_until_healthy(self) -> None:
        """Poll as the platform does; 300 s at most."""
        start = time.monotonic()
        while (answer := self.request("GET", "/health", 10))[0] != 200:
            assert time.monotonic() - start < 300, answer
            assert answer[0] in (0, 503), answer
            time.sleep(0.5)

    def logs(self) -> tuple[str, str]:
        """stdout and stderr so far."""
        return self.docker.logs(self.container)

    def processes(self) -> list[str]:
        """The commands that run in the container."""
        return self.docker("top", self.container, "-eo", "pid,args").stdout.splitlines()[1:]

    def remove(self) -> None:
        """End it whatever it does."""
        self.docker("rm", "--force", self.container)


PLATFORM = ["--network", "none", "--read-only", "--tmpfs", "/tmp:rw,mode=1777", "--memory", "16g"]


@pytest.fixture
def server(docker, invoke_image, mounts) -> Iterator[Server]:
    """The server as the platform starts it, with the first case as input."""
    server = Server(docker, invoke_image, [*PLATFORM, *mounts.options()])
    yield server
    server.remove()


def stack_of(case_dir):
    """The only image of a case in the platform's layout."""
    (stack,) = (case_dir / "images" / "stacked-fetal-ultrasound").iterdir()
    return stack


def test_a_server_lives_through_cases_failures_and_its_end(server, mounts, check_output, tmp_path):
    """Healthy, two cases behind one link, a bad one between them, SIGTERM: each answered as the platform expects."""
    server.wait_until_healthy()

    status, body = server.request("POST", "/invoke")
    assert status == 201, body
    assert mounts.written() == check_output.files
    first = check_output(mounts.output, stack_of(mounts.root / "platform" / "input"))
    assert server.logs()[1] == ""

    bad = tmp_path / "bad"
    shutil.copytree(mounts.cases[0], bad)
    stack_of(bad).write_bytes(stack_of(bad).read_bytes()[:5000])
    mounts.refill(bad)
    status, body = server.request("POST", "/invoke")
    assert status == 500
    assert "stacked-fetal-ultrasound" in body
    assert mounts.written() == []
    assert body.strip() in server.logs()[1].splitlines()[-1]

    mounts.refill(1)
    status, body = server.request("POST", "/invoke")
    assert status == 201, body
    second = check_output(mounts.output, stack_of(mounts.root / "platform" / "input"))
    assert second.scores != first.scores, "the second case's answer is the first one's"

    assert server.request("GET", "/health", 10)[0] == 200
    check = server.docker.inspect(server.container)["Config"]["Healthcheck"]["Test"]
    assert check[0] == "CMD"
    server.docker("exec", server.container, *check[1:])
    assert len(server.processes()) == 1, server.processes()
    server.docker("kill", "--signal", "TERM", server.container)
    assert server.docker.wait(server.container, 5) == 0


def test_sigterm_in_the_middle_of_a_case(docker, server, mounts, check_output):
    """Ended while a case is computed: within 5 s, and the output folder holds all of the results or none."""
    server.wait_until_healthy()
    code = REQUEST.replace("sys.argv[1:]", "'POST', '/invoke', '0.5'")
    docker("exec", "--detach", server.container, "python3", "-c", code)
    time.sleep(0.7)
    docker("kill", "--signal", "TERM", server.container)
    docker.wait(server.container, 5)
    assert mounts.written() in ([], check_output.files)


def test_without_a_model_the_server_does_not_start(docker, invoke_image, mounts):
    """No model mounted: one sentence that says so and exit code 1, not a server that never gets healthy."""
    ended = docker.run_as_platform(invoke_image, mounts.options(model=False))
    assert ended.exit_code == 1
    assert "/opt/ml/model" in ended.last_line
    assert "mount" in ended.last_line


def test_a_container_without_a_server_is_well(docker, invoke_image):
    """The image's own health check in a container that does something else, as when it runs `predict`."""
    container = docker.create(invoke_image, ["600"], ["--network", "none", "--entrypoint", "sleep"])
    try:
        docker("start", container)
        check = docker.inspect(container)["Config"]["Healthcheck"]["Test"]
        docker("exec", container, *check[1:])
        told = docker("exec", container, "python3", "-m", "algorithm", "health", check=False)
        assert (told.returncode, "nothing answers on port 4743" in told.stderr) == (1, True)
    finally:
        docker("rm", "--force", container)


def test_exec_and_invoke_give_the_same_result(docker, server, exec_image, mounts):
    """One code path: the same case gives the same bytes in both modes."""
    server.wait_until_healthy()
    assert server.request("POST", "/invoke")[0] == 201
    invoked = {name: (mounts.output / name).read_bytes() for name in mounts.written()}
    mounts.refill(0)
    assert docker.run_as_platform(exec_image, mounts.options()).exit_code == 0
    assert {name: (mounts.output / name).read_bytes() for name in mounts.written()} == invoked
