"""Where a sampling loop gets its noise: one stream for the batch, or one for each example."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

NoiseFn = Callable[[], Tensor]
"""Returns the next standard normal tensor of the batch's shape."""


def example_seed(seed: int, index: int) -> int:
    """Return the 63-bit seed of one example: well mixed, so that neighbouring seeds and indices are unrelated."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def batch_noise(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None = None) -> NoiseFn:
    """Noise drawn for the whole batch at once: fastest, and different in another batch size."""

    def draw() -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    return draw


def example_noise(seed: int, indices: Sequence[int], shape: tuple[int, ...], device: torch.device) -> NoiseFn:
    """Noise of example i as a function of (seed, i) alone, whatever the batch it is made in.

    Args:
        seed: Seed of the whole set.
        indices: Index of each example of this batch.
        shape: Shape of one example.
        device: Where the noise is drawn; another kind of device draws other numbers.
    """
    generators = [torch.Generator(device).manual_seed(example_seed(seed, i)) for i in indices]

    def draw() -> Tensor:
        out = torch.empty((len(generators), *shape), device=device)
        for row, generator in zip(out, generators, strict=True):
            row.normal_(generator=generator)
        return out

    return draw
