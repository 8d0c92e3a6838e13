"""Sphinx: what the pages of the documentation are made with. `make docs` builds them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import daskdl

HERE = Path(__file__).parent

project = "daskdl"
author = "daskdl contributors"
copyright = author
version = release = daskdl.__version__

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "jupyter_execute", ".jupyter_cache"]
nitpicky = True
nitpick_ignore_regex = [("py:(func|data)", r"\w+")]  # names without a module are not found from the tables of api.md

# -- pages ------------------------------------------------------------------------------------------------------------

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # their outputs are stripped, and the tests run them
suppress_warnings = ["config.cache"]
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = "$ "

# -- API --------------------------------------------------------------------------------------------------------------

autosummary_generate = True
autodoc_typehints = "none"  # types stand in the docstrings
autodoc_member_order = "bysource"
numpydoc_class_members_toctree = False
numpydoc_show_class_members = False  # the templates list them
numpydoc_xref_param_type = False
templates_path = ["templates"]

# -- look: nothing is loaded from other hosts -------------------------------------------------------------------------

html_theme = "pydata_sphinx_theme"
html_title = "daskdl"
html_static_path = ["static"]
html_css_files = ["daskdl.css"]
html_show_sourcelink = False
html_copy_source = False
html_sidebars = {"index": [], "install": [], "tour": [], "choosing": []}
html_theme_options = {
    "logo": {"text": "daskdl"},
    "show_toc_level": 2,
    "navbar_align": "left",
    "header_links_before_dropdown": 8,
    "article_header_start": [],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_prev_next": True,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}

# -- links ------------------------------------------------------------------------------------------------------------

linkcheck_timeout = 15
linkcheck_retries = 2
linkcheck_anchors = False


def _copy_notebooks() -> None:
    """Put the notebooks where Sphinx finds them; Git ignores the copies. Unchanged ones stay, or all would be built."""
    source, target = HERE.parent / "notebooks", HERE / "notebooks"
    target.mkdir(exist_ok=True)
    for old in target.glob("*.ipynb"):
        if not (source / old.name).exists():
            old.unlink()
    for new in source.glob("*.ipynb"):
        copy = target / new.name
        if not copy.exists() or copy.read_bytes() != new.read_bytes():
            shutil.copyfile(new, copy)


def _drop_old_stubs() -> None:
    """Remove generated pages of names that are no longer on the page of the API."""
    listed = set(re.findall(r"^   (daskdl\.\S+)$", (HERE / "api.md").read_text(), re.MULTILINE))
    for stub in (HERE / "generated").glob("*.rst"):
        if stub.stem not in listed:
            stub.unlink()


_copy_notebooks()
_drop_old_stubs()
