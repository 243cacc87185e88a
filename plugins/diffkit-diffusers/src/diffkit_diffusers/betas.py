"""The noise levels of diffusers' discrete schedulers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from attrs import frozen

from diffkit import OptionError
from diffkit.options import choice, flag, number, numbers
from diffkit.protocols import NoiseSchedule
from diffkit.table import F64, ProcessTable

SHAPES: dict[str, Callable[[float, float, int], F64]] = {
    "linear": lambda start, end, n: np.linspace(start, end, n),
    "scaled_linear": lambda start, end, n: np.asarray(np.linspace(start**0.5, end**0.5, n) ** 2),
    "squaredcos_cap_v2": lambda start, end, n: _squared_cosine(n),
    "sigmoid": lambda start, end, n: np.asarray(start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, n)))),
}
"""beta_start, beta_end, T -> betas (T,), under diffusers' names."""


@frozen
class DiffusersBetas(NoiseSchedule):
    """Variances of a variance-preserving chain as a ``scheduler_config.json`` gives them; time is k - 1.

    Compose it with rescale_time=False, as diffusers' networks are conditioned. Unlike schedule='linear', the ends do
    not depend on T.

    Attributes:
        beta_start: First variance, in (0, 1); not used by "squaredcos_cap_v2".
        beta_end: Last variance, in (0, 1); likewise.
        beta_schedule: "linear", "scaled_linear" (the roots are evenly spaced), "squaredcos_cap_v2" (IDDPM's cosine) or
            "sigmoid".
        trained_betas: The variances themselves, in (0, 1]; takes the place of the three above.
        rescale_zero_snr: Stretch the signal scale so that the last level has no signal.
        smallest_alpha_bar: Floor under alpha_bar at the last level, in [0, 1), as far as the level before allows: 2^-24
            where diffusers' solvers cannot start from no signal at all.
    Source: diffusers' schedulers; rescaling: Lin et al. 2024, arXiv:2305.08891, algorithm 1.
    Deviates: float64 throughout, where diffusers multiplies 1000 factors in float32: alpha_bar differs by up to 1e-5.
    """

    beta_start: float = number(1e-4, gt=0, lt=1)
    beta_end: float = number(0.02, gt=0, lt=1)
    beta_schedule: str = choice("linear", tuple(SHAPES))
    trained_betas: tuple[float, ...] | None = numbers(None, optional=True, gt=0, le=1)
    rescale_zero_snr: bool = flag(False)
    smallest_alpha_bar: float = number(0.0, ge=0, lt=1)

    def table(self, num_steps: int) -> ProcessTable:
        """Return the table; any num_steps works, unless trained_betas fixes it."""
        if self.trained_betas is not None and len(self.trained_betas) != num_steps:
            raise OptionError(
                f"schedule 'diffusers_betas' has {len(self.trained_betas)} trained_betas; num_steps must be "
                f"{len(self.trained_betas)}, got {num_steps}"
            )
        betas = self._betas(num_steps)
        if not self.rescale_zero_snr and not self.smallest_alpha_bar:
            return ProcessTable.from_betas(betas)
        alpha_bar = np.concatenate([[1.0], np.cumprod(1 - betas)])
        if self.rescale_zero_snr:
            alpha_bar = _without_terminal_signal(alpha_bar, num_steps)
        # A floor above the level before would turn the chain around. A rescaled signal falls evenly to 0, so a quarter
        # of the alpha_bar before stands for half a step before the end.
        alpha_bar[-1] = max(alpha_bar[-1], min(self.smallest_alpha_bar, alpha_bar[-2] / 4))
        return ProcessTable.from_alpha_bar(alpha_bar)

    def _betas(self, num_steps: int) -> F64:
        if self.trained_betas is not None:
            return np.array(self.trained_betas)
        return SHAPES[self.beta_schedule](self.beta_start, self.beta_end, num_steps)


def _squared_cosine(num_steps: int) -> F64:
    """Source: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17."""
    f = np.cos((np.arange(num_steps + 1) / num_steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.asarray(np.minimum(1 - f[1:] / f[:-1], 0.999))


def _without_terminal_signal(alpha_bar: F64, num_steps: int) -> F64:
    """Shift the signal scale so that it ends at 0, and stretch it so that level 1 keeps its own."""
    if num_steps < 2:
        raise OptionError("schedule 'diffusers_betas' with rescale_zero_snr needs num_steps >= 2, got 1")
    scale = np.sqrt(alpha_bar[1:])
    scale = (scale - scale[-1]) * (scale[0] / (scale[0] - scale[-1]))
    return np.concatenate([[1.0], scale**2])
