"""Progressive distillation: one step of the student is two of the teacher."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from attrs import frozen

from diffkit.errors import problem
from diffkit.options import integer
from diffkit.protocols import Composition, LossInputs, LossNetwork, NetworkLoss
from diffkit_flowmap._formulas import joined, moved, output_error, robust, step_between
from diffkit_flowmap._teacher import teacher_field

if TYPE_CHECKING:
    from torch import Tensor


@frozen
class Distill(NetworkLoss):
    """``|A(x_t, t) - A*|^2 / c_out^2``, A* of two steps of the teacher, each half of the student's.

    The student of ``steps`` steps goes from t to t - T / steps; the teacher is the student of twice as many, or a
    diffusion model. From 32 steps to one takes six runs, each taught by the one before. A student is then sampled by
    the deterministic 'ddim' or 'flow_map' in that many steps.

    Attributes:
        steps: Steps of the student over the whole table; twice that must divide its number of levels.
        teacher: The folder of a saved system, or "system" for one given to `diffkit.train`.
    Source: Salimans & Ho 2022, arXiv:2202.00512, algorithm 2; its weight SNR + 1 with mean='v', SNR with mean='eps'.
    Deviates: a step begins at any level of the table, where the paper has a student's grid.
    """

    steps: int = integer(1, ge=1)
    teacher: str = teacher_field("system")

    def problems(self, composition: Composition) -> Iterable[str]:
        """Report continuous levels, a network of two times, and steps that cannot be halved."""
        label, levels = composition.label("loss"), composition.table.num_steps
        if composition.continuous_time:
            yield problem(
                f"{label} halves steps of a table, but {composition.label('timesteps')} draws continuous levels",
                fix={"timesteps": "uniform"},
            )
        if composition.times == 2:
            yield (
                f"{label} has one length of step, but the network takes a second time; build the backbone with times=1"
            )
        if levels % (2 * self.steps):
            yield problem(
                f"makes steps of {levels}/{self.steps} levels, which have no middle",
                option="steps",
                value=self.steps,
                fix={"num_steps": 2 * self.steps * max(1, round(levels / (2 * self.steps)))},
            )

    def __call__(  # type: ignore[override]  # as of the protocol
        self, at: LossInputs, network: LossNetwork
    ) -> Mapping[str, Tensor]:
        """Return "loss" and "mse" (the same), each (B,)."""
        half = at.num_steps // (2 * self.steps)
        x, t, m, s = at.x_t, at.level, network.next_level(half), network.next_level(2 * half)
        first = network.teacher(x, t)
        second = network.teacher(moved(x, first, step_between(t, m)), m)
        wanted = joined(first, second, t, m, s)
        loss, mse = robust(output_error(network.x_start(x, t), wanted, t), 0.0)
        return {"loss": loss, "mse": mse}
