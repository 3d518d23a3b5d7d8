"""How `make docs` builds the pages: Markdown by MyST, and the Python API read from the sources.

The sources are the whole repository's, so a link between two pages leads somewhere here as it does there, or is an
error. AutoAPI parses the sources and imports nothing, so the pages need neither torch nor a GPU's libraries.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_METADATA = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]

project = "Temper"
author = "the authors of Temper"
release = _METADATA["version"]

extensions = ["myst_parser", "autoapi.extension", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = [
    "*.md",
    "docs/*.md",
    "docs/api/**",
    "deploy/*.md",
    "docker/*.md",
    "model_repository/README.md",
    "benchmarks/*.md",
]
exclude_patterns = [".*", "runs", "build", "docs/build"]
suppress_warnings = [
    "ref.python",  # a docstring names an exception without its module, and two rooms may have one of that name
    "autoapi.python_import_resolution",  # of the backends, which have no page
]
html_theme = "furo"
html_title = f"Temper {release}"

default_role = "code"  # docstrings write `name`, as Markdown does
myst_heading_anchors = 3
napoleon_use_ivar = True

autoapi_dirs = ["temper"]
autoapi_follow_symlinks = True  # temper/ links to the folders beside it
autoapi_ignore = ["*/temper/backends/*"]  # programs inside Triton, no modules to import
autoapi_root = "docs/api"
autoapi_add_toctree_entry = False
autoapi_options = ["members", "undoc-members", "show-module-summary"]
autoapi_member_order = "bysource"


def _as_restructured_text(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Docstrings are written to be read in an editor: a drawing is indented, a shape is [n, *image_shape]."""
    lines[:] = [re.sub(r"(?<=[\s\[(])\*(?=\w)", r"\\*", line) for line in lines]
    for index in range(len(lines) - 1, 1, -1):
        if lines[index].startswith(" ") and not lines[index - 1] and not lines[index - 2][:1].isspace():
            lines.insert(index, "")
            lines.insert(index, "::")


def setup(app: Sphinx) -> None:
    """Sphinx's own hook."""
    app.connect("autodoc-process-docstring", _as_restructured_text, priority=400)  # before napoleon
