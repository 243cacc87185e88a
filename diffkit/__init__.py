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
    "load_checkpoint": "diffkit.weights",
    "preset": "diffkit.presets",
    "train": "diffkit.training",
    "ProcessTable": "diffkit.table",
    "respace": "diffkit.table",
    "Registry": "diffkit.registry",
    "describe": "diffkit.registry",
    "refresh": "diffkit.registry",
    "DiffkitError": "diffkit._errors",
    "UnknownComponentError": "diffkit._errors",
    "AmbiguousComponentError": "diffkit._errors",
    "DuplicateComponentError": "diffkit._errors",
    "PluginLoadError": "diffkit._errors",
    "ProtocolError": "diffkit._errors",
    "OptionError": "diffkit._errors",
    "CompositionError": "diffkit._errors",
    "SpecError": "diffkit._errors",
    "CheckpointError": "diffkit._errors",
    "DataError": "diffkit._errors",
    "DivergedError": "diffkit._errors",
    "MissingExtraError": "diffkit._errors",
}
_PACKAGES = ("data", "guidance", "likelihood", "tasks", "weights")
"""Sub-packages that people use by their name: ``diffkit.data.load``."""
__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from diffkit._errors import AmbiguousComponentError as AmbiguousComponentError
    from diffkit._errors import CheckpointError as CheckpointError
    from diffkit._errors import CompositionError as CompositionError
    from diffkit._errors import DataError as DataError
    from diffkit._errors import DiffkitError as DiffkitError
    from diffkit._errors import DivergedError as DivergedError
    from diffkit._errors import DuplicateComponentError as DuplicateComponentError
    from diffkit._errors import MissingExtraError as MissingExtraError
    from diffkit._errors import OptionError as OptionError
    from diffkit._errors import PluginLoadError as PluginLoadError
    from diffkit._errors import ProtocolError as ProtocolError
    from diffkit._errors import SpecError as SpecError
    from diffkit._errors import UnknownComponentError as UnknownComponentError
    from diffkit.composer import compose as compose
    from diffkit.presets import preset as preset
    from diffkit.registry import Registry as Registry
    from diffkit.registry import describe as describe
    from diffkit.registry import refresh as refresh
    from diffkit.saving import from_spec as from_spec
    from diffkit.saving import load as load
    from diffkit.system import System as System
    from diffkit.table import ProcessTable as ProcessTable
    from diffkit.table import respace as respace
    from diffkit.training import train as train
    from diffkit.weights import load_checkpoint as load_checkpoint


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"diffkit.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'diffkit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_PACKAGES])
