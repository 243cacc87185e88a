"""The noise levels that a scheduler of diffusers visits in a number of steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from attrs import frozen

from diffkit import OptionError
from diffkit.options import choice, flag, integer, number
from diffkit.protocols import LevelSpacing
from diffkit.table import F64, ProcessTable

TIMES = ("linspace", "leading", "trailing")
"""The values of timestep_spacing."""
SIGMAS = ("timesteps", "karras", "exponential", "beta", "lu")
"""Noise at the spaced timesteps, or what ``use_..._sigmas`` puts in its place."""


class Grid(NamedTuple):
    """How a class of schedulers places its steps.

    Attributes:
        whole: Timesteps of "linspace" are rounded to whole numbers.
        beyond: One more timestep is spaced, and the cleanest one is left out.
        own_range: Karras and other sigmas lie between those of the spaced timesteps, not between all of the chain's.
        rounds: Kinds of sigmas whose times are rounded to whole numbers.
        truncates: Times of other sigmas are cut to whole numbers.
    """

    whole: bool = True
    beyond: bool = False
    own_range: bool = False
    rounds: tuple[str, ...] = ()
    truncates: bool = False


_DDPM = Grid()
_K = Grid(whole=False, own_range=True)
_K_ROUNDED = _K._replace(rounds=("karras",))
_DPM = Grid(beyond=True, rounds=("karras", "lu"), truncates=True)

GRIDS: dict[str, Grid] = {
    "DDPMScheduler": _DDPM,
    "DDIMScheduler": _DDPM,
    "PNDMScheduler": _DDPM,
    "EulerDiscreteScheduler": _K,
    "EulerAncestralDiscreteScheduler": _K,
    "HeunDiscreteScheduler": _K,
    "LMSDiscreteScheduler": _K,
    "KDPM2DiscreteScheduler": _K_ROUNDED,
    "KDPM2AncestralDiscreteScheduler": _K_ROUNDED,
    "DPMSolverMultistepScheduler": _DPM,
    "DPMSolverSinglestepScheduler": _DPM,
    "DEISMultistepScheduler": _DPM,
    "UniPCMultistepScheduler": _DPM,
}


@frozen
class DiffusersSpacing(LevelSpacing):
    """Timesteps, and noise between them, as diffusers' schedulers compute them; level k is their timestep k - 1.

    Noise that is not that of a level keeps its exact value, with the time that diffusers gives it: between two levels,
    by the logarithm of sigma. Options are named as in a ``scheduler_config.json``.

    Attributes:
        count: Number of levels.
        scheduler: Class of the scheduler; they round in different ways.
        timestep_spacing: "linspace", "leading" or "trailing".
        steps_offset: Added to the timesteps of "leading".
        sigmas: "timesteps", the noise of the spaced timesteps, or "karras", "exponential", "beta" or "lu" sigmas.
        sigma_min, sigma_max: Ends of these; by default the noise of a timestep.
        lambda_min_clipped: Timesteps with a smaller log(alpha / sigma) are left out; None leaves out none.
        whole_times: Round the times of Karras and Lu sigmas, if the scheduler does: DPMSolverMultistepScheduler does not
            on "squaredcos_cap_v2".
    Source: ``set_timesteps`` of diffusers' schedulers, version 0.42.1; Karras et al. 2022, arXiv:2206.00364, eq. 5 with
        rho = 7; Lee et al. 2024, arXiv:2407.12173 (beta).
    """

    count: int = integer(ge=1)
    scheduler: str = choice("DDPMScheduler", tuple(GRIDS))
    timestep_spacing: str = choice("leading", TIMES)
    steps_offset: int = integer(0, ge=0)
    sigmas: str = choice("timesteps", SIGMAS)
    sigma_min: float | None = number(None, optional=True, gt=0)
    sigma_max: float | None = number(None, optional=True, gt=0)
    lambda_min_clipped: float | None = number(None, optional=True)
    whole_times: bool = flag(True)

    def levels(self, table: ProcessTable) -> tuple[int, ...]:
        """Return the levels, ascending.

        Raises:
            OptionError: There are not that many, or noise lies between levels.
        """
        timesteps = self._timesteps(table)
        if self.sigmas != "timesteps" or np.any(timesteps != np.round(timesteps)):
            raise OptionError(f"{self._named()} visits noise between the levels of the chain")
        return tuple(int(t) + 1 for t in timesteps[::-1])

    def noise(self, table: ProcessTable) -> tuple[F64, F64]:
        """Return sigma / alpha and time of every step, descending, each (count,)."""
        with np.errstate(over="ignore"):
            chain = np.exp(-table.log_snr[1:] / 2)
        timesteps = self._timesteps(table)
        at_timesteps = np.interp(timesteps, np.arange(len(chain)), chain)
        if self.sigmas == "timesteps":
            return at_timesteps, timesteps
        grid = GRIDS[self.scheduler]
        ends = at_timesteps[[-1, 0]] if grid.own_range else chain[[0, -1]]
        low = ends[0] if self.sigma_min is None else self.sigma_min
        high = ends[1] if self.sigma_max is None else self.sigma_max
        sigmas = _BETWEEN[self.sigmas](low, high, self.count)
        times = np.interp(np.log(sigmas), np.log(chain), np.arange(float(len(chain))))
        if self.sigmas in grid.rounds and self.whole_times:
            times = np.round(times)
        return sigmas, np.trunc(times) if grid.truncates else times

    def _timesteps(self, table: ProcessTable) -> F64:
        """The spaced timesteps, descending."""
        grid, n, num_steps = GRIDS[self.scheduler], self.count, table.num_steps
        top = num_steps
        if self.lambda_min_clipped is not None:
            top = int(np.count_nonzero(table.log_snr[1:] >= 2 * self.lambda_min_clipped))
        points = n + grid.beyond
        if self.timestep_spacing == "linspace":
            found = np.linspace(0, top - 1, points)
            found = found.round() if grid.whole else found
        elif self.timestep_spacing == "leading":
            found = np.arange(float(points)) * (top // points) + self.steps_offset
        else:
            found = np.arange(top, 0, -num_steps / n).round()[::-1] - 1
        if grid.beyond and self.timestep_spacing != "trailing":
            found = found[1:]
        if len(found) != n or np.any(np.diff(found) <= 0) or found[0] < 0 or found[-1] > num_steps - 1:
            raise OptionError(f"{self._named()} has no {n} different timesteps below {num_steps}; use fewer steps")
        return np.asarray(found[::-1], dtype=np.float64)

    def _named(self) -> str:
        offset = f" and steps_offset={self.steps_offset}" if self.steps_offset else ""
        kind = f" and {self.sigmas} sigmas" if self.sigmas != "timesteps" else ""
        return f"spacing 'diffusers' with timestep_spacing={self.timestep_spacing!r}{offset}{kind}"


def _karras(low: float, high: float, n: int) -> F64:
    ends = np.array([high, low]) ** (1 / 7)
    return np.asarray(np.linspace(ends[0], ends[1], n) ** 7)


def _exponential(low: float, high: float, n: int) -> F64:
    return np.asarray(np.exp(np.linspace(np.log(high), np.log(low), n)))


def _beta(low: float, high: float, n: int) -> F64:
    try:
        from scipy.special import betaincinv
    except ImportError as error:
        raise OptionError("beta sigmas need scipy; pip install scipy") from error
    return np.asarray(low + (high - low) * betaincinv(0.6, 0.6, np.linspace(1, 0, n)))


_BETWEEN: dict[str, Callable[[float, float, int], F64]] = {
    "karras": _karras,
    "exponential": _exponential,
    "beta": _beta,
    "lu": _exponential,
}
"""Smallest and largest sigma, and a count -> sigmas, descending; Lu et al.'s with their rho = 1 are exponential."""
