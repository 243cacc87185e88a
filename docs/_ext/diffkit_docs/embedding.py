"""Figures of the gallery on other pages: ``gallery-figures`` with a list of KIND/NAME.PANEL."""

from __future__ import annotations

from docutils import nodes
from sphinx import addnodes
from sphinx.util.docutils import SphinxDirective


class GalleryFigures(SphinxDirective):
    """Show panels of parts beside each other; each leads to the page of its part."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Return the panels, light and dark."""
        panels = [self._panel(*entry.rsplit(".", 1)) for entry in self.arguments[0].split()]
        return [nodes.container("", *panels, classes=["panels"])]

    def _panel(self, part: str, number: str) -> nodes.container:
        kind, name = part.split("/")
        images = [
            nodes.image(uri=f"/gallery/{part}.{number}.{shade}.svg", alt=f"{kind} {name}", classes=[f"only-{shade}"])
            for shade in ("light", "dark")
        ]
        link = addnodes.pending_xref("", nodes.inline("", name), **_to_page(part))
        return nodes.container("", nodes.paragraph("", "", *images), nodes.paragraph("", "", link))


def _to_page(part: str) -> dict[str, object]:
    page = f"/gallery/{part}"
    return {"refdomain": "std", "reftype": "doc", "reftarget": page, "refexplicit": True, "refwarn": True}
