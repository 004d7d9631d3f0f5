"""The configuration of the site: `make docs` builds it from the pages of this folder into docs/_build."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.domains.python import PyObject

from ms_prefstream.version import VERSION

project = "ms_prefstream"
author = "the ms_prefstream authors"
copyright = author
version = release = VERSION

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build", "README.md"]  # index.md includes README.md, the list for readers of the repository

html_theme = "furo"
html_title = f"ms_prefstream {VERSION}"
pygments_dark_style = "github-dark"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_use_index = False  # the search finds names, and its page is too wide for a phone
html_copy_source = False
html_show_copyright = False

myst_heading_anchors = 4
myst_links_external_new_tab = False

default_role = "code"  # docstrings have names in single backticks, as Markdown has
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_use_ivar = True
for _field in PyObject.doc_field_types:
    if _field.name == "variable":
        _field.label = "Attributes"  # as docstrings call them

copybutton_exclude = ".linenos, .gp, .go"

_PICTURE = re.compile(
    r'<picture>\s*<source [^>]*srcset="([^"]+)">\s*<img alt="([^"]+)" src="([^"]+)"(?: width="(\d+)")?>\s*</picture>'
)


def _show_pictures(app: Sphinx, page: str, source: list[str]) -> None:
    """Turns the pictures of a page, which GitHub shows by the reader's scheme, into those that the theme switches.

    <picture><source … srcset="a-dark.svg"><img alt="…" src="a-light.svg"></picture>  ->  two images
    """
    source[0] = _PICTURE.sub(
        lambda found: "\n\n".join(
            f"```{{image}} {path}\n:alt: {found[2]}\n:class: only-{scheme}\n:width: {found[4] or 520}\n```"
            for scheme, path in (("light", found[3]), ("dark", found[1]))
        ),
        source[0],
    )


def _name_the_language(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Declares Chinese pages as such, so that browsers choose the fonts and the line breaks of Chinese."""
    if page.startswith("zh/"):
        context["language"] = "zh-CN"


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _show_pictures)
    app.connect("html-page-context", _name_the_language)
