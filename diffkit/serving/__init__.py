"""One loop for the requests of many clients: rows at different steps, of different samplers, share a network call.

    with Loop(system, rows_per_call=32) as loop:
        images = loop.submit(4, steps=50, seed=0, y=labels).result()

Samples are those of `System.sample` with the same arguments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffkit.runtime.lazy import on_first_use

if TYPE_CHECKING:
    from diffkit.serving.fixed_rows import FixedRows as FixedRows
    from diffkit.serving.loop import Loop as Loop
    from diffkit.serving.request import Request as Request
    from diffkit.system.points import load_point as load_point
    from diffkit.system.points import save_point as save_point

__all__, __getattr__, __dir__ = on_first_use(__name__)
