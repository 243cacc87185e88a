"""The min-SNR-gamma loss, as a plugin of diffkit: ``loss="minsnr"``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.gaussian import mean_flat
from diffkit.options import number
from diffkit.protocols import Loss, LossInputs

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MinSNR"]


@frozen
class MinSNR(Loss):
    """Squared error of x_start weighted by ``min(snr, gamma)``, so that easy levels do not drown the hard ones.

    ``L = min(snr, gamma) c_out^2 |F - F*|^2``: an error of the network's output F is c_out times smaller or larger as
    an error of x_start. This gives the paper's weights for each mean: ``min(snr, gamma)`` for x_start,
    ``min(snr, gamma) / snr`` for eps, ``min(snr, gamma) / (snr + 1)`` for v. A level without signal weighs nothing.

    Attributes:
        gamma: Where the weight stops growing, > 0.
    Source: Hang et al. 2023, arXiv:2303.09556, section 3.4; gamma = 5 as in its experiments.
    """

    gamma: float = number(5.0, gt=0)

    def __call__(self, at: LossInputs) -> Mapping[str, Tensor]:
        """Return "loss" and "mse" (of the network's output, not weighted), each (B,)."""
        mse = mean_flat((at.out - at.target).square())
        clipped_snr = at.level.log_snr.clamp(max=math.log(self.gamma)).exp()
        weight = (clipped_snr * at.level.c_out.square()).flatten()
        return {"loss": weight * mse, "mse": mse}
