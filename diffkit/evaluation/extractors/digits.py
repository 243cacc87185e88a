"""Features of 8 x 8 grey images, for the demo and for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffkit.errors import DataError
from diffkit.evaluation.features import Features
from diffkit.registry import registry


@registry("extractor").register("digits")
class DigitsExtractor:
    """Extractor for 8 x 8 grey images, by a classifier of scikit-learn's digits.

    For comparison: the Frechet distance of held-out digits from the others is 0.36, that of uniform noise is 93.

    Args:
        device: Device that it runs on.
    """

    name = "digits"

    def __init__(self, device: str | torch.device = "cpu"):
        from diffkit.evaluation import _digits

        self._shape, self._recipe = _digits.SHAPE, _digits.RECIPE
        network = _digits.trained_digits_network()
        self._network = network if torch.device(device).type == "cpu" else _copy_to(network, device)

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


def _copy_to(network: nn.Module, device: str | torch.device) -> nn.Module:
    from copy import deepcopy

    return deepcopy(network).to(device)
