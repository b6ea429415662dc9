"""`deploy/compose.yaml` on a real engine: the watcher and the server as a node runs them."""

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request

import pytest

LONGEST_S = 120


class Node:
    """The compose file with folders of its own, as a project of its own."""

    def __init__(self, docker, compose, file, root, image, model_dir, profile):
        self.docker = docker
        self.incoming, self.results = root / "incoming", root / "results"
        for folder in (self.incoming, self.results):
            folder.mkdir()
        self.words = [*compose, "--project-name", f"acouslic-test-{os.getpid()}"]
        self.words += ["--file", str(file), "--profile", profile]
        self.variables = {"IMAGE": image, "MODEL": str(model_dir), "IN": str(self.incoming), "OUT": str(self.results)}
        self.variables |= {"USER_ID": str(os.getuid()), "GROUP_ID": str(os.getgid())}

    def __call__(self, *words):
        """What `docker compose WORDS` prints."""
        ended = subprocess.run(
            [*self.words, *words], env=os.environ | self.variables, capture_output=True, text=True, timeout=LONGEST_S
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def container(self):
        """The engine's record of the only container."""
        return self.docker.inspect(self("ps", "--quiet").strip())

    def check_health(self):
        """Run the container's own health check, without waiting for its turn."""
        container = self.container()
        words = container["Config"]["Healthcheck"]["Test"]
        assert words[0] == "CMD"
        self.docker("exec", container["Id"], *words[1:])

    def logs(self):
        """The messages of the program's log so far."""
        said, _ = self.docker.logs(self.container()["Id"])
        return [json.loads(line).get("message", "") for line in said.splitlines()]


@pytest.fixture
def start_node(docker, compose, invoke_image, model_dir, repository, tmp_path):
    """`start_node(profile)`: a node that is not up yet, and that is taken down at the end."""
    nodes = []

    def start(profile):
        file = repository / "deploy" / "compose.yaml"
        nodes.append(Node(docker, compose, file, tmp_path, invoke_image, model_dir, profile))
        return nodes[-1]

    yield start
    for node in nodes:
        node("down", "--timeout", "0")


def until(condition, node):
    """Wait for it; what the containers said where it does not come."""
    deadline = time.monotonic() + LONGEST_S
    while not condition():
        assert time.monotonic() < deadline, node("logs")
        time.sleep(0.1)


def is_safe(container):
    """Whether the container runs without rights that it does not need."""
    host = container["HostConfig"]
    return host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and "no-new-privileges:true" in host["SecurityOpt"]


def test_a_watcher_goes_on_where_it_was_stopped(start_node, release):
    """A case that lies there and one that comes after a restart: each analysed once, by a container without network;
    `stop` ends it well and `down` leaves nothing of it."""
    first, second = (next(case.glob("images/*/*")) for case in sorted((release / "platform").iterdir()))
    node = start_node("watch")
    shutil.copy(first, node.incoming / "first.mha")
    node("up", "--detach")
    until((node.results / "first" / "case.json").is_file, node)
    made_at = (node.results / "first" / "case.json").stat().st_mtime_ns
    node.check_health()
    assert is_safe(node.container())
    assert list(node.container()["NetworkSettings"]["Networks"]) == ["none"]

    shutil.copy(second, node.incoming / "second.mha")
    node("restart")
    until((node.results / "second" / "case.json").is_file, node)
    until(lambda: len((node.results / "results.csv").read_text().splitlines()) == 3, node)
    assert (node.results / "first" / "case.json").stat().st_mtime_ns == made_at
    done = [message.partition(":")[0] for message in node.logs() if message.startswith(("first: ", "second: "))]
    assert done == ["first", "second"]
    container = node.container()["Id"]
    node("stop")
    assert node.docker.inspect(container)["State"]["ExitCode"] == 0
    node("down")
    assert node.docker("inspect", container, check=False).returncode == 1
    assert not [item for item in node.results.iterdir() if item.name.endswith(".partial")]


def test_a_server_answers_on_its_port(start_node, release, check_output):
    """On this machine's 127.0.0.1:4743: 503 while it loads, then 200; an invoke fills the folder of the results."""
    case = min((release / "platform").iterdir())
    node = start_node("serve")
    shutil.copytree(case, node.incoming, dirs_exist_ok=True)
    node("up", "--detach")

    def status(method, path):
        request = urllib.request.Request(f"http://127.0.0.1:4743{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=LONGEST_S) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:  # not listening yet
            return 0

    seen = []
    until(lambda: seen.append(status("GET", "/health")) or seen[-1] == 200, node)
    assert set(seen) <= {0, 503, 200}
    node.check_health()
    assert is_safe(node.container())
    assert status("POST", "/invoke") == 201
    check_output(node.results, next(node.incoming.glob("images/*/*")))
    node("down")
