"""Random numbers as a pure function of where they are used: (seed, purpose, step, position in the batch).

No generator is carried from step to step, so there is no state to save or restore, and no order of draws.
The number for example i of a step is the same whatever the microbatches, the processes and the device (on another
device up to the rounding of log and cos), and is made on the device that uses it.

    key(seed, purpose, step)  ->  keys(key, B)  ->  uniforms / normals

Each example's key starts its own SplitMix64 sequence, and normals come in pairs by Box and Muller's transform. On a CPU
it costs about twice a bare ``torch.randn`` and as much as one re-seeded generator per example; on small data, far less.

Source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", doi:10.1145/2660193.2660195 (the
finalizer's constants are David Stafford's variant 13); Box & Muller 1958, doi:10.1214/aoms/1177706645.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio, made odd
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


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
    positions = torch.arange(start + 1, start + count + 1, device=device)
    return _mix(_mix(positions.mul_(_signed(_STEP)).add_(_signed(key))).bitwise_xor_(_signed(_STEP)))


def uniforms(keys: Tensor) -> Tensor:
    """Return one uniform in [0, 1) for each key, (B,) float64."""
    return _shifted(_mix(keys + _signed(_STEP)), 11).double() * 2.0**-53


def normals(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal numbers of the given shape for each key, (B, *shape) float32."""
    count = math.prod(shape)
    half = (count + 1) // 2
    index = torch.arange(1, half + 1, device=keys.device).mul_(_signed(_STEP))
    bits = _mix(index + keys[:, None])
    radius = _shifted(bits, 32).float().add_(0.5).mul_(2.0**-32).log_().mul_(-2).clamp_(min=0).sqrt_()
    angle = (bits & 0xFFFFFFFF).float().mul_(2 * math.pi * 2.0**-32)
    pairs = torch.cat([angle.cos().mul_(radius), angle.sin_().mul_(radius)], dim=1)
    return pairs[:, :count].reshape(len(keys), *shape)


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
