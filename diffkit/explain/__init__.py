"""Explain a composition: its parts with their equations, its levels, its loss over levels, its sampling grid.

    print(diffkit.explain.explain(schedule="cosine", var="learned_range", loss="hybrid"))
    diffkit.explain.explain(system, steps=50, sampler="ddim").plot("system.png")

No network is built, and a system's network is not called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffkit.runtime.lazy import on_first_use

if TYPE_CHECKING:
    from diffkit.explain.describe import explain as explain
    from diffkit.explain.explanation import Explanation as Explanation
    from diffkit.explain.explanation import PartNote as PartNote

__all__, __getattr__, __dir__ = on_first_use(__name__)
