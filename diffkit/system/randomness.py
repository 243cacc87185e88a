"""All random numbers that depend on a seed: those of training by counters, those of sampling by generators.

Training: a pure function of where a number is used, (seed, purpose, step, position in the batch). No generator is
carried from step to step, so there is no state to save or restore, and no order of draws. The number for example i of a
step is the same whatever the microbatches, the processes and the device (on another device up to the rounding of log
and cos), and is made on the device that uses it.

    key(seed, purpose, step)  ->  keys(key, B)  ->  uniforms / normals

Each example's key starts its own SplitMix64 sequence, and normals come in pairs by Box and Muller's transform.

Sampling: one of torch's generators for each example, seeded by (seed, i). Samples of a seed so depend on the kind of
device, but on a CPU normals by counters take 2 to 10 times as long: Box and Muller's transform alone takes 0.5 to 0.7
of a generator's draw, and a 32-bit hash of the counters 1.0 to 1.5 (1 and 16 examples of 3x64x64, one thread).

Source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", doi:10.1145/2660193.2660195 (the
finalizer's constants are David Stafford's variant 13); Box & Muller 1958, doi:10.1214/aoms/1177706645.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from enum import IntEnum
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffkit.errors import OptionError
from diffkit.options import check_integer

NoiseFn = Callable[[], Tensor]
"""Returns the next standard normal tensor of the batch's shape."""

Seed = int | Sequence[int] | None
"""One seed for all (example i is then a function of the seed and i), a seed for each example, or None."""

NOISE = "generators"
"""Name of the noise of seeded samples, which a folder of samples records; other noise must have another name."""

MOST_STREAMS = 10**6
"""Largest number of examples of a batch with a generator each, of 5 KB."""

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio, made odd
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_FEW = 1 << 13
"""Numbers that NumPy makes in less time than torch, with one thread or several."""


# ---- by counters: training -----------------------------------------------------------------------------------------


class Purpose(IntEnum):
    """Purposes of random numbers, each with its own sequence. Changing a value changes the numbers of every seed."""

    ORDER = 1
    LEVEL = 2
    NOISE = 3
    LABEL = 4
    DROPOUT = 5
    FLIP = 6
    DATA = 7
    VALIDATION = 8
    COUPLING = 9
    LEVEL_TO = 10
    ESTIMATE = 11
    LOW_RES_LEVEL = 12
    LOW_RES_NOISE = 13
    STAGE = 14


def key(seed: int, purpose: Purpose, *place: int) -> int:
    """Return a well-mixed 64-bit number, unrelated for neighbouring seeds, purposes and places."""
    mixed = 0
    for word in (seed, purpose, *place):
        mixed = _mix_int(((mixed ^ word) + _STEP) & _MASK)
    return mixed


@contextmanager
def seeded(key: int) -> Iterator[None]:
    """Let the global generators of torch (on the CPU), NumPy and Python start from ``key``, then restore their states.

    NumPy's is the legacy one, which image transforms use.
    """
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    torch.default_generator.manual_seed(_signed(key))
    np.random.seed([key >> 32, key & 0xFFFFFFFF])  # noqa: NPY002
    random.seed(key)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


def keys(key: int, count: int, device: torch.device | str = "cpu", start: int = 0) -> Tensor:
    """Return one key for each position from ``start``, (count,) int64 (the bits are those of an unsigned number)."""
    if count <= _FEW and torch.device(device).type == "cpu":
        words = np.arange(start + 1, start + count + 1, dtype=np.uint64) * np.uint64(_STEP) + np.uint64(key)
        return _as_tensor(_mix_words(_mix_words(words) ^ np.uint64(_STEP)))
    positions = torch.arange(start + 1, start + count + 1, device=device)
    return _mix(_mix(positions.mul_(_signed(_STEP)).add_(_signed(key))).bitwise_xor_(_signed(_STEP)))


def uniforms(keys: Tensor) -> Tensor:
    """Return one uniform in [0, 1) for each key, (B,) float64."""
    if _are_few(keys, keys.numel()):
        return torch.from_numpy((_mix_words(_words(keys) + np.uint64(_STEP)) >> np.uint64(11)) * 2.0**-53)
    return _shifted(_mix(keys + _signed(_STEP)), 11).double() * 2.0**-53


def normals(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal numbers of the given shape for each key, (B, *shape) float32."""
    count = math.prod(shape)
    half = (count + 1) // 2
    if _are_few(keys, len(keys) * half):
        index = np.arange(1, half + 1, dtype=np.uint64) * np.uint64(_STEP)
        words = _mix_words(index + _words(keys)[:, None])
        upper, lower = _as_tensor(words >> np.uint64(32)), _as_tensor(words & np.uint64(0xFFFFFFFF))
    else:
        bits = _mix(torch.arange(1, half + 1, device=keys.device).mul_(_signed(_STEP)) + keys[:, None])
        upper, lower = _shifted(bits, 32), bits & 0xFFFFFFFF
    radius = upper.float().add_(0.5).mul_(2.0**-32).log_().mul_(-2).clamp_(min=0).sqrt_()
    angle = lower.float().mul_(2 * math.pi * 2.0**-32)
    pairs = torch.cat([angle.cos().mul_(radius), angle.sin_().mul_(radius)], dim=1)
    return pairs[:, :count].reshape(len(keys), *shape)


def _are_few(keys: Tensor, count: int) -> bool:
    """Whether so many numbers of these keys are few on a CPU, where NumPy takes a third of the time.

    The words are the same to the bit; a subclass of a tensor may have no values to read.
    """
    return count <= _FEW and type(keys) is Tensor and keys.device.type == "cpu"


def _words(keys: Tensor) -> NDArray[np.uint64]:
    return keys.numpy().view(np.uint64)


def _as_tensor(words: NDArray[np.uint64]) -> Tensor:
    return torch.from_numpy(words.view(np.int64))


def _mix_words(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`_mix`, on a CPU."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(_FIRST)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(_SECOND)
    return bits ^ (bits >> np.uint64(31))


def _mix_int(bits: int) -> int:
    bits = (bits ^ (bits >> 30)) * _FIRST & _MASK
    bits = (bits ^ (bits >> 27)) * _SECOND & _MASK
    return bits ^ (bits >> 31)


def _mix(bits: Tensor) -> Tensor:
    """SplitMix64's finalizer; int64 arithmetic wraps as unsigned arithmetic does."""
    bits = (bits ^ _shifted(bits, 30)).mul_(_signed(_FIRST))
    bits = (bits ^ _shifted(bits, 27)).mul_(_signed(_SECOND))
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Shift right and fill with zeros, which int64 has no operator for."""
    return (bits >> by).bitwise_and_((1 << (64 - by)) - 1)


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits


# ---- by generators: sampling -----------------------------------------------------------------------------------------


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


def generators_of(seed: int | Sequence[int], rows: Iterable[int], device: torch.device) -> list[torch.Generator]:
    """Return a generator for each of some examples; see `seeds_of`."""
    return [torch.Generator(device).manual_seed(one) for one in seeds_of(seed, rows)]


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
    generators = generators_of(seed, rows, device)

    def draw() -> Tensor:
        out = torch.empty((len(generators), *shape), device=device)
        for row, generator in zip(out, generators, strict=True):
            row.normal_(generator=generator)
        return out

    return draw


def batch_noise(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None = None) -> NoiseFn:
    """Noise drawn for the whole batch at once: fastest, but it depends on the batch size."""

    def draw() -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    return draw
