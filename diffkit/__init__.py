"""diffkit: diffusion models from small named parts.

    system = diffkit.compose(schedule="cosine", var="learned_range", loss="hybrid")

Everything public is listed in `__all__` and imported on first use, so that ``import diffkit`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "compose": "diffkit.composer",
    "System": "diffkit.system",
    "from_spec": "diffkit.saving",
    "load": "diffkit.saving",
    "train": "diffkit.training",
    "ProcessTable": "diffkit.table",
    "respace": "diffkit.table",
    "Registry": "diffkit.registry",
    "describe": "diffkit.registry",
    "refresh": "diffkit.registry",
    "DiffkitError": "diffkit._errors",
}
__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from diffkit._errors import DiffkitError as DiffkitError
    from diffkit.composer import compose as compose
    from diffkit.registry import Registry as Registry
    from diffkit.registry import describe as describe
    from diffkit.registry import refresh as refresh
    from diffkit.saving import from_spec as from_spec
    from diffkit.saving import load as load
    from diffkit.system import System as System
    from diffkit.table import ProcessTable as ProcessTable
    from diffkit.table import respace as respace
    from diffkit.training import train as train


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'diffkit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
