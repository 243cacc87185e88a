"""A system's sampling, or its network, as one file that runs without diffkit.

diffkit.export(system, "digits.pt2", sampler="dpmpp_2m", steps=20, guidance="cfg", y=0)
diffkit.check_export("digits.pt2", system)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffkit.runtime.lazy import on_first_use

if TYPE_CHECKING:
    from diffkit.tasks.exporting.checking import Comparison as Comparison
    from diffkit.tasks.exporting.checking import check_export as check_export
    from diffkit.tasks.exporting.writing import export as export

__all__, __getattr__, __dir__ = on_first_use(__name__)
