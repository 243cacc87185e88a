"""The same quantities as the table's, from first principles: 60-digit arithmetic, no formula of the paper."""

from __future__ import annotations

from decimal import Decimal, getcontext
from typing import NamedTuple

import numpy as np

getcontext().prec = 60


class Normal(NamedTuple):
    """A normal distribution whose mean is linear in x_start and x_t."""

    x_start: Decimal
    x_t: Decimal
    variance: Decimal


def decimals(values: np.ndarray) -> list[Decimal]:
    """The exact values of float64 numbers."""
    return [Decimal(float(value)) for value in values]


def product(prior: Normal, likelihood: Normal) -> Normal:
    """The normalized product of two densities of the same variable: precisions add."""
    total = 1 / prior.variance + 1 / likelihood.variance
    ways = zip(prior[:2], likelihood[:2], strict=True)
    mean = [(a / prior.variance + b / likelihood.variance) / total for a, b in ways]
    return Normal(mean[0], mean[1], 1 / total)


def posterior_from_betas(betas: np.ndarray) -> list[Normal]:
    """q(x_{k-1} | x_k, x_start), k = 2..T, as the product of q(x_{k-1} | x_start) and q(x_k | x_{k-1})."""
    share, found = Decimal(1), []
    for k, beta in enumerate(decimals(betas), 1):
        if k > 1:
            prior = Normal(share.sqrt(), Decimal(0), 1 - share)
            found.append(product(prior, _seen_from_below((1 - beta).sqrt(), beta)))
        share *= 1 - beta
    return found


def posterior_from_scales(alpha: np.ndarray, sigma: np.ndarray) -> list[Normal]:
    """The same from alpha and sigma at levels 1..T of any path."""
    a, s = decimals(alpha), decimals(sigma)
    found = []
    for k in range(1, len(a)):
        ratio = a[k] / a[k - 1]
        step = _seen_from_below(ratio, s[k] ** 2 - (ratio * s[k - 1]) ** 2)
        found.append(product(Normal(a[k - 1], Decimal(0), s[k - 1] ** 2), step))
    return found


def _seen_from_below(gain: Decimal, variance: Decimal) -> Normal:
    """The likelihood of x_s given ``x_t = gain x_s + noise``, as a density of x_s."""
    return Normal(Decimal(0), 1 / gain, variance / gain**2)
