"""A small classifier of scikit-learn's digits: features for 8 x 8 grey images, trained in under a second."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from diffkit.data.base import scale_images
from diffkit.data.sources.digits import Digits

RECIPE = 1
"""Version of the features; increase it with every change below that affects them."""
SHAPE = (1, 8, 8)
_HIDDEN, _FEATURES, _STEPS, _RATE = 64, 32, 150, 0.01


class DigitsNetwork(nn.Module):
    """Classifier of digits, a perceptron 64 - 64 - 32 - 10; its features are the 32, standardized over its data."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), _linear(64, _HIDDEN, generator), nn.SiLU())
        self.features = nn.Sequential(_linear(_HIDDEN, _FEATURES, generator), nn.SiLU())
        self.head = _linear(_FEATURES, 10, generator)
        self.register_buffer("mean", torch.zeros(_FEATURES, dtype=torch.float64))
        self.register_buffer("std", torch.ones(_FEATURES, dtype=torch.float64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, 8, 8) in [-1, 1] -> features (B, 32), of unit variance once trained, and logits (B, 10)."""
        features: Tensor = self.features(self.body(x))
        return (features - self.mean) / self.std, self.head(features)


@cache
def trained_digits_network() -> DigitsNetwork:
    """Return the classifier of digits, trained on those that are not held out; once per process.

    It is trained in float64 on whole batches, so that machines differ in the last digits only.
    """
    x, y = digit_examples("train")
    network = DigitsNetwork()
    optimizer = torch.optim.Adam(network.parameters(), lr=_RATE)
    with torch.enable_grad():
        for _ in range(_STEPS):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(x)[1], y)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    with torch.no_grad():
        features = network(x)[0]
        network.mean, network.std = features.mean(0), features.std(0)
    return network.requires_grad_(False).eval()


def digit_examples(split: str) -> tuple[Tensor, Tensor]:
    """Return a split of the digits, (N, 1, 8, 8) float64 in [-1, 1], with labels."""
    data = Digits(split=split).open()
    batch = data.batch(np.arange(len(data)))
    return scale_images(batch.images, data.bins).double(), batch.conditions["y"]


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    with torch.no_grad():
        layer = nn.Linear(inputs, outputs, dtype=torch.float64, device="cpu")
        layer.weight.copy_(torch.randn(outputs, inputs, generator=generator, dtype=torch.float64) / inputs**0.5)
        layer.bias.zero_()
    return layer
