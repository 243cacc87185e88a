"""VDM's loss: the variational bound's diffusion term at drawn times, in continuous time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from diffkit.gaussian import NATS_PER_BIT, mean_flat, squared_error
from diffkit.parts.losses._space import in_space
from diffkit.protocols import InvariantLoss, LossInputs
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, ProcessTable


@registry("loss").register("continuous_vlb")
@frozen
class ContinuousVLB(InvariantLoss):
    """``L = 1/2 (-d log_snr / dt) |eps - eps_hat|^2``, in bits per dimension.

    Its mean over times is the bound without its two ends, whatever the schedule between them. At levels of a table
    ``-d log_snr / dt`` is T times the difference of neighbouring levels.

    Source: Kingma et al. 2021, arXiv:2107.00630, eqs. 16 to 18.
    """

    def columns(self, table: ProcessTable) -> Mapping[str, F64]:
        """Return "rate", the fall of log_snr from the level below times T; that of level 1 is level 2's."""
        fall = -np.diff(table.log_snr)
        fall[0] = fall[1] if len(fall) > 1 else 1.0
        return {"rate": np.append(0.0, np.nan_to_num(fall, posinf=0.0) * table.num_steps)}

    def __call__(self, at: LossInputs) -> Mapping[str, Tensor]:
        """Return "loss" and "mse" (of the network's output), each (B,)."""
        mse = mean_flat(squared_error(at.out, at.target))
        loss = in_space("eps", at.level, mse) / (2 * NATS_PER_BIT)
        rate = at.cols["rate"].flatten() if "rate" in at.cols else at.rate
        return {"loss": loss if rate is None else rate * loss, "mse": mse}
