"""What the container tests share: the engine, the images, and cases laid out as the platform mounts them."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

REPOSITORY = Path(__file__).resolve().parents[2]
VERSION = re.search(r'__version__ = "(.*)"', (REPOSITORY / "acouslic" / "__init__.py").read_text())[1]
NOT_OURS = {
    # What the platform's own machinery sets, and strips or ignores; none of it may change a result.
    "GRAND_CHALLENGE_COMPONENT_WRITABLE_DIRECTORIES": "/nowhere",
    "GRAND_CHALLENGE_COMPONENT_MAX_MEMORY_MB": "64",
    "grand_challenge_max_workers": "99",
}
LONGEST_RUN_S = 600
PLATFORM = ("--network", "none", "--read-only", "--tmpfs", "/tmp:rw,mode=1777", "--memory", "16g")
PLATFORM += ("--ulimit", f"data={15 * 2**30}")  # RLIMIT_DATA: the instance's memory less 1 GiB


def absent(reason: str) -> None:
    """Skip, saying why; a failure where CI_REQUIRE_ALL=1."""
    if os.environ.get("CI_REQUIRE_ALL") == "1":
        pytest.fail(f"CI_REQUIRE_ALL=1, but {reason}")
    pytest.skip(reason)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is a container test."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.container)


@dataclass(frozen=True)
class Ended:
    """What a container left behind."""

    exit_code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def last_line(self) -> str:
        """The last non-empty line of stderr: what the platform shows the user."""
        return ([line for line in self.stderr.splitlines() if line.strip()] or [""])[-1]


class Engine:
    """Docker's command line."""

    def __call__(self, *words: str, check: bool = True, input: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run `docker WORDS`; its output as text."""
        ended = subprocess.run(["docker", *words], capture_output=True, text=True, input=input, timeout=600)
        if check and ended.returncode:
            raise AssertionError(f"docker {' '.join(words)}: exit code {ended.returncode}\n{ended.stderr}")
        return ended

    def inspect(self, name: str) -> Any:
        """The engine's record of an image or container."""
        return json.loads(self("inspect", name).stdout)[0]

    def create(self, image: str, words: Sequence[str] = (), options: Sequence[str] = ()) -> str:
        """A container, not started; its id. Created apart, because docker's own warnings go to stderr here."""
        return self("create", *options, image, *words).stdout.strip()

    def run(self, image: str, words: Sequence[str] = (), options: Sequence[str] = ()) -> Ended:
        """Run a container to its end, take what it printed, remove it."""
        container = self.create(image, words, options)
        start = time.monotonic()
        try:
            self("start", container)
            exit_code = self.wait(container, LONGEST_RUN_S)
            seconds = time.monotonic() - start
            return Ended(exit_code, *self.logs(container), seconds)
        finally:
            self("rm", "--force", container)

    def wait(self, container: str, limit_s: float) -> int:
        """The exit code of a container that ends within the limit. Its logs are complete then."""
        start = time.monotonic()
        while (state := self.inspect(container)["State"])["Running"]:
            assert time.monotonic() - start < limit_s, f"still running after {limit_s} s: {self.logs(container)}"
            time.sleep(0.1)
        return state["ExitCode"]

    def logs(self, container: str) -> tuple[str, str]:
        """stdout and stderr so far."""
        ended = self("logs", container)
        return ended.stdout, ended.stderr

    def run_as_platform(self, image: str, options: Sequence[str] = ()) -> Ended:
        """Run the image's ENTRYPOINT and CMD as the platform's process manager does.

        It takes LD_LIBRARY_PATH away and sets HOME to that of the passwd entry, whatever the image's ENV says; here to
        a folder that does not exist, which is worse.
        """
        config = self.inspect(image)["Config"]
        words = ["-u", "LD_LIBRARY_PATH", "HOME=/nonexistent", *config["Entrypoint"], *(config["Cmd"] or [])]
        return self.run(image, words, ["--entrypoint", "env", *PLATFORM, *options])

    def python(self, image: str, code: str, options: Sequence[str] = ()) -> str:
        """What a piece of Python prints in the image, without network."""
        ended = self.run(image, ["-c", code], ["--network", "none", "--entrypoint", "python3", *options])
        assert ended.exit_code == 0, ended.stderr
        return ended.stdout


@pytest.fixture(scope="session")
def docker() -> Engine:
    """A Docker engine that answers."""
    if shutil.which("docker") is None:
        absent("docker was not found")
    if subprocess.run(["docker", "version"], capture_output=True).returncode:
        absent("no Docker engine answers")
    return Engine()


@pytest.fixture(scope="session")
def compose(docker: Engine) -> list[str]:
    """The command of Docker Compose: `docker compose`, or the older `docker-compose`."""
    if docker("compose", "version", check=False).returncode == 0:
        return ["docker", "compose"]
    if shutil.which("docker-compose") is None:
        absent("Docker Compose was not found")
    return ["docker-compose"]


def _built(docker: Engine, image: str) -> str:
    if docker("image", "inspect", image, check=False).returncode:
        absent(f"the image {image} is not there: run ./build.sh")
    return image


@pytest.fixture(scope="session")
def invoke_image(docker: Engine) -> str:
    """The algorithm in invoke mode."""
    return _built(docker, f"acouslic-algorithm:{VERSION}")


@pytest.fixture(scope="session")
def exec_image(docker: Engine) -> str:
    """The algorithm in exec mode."""
    return _built(docker, f"acouslic-algorithm:{VERSION}-exec")


@pytest.fixture(scope="session")
def evaluation_image(docker: Engine) -> str:
    """The evaluation."""
    return _built(docker, f"acouslic-evaluation:{VERSION}")


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the demo model that any user may read, as the platform extracts it."""
    model = REPOSITORY / "model" / "demo"
    assert (model / "manifest.json").is_file(), f"{model} is not there: python -m training demo makes it"
    folder = tmp_path_factory.mktemp("model") / "model"
    shutil.copytree(model, folder)
    _open_to_all(folder.parent)
    return folder


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of two generated cases with two short sweeps each, full frames; also in the platform's layout."""
    from training.phantom.generate import main

    folder = tmp_path_factory.mktemp("release")
    options = ["--cases", "2", "--seed", "7", "--sweeps", "2", "--frames-per-sweep", "24", "--platform"]
    assert main(["--out", str(folder), *options]) == 0
    _open_to_all(folder)
    return folder


@pytest.fixture(scope="session")
def full_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two generated cases of the challenge's own size, six sweeps of 140 frames; also in the platform's layout."""
    from training.phantom.generate import main

    folder = tmp_path_factory.mktemp("full_release")
    assert main(["--out", str(folder), "--cases", "2", "--seed", "11", "--platform"]) == 0
    _open_to_all(folder)
    return folder


def _open_to_all(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


class Mounts:
    """The folders of one container as the platform lays them: `input` is a link that leads to one of the cases.

    All of it lies in one folder that is mounted read-only at /platform, because the link has to be inside a mount to
    change; `output` is mounted beside it.
    """

    def __init__(self, root: Path, model_dir: Path, release: Path) -> None:
        self.root, self.model_dir = root, model_dir
        self.cases = sorted((release / "platform").iterdir())
        self.output = root / "output"
        self.output.mkdir()
        self.output.chmod(0o777)
        (root / "platform").mkdir()
        self.refill(0)

    def refill(self, case: int | Path) -> Path:
        """Empty the output, and lead `input` to another folder: a case of the release, or one given. Returns it."""
        source = case if isinstance(case, Path) else self.cases[case]
        for item in self.output.iterdir():
            shutil.rmtree(item) if item.is_dir() else item.unlink()
        folders = self.root / "platform"
        if not (folders / source.name).exists():
            shutil.copytree(source, folders / source.name)
            _open_to_all(folders / source.name)
        link = folders / "input.new"
        link.symlink_to(source.name)
        link.rename(folders / "input")
        return folders / source.name

    def options(self, *, model: bool = True, input_dir: str = "/platform/input") -> list[str]:
        """The volumes and the folders' names, for `docker create`."""
        volumes = [f"{self.root / 'platform'}:/platform:ro", f"{self.output}:/output"]
        if model:
            volumes.append(f"{self.model_dir}:/opt/ml/model:ro")
        return [*(word for volume in volumes for word in ("--volume", volume)), "--env", f"INPUT_DIR={input_dir}"]

    def written(self) -> list[str]:
        """Every file in the output folder, hidden ones too."""
        return sorted(path.relative_to(self.output).as_posix() for path in self.output.rglob("*") if path.is_file())


@pytest.fixture
def mounts(docker: Engine, tmp_path: Path, model_dir: Path, release: Path) -> Iterator[Mounts]:
    """Fresh folders for one container, with the first case as input."""
    mounts = Mounts(tmp_path, model_dir, release)
    yield mounts
    if os.geteuid() != 0:
        # What the container's user wrote is not ours to delete.
        clean = ["--rm", "--network", "none", "--user", "0", "--volume", f"{mounts.output}:/output", "--entrypoint"]
        docker("run", *clean, "chmod", f"acouslic-algorithm:{VERSION}", "-R", "a+rwX", "/output")


@dataclass(frozen=True)
class Sockets:
    """What a case's output folder holds, read with nothing of ours."""

    frame_number: int
    mask: np.ndarray
    """uint8 (frame, row, column)."""
    scores: dict[str, Any]
    circumference: dict[str, Any]


RESULT_FILES = [
    "fetal-abdomen-frame-number.json",
    "fetal-abdominal-circumference.json",
    "frame-quality-scores.json",
    "images/fetal-abdomen-segmentation/output.mha",
]


class OutputCheck:
    """Holds an output folder against the platform's contract."""

    files = RESULT_FILES

    def __call__(self, output: Path, input_stack: Path) -> Sockets:
        """Read the sockets, fail where one is not as the platform and the evaluator need it."""
        frame_number = json.loads((output / RESULT_FILES[0]).read_text())
        image = SimpleITK.ReadImage(str(output / RESULT_FILES[3]))
        reference = SimpleITK.ReadImage(str(input_stack))
        mask = SimpleITK.GetArrayFromImage(image)
        assert [path.name for path in (output / "images/fetal-abdomen-segmentation").iterdir()] == ["output.mha"]
        assert (image.GetSize(), image.GetPixelIDTypeAsString()) == (reference.GetSize(), "8-bit unsigned integer")
        assert image.GetSpacing()[:2] == pytest.approx(reference.GetSpacing()[:2])
        assert type(frame_number) is int
        assert -1 <= frame_number < len(mask)
        assert set(np.unique(mask)) <= {0, 1}
        assert set(np.flatnonzero(mask.any(axis=(1, 2)))) <= {frame_number}
        scores = json.loads((output / RESULT_FILES[2]).read_text())
        assert scores["frames"] == len(scores["presence_probability"]) == len(mask)
        circumference = json.loads((output / RESULT_FILES[1]).read_text())
        assert circumference["frame_number"] == frame_number
        return Sockets(frame_number, mask, scores, circumference)


@pytest.fixture(scope="session")
def check_output() -> OutputCheck:
    """The check of an output folder."""
    return OutputCheck()


@pytest.fixture(scope="session")
def not_ours() -> dict[str, str]:
    """Variables of the platform's own machinery."""
    return NOT_OURS
