"""Makes the libraries of an image small: removes the code that our packages never load, and compiles the rest.

    python3 keep_loaded.py LIBRARIES PACKAGE ... [--by-name MODULE ...]

LIBRARIES is the folder that pip installed to, PACKAGE a folder with our sources. It imports every module that the
sources name, within functions too, and each MODULE: those that a library looks up by name when it first needs them.
Then it removes the packages that are not loaded, and the other modules and shared objects that are not, with their
sources in C or Cython. Data beside a module that is loaded stays.
"""

import argparse
import ast
import compileall
import importlib.util
import py_compile
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

_CODE = {".py", ".pyi", ".pyx", ".pxd", ".pxi", ".tp", ".c", ".h", ".cpp", ".hpp", ".a"}


def named_modules(source: Path) -> Iterator[str]:
    """The modules that a file imports anywhere; `package.name` also where `name` may be no module."""
    for node in ast.walk(ast.parse(source.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def load(name: str) -> None:
    """Import a module; nothing where its top package is not installed here, or where the name is not a module's.

    Our packages name libraries of each other's images, such as those that read DICOM.
    """
    package, _, attribute = name.rpartition(".")
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        return
    if package:
        load(package)
        parent = sys.modules.get(package)
        if hasattr(parent, attribute) or not hasattr(parent, "__path__"):
            return
    importlib.import_module(name)


def record_opened_files() -> set[str]:
    """A set that takes the name of every file that this process opens from now on; an audit hook stays for good."""
    opened: set[str] = set()

    def note(event: str, values: tuple[object, ...]) -> None:
        if event == "open" and isinstance(values[0], str):
            opened.add(values[0])

    sys.addaudithook(note)
    return opened


def mapped_files() -> set[str]:
    """The shared objects in this process, those that other ones need included."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {words[5] for words in (line.split(maxsplit=5) for line in lines) if len(words) == 6}


def remove_the_rest(libraries: Path, loaded: set[Path]) -> None:
    """Delete packages and other code below `libraries` that are not loaded, and folders that become empty."""
    for package in [path for path in libraries.rglob("__init__.py") if path.resolve() not in loaded]:
        shutil.rmtree(package.parent, ignore_errors=True)  # it may have gone with the package around it
    for path in list(libraries.rglob("*")):
        is_code = path.suffix in _CODE or ".so" in path.suffixes
        if is_code and path.is_file() and path.resolve() not in loaded:
            path.unlink()
    for folder in sorted((path for path in libraries.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()


def main() -> None:
    """Load, remove, compile."""
    parser = argparse.ArgumentParser()
    parser.add_argument("libraries", type=Path)
    parser.add_argument("packages", type=Path, nargs="+")
    parser.add_argument("--by-name", nargs="*", default=[])
    arguments = parser.parse_args()
    sys.dont_write_bytecode = True
    opened = record_opened_files()
    for package in arguments.packages:
        for source in sorted(package.rglob("*.py")):
            for name in named_modules(source):
                load(name)
    for name in arguments.by_name:
        load(name)
    remove_the_rest(arguments.libraries, {Path(name).resolve() for name in opened | mapped_files()})
    # By content, so that file times do not matter.
    compileall.compile_dir(
        arguments.libraries, quiet=1, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )


if __name__ == "__main__":
    main()
