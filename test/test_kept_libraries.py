"""The step of an image's build that removes what our packages never load."""

import subprocess
import sys
from pathlib import Path

LIBRARIES = {
    "used/__init__.py": "from pathlib import Path\nexec(open(Path(__file__).with_name('settings.py')).read())\n",
    "used/settings.py": "CHOSEN = 1\n",
    "used/late.py": "",
    "used/by_name.py": "",
    "used/never.py": "",
    "used/never.pyx": "",
    "used/never.abi3.so": "",
    "used/data.csv": "",
    "used/tests/__init__.py": "",
    "used/tests/data.csv": "",
    "unused/__init__.py": "",
    "unused/data.csv": "",
    "unused.libs/libx.so.1": "",
    "used-1.0.dist-info/LICENSE": "",
}
OURS = """
import json
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from used import CHOSEN
def later():
    from used import late
    import absent.of_another_image
"""


def test_only_what_is_loaded_stays_and_is_compiled(repository: Path, tmp_path: Path) -> None:
    """Imports within functions count, and files that a library executes itself; a library that is absent is none."""
    libraries = tmp_path / "libraries"
    for name, content in {**{f"libraries/{name}": text for name, text in LIBRARIES.items()}, "ours/a.py": OURS}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)

    command = [sys.executable, repository / "requirements" / "keep_loaded.py", libraries, tmp_path / "ours"]
    subprocess.run([*command, "--by-name", "used.by_name"], env={"PYTHONPATH": str(libraries)}, check=True)

    left = {path.relative_to(libraries).as_posix() for path in libraries.rglob("*") if path.is_file()}
    kept = {name for name in left if not name.endswith(".pyc")}
    modules = ["used/__init__.py", "used/settings.py", "used/late.py", "used/by_name.py"]
    assert kept == {*modules, "used/data.csv", "used-1.0.dist-info/LICENSE"}
    assert len(left) == len(kept) + len(modules)
