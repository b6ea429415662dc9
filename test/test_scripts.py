"""The scripts at the top: sound shell, clear sentences, the right words to docker and pip; and what they install."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

SCRIPTS = ["run.sh", "test.sh", "build.sh", "export.sh", "requirements/set_up.sh", "test/container/stand_in_bases.sh"]
FAKE_DOCKER = """#!/bin/sh
echo "$@" >> "$DOCKER_CALLS"
case "$1 $2" in
    "image inspect") [ "$4" = '{{join .RepoTags " "}}  {{.Size}} bytes' ] || echo "$BUILT_AT" ;;
    save*) [ -z "$SAVE_FAILS" ] || exit 1; echo "image $2" ;;
esac
"""


def run(script: Path, *words: str, path: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script from a folder that is not the repository."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "MODEL_DIR")}
    environment |= {"PATH": path or os.environ["PATH"], **variables}
    return subprocess.run([script, *words], capture_output=True, text=True, cwd="/", env=environment, timeout=300)


def tools(folder: Path, **commands: str) -> str:
    """A PATH of the usual small programs and these commands (content of a script each), and nothing else."""
    usual = "bash sh env cat cksum cut dirname sed git mktemp mkdir rmdir rm mv ls wc gzip date head tail chmod uname"
    usual += " sha256sum"
    folder.mkdir(exist_ok=True)
    for name in usual.split():
        if (program := shutil.which(name)) and not (folder / name).exists():
            (folder / name).symlink_to(program)
    for name, content in commands.items():
        (folder / name).unlink(missing_ok=True)  # A link to the machine's own: it must not be written through.
        (folder / name).write_text(content)
        (folder / name).chmod(0o755)
    return str(folder)


@pytest.fixture
def checkout(repository, tmp_path) -> Path:
    """A folder with the scripts and just enough around them, whose virtual environment is a recording stub."""
    root = tmp_path / "checkout with a space"
    for name in (*SCRIPTS, "acouslic/__init__.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repository / name, root / name)
    (root / "model" / "demo").mkdir(parents=True)
    (root / "model" / "demo" / "manifest.json").write_text("{}")
    tools(root / "bin", docker=FAKE_DOCKER)
    stub = f'#!/bin/sh\necho "$@" >> "{root}/calls"\nfor last in "$@"; do :; done\n'
    stub += 'case "$*" in *"training pack"*) echo model > "$last" ;; *pytest*) exit "${PYTEST_STATUS:-0}" ;; esac\n'
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "python").write_text(stub)
    (root / ".venv" / "bin" / "python").chmod(0o755)
    (root / "requirements" / "set_up.sh").write_text(f'#!/bin/sh\necho "set_up $1" >> "{root}/calls"\n')
    return root


@pytest.fixture
def stub_tools(checkout) -> dict[str, str]:
    """Variables that make the scripts see the recording docker and nothing beside it."""
    return {"path": str(checkout / "bin"), "DOCKER_CALLS": str(checkout / "docker-calls"), "BUILT_AT": "unknown"}


def calls(checkout: Path, name: str = "calls") -> list[str]:
    """What the stubs were called with."""
    return (checkout / name).read_text().splitlines()


def test_shellcheck_finds_nothing(repository):
    """Every shell script passes shellcheck, without exceptions."""
    if shutil.which("shellcheck") is None:
        if os.environ.get("CI_REQUIRE_ALL") == "1":
            pytest.fail("CI_REQUIRE_ALL=1, but shellcheck is not installed")
        pytest.skip("shellcheck is not installed")
    files = [repository / ".ci" / "run", *(path for path in repository.rglob("*.sh") if ".venv" not in path.parts)]
    assert {repository / name for name in SCRIPTS} <= set(files)
    ended = subprocess.run(["shellcheck", *files], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("name", [*SCRIPTS, ".ci/run"])
def test_scripts_are_strict_and_can_be_started(repository, name):
    """Each is executable, runs under bash wherever that is, and stops at the first error."""
    lines = (repository / name).read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert os.access(repository / name, os.X_OK)


def test_every_pin_is_in_the_constraints(repository):
    """constraints.txt states each pinned version again, so that `pip install -c` never meets two."""
    pin = re.compile(r"^([A-Za-z0-9_.-]+)(?:\[.*\])?==(\S+)$", re.MULTILINE)
    folder = repository / "requirements"

    def pins(path: Path) -> dict[str, str]:
        return {re.sub(r"[_.-]+", "-", name).lower(): version for name, version in pin.findall(path.read_text())}

    constraints = pins(folder / "constraints.txt")
    stated = {}
    for path in folder.glob("*.txt"):
        stated |= pins(path)
    follows_torch = {"torch", "torchvision"}
    assert {name: version for name, version in stated.items() if name not in follows_torch} == constraints
    assert not [name for name in constraints if name.startswith(("nvidia-", "cuda-", "triton"))]


def test_every_dependency_of_the_package_is_pinned(repository):
    """What pyproject.toml asks for in ranges is what requirements/ pins, base and extras alike."""
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    def names(requirements: list[str]) -> set[str]:
        found = {re.match(r"[A-Za-z0-9_.-]+", line)[0].lower() for line in requirements}
        return found - {project["name"]}

    def pinned(name: str) -> set[str]:
        lines = (repository / "requirements" / f"{name}.txt").read_text().splitlines()
        found = {re.split(r"[=\[]", line)[0].lower() for line in lines if "==" in line}
        return found.union(*(pinned(line.split()[1].removesuffix(".txt")) for line in lines if line.startswith("-r ")))

    assert names(project["dependencies"]) == pinned("base")
    assert names(extras["algorithm"]) == pinned("algorithm") - pinned("base") | pinned("torch")
    assert names(extras["evaluation"]) == pinned("evaluation") - pinned("base")
    of_others = pinned("algorithm") | pinned("torch") | pinned("evaluation")
    assert names(extras["training"]) == pinned("training") - of_others
    assert names(extras["cohort"]) == pinned("cohort") - pinned("algorithm")
    assert names(extras["docs"]) == pinned("docs") - pinned("training") - pinned("evaluation") - pinned("cohort")


def test_versions_agree(repository):
    """The package, its metadata and the changelog name one version."""
    version = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["version"]
    assert f'__version__ = "{version}"' in (repository / "acouslic" / "__init__.py").read_text()
    assert f"## [{version}]" in (repository / "CHANGELOG.md").read_text()


def test_set_up_wants_a_python_that_is_new_enough(repository, tmp_path):
    """No Python of 3.11 or newer, or one without venv: a sentence that says what to install; nothing is made."""
    for name in ("set_up.sh", "torch.txt", "algorithm.txt", "base.txt"):
        (tmp_path / "requirements").mkdir(exist_ok=True)
        shutil.copy(repository / "requirements" / name, tmp_path / "requirements" / name)
    script = tmp_path / "requirements" / "set_up.sh"

    none = run(script, "runtime", path=tools(tmp_path / "none"))
    assert (none.returncode, none.stdout) == (1, "")
    assert "No Python of version 3.11 or newer" in none.stderr

    named = run(script, "runtime", path=tools(tmp_path / "none"), PYTHON="python2")
    assert named.returncode == 1
    assert "PYTHON=python2 is not a Python of version 3.11" in named.stderr

    without_venv = '#!/bin/sh\ncase "$*" in *ensurepip*) exit 1 ;; esac\n'
    bare = run(script, "runtime", path=tools(tmp_path / "bare", python3=without_venv))
    assert bare.returncode == 1
    assert "has no venv module" in bare.stderr
    assert not (tmp_path / ".venv").exists()


def test_set_up_installs_once_and_again_only_for_other_requirements(repository, tmp_path):
    """The second run does nothing; a changed pin or a larger set installs; the test set serves the run as well.

    PYTHON may have a space in its path."""
    shutil.copytree(repository / "requirements", tmp_path / "requirements")
    script = tmp_path / "requirements" / "set_up.sh"
    log = tmp_path / "pip-calls"
    python = f"""#!/bin/sh
case "$*" in
    *"-m venv"*) for last in "$@"; do :; done; mkdir -p "$last/bin"; cp "$0" "$last/bin/python" ;;
    *"pip install"*) echo "$@" >> "{log}" ;;
    *sysconfig*) echo "{tmp_path}" ;;
esac
"""
    path = tools(tmp_path / "tools", cp=f'#!/bin/sh\nexec {shutil.which("cp")} "$@"\n')
    tools(tmp_path / "a python", python3=python)

    def installs(*words: str) -> int:
        log.write_text("")
        ended = run(script, *words, path=path, PYTHON=str(tmp_path / "a python" / "python3"))
        assert ended.returncode == 0, ended.stderr
        return len(log.read_text().splitlines())

    assert installs("runtime") == 1
    assert f"--constraint {tmp_path}/requirements/constraints.txt" in log.read_text()
    assert installs("runtime") == 0
    assert installs("test") == 1
    assert installs("runtime") == installs("test") == 0
    pins = (tmp_path / "requirements" / "base.txt").read_text()
    (tmp_path / "requirements" / "base.txt").write_text("numpy==1.0\n")
    assert installs("runtime") == 1
    assert installs("evaluation") == 1
    assert installs("runtime") == installs("evaluation") == 0
    (tmp_path / "requirements" / "base.txt").write_text(pins)
    assert installs("test") == 1, "an old mark counted again"
    assert (tmp_path / "repository.pth").read_text().strip() == str(tmp_path)


def test_a_copied_repository_runs_its_own_code(repository, tmp_path):
    """Its environment is copied with it and names the old place, in what Python imports and in the command."""
    site = tmp_path / "site"
    site.mkdir()
    python = f"""#!/bin/sh
case "$*" in
    *"-m venv"*) for last in "$@"; do :; done; mkdir -p "$last/bin"; cp "$0" "$last/bin/python" ;;
    *sysconfig*) echo "{site}" ;;
esac
"""
    path = tools(tmp_path / "tools", python3=python, cp=f'#!/bin/sh\nexec {shutil.which("cp")} "$@"\n')
    shutil.copytree(repository / "requirements", tmp_path / "old" / "requirements")
    for name in ("old", "new"):
        root = tmp_path / name
        if name == "new":
            shutil.copytree(tmp_path / "old", root)
        assert run(root / "requirements" / "set_up.sh", "runtime", path=path).returncode == 0
        assert (site / "repository.pth").read_text().strip() == str(root)
        assert f'"{root}/.venv/bin/python"' in (root / ".venv" / "bin" / "acouslic").read_text()


def test_run_explains_itself_and_refuses_what_it_cannot_use(repository):
    """--help says what there is; a missing sweep is named; a third argument is a usage error."""
    script = repository / "run.sh"
    assert "MODEL_DIR" in run(script, "--help").stdout
    missing = run(script, "/nowhere/sweep.mha")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr.startswith("/nowhere/sweep.mha is not there")
    assert run(script, "a", "b", "c").returncode == run(script, "--what").returncode == 2


@pytest.mark.parametrize(
    ("name", "word"), [("run.sh", "MODEL_DIR"), ("build.sh", "BASE_IMAGE"), ("export.sh", "dist/")]
)
def test_scripts_explain_themselves_without_docker(repository, tmp_path, name, word):
    """--help lists what there is, on a machine that has nothing else."""
    ended = run(repository / name, "--help", path=tools(tmp_path / "bin"))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert word in ended.stdout


def test_run_generates_a_case_once_and_predicts_it(checkout, stub_tools):
    """Without arguments: the runtime environment, a generated case, the demo model; with arguments: what they name."""
    ended = run(checkout / "run.sh", **stub_tools)
    # The stub generates nothing, so the case is not there and the script stops at it.
    assert ended.returncode != 0
    set_up, generate = calls(checkout)
    assert set_up == "set_up runtime"
    assert generate.startswith("-m training generate --out")
    assert not list(checkout.glob("results/*"))

    (checkout / "results" / "generated-case-20002").mkdir(parents=True)
    assert run(checkout / "run.sh", **stub_tools).returncode == 0
    predict = calls(checkout)[-1]
    stacks = checkout / "results" / "generated-case-20002" / "images" / "stacked_fetal_ultrasound"
    assert predict.startswith(
        f"-m algorithm predict {stacks} --model {checkout}/model/demo --output {checkout}/results/"
    )

    ended = run(checkout / "run.sh", str(checkout / "model"), "/somewhere", MODEL_DIR="/other", **stub_tools)
    assert calls(checkout)[-1] == f"-m algorithm predict {checkout}/model --model /other --output /somewhere"
    assert "Results are in /somewhere" in ended.stdout


def test_two_runs_at_once_do_not_meet(checkout, stub_tools):
    """The second to generate the case leaves the first one's as it is. Two in the same second have a folder each, and
    one without a result leaves none."""
    python = checkout / ".venv" / "bin" / "python"
    case = checkout / "results" / "generated-case-20002"
    python.write_text(f"""#!/bin/sh
case "$*" in
    *"training generate"*) mkdir -p "$5/of the second" "{case}/of the first" ;;
    *predict*) for last in "$@"; do :; done; echo "$last" >> "{checkout}/calls"; : >"$last/results.csv" ;;
esac
""")
    tools(checkout / "bin", date="#!/bin/sh\necho 20261201-120000\n")
    for _ in range(2):
        assert run(checkout / "run.sh", **stub_tools).returncode == 0
    assert [item.name for item in case.iterdir()] == ["of the first"]
    moment = f"{checkout}/results/20261201-120000"
    assert [line for line in calls(checkout) if "set_up" not in line] == [moment, f"{moment}-2"]
    python.write_text("#!/bin/sh\nexit 1\n")
    assert run(checkout / "run.sh", **stub_tools).returncode == 1
    names = sorted(item.name for item in (checkout / "results").iterdir())
    assert names == ["20261201-120000", "20261201-120000-2", "generated-case-20002"]


@pytest.mark.parametrize("name", ["build.sh", "export.sh"])
def test_without_docker_or_an_engine_there_is_one_sentence(checkout, name):
    """What needs an engine says so, and says which half is missing."""
    (checkout / "bin" / "docker").unlink()
    ended = run(checkout / name, path=str(checkout / "bin"))
    assert ended.returncode == 1
    assert ended.stderr.startswith("docker was not found")
    tools(checkout / "bin", docker="#!/bin/sh\nexit 1\n")
    ended = run(checkout / name, path=str(checkout / "bin"))
    assert ended.returncode == 1
    assert ended.stderr.startswith("No Docker engine answers")


def test_build_passes_its_settings_to_docker(checkout, stub_tools):
    """Both tags and the evaluation, with bases, network and pip's settings from the environment."""
    settings = {
        "BASE_IMAGE": "my/torch:1",
        "EVALUATION_BASE_IMAGE": "my/python:1",
        "BUILD_NETWORK": "host",
        "PIP_INDEX_URL": "https://example.org/simple",
    }
    assert run(checkout / "build.sh", "--pull", **settings, **stub_tools).returncode == 0
    exec_build, invoke_build, evaluation_build = (
        line for line in calls(checkout, "docker-calls") if line.startswith("build ")
    )
    version = re.search(r'"(.*)"', (checkout / "acouslic" / "__init__.py").read_text().splitlines()[-1])[1]
    assert f"--tag acouslic-algorithm:{version}-exec --tag acouslic-algorithm:latest-exec" in exec_build
    assert "--target exec" in exec_build
    assert f"--tag acouslic-algorithm:{version} --tag acouslic-algorithm:latest " in invoke_build
    assert "--target invoke" in invoke_build
    assert f"--tag acouslic-evaluation:{version} " in evaluation_build
    for build in (exec_build, invoke_build):
        assert "--build-arg BASE_IMAGE=my/torch:1 " in build
    assert "--build-arg BASE_IMAGE=my/python:1 " in evaluation_build
    for build in (exec_build, invoke_build, evaluation_build):
        assert "--network host" in build
        assert "--build-arg PIP_INDEX_URL " in build
        assert "example.org" not in build
        assert "--pull" in build


def test_export_names_files_by_version_and_commit(checkout, stub_tools):
    """Three image archives and the model, complete under their names or not there at all; no model replaces another."""
    dist = checkout / "some dist"
    failed = run(checkout / "export.sh", DIST_DIR=str(dist), SAVE_FAILS="1", **stub_tools)
    assert failed.returncode != 0
    assert list(dist.iterdir()) == []

    assert run(checkout / "export.sh", DIST_DIR=str(dist), **stub_tools).returncode == 0
    version = re.search(r'"(.*)"', (checkout / "acouslic" / "__init__.py").read_text().splitlines()[-1])[1]
    assert sorted(path.name for path in dist.iterdir()) == [
        f"acouslic-algorithm-{version}-unknown-exec.tar.gz",
        f"acouslic-algorithm-{version}-unknown.tar.gz",
        f"acouslic-evaluation-{version}-unknown.tar.gz",
        f"acouslic-model-{version}-unknown-44136fa3.tar.gz",  # of "{}"
    ]
    other = checkout / "model" / "other"
    other.mkdir()
    (other / "manifest.json").write_text("[]")
    assert run(checkout / "export.sh", str(other), DIST_DIR=str(dist), **stub_tools).returncode == 0
    assert len(list(dist.glob("acouslic-model-*.tar.gz"))) == 2
    assert f"save acouslic-evaluation:{version}" in calls(checkout, "docker-calls")

    stub_tools["BUILT_AT"] = "0123456789ab"
    stale = run(checkout / "export.sh", DIST_DIR=str(dist), **stub_tools)
    assert stale.returncode == 1
    assert "was built at 0123456789ab" in stale.stderr


def test_test_says_what_it_did_not_run(checkout, stub_tools):
    """Without an engine, shellcheck or shared data each is named after pytest's report; pytest's status counts."""
    (checkout / "bin" / "docker").unlink()
    variables = {"ACOUSLIC_SHARED": "/nowhere", "PYTEST_STATUS": "3", **stub_tools}
    ended = run(checkout / "test.sh", "-k", "ellipse", **variables)
    assert ended.returncode == 3
    assert calls(checkout)[:2] == ["set_up test", "-m pytest -k ellipse"]
    not_run = [line for line in ended.stdout.splitlines() if line.startswith("Not run: ")]
    assert [re.match(r"Not run: (.*?):", line)[1] for line in not_run] == [
        "the container tests",
        "the check of the shell scripts",
        "the tests on golden cases and real images",
    ]


def test_run_measures_a_real_sweep(repository, tmp_path):
    """`./run.sh SWEEP OUTPUT` from another folder, through the repository's own environment and the demo model."""
    if Path(sys.prefix) != repository / ".venv":
        if os.environ.get("CI_REQUIRE_ALL") == "1":
            pytest.fail("CI_REQUIRE_ALL=1, but these tests do not run in .venv: use ./test.sh")
        pytest.skip("these tests do not run in .venv: ./test.sh does that")
    from training.phantom.generate import main

    options = ["--cases", "1", "--seed", "3", "--sweeps", "1", "--frames-per-sweep", "20"]
    assert main(["--out", str(tmp_path / "release"), *options]) == 0
    (stack,) = (tmp_path / "release" / "images" / "stacked_fetal_ultrasound").iterdir()
    ended = run(repository / "run.sh", str(stack), str(tmp_path / "results"))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert f"Look at: {tmp_path}/results/{stack.stem}/report.html" in ended.stdout
    assert (tmp_path / "results" / stack.stem / "report.html").is_file()
