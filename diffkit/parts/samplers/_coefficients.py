"""Coefficients that samplers share, in float64.

On any Gaussian path the probability-flow ODE has two exact forms, with lambda = log_snr / 2 and rho = sigma / alpha:

    d(x / sigma) = exp(lambda) x_start dlambda        d(x / alpha) = eps drho

Solvers differ in how they extend x_start or eps over a step. Both forms agree on the step that holds them constant,
``x_s = alpha_s x_start + sigma_s eps`` (`straight`), and it exists at every level, with no signal and with no noise.
So every plan here is that step, plus multiples of differences of estimates, which are 0 where they do not exist.
"""

from __future__ import annotations

import numpy as np

from diffkit.table import F64, Coefs, Steps

MIN_SPACING = 1e-3
"""An estimate closer than this to another one (in steps) is left out: the division would amplify float32 rounding."""
_SMALL = 2.0
"""Below this step the recurrence of `moments` loses digits, and quadrature does not."""
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(16)  # exact to rounding for exp over a step of _SMALL


def straight(t: Coefs, s: Coefs) -> tuple[F64, F64]:
    """Coefficients of x_t and x_start in ``x_s = alpha_s x_start + sigma_s eps``.

    eps is computed from x_t and the estimate of x_start, ``(x_t - alpha_t x_start) / sigma_t``.
    Source: Song et al. 2021, arXiv:2010.02502, eq. 12 without noise.
    """
    carry: F64 = s.sigma / t.sigma
    return carry, s.alpha - carry * t.alpha


def noise_ratio(at: Coefs) -> F64:
    """rho = sigma / alpha; inf where there is no signal."""
    rho: F64 = np.divide(at.sigma, at.alpha, out=np.full_like(at.sigma, np.inf), where=at.alpha > 0)
    return rho


def step_size(steps: Steps) -> F64:
    """h = lambda_s - lambda_t of every step; infinite where an end has no signal or no noise."""
    t, s = steps
    return np.asarray((s.log_snr - t.log_snr) / 2)


def finite_or_zero(values: F64) -> F64:
    """Values, with 0 where they are infinite or not a number."""
    return np.where(np.isfinite(values), values, 0.0)


def within(steps: Steps, share: float) -> F64:
    """log_snr of a node at a share of the step from t to s; that of t where an end is infinite."""
    t, s = steps
    with np.errstate(invalid="ignore"):
        between = t.log_snr + share * (s.log_snr - t.log_snr)
    node: F64 = np.where(np.isfinite(between), between, t.log_snr)
    return node


def position(node: Coefs, steps: Steps) -> F64:
    """Share of the way from t to s, in lambda, at which a node was taken; 0 at t and where an end is infinite."""
    t, s = steps
    with np.errstate(invalid="ignore", divide="ignore"):
        return finite_or_zero(np.asarray((node.log_snr - t.log_snr) / (s.log_snr - t.log_snr)))


def moments(h: F64, count: int) -> F64:
    """``m_k = integral over 0..1 of h exp(-h (1 - u)) u^k du`` for k < count, (n, count); any sign of h.

    alpha_s m_k is what x_start ~ u^k adds to x_s, sigma_s m_k(-h) what eps ~ u^k does, u running from 0 at t to 1 at s.
    0 where h is infinite, and nothing of the kind exists.
    """
    finite = np.isfinite(h)
    h = np.where(finite, h, 1.0)
    with np.errstate(all="ignore"):
        columns = [-np.expm1(-h)]
        u = (1 + _POINTS) / 2
        near = np.where(np.abs(h) < _SMALL, h, 0.0)[:, None]
        for k in range(1, count):
            recurrence = 1 - k / h * columns[-1]
            quadrature = (near * np.exp(-near * (1 - u)) * u**k * _WEIGHTS / 2).sum(1)
            columns.append(np.where(np.abs(h) < _SMALL, quadrature, recurrence))
    return np.where(finite[:, None], np.stack(columns, axis=1), 0.0)
