"""Consistency models: one network call from any level to clean data, the same from neighbours on a path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.errors import problem
from diffkit.gaussian import mixed
from diffkit.options import integer, number
from diffkit.protocols import Composition, LossInputs, LossNetwork, NetworkLoss
from diffkit_flowmap._formulas import consistency_error, heun_step, robust
from diffkit_flowmap._teacher import teacher_field

if TYPE_CHECKING:
    from torch import Tensor


@frozen
class Consistency(NetworkLoss):
    """``|f(x_t, t) - sg f(x_s, s)|^2 / (c_out^2 move)``, s a neighbour of t; f is the network's x_start.

    Training takes x_s with the noise of x_t; its minimum is the flow map as neighbours close in. Distillation takes a
    Heun step of a teacher from x_t to x_s, which is more accurate at the same distance. Levels are those of the table;
    a coarse grid (``num_steps`` of 10 to 50) learns fast, a fine one is more accurate.

    Attributes:
        steps: How many levels below t its neighbour is; at least level 0.
        power: Rows are weighted by ``1 / (error^2 + 0.001)^power``; 0 weighs all alike, 0.5 has the gradient of a
            pseudo-Huber distance.
        teacher: The folder of a saved system, or "system" for one given to `diffkit.train`, to distil from. None trains
            on data alone.
    Source: Song et al. 2023, arXiv:2303.01469, algorithms 2 and 3; Song & Dhariwal 2023, arXiv:2310.14189, section 3.
    Deviates: written for any path and mean; the target is the network itself without gradient, as in the second paper,
        in both; ``f(x_0, 0) = x_0`` is set, where the papers build it into c_skip and c_out; the grid stays, where
        theirs grows with training.
    """

    steps: int = integer(1, ge=1)
    power: float = number(0.0, ge=0, le=2)
    teacher: str | None = teacher_field()

    @property
    def optimum(self) -> str | None:
        """The flow map to clean data; with power, the mean of an error is not where its weighted mean is."""
        return None if self.power and self.teacher is None else "to_clean"

    def problems(self, composition: Composition) -> Iterable[str]:
        """Report continuous levels, which have no neighbours, and a network of two times."""
        if composition.continuous_time:
            yield problem(
                f"{composition.label('loss')} compares neighbouring levels, but {composition.label('timesteps')} draws "
                "continuous ones",
                fix={"timesteps": "uniform"},
            )
        if composition.times == 2:
            yield (
                f"{composition.label('loss')} always goes to clean data, but the network takes a second time; build "
                "the backbone with times=1"
            )
        if self.steps > composition.table.num_steps:
            yield problem(
                f"is more than the {composition.table.num_steps} levels there are",
                option="steps",
                value=self.steps,
                fix={"steps": 1},
            )

    def __call__(  # type: ignore[override]  # as of the protocol
        self, at: LossInputs, network: LossNetwork
    ) -> Mapping[str, Tensor]:
        """Return "loss" and "mse" (the same, not weighted by power), each (B,)."""
        import torch

        t, s = at.level, network.next_level(self.steps)
        if self.teacher is None:
            x_s = mixed(s.alpha, at.x_start, s.sigma, at.noise)
        else:
            x_s = heun_step(network.teacher, at.x_t, t, s)
        with torch.no_grad():
            there = torch.where(s.sigma > 0, network.x_start(x_s, s), x_s)
        loss, mse = robust(consistency_error(network.x_start(at.x_t, t), there, t, s), self.power)
        return {"loss": loss, "mse": mse}
