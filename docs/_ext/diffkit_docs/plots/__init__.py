"""What the gallery draws of a part: one file for each kind, with a function ``panels(name, part)``.

A kind without a file here has pages without a figure.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from diffkit_docs.figures import Panel


def panels_of(kind: str, name: str, part: Any) -> Sequence[Panel]:
    """Return the panels of a part's figure; none if its kind has no figure."""
    module = f"{__name__}.{kind}"
    found: Sequence[Panel] = importlib.import_module(module).panels(name, part) if find_spec(module) else ()
    return found
