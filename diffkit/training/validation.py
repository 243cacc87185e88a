"""How well a training does on data that it does not learn from: RUN/validation.jsonl, lines as in metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffkit._errors import DataError, OptionError
from diffkit.data.base import Data, as_data, scaled
from diffkit.modes import evaluating
from diffkit.options import check_integer
from diffkit.training.checks import Classes, batch_problems, bins_of
from diffkit.training.logs import MetricsFile
from diffkit.training.metrics import Window, quartile_sums
from diffkit.training.randomness import Purpose, key, keys, normals
from diffkit.training.trackers import Tracker
from diffkit.training.trainable import Trainable

NAME = "validation.jsonl"
_GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, modulo 1, are spread as evenly as can be, however many there are."""


@torch.no_grad()
def validate(system: Trainable, data: Any, *, seed: int = 0, batch_size: int = 256) -> dict[str, float | None]:
    """Return the means of what training minimizes and measures, over data: each example once, at one level.

    Levels are spread evenly over the examples; they and the noise are the same each time. The network is asked in
    evaluation mode.

    Args:
        system: A `diffkit.guidance.NoisyClassifier`, or a system with discrete levels.
        data: What `diffkit.train` takes.
        seed: Decides the noise.
        batch_size: Examples at a time, >= 1.
    Returns:
        "loss" and metrics, and each by quartile of the levels ("loss_q0" is nearest to clean data).
    Raises:
        OptionError: Levels are continuous, or there is no network.
        DataError: The data does not fit.
    """
    found, network = as_data(data), system.backbone
    if system.parts.timesteps.domain != "discrete" or network is None:
        raise OptionError("validation needs a network and discrete levels, such as those of timesteps='uniform'")
    check_integer("batch_size", batch_size, ge=1)
    with evaluating(network):
        return _means(system, found, seed, batch_size)


def _means(system: Trainable, data: Data, seed: int, batch_size: int) -> dict[str, float | None]:
    count, device = Classes.of(system.spec()).count, system.device
    sums, names = torch.zeros((), device=device), list[str]()
    for start in range(0, len(data), batch_size):
        rows = np.arange(start, min(start + batch_size, len(data)))
        batch = data.batch(rows)
        problem = next(batch_problems(batch, data, count), None)
        if problem is not None:
            raise DataError(problem)
        level = torch.from_numpy(((rows + 0.5) * _GOLDEN % 1 * system.num_steps).astype(np.int64) + 1).to(device)
        noise = normals(keys(key(seed, Purpose.NOISE), len(rows), device, start), system.data_shape)
        conditions = {name: value.to(device) for name, value in batch.conditions.items()}
        x = scaled(batch.images.to(device), bins_of(system))
        terms = system.loss_terms(None, x, level, noise, decoder_rows=len(rows), **conditions)
        sums = sums + quartile_sums(terms, level, torch.ones_like(terms["loss"]), system.num_steps)
        names = list(terms)
    window = Window()
    window.add(sums, torch.zeros((), device=device), torch.ones((), device=device))
    means = window.read(names, len(data))
    del means["grad_norm"]
    return means


class Validation(Tracker):
    """Validates what is being trained every so many updates, with the weights of the moment.

    It follows one process, or replicas; a share of a network (strategy "fsdp") cannot be asked.

    Args:
        system: What is given to `diffkit.train`.
        data: Held out of the training.
        every: Updates between validations, >= 1; only those that have a line of metrics count, and the last.
        last: Updates in all.
        batch_size: Examples at a time.
    """

    needs_network = True

    def __init__(self, system: Trainable, data: Any, *, every: int, last: int, batch_size: int = 256):
        self.system, self.data = system, as_data(data)
        self.every, self.last, self.batch_size = check_integer("every", every, ge=1), last, batch_size
        self.file: MetricsFile | None = None

    def begin(self, folder: Path, step: int) -> None:
        """Open the file; lines about later steps are removed."""
        self.file = MetricsFile(folder, step, NAME)

    def metrics(self, line: Mapping[str, Any]) -> None:
        """Validate, if it is time to."""
        step = line["step"]
        if self.file is not None and (step % self.every == 0 or step == self.last):
            self.file.write({"step": step, **validate(self.system, self.data, batch_size=self.batch_size)})

    def preview(self, step: int, path: Path) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.__exit__()
