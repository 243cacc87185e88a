"""Integrals of an exponential and a polynomial, of which every DPM-Solver is made."""

from __future__ import annotations

import numpy as np


def moment(h: float, k: int) -> float:
    """``integral over 0..1 of h exp(-h (1 - u)) u^k du`` for k = 1, 2; by its series where the recurrence cancels."""
    if abs(h) < 0.5:
        term = total = h / (k + 1)
        for i in range(1, 16):
            term *= -h / (k + 1 + i)
            total += term
        return total
    first = 1 + np.expm1(-h) / h
    return float(first if k == 1 else 1 - 2 / h * first)
