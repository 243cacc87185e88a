"""diffkit: diffusion models from small named parts.

    system = diffkit.compose(schedule="cosine", var="learned_range", loss="hybrid")

Public names are listed in `__all__` or `_PACKAGES` and imported on first use: ``import diffkit`` stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffkit._version import __version__
from diffkit.runtime.lazy import on_first_use

_PACKAGES = (
    "data",
    "evaluation",
    "guidance",
    "likelihood",
    "serving",
    "spacing",
    "tasks",
    "testing",
    "training",
    "weights",
)
"""Public modules, imported by name: ``diffkit.data.loading.load``."""

if TYPE_CHECKING:
    from diffkit.errors import AmbiguousComponentError as AmbiguousComponentError
    from diffkit.errors import CheckpointError as CheckpointError
    from diffkit.errors import CompositionError as CompositionError
    from diffkit.errors import DataError as DataError
    from diffkit.errors import DiffkitError as DiffkitError
    from diffkit.errors import DivergedError as DivergedError
    from diffkit.errors import DuplicateComponentError as DuplicateComponentError
    from diffkit.errors import HookError as HookError
    from diffkit.errors import MissingExtraError as MissingExtraError
    from diffkit.errors import OptionError as OptionError
    from diffkit.errors import PluginLoadError as PluginLoadError
    from diffkit.errors import ProcessLostError as ProcessLostError
    from diffkit.errors import ProtocolError as ProtocolError
    from diffkit.errors import QueueFullError as QueueFullError
    from diffkit.errors import SpecError as SpecError
    from diffkit.errors import UnknownComponentError as UnknownComponentError
    from diffkit.presets import preset as preset
    from diffkit.registry import Registry as Registry
    from diffkit.registry import describe as describe
    from diffkit.registry import refresh as refresh
    from diffkit.system.adopting import adopt as adopt
    from diffkit.system.cascade import Cascade as Cascade
    from diffkit.system.compose import compose as compose
    from diffkit.system.compose import recompose as recompose
    from diffkit.system.loading import from_spec as from_spec
    from diffkit.system.loading import load as load
    from diffkit.system.module import System as System
    from diffkit.table import ProcessTable as ProcessTable
    from diffkit.table import respace as respace
    from diffkit.tasks.exporting import check_export as check_export
    from diffkit.tasks.exporting import export as export
    from diffkit.training import train as train
    from diffkit.weights import load_checkpoint as load_checkpoint

__all__, __getattr__, _ = on_first_use(__name__)
__all__ += ["__version__"]


def __dir__() -> list[str]:
    return sorted([*__all__, *_PACKAGES])
