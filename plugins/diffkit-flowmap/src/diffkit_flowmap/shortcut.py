"""Shortcut models: one step learns to do what two steps of half its length do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.options import number
from diffkit.protocols import LossInputs, LossNetwork, NetworkLoss
from diffkit_flowmap._formulas import joined, moved, output_error, robust, step_between
from diffkit_flowmap._levels import midpoint
from diffkit_flowmap._teacher import teacher_field

if TYPE_CHECKING:
    from torch import Tensor


@frozen
class Shortcut(NetworkLoss):
    """``|A(x_t, t, s) - sg A*|^2 / c_out^2``, A* of two steps, t to m and m to s; ``A* = x_start`` where s = t.

    m lies midway between. The network itself, without gradient, takes both steps. It needs pairs of levels, of which a
    share has s = t, and a network of two times.

    Attributes:
        power: Rows are weighted by ``1 / (error^2 + 0.001)^power``; 0 weighs all alike.
        teacher: "ema", the running mean of the weights, takes the two steps, as in the paper; None, the network itself.
    Source: Frans et al. 2024, arXiv:2410.12557, eq. 5 and algorithm 1.
    Deviates: any two levels make a pair, where the paper has lengths of powers of two; any path and mean.
    """

    power: float = number(0.0, ge=0, le=2)
    teacher: str | None = teacher_field()
    needs_pairs: ClassVar[bool] = True
    needs_two_times: ClassVar[bool] = True

    @property
    def optimum(self) -> str | None:
        """The flow map; with power, the mean of an error is not where its weighted mean is."""
        return None if self.power else "flow_map"

    def __call__(  # type: ignore[override]  # as of the protocol
        self, at: LossInputs, network: LossNetwork
    ) -> Mapping[str, Tensor]:
        """Return "loss" and "mse" (of the network's output, not weighted), each (B,)."""
        import torch

        x, t, s = at.x_t, at.level, at.to
        assert s is not None and network.s is not None, "needs_pairs"
        m = network.level_at(midpoint(network.t, network.s))
        estimate = network.x_start if self.teacher is None else network.teacher
        with torch.no_grad():
            # where no level lies between, m is s, and the step is short enough to be that of the denoiser
            begin = m._replace(time=torch.where((m.sigma == s.sigma).flatten(), t.time, m.time))
            first = estimate(x, t, begin)
            second = estimate(moved(x, first, step_between(t, m)), m, s)
            wanted = torch.where(t.sigma == s.sigma, at.x_start, joined(first, second, t, m, s))
        average = network.x_start(x, t, s)
        loss, mse = robust(output_error(average, wanted, t), self.power)
        return {"loss": loss, "mse": mse}
