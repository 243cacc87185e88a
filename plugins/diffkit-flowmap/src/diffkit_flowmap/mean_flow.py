"""MeanFlow: the average velocity between two levels, learned from its own derivative."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.options import choice, number
from diffkit.protocols import LossInputs, LossNetwork, NetworkLoss, Tangent
from diffkit_flowmap._formulas import mean_flow_error, robust, velocity
from diffkit_flowmap._teacher import teacher_field

if TYPE_CHECKING:
    from torch import Tensor


@frozen
class MeanFlow(NetworkLoss):
    """``|F - sg(F - E)|^2``, with E the error of the MeanFlow identity ``keep (A - x_start) + (move / q) dA/dt = 0``.

    On the straight path with mean='flow', F is the average velocity u from t to s, and the target
    ``v - (t - s) du/dt``. It needs pairs of levels and a network of two times. At continuous levels du/dt is exact;
    on a table, the derivatives of alpha and sigma are differences of neighbouring levels.

    Attributes:
        derivative: How du/dt is computed: "forward" (forward mode, exact; 4 to 9 forward passes), "backward" (twice in
            reverse mode, exact, as dear) or "difference" (central, two passes).
        power: Rows are weighted by ``1 / (error^2 + 0.001)^power``; 0 weighs all alike. Above 0, without a teacher,
            the minimum moves a little away from the exact map.
        teacher: The folder of a saved system, or "system" for one given to `diffkit.train`: its velocity stands in
            place of that of each example. None trains on data alone.
    Source: Geng et al. 2025, arXiv:2505.13447, eq. 11 and section 4.3.
    Deviates: written for any path and mean; power is 0, where the paper's CIFAR-10 setting is 0.75 and ImageNet's 1.
    """

    derivative: str = choice("forward", ("forward", "backward", "difference"))
    power: float = number(0.0, ge=0, le=2)
    teacher: str | None = teacher_field()
    needs_pairs: ClassVar[bool] = True
    needs_two_times: ClassVar[bool] = True

    @property
    def optimum(self) -> str | None:
        """The flow map; with power, the mean of an error is not where its weighted mean is."""
        return None if self.power and self.teacher is None else "flow_map"

    def __call__(  # type: ignore[override]  # as of the protocol
        self, at: LossInputs, network: LossNetwork
    ) -> Mapping[str, Tensor]:
        """Return "loss" and "mse" (the squared error of the identity in units of the output), each (B,)."""
        t, s, rate = at.level, at.to, network.rate_at(network.t)
        assert s is not None, "needs_pairs"
        x_start = at.x_start if self.teacher is None else network.teacher(at.x_t, t)
        along = velocity(at.x_t, x_start, t, rate)
        out, out_rate = network.jvp(at.x_t, t, s, Tangent(along, rate), method=self.derivative)
        fixed = out.detach()
        error = mean_flow_error(at.x_t, x_start, fixed, out_rate, t, s, rate)
        loss, mse = robust(out - (fixed - error), self.power)
        return {"loss": loss, "mse": mse}
