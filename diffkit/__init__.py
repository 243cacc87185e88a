"""diffkit: diffusion models from small named parts.

    system = diffkit.compose(schedule="cosine", var="learned_range", loss="hybrid")

What is public is listed in `__all__` or `_PACKAGES` and imported on first use: ``import diffkit`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from diffkit._lazy import on_first_use

__version__ = "0.1.0"

_NAMES: dict[str, tuple[str, ...]] = {
    "composer": ("compose", "recompose"),
    "system": ("System",),
    "saving": ("from_spec", "load"),
    "weights": ("load_checkpoint",),
    "presets": ("preset",),
    "training": ("train",),
    "table": ("ProcessTable", "respace"),
    "registry": ("Registry", "describe", "refresh"),
    "_errors": (
        "DiffkitError",
        "UnknownComponentError",
        "AmbiguousComponentError",
        "DuplicateComponentError",
        "PluginLoadError",
        "ProtocolError",
        "OptionError",
        "CompositionError",
        "SpecError",
        "CheckpointError",
        "DataError",
        "DivergedError",
        "ProcessLostError",
        "MissingExtraError",
    ),
}
_PACKAGES = (
    *("compiling", "data", "derivatives", "evaluation", "guidance", "likelihood", "sizing", "spacing", "tasks"),
    *("decoders", "steering", "testing", "training", "weights"),
)
"""Modules that people use by their name: ``diffkit.data.load``."""
__all__ = ["__version__", *(name for names in _NAMES.values() for name in names)]

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
    from diffkit._errors import ProcessLostError as ProcessLostError
    from diffkit._errors import ProtocolError as ProtocolError
    from diffkit._errors import SpecError as SpecError
    from diffkit._errors import UnknownComponentError as UnknownComponentError
    from diffkit.composer import compose as compose
    from diffkit.composer import recompose as recompose
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


_find, _ = on_first_use(__name__, _NAMES)


def __getattr__(name: str) -> Any:
    return importlib.import_module(f"diffkit.{name}") if name in _PACKAGES else _find(name)


def __dir__() -> list[str]:
    return sorted([*__all__, *_PACKAGES])
