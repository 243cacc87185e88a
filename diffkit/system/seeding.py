"""Noise of a sampling loop: one random stream for the batch, or one for each example."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from diffkit.errors import OptionError
from diffkit.options import check_integer

NoiseFn = Callable[[], Tensor]
"""Returns the next standard normal tensor of the batch's shape."""

Seed = int | Sequence[int] | None
"""One seed for all (example i is then a function of the seed and i), a seed for each example, or None."""


MOST_STREAMS = 10**6
"""Largest number of examples of a batch with a generator each, of 5 KB."""


def example_seed(seed: int, index: int) -> int:
    """Return the 63-bit seed of one example: well mixed, so that neighbouring seeds and indices are unrelated."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def checked_seed(seed: object, n: int) -> Seed:
    """Return the seed of n examples, a list, tensor or array as integers.

    Raises:
        OptionError: It is negative or not an integer, or there is not one for each example.
    """
    if seed is None:
        return None
    if isinstance(seed, torch.Generator):
        raise OptionError(
            "seed must be a number, not a generator: sample i is a function of seed and i; use generator.initial_seed()"
        )
    if isinstance(seed, Tensor | np.ndarray):
        seed = seed.tolist()
    if isinstance(seed, str) or not isinstance(seed, Iterable):
        return check_integer("seed", seed, ge=0)
    if not isinstance(seed, Sized):
        seed = tuple(islice(seed, n + 1))
    if len(seed) != n:
        raise OptionError(f"seed must be one number, or one for each of {n} examples, got {len(seed)}")
    return tuple(check_integer("each seed", one, ge=0) for one in seed)


def seeds_of(seed: int | Sequence[int], rows: Iterable[int]) -> list[int]:
    """Return the seeds of some examples' streams; an example with a seed of its own is example 0 of that seed."""
    if isinstance(seed, int):
        return [example_seed(seed, i) for i in rows]
    return [example_seed(seed[i], 0) for i in rows]


def noise_for(seed: Seed, rows: Sequence[int], shape: tuple[int, ...], device: torch.device) -> NoiseFn:
    """Return the noise of the examples whose indices are ``rows``.

    Args:
        seed: As `checked_seed` returns; see `seeds_of`.
        rows: Indices of the examples of a batch.
        shape: Shape of one example.
        device: Device on which the noise is drawn; other kinds of device draw other numbers.
    """
    if seed is None:
        return batch_noise((len(rows), *shape), device)
    if len(rows) > MOST_STREAMS:
        raise OptionError(
            f"{len(rows)} examples with a seed at once are more than {MOST_STREAMS}, as each has a generator; pass "
            "batch_size=1000, which draws the same"
        )
    return _streams(seeds_of(seed, rows), shape, device)


def batch_noise(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None = None) -> NoiseFn:
    """Noise drawn for the whole batch at once: fastest, but it depends on the batch size."""

    def draw() -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    return draw


def _streams(seeds: Sequence[int], shape: tuple[int, ...], device: torch.device) -> NoiseFn:
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def draw() -> Tensor:
        out = torch.empty((len(generators), *shape), device=device)
        for row, generator in zip(out, generators, strict=True):
            row.normal_(generator=generator)
        return out

    return draw
