"""An exactly invertible sampler: each level follows from its two neighbours, in either direction.

DDIM from level k has a step down, d_k(x), and one up, u_k(x), with one estimate of x_start. The update

    x_{k-1} = d_k(x_k) + gamma (x_{k+1} - u_k(x_k))

corrects the step down by the error of the step up at the level above, and can be solved for x_{k+1}:

    x_{k+1} = u_k(x_k) + (x_{k-1} - d_k(x_k)) / gamma

Two neighbouring levels therefore determine all others: an encoded image is decoded exactly up to rounding, with any
network and any number of steps.
Source: Zhang et al. 2023, arXiv:2307.10829 (BDIA).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Unpack

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from diffkit.errors import OptionError
from diffkit.options import check_number
from diffkit.spacing import Spacing, levels
from diffkit.system.call_options import EstimateOptions, shows_options
from diffkit.system.codec import to_latents
from diffkit.system.coefficients import CoefficientTable, level_coefficients
from diffkit.system.conditions import check_unused
from diffkit.system.denoiser import Denoiser, as_float
from diffkit.system.module import System
from diffkit.system.prepared import SamplingJob
from diffkit.table import F64, ProcessTable
from diffkit.tasks._images import images_for
from diffkit.tasks.inversion import STEPS, steps_or_default


@frozen(eq=False)
class ExactCode:
    """The exact code of images by BDIA: data at the two highest levels, from which all lower ones can be computed.

    Attributes:
        latent: Data at level T, (B, C, *S).
        below: Data at the level below, (B, C, *S).
        levels: The levels of the encoding, ascending, which decoding must use too; None if unknown.
        gamma: The gamma of the encoding; None if unknown.
    """

    latent: Tensor
    below: Tensor
    levels: tuple[int, ...] | None = None
    gamma: float | None = None


@shows_options(EstimateOptions, steps=STEPS)
@torch.no_grad()
def exact_encode(
    system: System,
    image: Tensor,
    *,
    gamma: float = 1.0,
    progress: bool = True,
    **options: Unpack[EstimateOptions],
) -> ExactCode:
    """Encode images exactly by BDIA: return the code from which `exact_decode` with the same network restores them.

    There must be at least two levels; 50 by default, or all if there are fewer. Image and network may be float64.

    Args:
        system: The system.
        image: (C, *S) or (B, C, *S), in [-1, 1].
        gamma: In (0, 1]; 1 does not enlarge rounding errors, smaller values multiply them by 1 / gamma in each step.
        progress: As in `diffkit.tasks.invert`.
        options: Those of `diffkit.system.call_options.EstimateOptions`.
        conditions: As in `diffkit.tasks.invert`.
    """
    x = to_latents(system.parts, images_for(system, "image", image))
    options["steps"] = steps = steps_or_default(system, options.get("steps"))
    latent, below = _BdiaSampler.of(system, x, gamma, options).encode(x, progress)
    return ExactCode(latent, below, levels(system.num_steps, steps, system.table), float(gamma))


@shows_options(EstimateOptions, steps=STEPS)
@torch.no_grad()
def exact_decode(
    system: System,
    code: ExactCode | Tensor,
    *,
    gamma: float | None = None,
    progress: bool = True,
    **options: Unpack[EstimateOptions],
) -> Tensor:
    """Decode images from an exact code, (B, C, *S), or from noise, with a step of DDIM to the level below.

    Args:
        system: The system.
        code: The result of `exact_encode`, or noise.
        gamma: By default that stored in the code, else 1.
        progress: As in `exact_encode`.
        options: As in `exact_encode`; steps are by default those stored in the code.
        conditions: As in `exact_encode`.
    Raises:
        OptionError: The code has another shape, levels or gamma.
    """
    given = code if isinstance(code, ExactCode) else ExactCode(code, code)
    expected = (len(given.latent), *system.parts.data_shape)
    for part in (given.latent, given.below):
        if tuple(part.shape) != expected:
            raise OptionError(f"the code must have shape {expected}, got {tuple(part.shape)}")
    latent, below = (as_float(part.to(system.device)) for part in (given.latent, given.below))
    gamma, options["steps"] = _resolve_settings(system, given, gamma, options.get("steps"))
    sampler = _BdiaSampler.of(system, latent, gamma, options)
    return system.from_latents(sampler.decode(latent, below if isinstance(code, ExactCode) else None, progress))


def _resolve_settings(system: System, code: ExactCode, gamma: float | None, steps: Spacing) -> tuple[float, Spacing]:
    """Return gamma and steps of a code, or the arguments if it has none; raise if they differ."""
    if gamma is not None and code.gamma is not None and gamma != code.gamma:
        raise OptionError(f"gamma={gamma!r}, but the code was made with {code.gamma!r}; leave gamma out")
    own, given = code.levels, None if steps is None else levels(system.num_steps, steps, system.table)
    if own is not None and given is not None and own != given:
        raise OptionError(
            f"steps={steps!r} visits {_levels_text(given)}, but the code was made on {_levels_text(own)} and cannot be "
            "decoded on other levels; leave steps out"
        )
    found = code.gamma if gamma is None else gamma
    return 1.0 if found is None else found, own or given


def _levels_text(found: Sequence[int]) -> str:
    some = ", ".join(map(str, found[:3])) + (", ..." if len(found) > 3 else "")
    return f"{len(found)} levels ({some})"


class _BdiaSampler:
    """BDIA, the exactly invertible sampler, on one table with one denoiser."""

    def __init__(self, job: SamplingJob, denoiser: Denoiser, gamma: float):
        self.job, self.denoiser, self.gamma = job, denoiser, gamma
        self.last = job.table.num_steps
        self.columns = CoefficientTable(
            {"level": level_coefficients(job.parts, job.table), "ddim": _ddim_coefficients(job.table)}
        )

    @classmethod
    def of(cls, system: System, x: Tensor, gamma: float, options: EstimateOptions) -> _BdiaSampler:
        gamma = check_number("gamma", gamma, gt=0, le=1)
        options["steps"] = steps_or_default(system, options.get("steps"))
        job = system.prepare(len(x), **options)
        check_unused(job.model, options, "sampler", "compile", "seed", "final")
        if job.table.num_steps < 2:
            raise OptionError("exact inversion needs at least 2 steps, got 1")
        return cls(job, job.denoiser(), gamma)

    def encode(self, x: Tensor, progress: bool) -> tuple[Tensor, Tensor]:
        matrix = self.columns.on(x.device, x.dtype)
        with self.job.running("encoding", self.last, progress) as advance:
            below, here = x, self._first(matrix[1], x)
            advance(1)
            for k in range(1, self.last):
                down, up = self._ddim_steps(matrix[k], here)
                below, here = here, up + (below - down) / self.gamma
                advance(1)
        return here, below

    def decode(self, here: Tensor, below: Tensor | None, progress: bool) -> Tensor:
        matrix = self.columns.on(here.device, here.dtype)
        with self.job.running("decoding", self.last, progress) as advance:
            below = self._ddim_steps(matrix[self.last], here)[0] if below is None else below
            advance(1)
            for k in range(self.last - 1, 0, -1):
                above, here = here, below
                down, up = self._ddim_steps(matrix[k], here)
                below = down + self.gamma * (above - up)
                advance(1)
        return below

    def _first(self, row: Tensor, x: Tensor) -> Tensor:
        """Return data at level 1 from level 0, with the noise estimated at level 1; any estimate can be inverted."""
        at = self.columns.level(row, x.ndim)
        eps = (x - at.alpha * self.denoiser(x, at).x_start) / at.sigma
        return at.alpha * x + at.sigma * eps

    def _ddim_steps(self, row: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return DDIM's steps down and up from a level."""
        x_start = self.denoiser(x, self.columns.level(row, x.ndim)).x_start
        c = self.columns.read(row, x.ndim, "ddim")
        down = (c["x_down"] * x).addcmul(c["x_start_down"], x_start)
        return down, (c["x_up"] * x).addcmul(c["x_start_up"], x_start)


def _ddim_coefficients(table: ProcessTable) -> dict[str, F64]:
    """Return DDIM's coefficients from each level one down and one up, (T+1,); row 0 and the last step up are unused."""
    alpha, sigma = table.alpha, table.sigma

    def to(shift: Callable[[F64], F64]) -> tuple[F64, F64]:
        keep = np.divide(shift(sigma), sigma, out=np.zeros_like(sigma), where=sigma > 0)
        return keep, shift(alpha) - keep * alpha

    (x_down, start_down), (x_up, start_up) = to(_level_below), to(_level_above)
    return {"x_down": x_down, "x_start_down": start_down, "x_up": x_up, "x_start_up": start_up}


def _level_below(column: F64) -> F64:
    return np.concatenate([column[:1], column[:-1]])


def _level_above(column: F64) -> F64:
    return np.concatenate([column[1:], column[-1:]])
