"""How Sphinx builds the documentation: `sphinx-build -W -b html docs dist/docs`."""

import shutil
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
# Made anew from the modules that there are: a page of one that is gone would stay.
shutil.rmtree(REPOSITORY / "docs" / "api" / "generated", ignore_errors=True)
sys.path.insert(0, str(REPOSITORY))

from acouslic import __version__  # noqa: E402 - found through the line above

project = "Fetal abdomen in blind-sweep ultrasound"
author = "the authors of this repository"
project_copyright = "Apache-2.0"
version = release = __version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon", "myst_parser"]
exclude_patterns = ["_templates"]
templates_path = ["_templates"]

html_theme = "furo"
html_title = f"{project} {version}"
html_show_copyright = False

# Headings get anchors as on the forge, so that links like `speed.md#on-a-gpu` work in both places.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# Attributes of the same name in several classes are no mistake.
suppress_warnings = ["ref.python"]
# Commands stand in blocks without a language.
highlight_language = "text"
# In the docstrings single backticks are code, as everywhere else in the project.
default_role = "code"
