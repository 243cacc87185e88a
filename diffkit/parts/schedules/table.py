"""Noise levels given as numbers, such as those of a model that was trained elsewhere."""

from __future__ import annotations

import numpy as np
from attrs import frozen

from diffkit.errors import OptionError
from diffkit.options import numbers
from diffkit.protocols import NoiseSchedule
from diffkit.registry import registry
from diffkit.table import ProcessTable


@registry("schedule").register("table")
@frozen
class Table(NoiseSchedule):
    """alpha and sigma of levels 1..T, and the time that the network is conditioned on at each.

    Composed with as many levels as there are numbers, it is these numbers to the bit; at another num_steps, levels lie
    evenly between them, by position. Compose it with rescale_time=False, so that times stay as they are.

    Attributes:
        alpha: Signal scale of each level, falling, >= 0; 0 at the last only.
        sigma: Noise scale of each level, > 0.
        times: Time of each level; k - 1 by default.
    """

    alpha: tuple[float, ...] = numbers((0.95, 0.75, 0.5, 0.25, 0.05), ge=0)
    sigma: tuple[float, ...] = numbers((0.05, 0.25, 0.5, 0.75, 0.95), gt=0)
    times: tuple[float, ...] | None = numbers(None, optional=True)

    def __attrs_post_init__(self) -> None:
        lengths = [len(self.alpha), len(self.sigma), len(self.alpha if self.times is None else self.times)]
        if len(set(lengths)) > 1 or not self.alpha:
            raise OptionError(f"alpha, sigma and times must be as many numbers, at least 1, got {lengths}")

    def table(self, num_steps: int) -> ProcessTable:
        """Return the table; any num_steps works."""
        rows = len(self.alpha)
        at = np.linspace(0, rows - 1, num_steps) if num_steps > 1 else np.array([rows - 1.0])
        times = np.arange(rows) if self.times is None else self.times
        alpha, sigma, time = (np.interp(at, np.arange(rows), each) for each in (self.alpha, self.sigma, times))
        return ProcessTable.from_alpha_sigma(alpha, sigma, time)
