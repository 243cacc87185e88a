"""Feature networks: a registered name, ``package.module:attribute``, any module, or an `Extractor`.

What an entry point or attribute names is an extractor or a module, or makes one without arguments.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffkit.errors import DiffkitError, OptionError, UnknownComponentError, failure
from diffkit.evaluation.extractors._module import ModuleExtractor as ModuleExtractor
from diffkit.evaluation.features import Extractor
from diffkit.registry import registry
from diffkit.registry.resolve import name_and_options


def extractor_for(
    what: str | tuple[str, Mapping[str, Any]] | Mapping[str, Any] | nn.Module | Extractor,
    *,
    device: str | torch.device = "cpu",
    weights: str | Path | None = None,
) -> Extractor:
    """Return the extractor for a name or a network.

    Args:
        what: A name, a (name, options) pair, a mapping with "name" and options, a network, or an extractor, which is
            returned as it is. A name is a registered one or ``package.module:attribute``.
        device: Device of an extractor that is made here.
        weights: File of its weights; for "inception".
    Raises:
        UnknownComponentError, OptionError: There is no such extractor, or the object of that name is not an extractor.
        PluginLoadError: A plugin's cannot be imported.
        MissingExtraError: A package that it needs is not installed.
        DataError: Its weights cannot be loaded.
    """
    name, options = name_and_options("extractor", what)
    if name is None:
        return _as_extractor(type(what).__name__, what, device)
    if weights is not None:
        if name != "inception":
            raise OptionError(f"weights are for extractor 'inception', not {name!r}")
        options = {**options, "weights": weights}
    try:
        factory = registry("extractor").get(name)
    except UnknownComponentError:
        module, colon, attribute = name.partition(":")
        if not colon:
            raise
        return _as_extractor(name, _called(name, _imported(name, module, attribute), options), device)
    if "device" in inspect.signature(factory).parameters:
        options = {"device": device, **options}
    return _as_extractor(name, registry("extractor").create(name, **options), device)


def _imported(name: str, module: str, attribute: str) -> Any:
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise OptionError(f"extractor {name!r} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:  # the user's module may raise any error
        raise OptionError(f"extractor {name!r} cannot be imported: {failure(error)}") from error


def _called(name: str, found: Any, options: Mapping[str, Any]) -> Any:
    """An object of the user's; a class or function of hers is called."""
    if not isinstance(found, type) and (not callable(found) or isinstance(found, nn.Module | Extractor)):
        return found
    try:
        return found(**options)
    except DiffkitError:
        raise
    except (Exception, SystemExit) as error:
        raise OptionError(f"extractor {name!r} cannot be made: {failure(error)}") from error


def _as_extractor(name: str, found: Any, device: str | torch.device) -> Extractor:
    if isinstance(found, nn.Module) and not isinstance(found, Extractor):
        return ModuleExtractor(found, name=name, device=device)
    if not isinstance(found, Extractor):
        raise OptionError(f"extractor {name!r} is {type(found).__name__}, which has no name, identity and call")
    return found
