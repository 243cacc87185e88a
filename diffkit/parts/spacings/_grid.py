"""Noise levels between those of a table, from the cleanest to the noisiest."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from diffkit.errors import OptionError
from diffkit.parts.spacings._even import check_count, noise_ratio
from diffkit.table import F64, ProcessTable


def grid(
    table: ProcessTable, count: int, sigma_min: float | None, sigma_max: float | None, place: Callable[..., F64]
) -> F64:
    """Return log_snr of ``count`` levels, descending: noise between two ends, and level T if it has no signal.

    Args:
        table: The table.
        count: Number of levels; one alone is the noisiest.
        sigma_min, sigma_max: Ends, sigma / alpha; None is level 1, and level T.
        place: ``place(u, low, high)``, sigma / alpha at shares u of the way between the ends, ascending.
    Raises:
        OptionError: sigma_min is not below sigma_max.
    """
    check_count(count, max(count, 1))
    ratio = noise_ratio(table)
    faint = sigma_max is None and not np.isfinite(ratio[-1])  # level T is then visited, and the others lie below it
    if faint and (count == 1 or table.num_steps == 1):
        return np.array([-np.inf])
    low = ratio[1] if sigma_min is None else sigma_min
    high = (ratio[-2] if faint else ratio[-1]) if sigma_max is None else sigma_max
    if count - faint > 1 and not low < high:
        raise OptionError(f"must be below sigma_max, {high:.6g}", option="sigma_min", value=float(low))
    shares = np.linspace(0, 1, count - faint) if count - faint > 1 else np.array([0.0 if faint else 1.0])
    return np.append(-2 * np.log(place(shares, low, high)), [-np.inf] * faint)
