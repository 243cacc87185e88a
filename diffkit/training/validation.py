"""Validation: metrics of training on held-out data, with the same levels and noise each time."""

from __future__ import annotations

from functools import partial
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from diffkit.data.base import Data, scale_images
from diffkit.data.loading import as_data
from diffkit.errors import DataError, Message, OptionError, Setting
from diffkit.options import check_integer
from diffkit.protocols import Model, PairSampler
from diffkit.runtime.eval_mode import eval_mode
from diffkit.system.codec import to_latents
from diffkit.system.conditions import mapped
from diffkit.system.coupling import for_network, pair_noise
from diffkit.system.randomness import Purpose, key, keys, normals, seeded
from diffkit.system.settings import bins_of
from diffkit.training.config import TrainConfig
from diffkit.training.engines import Engine
from diffkit.training.metrics import MetricsWindow, quartile_sums
from diffkit.training.preflight import AcceptedLabels, batch_problems, check_training
from diffkit.training.reading_errors import read_examples
from diffkit.training.trainable import Trainable
from diffkit.training.trainer import Trainer

_GOLDEN = (5**0.5 - 1) / 2
"""The golden ratio less 1: the first n of its multiples, modulo 1, are spread evenly for any n."""
_SECOND = 2**0.5 - 1
"""Another number of that kind, for the second of a pair of levels."""


@torch.no_grad()
def validate(system: Trainable, data: Any, *, seed: int = 0, batch_size: int = 256) -> dict[str, float | None]:
    """Return the means of the loss and the metrics of training over held-out data: each example once, at one level.

    The examples' levels are spread evenly; continuous ones are spread and weighted by the system's timestep sampler.
    Levels and noise are the same in each call; a coupling that looks at whole batches is left out. The network is in
    evaluation mode.

    Args:
        system: A system, or a `diffkit.guidance.NoisyClassifier`.
        data: As in `diffkit.train`.
        seed: Seed of the noise, and of the data's random transforms.
        batch_size: Examples at a time, >= 1.
    Returns:
        "loss" and metrics, and each by quartile of the levels ("loss_q0" is nearest to clean data).
    Raises:
        OptionError: There is no network.
        DataError: The data does not fit.
    """
    found, network = as_data(data), system.network
    if network is None:
        raise OptionError("validation needs a network, but the system was composed with backbone=None")
    check_integer("batch_size", batch_size, ge=1)
    known = system.parts.classes
    if known and found.classes is not None and len(found.classes) > known:
        raise DataError(f"the data has {len(found.classes)} classes, but the network has {known}")
    with eval_mode(network):
        return _ValidationPass(system, found, None, Engine(system.device), seed).means(batch_size)


class HeldOutData:
    """The held-out data of a run, on which the current averaged weights are measured.

    Args:
        data: The held-out data, or None.
        trainer: The trainer of the run.
    """

    def __init__(self, data: Data | None, trainer: Trainer):
        self.data, self.trainer = data, trainer

    def due(self, step: int) -> bool:
        """Return whether there is a validation after this step; there always is after the last."""
        config = self.trainer.config
        return self.data is not None and (step % config.val_every == 0 or step == config.steps)

    @torch.no_grad()
    def measure(self) -> dict[str, float | None]:
        """Return the result of `validate`, with "val_" before each name; all processes call it, to share the work."""
        assert self.data is not None
        trainer, config = self.trainer, self.trainer.config
        each = config.microbatch or config.batch_size
        with trainer.averaged():
            validation = _ValidationPass(trainer.system, self.data, trainer.eval_model, trainer.engine, seed=0)
            validation.loss_terms = trainer.loss_terms
            found = validation.means(min(config.batch_size, each * trainer.engine.ranks.size))
        return {f"val_{name}": value for name, value in found.items()}


def check_held_out(system: Trainable, spec: Any, data: Data, config: TrainConfig) -> None:
    """Raise `DataError` unless held-out data fits the system as the training data does."""
    try:
        check_training(system, spec, data, attrs.evolve(config, batch_size=1))
    except DataError as error:
        raise DataError(Message(Setting("val"), " must fit the system as the data does: ", error.message)) from error


class _ValidationPass:
    """One pass over all held-out examples, shared between the processes of an engine.

    Args:
        system: The system to measure.
        data: The examples.
        model: The module to call instead of its network, or None.
        engine: The engine of the processes.
        seed: Seed of the noise.
    """

    def __init__(self, system: Trainable, data: Data, model: Model | None, engine: Engine, seed: int):
        self.system, self.data, self.model, self.engine, self.seed = system, data, model, engine, seed
        self.classes = AcceptedLabels.of(system.parts)
        own = system.loss_terms
        self.loss_terms = own if system.parts.codec is None else partial(own, encoded=True)

    def means(self, batch_size: int) -> dict[str, float | None]:
        """Return the means over the data, from ``batch_size`` examples at a time."""
        device = self.engine.device
        sums, names = torch.zeros((), device=device), list[str]()
        for start in range(0, len(self.data), batch_size):
            size = min(batch_size, len(self.data) - start)
            level, to, weight = self._levels(np.arange(start, start + size))
            terms = self._terms(start, size, level, to)
            sums = sums + quartile_sums(terms, level, weight, self.system.num_steps)
            names = list(terms)
        window = MetricsWindow()
        window.add(sums, torch.zeros((), device=device), torch.ones((), device=device))
        means = window.read(names, len(self.data))
        del means["grad_norm"]
        return means

    def _levels(self, rows: Any) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return levels of examples, second ones of a `PairSampler` or None, and weights, on the device."""
        spread, system, device = (rows + 0.5) * _GOLDEN % 1, self.system, self.engine.device
        if isinstance(system.parts.timesteps, PairSampler):
            pairs = torch.from_numpy(np.stack([spread, (rows + 0.5) * _SECOND % 1], 1))
            fresh = system.parts.timesteps.init(system.table)
            level, to, weight = system.parts.timesteps.sample(fresh, pairs, system.num_steps)
            return level.to(device), to.to(device), weight.to(device)
        if not system.parts.continuous_time:
            level = torch.from_numpy((spread * system.num_steps).astype(np.int64) + 1).to(device)
            return level, None, torch.ones(len(rows), device=device)
        fresh = system.parts.timesteps.init(system.table)
        level, weight = system.parts.timesteps.sample(fresh, torch.from_numpy(spread), system.num_steps)
        return level.to(device), None, weight.to(device)

    def _terms(self, start: int, size: int, level: Tensor, to: Tensor | None) -> dict[str, Tensor]:
        """Return the loss terms of consecutive examples, (size,) each.

        A process without examples evaluates one, as FSDP2 requires that every process calls the network.
        """
        mine = self.engine.local_slice(size)
        count = max(mine.stop - mine.start, 1)
        first = start + mine.start
        with seeded(key(self.seed, Purpose.VALIDATION, first)):
            batch = read_examples(self.data, np.arange(first, first + count))
        problem = next(batch_problems(batch, self.data, self.classes), None)
        if problem is not None:
            raise DataError(problem)
        device = self.engine.device
        noise = normals(keys(key(self.seed, Purpose.NOISE), count, device, first), self.system.parts.data_shape)
        conditions = {name: mapped(lambda t: t.to(device), value) for name, value in batch.conditions.items()}
        x = to_latents(self.system.parts, scale_images(batch.images.to(device), bins_of(self.system.settings)))
        here = level[mine.start : mine.start + count]
        coupling = self.system.settings.coupling
        if coupling is not None and coupling.scope == "row":
            generator = torch.Generator().manual_seed(key(self.seed, Purpose.COUPLING, first) >> 1)
            noise = pair_noise(coupling, x, noise, conditions, generator).noise
        pair: dict[str, Any] = {} if to is None else {"level_to": to[mine.start : mine.start + count]}
        terms = self.loss_terms(self.model, x, here, noise, **pair, **for_network(coupling, conditions))
        return self.engine.gather({name: term[: mine.stop - mine.start] for name, term in terms.items()}, size)
