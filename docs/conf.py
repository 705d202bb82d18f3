"""The site's configuration for Sphinx; `make docs` builds it into build/docs.

The pages are Markdown that reads well without the site. Docstrings are in Google's style, with
single backticks around code.
"""

from __future__ import annotations

import pathlib
import re
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sphinx.application import Sphinx  # noqa: E402

import jax_tkg  # noqa: E402

project = "jax_tkg"
author = "the authors of jax_tkg"
project_copyright = "the authors of jax_tkg, Apache-2.0"
version = release = jax_tkg.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
html_theme = "furo"
html_title = f"jax_tkg {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
# The source of a page is in the repository.
html_show_sourcelink = False

# Links to headings of Markdown pages as GitHub spells them.
myst_heading_anchors = 4
myst_enable_extensions = ["deflist"]

# Code in docstrings stands in single backticks: a link where it names what these pages document.
default_role = "py:obj"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 88
add_module_names = False

# Every reference must resolve. What begins with the package's name has a page, or is an error.
# Names of other packages have none here, nor have private names, and code that is no name.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!jax_tkg\.).*"),
    (r"py:.*", r"jax_tkg\.(.*\.)?_\w+"),
    (r"py:obj", r".*[^\w.].*"),
]

# Pages of the repository's root, as docs/project includes them, link to each other.
_INCLUDED = {"BUILD.md": "building.md", "CONTRIBUTING.md": "contributing.md"}


def _link_to_pages(app: Sphinx, path: pathlib.Path, page: str, content: list[str]) -> None:
    del app, path, page
    for name, included in _INCLUDED.items():
        content[0] = content[0].replace(f"]({name}", f"]({included}")


# Holds the place of a space in the name of a field.
_GLUE = "\u200b"


def _docstring_as_written(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    del app, name, obj, options
    # A role would drop the character that such code begins with.
    lines[:] = [re.sub(r"(?<!`)`([~.][^`]*)`(?!`)", r"``\1``", line) for line in lines]
    # Napoleon takes what precedes a colon in the first line for a type; here that is an empty
    # comment's line.
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]


def _several_names(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    del app, what, name, obj, options
    # Of attributes with one description, Sphinx would take all words but the last for a type.
    for index, line in enumerate(lines):
        if names := re.match(r":ivar \w+(, \w+)+:", line):
            lines[index] = names[0].replace(", ", f",{_GLUE}") + line[names.end() :]


def _finish_body(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object
) -> None:
    del app, page, template, doctree

    def marked(word: re.Match[str]) -> str:
        kind = "long" if len(word[1]) > 24 else "middling"
        parts = re.sub(r"(?<!jax)([._/])(?=[a-zA-Z])", r"\1<wbr>", word[1])
        return f'<span class="pre {kind}">{parts}</span>'

    if "body" in context:
        body = context["body"].replace(_GLUE, " ")
        context["body"] = re.sub(r'<span class="pre">([^<]{17,})</span>', marked, body)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("include-read", _link_to_pages)
    app.connect("autodoc-process-docstring", _docstring_as_written, priority=400)
    app.connect("autodoc-process-docstring", _several_names, priority=600)
    app.connect("html-page-context", _finish_body)
