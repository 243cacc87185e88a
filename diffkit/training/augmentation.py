"""Random changes of a training batch, by seed, step and example: conditions, mirrored images, dropout."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffkit.system.conditions import mapped
from diffkit.system.low_res import LOW_RES, LOW_RES_LEVEL, with_noise
from diffkit.system.null_conditions import drop
from diffkit.system.randomness import Purpose, key, keys, normals, uniforms


def drop_conditions(
    conditions: Mapping[str, Any],
    null: Mapping[str, Any],
    probability: float,
    seed: int,
    step: int,
    count: int,
    start: int = 0,
    alone: str = "",
) -> dict[str, Any]:
    """Return conditions in which, with some probability, all of an example's conditions are null conditions.

    Args:
        conditions: Of some examples.
        null: The null value of each condition; conditions without one stay as they are.
        probability: Of dropping an example's conditions.
        seed: Of the run.
        step: Completed updates.
        count: How many examples.
        start: Which example of the batch the first of them is.
        alone: Name of the condition that is dropped by itself, by draws of its own; empty for all of them together.
    """
    place = (step, int.from_bytes(hashlib.sha256(alone.encode()).digest()[:8], "big")) if alone else (step,)

    def chosen(device: torch.device) -> Tensor:
        return uniforms(keys(key(seed, Purpose.LABEL, *place), count, device, start)) < probability

    return drop(conditions, null, count, chosen)


def mirrored(
    images: Tensor, conditions: Mapping[str, Any], probability: float, seed: int, step: int, start: int = 0
) -> tuple[Tensor, dict[str, Any]]:
    """Return images (B, C, *S) with each mirrored along the last axis with some probability.

    Conditions with as many axes as the images are images of the same things, so they are mirrored along. The first of
    them is example ``start`` of the batch.
    """
    chosen = uniforms(keys(key(seed, Purpose.FLIP, step), len(images), images.device, start)) < probability
    chosen = chosen.reshape(-1, *[1] * (images.ndim - 1))

    def turned(x: Tensor) -> Tensor:
        return torch.where(chosen, x.flip(-1), x) if x.ndim == images.ndim else x

    return turned(images), {name: mapped(turned, value) for name, value in conditions.items()}


def with_noisy_low_res(
    conditions: Mapping[str, Any], largest: float, seed: int, step: int, count: int, start: int = 0, *, level: bool
) -> dict[str, Any]:
    """Return conditions with noise on the small images, of a random level for each example, at most ``largest``.

    With ``level`` that is a condition of the network, too. The first example is number ``start`` of the batch.
    """
    small: Tensor = conditions[LOW_RES]

    def key_of(purpose: Purpose) -> Tensor:
        return keys(key(seed, purpose, step), count, small.device, start)

    levels = (uniforms(key_of(Purpose.LOW_RES_LEVEL)) * largest).float()
    noise = normals(key_of(Purpose.LOW_RES_NOISE), tuple(small.shape[1:])).to(small.dtype)
    more = {LOW_RES_LEVEL: levels} if level else {}
    return {**conditions, LOW_RES: with_noise(small, levels, noise), **more}


def dropout_seed(seed: int, step: int, start: int) -> int:
    """Return the seed of torch's own generators, which dropout inside the network draws from.

    It depends on the first example of a microbatch, ``start``, and not on the process.
    """
    return key(seed, Purpose.DROPOUT, step, start) >> 1
