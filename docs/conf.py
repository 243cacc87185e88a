"""Settings of the site; `make docs` builds it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from diffkit_docs.names import aliases

import diffkit

project = "diffkit"
author = "The diffkit authors"
copyright = author
release = version = diffkit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "diffkit_docs"]
exclude_patterns = ["_build", "_ext"]
templates_path = ["_templates"]
html_static_path = ["_static"]
html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "diffkit"
html_css_files = ["site.css"]
html_js_files = ["versions.js", "copy.js"]
html_extra_path = ["versions.json", "llms.txt"]
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/versions.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"top_of_page_buttons": []}

smartquotes = False
default_role = "py:obj"
add_module_names = False
autodoc_typehints = "signature"
autodoc_type_aliases = {name: name for name in ("ArrayLike", *aliases())}  # not the unions that they stand for
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "deflist"]
suppress_warnings = ["myst.header"]
