"""Imports run one way: training -> algorithm -> acouslic, evaluation -> acouslic; two packages never load torch.

Only `acouslic_cli`, the command for all of them, imports every package, and none imports it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("acouslic", "acouslic_cli", "algorithm", "evaluation", "training")
ALLOWED = {
    "acouslic": set(),
    "acouslic_cli": {"acouslic", "algorithm", "evaluation", "training"},
    "algorithm": {"acouslic"},
    "evaluation": {"acouslic"},
    "training": {"acouslic", "algorithm"},
}
"""What each package may import of the others."""

_COMPUTED = "a computed name"
_TRAINING_ONLY = {"open_clip", "peft", "timm", "torchvision", "lightning", "kornia", "jsonargparse"}
BANNED = {
    "acouslic": _TRAINING_ONLY | {"torch", "safetensors", _COMPUTED},
    "acouslic_cli": _TRAINING_ONLY | {"torch", "safetensors", _COMPUTED},
    "algorithm": _TRAINING_ONLY | {_COMPUTED},
    "evaluation": _TRAINING_ONLY | {"torch", "safetensors", _COMPUTED},
    "training": set(),  # its command line imports the command's own module by a computed name
}
"""What each package may never import from outside: its image does not hold it, or it would load torch."""

ROOMS = {
    "acouslic": ("reading", "scanner", "page"),
    "algorithm": ("process", "model", "frames", "engine", "judgement", "result", "page"),
    "training": ("phantom", "recipe", "release", "frames", "network", "learn", "judge", "export"),
    "evaluation": ("inputs", "metrics", "report"),
}
"""The rooms of each package, in the order of the data: a room may use itself and the rooms before it."""
DEFINITIONS = {"acouslic": {"errors", "geometry", "printable", "sockets"}}
"""Modules beside the rooms that every room may use: they define words and numbers, and import nothing of the package's
rooms."""
BENCH_ROOMS = {"setting", "figures"}
"""What a benchmark may import of the benchmarks: each of the others is a command of its own."""
MOST_MODULES = 13
"""Of a room, without its `__init__`: more are two rooms."""


def imported_packages(source: str, package: str) -> set[str]:
    """The top-level packages that a module of `package` imports anywhere in its source, in functions as well."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(package if node.level else (node.module or "").partition(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            argument = node.args[0] if node.args else None
            is_name = isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            found.add(argument.value.partition(".")[0] if is_name else _COMPUTED)
    return found


def violations(root: Path) -> list[str]:
    """`file imports package`, for every import under `root` that goes the wrong way."""
    found = []
    for package in PACKAGES:
        forbidden = set(PACKAGES) - ALLOWED[package] - {package} | BANNED[package] | {"test", "bench"}
        for path in sorted((root / package).rglob("*.py")):
            wrong = imported_packages(path.read_text(encoding="utf-8"), package) & forbidden
            found += [f"{path.relative_to(root)} imports {name}" for name in sorted(wrong)]
    return found


def imported_rooms(source: str, package: str) -> set[str]:
    """What a module imports from within its own package: names of rooms, and of modules beside them."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == package:
            names = [f"{package}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith(f"{package}.")}
    return found


def room_violations(root: Path) -> list[str]:
    """`file imports room`, for every import that leads out of a room into a later one, or to the ways in."""
    found = []
    for package, rooms in ROOMS.items():
        for number, room in enumerate(rooms):
            allowed = set(rooms[: number + 1]) | DEFINITIONS.get(package, set())
            for path in sorted((root / package / room).rglob("*.py")):
                wrong = imported_rooms(path.read_text(encoding="utf-8"), package) - allowed
                found += [f"{path.relative_to(root)} imports {name}" for name in sorted(wrong)]
    return found


def bench_violations(root: Path) -> list[str]:
    """`file imports command`, for every import of a command under `bench`."""
    found = []
    for path in sorted((root / "bench").rglob("*.py")):
        wrong = imported_rooms(path.read_text(encoding="utf-8"), "bench") - BENCH_ROOMS
        found += [f"{path.relative_to(root)} imports {name}" for name in sorted(wrong)]
    return found


def _modules(root: Path, package: str) -> list[str]:
    paths = sorted((root / package).rglob("*.py"))
    return [".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for path in paths]


def test_no_import_goes_the_wrong_way(repository: Path) -> None:
    """The whole source keeps to the rule."""
    assert violations(repository) == []
    assert all(_modules(repository, package) for package in PACKAGES)


def test_no_room_imports_a_later_one(repository: Path) -> None:
    """Within a package imports follow the data: from a room to those before it, never to the ways in."""
    assert room_violations(repository) == []
    for package, modules in DEFINITIONS.items():
        for name in modules:
            source = (repository / package / f"{name}.py").read_text(encoding="utf-8")
            assert not imported_rooms(source, package) & set(ROOMS[package])


def test_no_benchmark_imports_another(repository: Path) -> None:
    """What several share lies in `setting` or `figures`, and those import no command either."""
    assert bench_violations(repository) == []
    assert {path.parent.name for path in (repository / "bench").glob("*/*.py")} == BENCH_ROOMS


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_are_known_described_and_small(repository: Path, package: str) -> None:
    """Every folder of a package is a room of the list; its `__init__` says what goes in and out; none is crowded."""
    folders = {path.parent.name for path in (repository / package).glob("*/*.py")}

    assert folders == set(ROOMS[package])
    for room in ROOMS[package]:
        told = (repository / package / room / "__init__.py").read_text(encoding="utf-8")
        assert "In: " in told
        assert "Out: " in told
        modules = list((repository / package / room).glob("[!_]*.py"))
        assert 1 < len(modules) <= MOST_MODULES, room


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from algorithm.result.outputs import CaseResult", "result"),
        ("import algorithm.result.segment", "result"),
        ("from algorithm import pipeline", "pipeline"),
        ("def late():\n    from algorithm.judgement import score", "judgement"),
    ],
)
def test_room_walker_finds_a_wrong_import(tmp_path: Path, source: str, name: str) -> None:
    """The walk over rooms can fail: a module of an early room that uses a later one is found."""
    folder = tmp_path / "algorithm" / "model"
    folder.mkdir(parents=True)
    (folder / "module.py").write_text(source)
    (folder / "good.py").write_text("from algorithm.process.cores import usable_cores\nimport torch")

    assert room_violations(tmp_path) == [f"algorithm/model/module.py imports {name}"]


@pytest.mark.parametrize("place", ["bench", "bench/figures"])
@pytest.mark.parametrize(
    "source", ["from bench.case import prepare", "from bench import case", "def late():\n    import bench.case as one"]
)
def test_bench_walker_finds_a_wrong_import(tmp_path: Path, place: str, source: str) -> None:
    """The walk over benchmarks can fail: one that imports a command is found, beside one that may import its rooms."""
    folder = tmp_path / place
    folder.mkdir(parents=True)
    (folder / "module.py").write_text(source)
    (folder / "good.py").write_text("import bench.setting.sides\nfrom bench.figures.table import table")

    assert bench_violations(tmp_path) == [f"{place}/module.py imports case"]


@pytest.mark.parametrize(
    ("package", "source", "name"),
    [
        ("acouslic", "import torch", "torch"),
        ("acouslic", "from algorithm.model.tower import Tower", "algorithm"),
        ("algorithm", "import evaluation.metrics.official as official", "evaluation"),
        ("algorithm", "def late():\n    from training import fit", "training"),
        ("algorithm", "if True:\n    import open_clip", "open_clip"),
        ("algorithm", "from peft.tuners import lora", "peft"),
        ("algorithm", "import importlib\nimportlib.import_module('timm.models')", "timm"),
        ("evaluation", "import numpy, torch.nn", "torch"),
        ("evaluation", "from algorithm import outputs", "algorithm"),
        ("training", "from evaluation.metrics.official import score", "evaluation"),
        ("training", "import bench", "bench"),
        ("algorithm", "import acouslic_cli", "acouslic_cli"),
        ("acouslic_cli", "import torch", "torch"),
        ("algorithm", "name = 'x'\n__import__(name)", _COMPUTED),
    ],
)
def test_walker_finds_a_wrong_import(tmp_path: Path, package: str, source: str, name: str) -> None:
    """The walk can fail: made-up modules with one wrong import each are found, deep ones as well."""
    folder = tmp_path / package / "deep"
    folder.mkdir(parents=True)
    (folder / "module.py").write_text(source)

    assert violations(tmp_path) == [f"{package}/deep/module.py imports {name}"]


def test_walker_passes_what_is_allowed(tmp_path: Path) -> None:
    """Imports along the arrows, of oneself and of permitted packages are no violations."""
    for package, source in {
        "acouslic": "import numpy\nfrom . import fov\nfrom acouslic.errors import AcouslicError",
        "algorithm": "import torch\nfrom acouslic.stack import open_stack",
        "evaluation": "from acouslic.ellipse import fit_ellipse",
        "training": "import peft, open_clip\nfrom algorithm.model.tower import Tower",
    }.items():
        (tmp_path / package).mkdir()
        (tmp_path / package / "module.py").write_text(source)

    assert violations(tmp_path) == []


def _loads_torch(folder: Path, modules: list[str]) -> bool:
    """Whether importing these modules in a fresh interpreter leaves torch loaded."""
    code = (
        f"import importlib, sys\nsys.path.insert(0, {str(folder)!r})\n"
        f"for name in {modules!r}: importlib.import_module(name)\nprint('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return run.stdout.strip() == "True"


@pytest.mark.parametrize("package", ["acouslic", "acouslic_cli", "evaluation"])
def test_light_packages_leave_torch_unloaded(repository: Path, package: str) -> None:
    """Importing every module of the torch-free packages, with all that they import, never loads torch."""
    assert not _loads_torch(repository, _modules(repository, package))


def test_torch_check_can_fail(tmp_path: Path) -> None:
    """A module that loads something named torch, if only by way of another, is found."""
    (tmp_path / "torch.py").touch()
    (tmp_path / "other.py").write_text("import torch")
    (tmp_path / "module.py").write_text("import other")

    assert _loads_torch(tmp_path, ["module"])
