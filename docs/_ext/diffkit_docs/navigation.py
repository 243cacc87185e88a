"""The tree of pages beside each page: all sections, and of the current one what is in it.

Sphinx would resolve every page of the site again for every page, which takes longer than everything else together.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any

from sphinx import addnodes
from sphinx.application import Sphinx


def add_tree(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Replace the tree that the theme asks for; called before the theme."""
    if "pathto" in context and page in app.env.titles:
        context["toctree"] = lambda **options: tree(app.env, page, context["pathto"])


def rewrite_if_tree_changed(app: Sphinx, env: Any) -> list[str]:
    """Return every page if the tree is another one than at the last build, since all pages show it."""
    now = {page: _children(env, page) for page in sorted(env.titles)}
    before, env.diffkit_tree = getattr(env, "diffkit_tree", None), now
    return [] if before == now else sorted(env.found_docs)


def tree(env: Any, page: str, path_to: Callable[[str], str]) -> str:
    """Return the tree as HTML, in the form that Sphinx gives it."""
    branch = _branch(env, page)

    def entries(parent: str, depth: int) -> str:
        items = []
        for child, title in _children(env, parent):
            inside, here = child in branch, child == page
            below = entries(child, depth + 1) if inside else ""
            classes = f"toctree-l{depth}{' current' if inside else ''}{' current-page' if here else ''}"
            link = f'<a class="reference internal" href="{path_to(child)}">{_breakable(title)}</a>'
            items.append(f'<li class="{classes}">{link}{below}</li>')
        return f'<ul class="current">{"".join(items)}</ul>' if items else ""

    return entries(env.config.root_doc, 1)


def _children(env: Any, parent: str) -> list[tuple[str, str]]:
    """Pages below a page, with the titles that its table of contents gives them, else their own."""
    entries = [entry for node in env.tocs[parent].findall(addnodes.toctree) for entry in node["entries"]]
    return [(page, title or env.titles[page].astext()) for title, page in entries if page in env.titles]


def _branch(env: Any, page: str) -> set[str]:
    """The page and all above it."""
    parents = {child: parent for parent, children in env.toctree_includes.items() for child in children}
    found = set()
    while page not in found:
        found.add(page)
        page = parents.get(page, page)
    return found


def _breakable(title: str) -> str:
    """A title as HTML; a long name in it may be broken between its words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=_)", "<wbr>", html.escape(title))
