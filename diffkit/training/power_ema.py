"""Power-function means of the weights, and how to make one of any width from a few stored ones.

A power-function mean of exponent g weights the network's weights after update k by k^g. It is named by its relative
width, the standard deviation of that profile over its length: 0.05 averages over about the last twentieth of the run.
The profile of a third width, or of another step, is nearly a linear combination of the profiles of two widths stored at
several steps.

Source: Karras et al. 2024, arXiv:2312.02696, section 3 and appendix C.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffkit.errors import OptionError

WIDEST = 0.28
"""Relative widths are below 12^(-1/2), that of the plain mean over everything."""


class Profile(NamedTuple):
    """The profile of a power-function mean: its relative width, and the number of updates it covers."""

    width: float
    step: int


@lru_cache
def power_exponent(width: float) -> float:
    """Return the exponent g >= 0 of a power-function mean of a relative width in (0, 0.28].

    Raises:
        OptionError: The width is out of range.
    """
    if not 0 < width <= WIDEST:
        raise OptionError(f"a relative width must lie above 0 and at most {WIDEST}, got {width}")
    # (g + 1)^(1/2) / ((g + 2) (g + 3)^(1/2)) = width, as a polynomial in g
    roots = np.roots([1, 7, 16 - width**-2, 12 - width**-2])
    return float(np.real(roots[np.isreal(roots)]).max())


def power_ema_decay(width: float, step: int) -> float:
    """Return the decay rate of a power-function mean in the update after ``step`` completed ones; 0 in the first."""
    return float((1 - 1 / (step + 1)) ** (power_exponent(width) + 1))


def nearest_mixture(stored: Sequence[Profile], target: Profile) -> tuple[NDArray[np.float64], float]:
    """Return the factors of stored power-function means whose mixture is nearest to a target mean.

    Among factors that add up to 1, so that weights that never changed stay as they are; Karras et al.'s code scales the
    nearest mixture of any factors instead.

    Args:
        stored: Profiles of the stored means, at least one.
        target: Profile to approximate.
    Returns:
        A factor for each; and the relative error (L2) of the resulting profile.
    """
    gram = np.array([[_profile_product(a, b) for b in stored] for a in stored])
    against = np.array([_profile_product(a, target) for a in stored])
    ones = np.ones((1, len(stored)))
    bordered = np.block([[gram, ones.T], [ones, np.zeros((1, 1))]])  # with Lagrange's multiplier for the sum
    factors = np.linalg.lstsq(bordered, np.append(against, 1.0), rcond=1e-14)[0][:-1]
    factors /= factors.sum()  # near-equal profiles leave a rounding error
    norm = _profile_product(target, target)
    squared_error = norm - 2 * factors @ against + factors @ gram @ factors
    return factors, float(np.sqrt(max(squared_error, 0.0) / norm))


def _profile_product(a: Profile, b: Profile) -> float:
    """Return the integral of the product of two profiles, (g + 1) k^g / t^(g + 1) on [0, t]."""
    p, q = power_exponent(a.width), power_exponent(b.width)
    early, late, power = (a.step, b.step, q) if a.step <= b.step else (b.step, a.step, p)
    return float((p + 1) * (q + 1) / (p + q + 1) / late * (early / late) ** power)
