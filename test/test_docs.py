"""What the documentation promises: links and paths exist, commands and their options too, examples run."""

import contextlib
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from acouslic_cli.__main__ import main

pytestmark = pytest.mark.usefixtures("restored_process")

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "training" / "RESULTS.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]


def code_blocks(page: Path, language: str = "") -> list[str]:
    """The fenced blocks of a page in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def documented_commands() -> dict[str, str]:
    """Every `acouslic ...` of every page, with the page it stands on: from blocks, and from code within sentences."""
    found = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = "\n".join(code_blocks(page)).replace("\\\n", " ").splitlines()
        in_sentences = re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        for command in [*lines, *(" ".join(code.split()) for code in in_sentences)]:
            if match := re.match(r"(?:\.venv/bin/)?acouslic ([a-z].*)", command.strip()):
                found[match[1]] = page.name
    return found


def test_the_readme_is_short():
    """Below 6 kB: everything else is in docs/."""
    assert (REPOSITORY / "README.md").stat().st_size < 6000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Every relative link and picture of a page is a file of the repository, and an anchor a heading of it."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]
    for target in local:
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.is_file(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, f"{page.name} links to {target}"


def test_each_question_of_a_stranger_has_a_path_that_exists():
    """At least ten questions in docs/architecture.md, one path each."""
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    answers = re.findall(r"^\| ([^|]+\?) \| `([^`]+)` \|$", text, re.MULTILINE)
    assert len(answers) >= 10
    assert len(answers) == len(re.findall(r"^\| [^|]+\? \|", text, re.MULTILINE))
    for question, path in answers:
        assert (REPOSITORY / path).exists(), f"{question} {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_in_code_exist(page):
    """A path into the packages, the tests or the scripts that a page names in backticks is there."""
    named = re.findall(
        r"`((?:acouslic|algorithm|evaluation|training|bench|test|docs|requirements)/[^`\s*:]*)`", page.read_text()
    )
    for name in named:
        assert (REPOSITORY / name).exists(), f"{page.name} names {name}"


def _words_and_options(command: str) -> tuple[list[str], list[str]]:
    """The words that name a command (`train export`), and the options it is given."""
    parts = shlex.split(command.replace("...", ""), comments=True)
    words = parts[:2] if parts[0] in ("evaluate", "train") else parts[:1]
    return words, [part.partition("=")[0] for part in parts[len(words) :] if part.startswith("--")]


def test_documented_commands_and_options_exist(capsys):
    """Every `acouslic ...` of the pages names a command that there is, and options that its `--help` lists."""
    commands = documented_commands()
    assert len(commands) > 10
    helps: dict[tuple[str, ...], str] = {}
    for command, page in commands.items():
        words, options = _words_and_options(command)
        if tuple(words) not in helps:
            with contextlib.suppress(SystemExit):
                main([*words, "--help"])
            helps[tuple(words)] = capsys.readouterr().out
        shown = helps[tuple(words)]
        assert "usage:" in shown, f"{page}: acouslic {command}"
        missing = [
            option for option in options if option != "--help" and f"{option}" not in re.split(r"[\s,=\[\]]+", shown)
        ]
        assert not missing, f"{page}: acouslic {command}: no {missing}"


def test_an_invented_command_or_option_is_noticed(capsys):
    """The check above can fail."""
    assert _words_and_options("train export runs --no_such 1") == (["train", "export"], ["--no_such"])
    assert main(["invented", "--help"]) == 2
    assert "usage:" not in capsys.readouterr().out


def test_the_python_example_runs(tmp_path, monkeypatch, speckle, platform_case):
    """The blocks of docs/python.md, one after another, with the demo model and a small sweep."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(REPOSITORY / "model")
    shutil.move(platform_case.write_sweep(speckle(12, 80, 120)), tmp_path / "case.mha")
    names: dict[str, object] = {}
    for block in code_blocks(REPOSITORY / "docs" / "python.md", "python"):
        exec(compile(block, "docs/python.md", "exec"), names)

    assert isinstance(names["frames"], np.ndarray)
    assert names["result"].notes[0] == "all frames are black"


def test_pre_commit_runs_what_ci_runs():
    """The hooks' commands are those of the phase "Lint and types" in .ci/run, and of the workflow."""
    config = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())
    (local,) = config["repos"]
    assert local["repo"] == "local"
    entries = {hook["id"]: hook["entry"] for hook in local["hooks"]}
    assert {hook["language"] for hook in local["hooks"]} == {"system"}
    ci = (REPOSITORY / ".ci" / "run").read_text()
    phase = ci.split('phase "Lint and types"\n')[1].split("\n\n")[0].splitlines()
    shellcheck = phase.pop()
    assert phase == [entries[name] for name in ("ruff-format", "ruff-check", "mypy")]
    assert shellcheck.startswith("shellcheck ")
    assert shellcheck in entries["shellcheck"]

    workflow = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    assert set(phase) < set(steps)
    assert ".ci/run" in steps
    documentation = re.search(r"^\.venv/bin/sphinx-build (.*) docs ", ci, re.MULTILINE)[1]
    assert f".venv/bin/sphinx-build {documentation} docs dist/docs" in steps
