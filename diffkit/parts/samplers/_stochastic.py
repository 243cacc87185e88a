"""Fresh noise in a step: its standard deviation, analytic or from the variance part.

A step that draws from p(x_s | x_t) adds noise of standard deviation std after a deterministic step to less noise.
With ``variance="learned"`` the plan holds std as a share of the posterior's, and the step multiplies it by the standard
deviation of the variance part: at eta = 1 the noise has exactly that standard deviation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from diffkit.options import choice
from diffkit.parts.samplers._coefficients import step_size
from diffkit.table import Coefs, Steps

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from diffkit.protocols import Prediction
    from diffkit.table import F64


def variance_option() -> Any:
    """Field for the option ``variance`` of samplers with fresh noise."""
    return choice("analytic", ("analytic", "learned"))


def remaining_share(steps: Steps, eta: float) -> F64:
    """``sqrt(1 - std^2 / sigma_s^2)`` for ``std = eta`` times the posterior's: the share of sigma_s
    that is not fresh noise.

    With r = snr_t / snr_s, the posterior's std is sigma_s sqrt(1 - r). Written so that nothing cancels at eta = 1.
    Source: Song et al. 2021, arXiv:2010.02502, eq. 16.
    """
    t, s = steps
    return np.asarray(np.sqrt((1 - eta) * (1 + eta) + eta**2 * np.exp(t.log_snr - s.log_snr)))


def fresh_std(steps: Steps, eta: float) -> F64:
    """``eta sigma_s sqrt(1 - snr_t / snr_s)``: eta > 0 times the posterior's standard deviation."""
    t, s = steps
    return np.asarray(eta * s.sigma * np.sqrt(-np.expm1(t.log_snr - s.log_snr)))


def reverse_sde(steps: Steps, eta: float) -> tuple[F64, F64, F64]:
    """Stochastic step of the reverse SDE, exact for constant x_start: ``x_s = carry x_t + held x_start + std noise``.

    ``carry = sigma_s/sigma_t exp(-eta h)``, ``held = alpha_s (1 - exp(-(1 + eta) h))``,
    ``std = sigma_s sqrt(1 - exp(-2 eta h))``, h = lambda_s - lambda_t.

    Source: Lu et al. 2022, arXiv:2211.01095, section 5; eta: the family of reverse SDEs of Song et al. 2021,
    arXiv:2011.13456, and Karras et al. 2022, arXiv:2206.00364, eq. 6.
    """
    t, s = steps
    drift = eta * step_size(steps) if eta > 0 else np.zeros_like(t.log_snr)
    carry = s.sigma / t.sigma * np.exp(-drift)
    return carry, s.alpha - carry * t.alpha, s.sigma * np.sqrt(-np.expm1(-2 * drift))


def noise_column(std: F64, steps: Steps, variance: str) -> dict[str, F64]:
    """Column "noise": std, or if the variance is learned, std as a share of the posterior's (0 on the last step)."""
    if variance == "analytic":
        return {"noise": std}
    posterior = fresh_std(steps, 1.0)
    return {"noise": np.divide(std, posterior, out=np.zeros_like(std), where=posterior > 0)}


def without_noise(steps: Steps, eta: float) -> Steps:
    """The steps to where their noise is added: alpha_s, and the part of sigma_s that is not drawn afresh."""
    if eta == 0:
        return steps  # also for steps to noisier levels, which have no posterior
    share = remaining_share(steps, eta)
    lost = 2 * np.log(share, out=np.full_like(share, -np.inf), where=share > 0)
    t, s = steps
    return Steps(t, Coefs(s.alpha, s.sigma * share, s.log_snr - lost), steps.nodes)


def with_noise(
    x: Tensor, c: Mapping[str, Tensor], noise: Tensor | None, variance: str, prediction: Prediction
) -> Tensor:
    """Return x with its share of noise; unchanged if there is none."""
    if noise is None:
        return x
    if variance == "analytic":
        return x.addcmul(c["noise"], noise)
    assert prediction.log_variance is not None, "a level where a step starts has a variance"
    return x.addcmul(c["noise"] * (0.5 * prediction.log_variance).exp(), noise)
