"""The noise levels that a scheduler of diffusers visits in a number of steps."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from attrs import frozen

from diffkit import OptionError
from diffkit.options import choice, flag, integer, number
from diffkit.protocols import GridSpacing
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
        inverts: That one is left in, and the noisiest is the last of the chain.
        own_range: Karras and other sigmas lie between those of the spaced timesteps, not between all of the chain's.
        rounds: Kinds of sigmas whose times are rounded to whole numbers.
        truncates: Times of other sigmas are cut to whole numbers.
        distilled: Steps are some of those that a network was distilled on.
        straight: Noise is u of the straight path, and shifted, not sigma / alpha.
    """

    whole: bool = True
    beyond: bool = False
    inverts: bool = False
    own_range: bool = False
    rounds: tuple[str, ...] = ()
    truncates: bool = False
    distilled: bool = False
    straight: bool = False


_DDPM = Grid()
_K = Grid(whole=False, own_range=True)
_K_ROUNDED = _K._replace(rounds=("karras",))
_DISTILLED = Grid(distilled=True)
_EDM = Grid()
_FLOW = Grid(whole=False, straight=True)
_DPM = Grid(beyond=True, rounds=("karras", "lu"), truncates=True)

GRIDS: dict[str, Grid] = {
    "DDPMScheduler": _DDPM,
    "DDIMScheduler": _DDPM,
    "DDIMInverseScheduler": _DDPM,
    "PNDMScheduler": _DDPM,
    "EulerDiscreteScheduler": _K,
    "EulerAncestralDiscreteScheduler": _K,
    "HeunDiscreteScheduler": _K,
    "LMSDiscreteScheduler": _K,
    "KDPM2DiscreteScheduler": _K_ROUNDED,
    "KDPM2AncestralDiscreteScheduler": _K_ROUNDED,
    "DPMSolverMultistepScheduler": _DPM,
    "DPMSolverMultistepInverseScheduler": _DPM._replace(inverts=True),
    "DPMSolverSinglestepScheduler": _DPM,
    "DEISMultistepScheduler": _DPM,
    "UniPCMultistepScheduler": _DPM,
    "DPMSolverSDEScheduler": _K,
    "LCMScheduler": _DISTILLED,
    "TCDScheduler": _DISTILLED,
    "EDMEulerScheduler": _EDM,
    "EDMDPMSolverMultistepScheduler": _EDM,
    "FlowMatchEulerDiscreteScheduler": _FLOW,
    "FlowMatchHeunDiscreteScheduler": _FLOW,
}


@frozen
class DiffusersSpacing(GridSpacing):
    """Timesteps, and noise between them, as diffusers' schedulers compute them; level k is their timestep k - 1.

    Noise that is not that of a level keeps its exact value, with the time that diffusers gives it: between two levels,
    by the logarithm of sigma. Options are named as in a ``scheduler_config.json``.

    Attributes:
        count: Number of levels; one more for DPMSolverMultistepInverseScheduler, whose steps are between them.
        scheduler: Class of the scheduler; they round in different ways.
        timestep_spacing: "linspace", "leading" or "trailing".
        steps_offset: Added to the timesteps of "leading".
        sigmas: "timesteps", the noise of the spaced timesteps, or "karras", "exponential", "beta" or "lu" sigmas.
        sigma_min, sigma_max: Ends of these; by default the noise of a timestep.
        rho: Exponent of "karras", >= 1.
        shift: On straight paths, u becomes shift u / (1 + (shift - 1) u).
        mu: On straight paths, the same with exp(mu), or with mu itself if time_shift_type is "linear", in place of
            shift; None shifts by shift.
        time_shift_type: "exponential" or "linear".
        shift_terminal: On straight paths, stretch 1 - u so that the last u is this; None does not.
        lambda_min_clipped: Timesteps with a smaller log(alpha / sigma) are left out; None leaves out none.
        whole_times: Round the times of Karras and Lu sigmas, if the scheduler does; False for
            DPMSolverMultistepScheduler on "squaredcos_cap_v2".
        original_inference_steps: How many steps a network was distilled on, spread over the chain: LCMScheduler and
            TCDScheduler visit some of these, and timestep_spacing and steps_offset change nothing.
        half_steps: Visit the middle of each of the first three steps too, as PNDMScheduler does with
            skip_prk_steps=False; 'diffusers_pndm' needs them then. There are count + 3 levels.
    Source: ``set_timesteps`` of diffusers' schedulers, version 0.42.1; Karras et al. 2022, arXiv:2206.00364, eq. 5; Lee
        et al. 2024, arXiv:2407.12173 (beta); Esser et al. 2024, arXiv:2403.03206, eq. 23 (shift).
    """

    count: int = integer(ge=1)
    scheduler: str = choice("DDPMScheduler", tuple(GRIDS))
    timestep_spacing: str = choice("leading", TIMES)
    steps_offset: int = integer(0, ge=0)
    sigmas: str = choice("timesteps", SIGMAS)
    sigma_min: float | None = number(None, optional=True, gt=0)
    sigma_max: float | None = number(None, optional=True, gt=0)
    rho: float = number(7.0, ge=1)
    shift: float = number(1.0, gt=0)
    mu: float | None = number(None, optional=True)
    time_shift_type: str = choice("exponential", ("exponential", "linear"))
    shift_terminal: float | None = number(None, optional=True, gt=0, lt=1)
    lambda_min_clipped: float | None = number(None, optional=True)
    whole_times: bool = flag(True)
    half_steps: bool = flag(False)
    original_inference_steps: int = integer(50, ge=1)

    @property
    def exact(self) -> bool:
        """True where noise may lie between levels; schedulers that visit levels alone visit those of the table."""
        return self.sigmas != "timesteps" or not GRIDS[self.scheduler].whole

    def levels(self, table: ProcessTable) -> tuple[int, ...]:
        """Return the levels, ascending; the nearest ones of noise that lies between levels.

        Raises:
            OptionError: There are not that many.
        """
        if self.sigmas != "timesteps" or GRIDS[self.scheduler].straight:
            return tuple(super().levels(table))
        return tuple(int(t) + 1 for t in np.round(self._timesteps(table)))

    def log_snr(self, table: ProcessTable) -> F64:
        """Return log_snr of each level, descending."""
        return np.asarray(-2 * np.log(self._sigmas(table)))

    def time(self, table: ProcessTable) -> F64:
        """Return what the network is conditioned on at each of these levels."""
        grid = GRIDS[self.scheduler]
        if grid.straight:
            return np.asarray(self._straight(table) * table.time[-1])
        if self.sigmas == "timesteps":
            return np.asarray(np.interp(self._timesteps(table), np.arange(table.num_steps), table.time[1:]))
        found = np.interp(np.log(self._sigmas(table)), np.log(_chain(table)), table.time[1:])
        if self.sigmas in grid.rounds and self.whole_times:
            found = np.round(found)
        return np.trunc(found) if grid.truncates else found

    def _sigmas(self, table: ProcessTable) -> F64:
        """sigma / alpha of each level, ascending."""
        if GRIDS[self.scheduler].straight:
            u = self._straight(table)
            with np.errstate(divide="ignore"):
                return np.asarray(u / (1 - u))
        chain, timesteps = _chain(table), self._timesteps(table)
        spaced = np.interp(timesteps, np.arange(len(chain)), chain)
        if self.sigmas == "timesteps":
            return spaced
        ends = spaced[[0, -1]] if GRIDS[self.scheduler].own_range else chain[[0, -1]]
        low = ends[0] if self.sigma_min is None else self.sigma_min
        high = ends[1] if self.sigma_max is None else self.sigma_max
        return self._between(float(low), float(high))

    def _between(self, low: float, high: float) -> F64:
        """Noise between two ends, ascending."""
        if self.sigmas == "karras":
            ends = np.array([low, high]) ** (1 / self.rho)
            return np.asarray(np.linspace(ends[1], ends[0], self.count)[::-1] ** self.rho)
        if self.sigmas == "beta":
            return np.asarray(low + (high - low) * even_quantiles(self.count))
        return np.asarray(np.exp(np.linspace(np.log(high), np.log(low), self.count)))[::-1]

    def _straight(self, table: ProcessTable) -> F64:
        """u of each level of a straight path, ascending; diffusers shifts its ends twice."""
        first, last = 1 / table.num_steps, 1.0
        if self.mu is None:
            first, last = self._shifted(np.array([first, last]))
        u = self._shifted(np.linspace(last, first, self.count)[::-1])
        if self.shift_terminal is not None:
            u = 1 - (1 - u) * (1 - self.shift_terminal) / (1 - u[0])
        return u if self.sigmas == "timesteps" else self._between(u[0], u[-1])

    def _shifted(self, u: F64) -> F64:
        shift = self.shift
        if self.mu is not None:
            shift = np.exp(self.mu) if self.time_shift_type == "exponential" else self.mu
        return np.asarray(shift * u / (1 + (shift - 1) * u))

    def _timesteps(self, table: ProcessTable) -> F64:
        """The spaced timesteps, ascending."""
        grid, n, num_steps = GRIDS[self.scheduler], self.count, table.num_steps
        top = num_steps
        if self.lambda_min_clipped is not None:
            top = int(np.count_nonzero(table.log_snr[1:] >= 2 * self.lambda_min_clipped))
        points = n + grid.beyond
        if grid.distilled:
            found = self._of_distillation(num_steps)
        elif self.timestep_spacing == "linspace":
            found = np.linspace(0, top - 1, points)
            found = found.round() if grid.whole else found
        elif self.timestep_spacing == "leading":
            found = np.arange(float(points)) * (top // points) + self.steps_offset
        else:
            found = np.arange(top, 0, -num_steps / n).round()[::-1] - 1
        if grid.inverts:
            found[-1] = top - 1
        elif grid.beyond and self.timestep_spacing != "trailing":
            found = found[1:]
        if len(found) != n + grid.inverts or np.any(np.diff(found) <= 0) or found[0] < 0 or found[-1] > num_steps - 1:
            raise OptionError(f"{self._named()} has no {n} different timesteps below {num_steps}; use fewer steps")
        if self.half_steps:
            if n < 4 or num_steps // n < 2:
                raise OptionError(f"half_steps are between four steps or more of two levels or more, got {n} steps")
            found = np.sort(np.append(found, found[-4:-1] + num_steps // n // 2))
        return np.asarray(found, dtype=np.float64)

    def _of_distillation(self, num_steps: int) -> F64:
        """Timesteps spread over those of the distillation, ascending; some are there twice if these are too few."""
        known = self.original_inference_steps
        chosen = np.floor(np.linspace(0, known, self.count, endpoint=False))
        return np.asarray((known - chosen[::-1]) * (num_steps // known) - 1)

    def _named(self) -> str:
        offset = f" and steps_offset={self.steps_offset}" if self.steps_offset else ""
        kind = f" and {self.sigmas} sigmas" if self.sigmas != "timesteps" else ""
        if GRIDS[self.scheduler].distilled:
            return f"spacing 'diffusers' with original_inference_steps={self.original_inference_steps}"
        return f"spacing 'diffusers' with timestep_spacing={self.timestep_spacing!r}{offset}{kind}"


def _chain(table: ProcessTable) -> F64:
    """sigma / alpha of the levels of a table."""
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(-table.log_snr[1:] / 2))


def even_quantiles(count: int) -> F64:
    """Quantiles of Beta(0.6, 0.6) at even shares, ascending; one alone is the largest."""
    try:
        from scipy.special import betaincinv
    except ImportError as error:
        raise OptionError("beta sigmas need scipy; pip install scipy") from error
    return np.asarray(betaincinv(0.6, 0.6, np.linspace(1, 0, count)))[::-1]
