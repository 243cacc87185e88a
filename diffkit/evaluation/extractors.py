"""Extractors, the feature networks of metrics: by name, or any module as one.

Names are the built-in ``digits`` and ``inception``, entry points of the group ``diffkit.extractors``, and
``package.module:attribute``. An entry point or attribute is an extractor, or returns one if called without arguments.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffkit.errors import DataError, DiffkitError, OptionError, did_you_mean, failure
from diffkit.evaluation._inception import Inception
from diffkit.evaluation.features import Extractor, Features
from diffkit.options import check_integer
from diffkit.registry.entry_points import EXTRACTOR_GROUP, is_allowed
from diffkit.runtime.files import weights_digest


class DigitsExtractor:
    """Extractor for 8 x 8 grey images, by a classifier of scikit-learn's digits; for the demo and for tests.

    For comparison: the Frechet distance of held-out digits from the others is 0.36, that of uniform noise is 93.
    """

    name = "digits"

    def __init__(self, device: str | torch.device = "cpu"):
        from diffkit.evaluation import _digits

        self._shape, self._recipe = _digits.SHAPE, _digits.RECIPE
        self._network = (
            _digits.trained_digits_network()
            if torch.device(device).type == "cpu"
            else _copy_to(_digits.trained_digits_network(), device)
        )

    @property
    def identity(self) -> Mapping[str, Any]:
        """Identity of its features: the version of its training recipe."""
        return {"extractor": self.name, "recipe": self._recipe, "resize": "none"}

    def __call__(self, images: Tensor) -> Features:
        """Return features of images of digits: pool (B, 32) and logits (B, 10)."""
        if tuple(images.shape[1:]) != self._shape:
            raise DataError(f"the digits extractor reads images of shape {self._shape}, got {tuple(images.shape[1:])}")
        pool, logits = self._network(images.double())
        return Features(pool.float(), None, logits.float())


class ModuleExtractor:
    """Extractor by any network.

    Args:
        module: Images (B, C, H, W) to features: a tensor, flattened from its second dimension on, or `Features`.
        name: Name in results; its class by default.
        size: Height and width to resize images to (bicubic, antialiased); None does not resize.
        mean, std: Mean and standard deviation of each channel, in units of [0, 1], to normalize images by, as ImageNet
            networks need. If both are None, images are in [-1, 1].
        channels: 3 repeats a single channel; None does not change images.
        device: Device to move the network to; by default it is not moved.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str | None = None,
        size: int | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        channels: int | None = None,
        device: str | torch.device | None = None,
    ):
        if (mean is None) != (std is None):
            raise OptionError("mean and std go together; give both or neither")
        self.size = None if size is None else check_integer("size", size, ge=1)
        self.module = (module if device is None else module.to(device)).eval()
        self.name, self.mean, self.std, self.channels = name or type(module).__name__, mean, std, channels

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """Identity of its features: class, digest of the weights, and preprocessing of images."""
        kind = type(self.module)
        return {
            "extractor": self.name,
            "class": f"{kind.__module__}.{kind.__qualname__}",
            "weights_sha256": weights_digest(self.module.state_dict(), shapes=True),
            "resize": "none" if self.size is None else f"{self.size}x{self.size} bicubic, antialiased",
            "mean": None if self.mean is None else list(self.mean),
            "std": None if self.std is None else list(self.std),
            "channels": self.channels,
        }

    def __call__(self, images: Tensor) -> Features:
        """Return the network's features."""
        if self.channels is not None and images.shape[1] != self.channels:
            if images.shape[1] != 1:
                raise DataError(f"{self.name} reads {self.channels} channels, the images have {images.shape[1]}")
            images = images.expand(-1, self.channels, *images.shape[2:])
        if self.size is not None:
            images = F.interpolate(images, (self.size, self.size), mode="bicubic", antialias=True)
        if self.mean is not None and self.std is not None:
            shape = (-1, *(1,) * (images.ndim - 2))
            mean, std = (images.new_tensor(v).view(shape) for v in (self.mean, self.std))
            images = ((images + 1) / 2 - mean) / std
        found = self.module(images)
        return found if isinstance(found, Features) else Features(found.flatten(1))


EXTRACTORS: Mapping[str, Callable[..., Extractor]] = {"digits": DigitsExtractor, "inception": Inception}
"""Built-in extractors by name."""


def extractor_for(
    what: str | nn.Module | Extractor, *, device: str | torch.device = "cpu", weights: str | Path | None = None
) -> Extractor:
    """Return the extractor for a name or a network.

    Args:
        what: A name (see the top of this module), a network, or an extractor, which is returned.
        device: Device of a named extractor.
        weights: File of its weights; for "inception".
    Raises:
        OptionError: There is no such extractor, or the object of that name is not an extractor.
        MissingExtraError: A package that it needs is not installed.
        DataError: Its weights cannot be loaded.
    """
    if not isinstance(what, str):
        if isinstance(what, nn.Module):
            return ModuleExtractor(what, device=device)
        return what
    if weights is not None and what != "inception":
        raise OptionError(f"weights are for extractor 'inception', not {what!r}")
    if what in EXTRACTORS:
        return EXTRACTORS[what](device=device, **({} if weights is None else {"weights": weights}))
    return _create_extractor(what, _find_by_name(what), device)


def _find_by_name(name: str) -> Any:
    found = [entry for entry in _installed_extractors() if entry.name == name]
    if len({entry.value for entry in found}) > 1:
        owners = " and ".join(sorted(entry.dist.name for entry in found if entry.dist))
        raise OptionError(f"extractor {name!r} is offered by {owners}; name it as package.module:attribute")
    if found:
        return _load_entry_point(found[0])
    module, colon, attribute = name.partition(":")
    if not colon:
        known = [*EXTRACTORS, *(entry.name for entry in _installed_extractors())]
        raise OptionError(
            f"no extractor named {name!r}{did_you_mean(name, known)} (known: {', '.join(known)}; "
            "or package.module:attribute)"
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise OptionError(f"extractor {name!r} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:  # the user's module may raise any error
        raise OptionError(f"extractor {name!r} cannot be imported: {failure(error)}") from error


def _installed_extractors() -> list[EntryPoint]:
    """Return extractors of installed distributions, without those that DIFFKIT_PLUGINS excludes."""
    return [entry for entry in entry_points(group=EXTRACTOR_GROUP) if entry.dist is None or is_allowed(entry.dist.name)]


def _load_entry_point(entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except (Exception, SystemExit) as error:  # a package of others may fail in any way
        raise OptionError(f"extractor {entry.name!r} ({entry.value}) cannot be loaded: {failure(error)}") from error


def _create_extractor(name: str, found: Any, device: str | torch.device) -> Extractor:
    if isinstance(found, type) or (callable(found) and not isinstance(found, nn.Module | Extractor)):
        try:
            found = found()
        except DiffkitError:
            raise
        except (Exception, SystemExit) as error:
            raise OptionError(f"extractor {name!r} cannot be made: {failure(error)}") from error
    if isinstance(found, nn.Module):
        return ModuleExtractor(found, name=name, device=device)
    if not isinstance(found, Extractor):
        raise OptionError(f"extractor {name!r} is {type(found).__name__}, which has no name, identity and call")
    return found


def _copy_to(network: nn.Module, device: str | torch.device) -> nn.Module:
    from copy import deepcopy

    return deepcopy(network).to(device)
