"""Means whose length is a share of the run's length, and how one of any length is made from a few of them afterwards.

A power-function mean of exponent g weights the weights after update k by k^g. It is named by its relative width, the
standard deviation of that profile over its length: 0.05 averages over about the last twentieth. Stored means of two
widths at several steps span a space that nearly contains the profile of a third width, or of another step.

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
    """How a mean weights past updates: its relative width, and the number of updates so far."""

    width: float
    step: int


@lru_cache
def exponent(width: float) -> float:
    """Return the exponent g >= 0 of a profile of some relative width in (0, 0.28].

    Raises:
        OptionError: The width is out of range.
    """
    if not 0 < width <= WIDEST:
        raise OptionError(f"a relative width must lie above 0 and at most {WIDEST}, got {width}")
    # (g + 1)^(1/2) / ((g + 2) (g + 3)^(1/2)) = width, as a polynomial in g
    roots = np.roots([1, 7, 16 - width**-2, 12 - width**-2])
    return float(np.real(roots[np.isreal(roots)]).max())


def decay(width: float, step: int) -> float:
    """Return the decay rate of a mean in the update after ``step`` completed ones: 0 in the first."""
    return float((1 - 1 / (step + 1)) ** (exponent(width) + 1))


def mixture(stored: Sequence[Profile], wanted: Profile) -> tuple[NDArray[np.float64], float]:
    """Return the factors of stored means whose mixture is nearest to a wanted mean.

    The factors add up to 1, so that weights that never changed stay as they are: the result is the nearest mixture with
    that sum, where Karras et al.'s code scales the nearest mixture of all.

    Args:
        stored: Profiles of the stored means, at least one.
        wanted: Profile to approximate.
    Returns:
        A factor for each; and the relative error (L2) of the resulting profile.
    """
    gram = np.array([[_inner(a, b) for b in stored] for a in stored])
    against = np.array([_inner(a, wanted) for a in stored])
    ones = np.ones((1, len(stored)))
    bordered = np.block([[gram, ones.T], [ones, np.zeros((1, 1))]])  # with Lagrange's multiplier for the sum
    factors = np.linalg.lstsq(bordered, np.append(against, 1.0), rcond=1e-14)[0][:-1]
    factors /= factors.sum()  # near-equal profiles leave a rounding error
    own = _inner(wanted, wanted)
    left = own - 2 * factors @ against + factors @ gram @ factors
    return factors, float(np.sqrt(max(left, 0.0) / own))


def _inner(a: Profile, b: Profile) -> float:
    """Integral of the product of two profiles (g + 1) k^g / t^(g + 1), each on [0, t]."""
    p, q = exponent(a.width), exponent(b.width)
    early, late, power = (a.step, b.step, q) if a.step <= b.step else (b.step, a.step, p)
    return float((p + 1) * (q + 1) / (p + q + 1) / late * (early / late) ** power)
