"""Steps along a straight line from x_t over the estimate of clean data, with fresh noise for a part of the old."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diffkit.protocols import Denoise, StepRow

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, Coefs


def straight_plan(t: Coefs, s: Coefs, std: F64) -> dict[str, F64]:
    """Return coefficients of x_t, of x_start and of noise with standard deviation std, which keep the marginals."""
    keep = np.sqrt(np.maximum(s.sigma**2 - std**2, 0)) / t.sigma
    return {"x": keep, "x_start": s.alpha - keep * t.alpha, "noise": std}


def straight_step(denoise: Denoise, x: Tensor, row: StepRow, noise: Tensor | None) -> Tensor:
    """Return x at level s."""
    coef = row.coef
    y = (coef["x"] * x).addcmul(coef["x_start"], denoise(x, row.t).x_start)
    return y if noise is None else y.addcmul(coef["noise"], noise)
