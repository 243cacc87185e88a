"""The extension that makes the site: pages from the code, links to names, and the switcher of versions."""

from __future__ import annotations

import functools
import inspect
import json
import re
from pathlib import Path
from typing import Any

import attrs
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

from diffkit_docs import docstrings, external, options
from diffkit_docs.check import problems
from diffkit_docs.commands import write_commands
from diffkit_docs.embedding import GalleryFigures
from diffkit_docs.gallery import write_gallery
from diffkit_docs.names import public_names
from diffkit_docs.navigation import add_tree, rewrite_if_tree_changed
from diffkit_docs.notebooks import with_download, write_notebooks
from diffkit_docs.proof import write_proof
from diffkit_docs.reference import homes, write_reference
from diffkit_docs.repository import with_site_links, write_repository

_log = logging.getLogger(__name__)
_ALIAS = re.compile(r"TypeAliasForwardRef\('(\w+)'\)")
"""How autodoc writes a type alias in a union."""


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything with Sphinx."""
    app.add_directive("gallery-figures", GalleryFigures)
    app.connect("builder-inited", write_pages)
    app.connect("source-read", read_source)
    app.connect("autodoc-process-docstring", convert)
    app.connect("autodoc-process-signature", show_types)
    app.connect("missing-reference", link_to_name)
    app.connect("html-page-context", add_tree, priority=400)  # the theme's own, which uses it, has 500
    app.connect("html-page-context", add_versions)
    app.connect("env-updated", rewrite_if_tree_changed)
    app.connect("build-finished", check_site)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write_pages(app: Sphinx) -> None:
    """Write the pages that are made from the code into the folder of the sources."""
    docs = Path(app.srcdir)
    _log.info("writing docs/gallery")
    write_gallery(docs / "gallery", docs / "_build" / "cache")
    for name, write in (("api", write_reference), ("commands", write_commands), ("proof", write_proof)):
        _log.info("writing docs/%s", name)
        write(docs / name)
    write_repository(docs)
    write_notebooks(docs, app.config.release)


def read_source(app: Sphinx, name: str, source: list[str]) -> None:
    """Make links of a page to files of the repository links within the site, and offer its notebook."""
    path = Path(app.env.doc2path(name))
    if path.suffix == ".md":
        source[0] = with_download(with_site_links(source[0], path, Path(app.srcdir)), path)


def convert(app: Sphinx, what: str, name: str, value: Any, settings: Any, lines: list[str]) -> None:
    """Turn a docstring into reStructuredText; the attributes of an attrs class become a table."""
    text = "\n".join(lines)
    if inspect.isclass(value) and attrs.has(value) and attrs.fields(value):
        found = options.options_of(value)
        if any(each.about for each in found):
            doc = docstrings.parse(text)
            blocks = [line for each in doc.blocks for line in (*docstrings.block(each).splitlines(), "")]
            rest = docstrings.sections(doc, without=("Attributes", "Args"))
            lines[:] = [*blocks, *options.table(found), "", *rest, ""]
            return
    lines[:] = docstrings.to_rst(text)


def show_types(
    app: Sphinx, what: str, name: str, value: Any, settings: Any, arguments: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Give an attrs class the arguments that its fields declare, and write type aliases by their names."""
    if inspect.isclass(value) and attrs.has(value):
        return options.signature(value), None
    return arguments and _ALIAS.sub(r"\1", arguments), returns and _ALIAS.sub(r"\1", returns)


def add_versions(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Give the switcher the versions of versions.json, and this one."""
    known = json.loads((Path(app.srcdir) / "versions.json").read_text(encoding="utf-8"))
    release = app.config.release
    if release not in [each["version"] for each in known]:
        known = [{"version": release, "path": f"{release}/"}, *known]
    context["versions"] = known


def check_site(app: Sphinx, exception: Exception | None) -> None:
    """Refuse a site with dead links, or with pages that load things from elsewhere."""
    if exception is None and app.builder.name == "html" and (found := problems(Path(app.outdir))):
        raise ExtensionError("the site has {} problems:\n  {}".format(len(found), "\n  ".join(found)))


@functools.cache
def _aliases() -> dict[str, str]:
    return homes(public_names())


def link_to_name(app: Sphinx, env: Any, node: Any, content: nodes.Element) -> nodes.reference | None:
    """Link a name that is written without its module, if only one object has it: `System.sample`, `OptionError`.

    Names of Python, PyTorch and NumPy lead to their own documentation.
    """
    if node.get("refdomain") != "py":
        return None
    target = _aliases().get(node["reftarget"], node["reftarget"]).removeprefix(".")
    objects = env.domaindata["py"]["objects"]
    found = [target] if target in objects else [name for name in objects if name.endswith(f".{target}")]
    found = [name for name in found if objects[name].objtype != "module"] or found
    shortest = min(found, key=lambda name: (name.count("."), len(name)), default=None)
    same = {name.split(".")[-1] for name in found}
    if shortest is None:
        address = external.link(target)
        return address and nodes.reference("", "", content, internal=False, refuri=address)
    if len(same) > 1 or ("." not in target and target.islower() and len(found) > 1):
        return None
    entry = objects[shortest]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, shortest)
