"""Any network as a feature network."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffkit.errors import DataError, OptionError
from diffkit.evaluation.features import Features
from diffkit.options import check_integer
from diffkit.runtime.files import weights_digest


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
