"""Hypothesis strategies for tables, respacings, levels and images, never wider than the contracts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from diffkit.errors import MissingExtraError
from diffkit.table import F64, ProcessTable

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise MissingExtraError("testing", "diffkit.testing.strategies") from error

Numbers = st.SearchStrategy[F64]


def betas(min_steps: int = 1, max_steps: int = 40) -> Numbers:
    """Hypothesis strategy: per-step variances, (T,), each in [1e-6, 0.99]."""
    # In decades, so that small ones are as common as large ones.
    size = st.floats(-6, np.log10(0.99))
    return st.lists(size, min_size=min_steps, max_size=max_steps).map(lambda exponents: 10.0 ** np.array(exponents))


def alpha_bars(min_steps: int = 1, max_steps: int = 40, *, no_signal: bool = False) -> Numbers:
    """Hypothesis strategy: alpha_bar at levels 0..T, (T+1,), strictly falling from 1; to exactly 0 if ``no_signal``."""

    def products(each: F64) -> F64:
        out = np.concatenate([[1.0], np.cumprod(1 - each)])
        if no_signal:
            out[-1] = 0.0
        return out

    return betas(min_steps, max_steps).map(products)


def tables(path: str = "vp", min_steps: int = 1, max_steps: int = 40) -> st.SearchStrategy[ProcessTable]:
    """Hypothesis strategy: tables on one kind of path.

    Args:
        path: "vp" (total_std 1), "ve" (alpha 1) or "linear" (alpha = 1 - sigma).
        min_steps, max_steps: Bounds on T.
    """
    if path == "vp":
        return betas(min_steps, max_steps).map(ProcessTable.from_betas)
    return st.lists(st.floats(0.01, 1), min_size=min_steps, max_size=max_steps).map(
        lambda gaps: _from_gaps(path, np.array(gaps))
    )


def any_tables(min_steps: int = 1, max_steps: int = 40) -> st.SearchStrategy[ProcessTable]:
    """Hypothesis strategy: tables on all three kinds of path."""
    return st.one_of([tables(path, min_steps, max_steps) for path in ("vp", "ve", "linear")])


def respacings(num_steps: int) -> st.SearchStrategy[list[int]]:
    """Hypothesis strategy: levels to keep of a table with T levels: ascending, at least one, each in 1..T."""
    return st.sets(st.integers(1, num_steps), min_size=1, max_size=num_steps).map(sorted)


def levels(num_steps: int, batch: int = 4) -> st.SearchStrategy[torch.Tensor]:
    """Hypothesis strategy: levels of a batch, (B,) int64, each in 1..T."""
    return st.lists(st.integers(1, num_steps), min_size=batch, max_size=batch).map(torch.tensor)


def images(shape: Sequence[int] = (2, 3, 4, 4), bins: int = 256) -> st.SearchStrategy[torch.Tensor]:
    """Hypothesis strategy: float32 data on equally spaced values in [-1, 1]; the extremes are half of all values."""
    count = int(np.prod(shape))
    value = st.one_of(st.integers(0, bins - 1), st.sampled_from([0, bins - 1]))

    def image(values: list[int]) -> torch.Tensor:
        return (torch.tensor(values, dtype=torch.float64) * (2 / (bins - 1)) - 1).float().reshape(*shape)

    return st.lists(value, min_size=count, max_size=count).map(image)


def _from_gaps(path: str, gaps: F64) -> Any:
    """Return a table whose levels have the given relative distances."""
    place = np.cumsum(gaps) / gaps.sum()
    if path == "ve":
        low, high = 0.002 ** (1 / 7), 80.0 ** (1 / 7)  # the usual ends and spacing of this path
        return ProcessTable.from_sigmas((low + (high - low) * place) ** 7)
    return ProcessTable.from_alpha_sigma(1 - 0.99 * place, 0.99 * place)
