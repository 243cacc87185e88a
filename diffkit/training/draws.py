"""Random draws of a training step: level, weight and noise of every example, dropped classes, mirrored images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffkit.protocols import State
from diffkit.system.conditions import mapped
from diffkit.system.null_conditions import drop
from diffkit.training.randomness import Purpose, key, keys, normals, uniforms
from diffkit.training.trainable import Trainable


class Draws(NamedTuple):
    """The randomness of one step.

    Attributes:
        level: Levels that the timestep sampler drew for the whole batch, (B,); see `System.loss_terms`.
        weight: Its weights, (B,) float32.
        noise: Standard normal, of this process's rows of the batch, (rows, C, *S) float32.
    """

    level: Tensor
    weight: Tensor
    noise: Tensor


def draw(system: Trainable, state: State, seed: int, step: int, batch: int, rows: slice = slice(None)) -> Draws:
    """Return the draws of one step: a function of (seed, step, position in the batch) and the sampler's state.

    Levels are drawn where the sampler's state is (on the CPU if it has none), noise where the system is.

    Args:
        system: The system to train.
        state: State of the timestep sampler.
        seed: Of the run.
        step: Completed updates.
        batch: Examples in the batch, over all processes.
        rows: The examples that noise is drawn for.
    """
    first = next(iter(tensors_of(state)), None)
    where = "cpu" if first is None else first.device
    u = uniforms(keys(key(seed, Purpose.LEVEL, step), batch, where))
    level, weight = system.parts.timesteps.sample(state, u, system.num_steps)
    start, stop, _ = rows.indices(batch)
    noise = normals(keys(key(seed, Purpose.NOISE, step), stop - start, system.device, start), system.data_shape)
    return Draws(level, weight, noise)


def drop_conditions(
    conditions: Mapping[str, Any],
    null: Mapping[str, Any],
    probability: float,
    seed: int,
    step: int,
    count: int,
    start: int = 0,
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
    """

    def chosen(device: torch.device) -> Tensor:
        return uniforms(keys(key(seed, Purpose.LABEL, step), count, device, start)) < probability

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


def dropout_seed(seed: int, step: int, start: int) -> int:
    """Return the seed of torch's own generators, which dropout inside the network draws from.

    It depends on the first example of a microbatch, ``start``, and not on the process.
    """
    return key(seed, Purpose.DROPOUT, step, start) >> 1


def tensors_of(state: State) -> list[Tensor]:
    """Return the tensors of a state, which is a tensor or a (nested) tuple of them, in order."""
    if isinstance(state, Tensor):
        return [state]
    return [tensor for item in state for tensor in tensors_of(item)]


def with_tensors(state: State, tensors: list[Tensor]) -> State:
    """Return a state like ``state`` that holds these tensors."""
    return _fill(state, iter(tensors))


def _fill(state: State, tensors: Iterator[Tensor]) -> State:
    if isinstance(state, Tensor):
        return next(tensors)
    items = [_fill(item, tensors) for item in state]
    return tuple(items) if type(state) in (tuple, list) else type(state)(*items)
