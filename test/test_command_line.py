"""The command `acouslic`, as it stands in the repository and as a wheel brings it to a clean environment."""

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from acouslic import __version__
from acouslic_cli.__main__ import DIRECT_FROM_TRAINING, main
from algorithm.arguments import COMMANDS
from training.__main__ import COMMANDS as TRAINING_COMMANDS
from training.recipe.command_line import bounds_in_words

pytestmark = pytest.mark.usefixtures("restored_process")


def test_help_lists_every_command(capsys):
    """Each command of the three packages has its line, and what argparse knows of the algorithm is the same list."""
    from algorithm import arguments as algorithm
    from evaluation import __main__ as evaluation
    from training import __main__ as training

    assert main(["--help"]) == 0
    listed = re.findall(r"^  ((?:evaluate |train )?[a-z-]+)  +\S", capsys.readouterr().out, re.MULTILINE)
    expected = [*algorithm.COMMANDS, *(f"evaluate {name}" for name in evaluation.COMMANDS), "generate"]
    expected += [f"train {name}" for name in training.COMMANDS if name != "generate"]
    assert listed == expected

    parser = algorithm.make_parser("acouslic")
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    assert list(commands.choices) == list(algorithm.COMMANDS)


def test_words_that_are_no_command(capsys):
    """None at all, or an unknown one: exit code 2, and what to do; `--version` says which version this is."""
    assert main([]) == 2
    assert main(["nope\x1b"]) == 2
    assert capsys.readouterr().err == "acouslic has no command 'nope\\x1b': acouslic --help lists them all\n"
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"acouslic {__version__}\n"


@pytest.mark.parametrize("words", [["predict"], ["serve"], ["generate"], ["evaluate", "local"], ["train", "split"]])
def test_every_package_is_reached(words, capsys):
    """`--help` comes from the command's own parser."""
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: acouslic {' '.join(words)} ")


def test_each_command_of_the_algorithm_says_what_it_does(capsys):
    """Its line of the list opens its own help; what a command of one case reads and writes is said there."""
    for command, text in COMMANDS.items():
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        assert f"{text[:1].upper()}{text[1:]}." in shown
        assert ("OUTPUT_DIR (/output) gets the results" in shown) == (command in ("exec", "serve"))


@pytest.mark.parametrize("command", [name for name in TRAINING_COMMANDS if name not in DIRECT_FROM_TRAINING])
def test_each_command_of_training_is_named_as_people_call_it(command, capsys):
    """Its help begins with `acouslic train`, and no heading ends in the middle of a sentence."""
    with contextlib.suppress(SystemExit):
        main(["train", command, "--help"])
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: acouslic train {command} ")
    assert "those that the:" not in shown


def test_help_says_what_each_setting_of_a_manifest_is(capsys):
    """`train export`: what stands below a field of its dataclass."""
    with contextlib.suppress(SystemExit):
        main(["train", "export", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--scoring.margin_frames MARGIN_FRAMES Frames refined on each side of a frame that could win." in shown


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["export"], "(type: int from 0 to 100000, default: 3)"),
        (["export"], "(type: tuple[float from 0 to 1, float from 0 to 1], default: (0.1, 0.9))"),
        (["export"], "(type: int from 1 to 100000, or null, default: null)"),
        (["export"], "(type: float above 0 and at most 1, default: 0.2)"),
        (["export"], "(type: int at least 1, default: 4)"),
        (["export", "--selection.half_way.help"], "(required, type: float from 0 to 1)"),
        (["fit"], "(type: Literal['all', 'fan'], default: all)"),
        (["fit"], "(type: int | null, default: 6)"),
        (["ensemble"], "(type: float, default: 0.0003)"),
        (["distil"], "(type: tuple[int, ...], default: (1, 2, 2, 2))"),
        (["table"], "(type: int, default: 32)"),
    ],
)
def test_help_says_the_bounds_of_a_setting_in_words(words, shown, capsys):
    """No type is shown as Python spells it with its metadata; what has no bounds is shown as before."""
    with contextlib.suppress(SystemExit):
        main(["train", *words, *([] if len(words) > 1 else ["--help"])])
    printed = " ".join(capsys.readouterr().out.split())
    assert shown in printed
    assert "Annotated" not in printed
    assert "Meta(" not in printed


def test_bounds_in_words():
    """Both ends, either, none that is known; a type without bounds is no business of this."""
    assert bounds_in_words("(type: Annotated[int, msgspec.Meta(ge=0)])") == "(type: int at least 0)"
    assert bounds_in_words("Annotated[float, Meta(gt=0, lt=1.0)]") == "float above 0 and below 1.0"
    assert bounds_in_words("Annotated[float, Meta(ge=-1, le=1)]") == "float from -1 to 1"
    assert bounds_in_words("Annotated[str, Meta(max_length=200)]") == "str"
    assert bounds_in_words("Optional[Literal['cpu']], Optional[int]") == "Optional[Literal['cpu']], Optional[int]"


def test_groups_without_a_command_explain_themselves(capsys):
    """`acouslic evaluate` does not start the container's run, `acouslic train` lists its commands."""
    assert main(["evaluate"]) == 2
    assert "compare" in capsys.readouterr().out
    assert main(["train"]) == 2
    assert "export" in capsys.readouterr().out
    assert main(["train", "nope"]) == 2


def test_a_failure_is_one_sentence_and_exit_code_1(tmp_path, capsys):
    """As with `python -m`: the last line of stderr says what and where, in evaluation and in training."""
    nowhere = str(tmp_path / "nowhere")
    assert main(["evaluate", "local", "--predictions", nowhere, "--raw", nowhere]) == 1
    assert nowhere in capsys.readouterr().err.splitlines()[-1]
    assert main(["train", "pack", "--model", nowhere, "--out", str(tmp_path / "model.tar.gz")]) == 1
    assert nowhere in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("program", "words", "package", "extra"),
    [
        ("acouslic_cli", ["predict", "x.mha", "--output", "out", "--model", "MODEL"], "torch", "algorithm"),
        ("acouslic_cli", ["train", "fit", "--cache=c", "--split=s", "--out=o"], "jsonargparse", "training"),
        ("acouslic_cli", ["evaluate", "compare", "a", "b"], "scipy", "evaluation"),
        ("training", ["fit", "--cache=c", "--split=s", "--out=o"], "jsonargparse", "training"),
        ("evaluation", ["compare", "a", "b"], "scipy", "evaluation"),
    ],
)
def test_a_missing_package_is_named(
    program, words, package, extra, repository, tiny_model, platform_case, speckle, tmp_path
):
    """Where only the base is installed, the sentence names the package and the extra that brings it."""
    platform_case.write_sweep(speckle(2)).rename(tmp_path / "x.mha")
    words = [str(tiny_model) if word == "MODEL" else word for word in words]
    code = f"import sys; sys.modules[{package!r}] = None\nfrom {program}.__main__ import main\nsys.exit(main({words}))"
    environment = os.environ | {"PYTHONPATH": str(repository)}
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(f"the Python package {package} is not installed, which this needs: pip install")
    assert f"acouslic-fetal-abdomen[{extra}]" in last


@pytest.fixture(scope="module")
def installed(repository, tmp_path_factory) -> Path:
    """A clean environment with the repository's wheel in it, and the pinned packages within reach."""
    root = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        needed = name.startswith(("acouslic", "algorithm/", "evaluation/", "training/")) or "/" not in name
        if needed and (repository / name).is_file():
            (root / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / name, root / "source" / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(root), str(root / "source")]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = root.glob("*.whl")
    environment = root / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    # A plain line of a .pth file: the .pth files in that folder, which name the repository, are not read.
    import numpy

    (packages / "pinned.pth").write_text(f"{Path(numpy.__file__).parents[1]}\n")
    return environment


def test_the_wheel_holds_every_file_of_the_packages(installed, repository):
    """Modules, templates, styles and scripts: what git has in the four packages and the command, and nothing else."""
    listed = subprocess.run(["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=True)
    packages = ("acouslic/", "acouslic_cli/", "algorithm/", "evaluation/", "training/")
    wanted = {name for name in listed.stdout.splitlines() if name.startswith(packages) and (repository / name).exists()}
    wanted -= {"evaluation/Dockerfile", "training/RESULTS.md", "training/slurm_ensemble.sh"}
    (folder,) = installed.glob("lib/python*/site-packages")
    found = {path.relative_to(folder).as_posix() for name in packages for path in (folder / name).rglob("*.*")}
    assert {name for name in found if "__pycache__" not in name} == wanted


def test_the_wheel_gives_the_command(installed, tiny_model, platform_case, speckle, tmp_path):
    """In a clean environment, far from the repository: version, help, and a case analysed by the installed modules."""

    def acouslic(*words: object) -> str:
        command = [installed / "bin" / "acouslic", *map(str, words)]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert (ended.returncode, ended.stderr) == (0, "")
        return ended.stdout

    assert acouslic("--version") == f"acouslic {__version__}\n"
    assert "--output DIR" in acouslic("predict", "--help")
    sweep = platform_case.write_sweep(speckle(), name="case.mha")
    output = tmp_path / "results"
    said = acouslic("predict", sweep, "--model", tiny_model, "--output", output, "--device", "cpu")
    assert "case: frame " in said
    assert (output / "case" / "fetal-abdominal-circumference.json").is_file()
    (folder,) = installed.glob("lib/python*/site-packages")
    where = [installed / "bin" / "python", "-P", "-c", "import algorithm; print(algorithm.__file__)"]
    ended = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(ended.stdout.strip()).is_relative_to(folder)


def test_set_up_gives_the_command(repository):
    """`.venv/bin/acouslic`, which requirements/set_up.sh writes, runs the repository's own code from any folder."""
    if Path(sys.prefix) != repository / ".venv":
        if os.environ.get("CI_REQUIRE_ALL") == "1":
            pytest.fail("CI_REQUIRE_ALL=1, but these tests do not run in .venv: use ./test.sh")
        pytest.skip("these tests do not run in .venv: ./test.sh does that")
    ended = subprocess.run([repository / ".venv/bin/acouslic", "--version"], cwd="/", capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, f"acouslic {__version__}\n"), ended.stderr
