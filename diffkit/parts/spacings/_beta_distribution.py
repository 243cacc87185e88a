"""Quantiles of the beta distribution, which NumPy does not have."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from diffkit.table import F64

_TERMS = 60
"""Terms of the continued fraction; those beyond are below rounding for parameters up to 20."""
_HALVINGS = 60
"""Halvings of [0, 1], to rounding."""


@lru_cache(maxsize=16)
def even_quantiles(count: int, a: float, b: float) -> F64:
    """Return x with ``P(X <= x) = u``, X of Beta(a, b), at ``count`` even u in [0, 1], by bisection."""
    share = np.linspace(0, 1, count)
    low, high = np.zeros_like(share), np.ones_like(share)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = beta_probability(middle, a, b) < share
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    found: F64 = np.where(share <= 0, 0.0, np.where(share >= 1, 1.0, (low + high) / 2))
    found.flags.writeable = False  # as it is cached
    return found


def beta_probability(x: F64, a: float, b: float) -> F64:
    """Return ``P(X <= x)`` of Beta(a, b), x in [0, 1].

    Source: DLMF, https://dlmf.nist.gov/8.17, eq. 8.17.22, the continued fraction, and 8.17.4 beyond the mean.
    """
    swapped = x > a / (a + b)
    first = np.where(swapped, 1 - x, x)
    p, q = np.where(swapped, b, a), np.where(swapped, a, b)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    with np.errstate(divide="ignore"):  # at 0
        scale = np.exp(p * np.log(first) + q * np.log1p(-first) - log_beta)
    found = scale / (p * _fraction(first, p, q))
    return np.asarray(np.where(swapped, 1 - found, found))


def _fraction(x: F64, p: F64, q: F64) -> F64:
    """``1 + d_1 / (1 + d_2 / (1 + ...))``, from its last term to the first."""
    value = np.ones_like(x)
    for n in range(_TERMS, 0, -1):
        m = n // 2
        if n % 2:
            d = -(p + m) * (p + q + m) * x / ((p + 2 * m) * (p + 2 * m + 1))
        else:
            d = m * (q - m) * x / ((p + 2 * m - 1) * (p + 2 * m))
        value = 1 + d / value
    return value
