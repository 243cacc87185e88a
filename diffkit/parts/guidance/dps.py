"""Diffusion posterior sampling: down the gradient of the measurements' misfit, for any differentiable measurement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from diffkit.errors import OptionError
from diffkit.options import choice, number
from diffkit.parts.guidance._linear import (
    Measured,
    dot,
    estimate_and_pullback,
    like_rows,
    residual,
    safe_reach,
)
from diffkit.parts.guidance._pullback import value_and_pullback
from diffkit.parts.guidance._step import X_START, mean_problems, step_columns
from diffkit.protocols import Composition, Conditions, Estimate, Evaluate, Level
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, ProcessTable


@registry("guidance").register("dps")
@frozen
class DPS(Measured):
    """``x_s - step / |y - A x_start| grad |y - A x_start|^2``, the gradient by x_t through the network.

    form="likelihood" assumes ``y ~ N(A x_start, noise_std^2)`` instead: x_start is shifted by
    ``sigma^2 / alpha`` times the gradient of its log, which is Bayes' rule where the noise of the measurement outweighs
    the uncertainty of x_start given x_t. One backward pass. The operator need not be linear.

    Attributes:
        operator: Data (B, C, *S) -> measurements (B, *M), differentiable, each row on its own.
        step: Step size of form="normalized", >= 0; the paper has 0.3 to 1 for images. Scales the gradient otherwise.
        form: "normalized", the paper's, made for the ancestral sampler; or "likelihood".
        noise_std: Standard deviation of the measurements' noise; needed for form="likelihood".
    Source: Chung et al. 2023, arXiv:2209.14687, algorithm 1.
    Deviates: the misfit is that of the estimate before clipping; samplers other than the ancestral one receive an
        x_start moved so far that the ancestral step would land where the paper's does.
    """

    neutral: ClassVar[tuple[str, float]] = ("step", 0.0)

    step: float = number(1.0, ge=0)
    form: str = choice("normalized", ("normalized", "likelihood"))
    noise_std: float | None = number(None, optional=True, gt=0)
    linear: ClassVar[bool] = False
    sampler: ClassVar[str] = "ancestral"

    def __attrs_post_init__(self) -> None:
        """Refuse a noise_std that is missing or without effect."""
        if (self.noise_std is None) == (self.form == "likelihood"):
            raise OptionError("noise_std is for form='likelihood', which needs it; form='normalized' has none")

    def problems(self, parts: Composition) -> Iterable[str]:
        """Return why the step that it moves is unknown."""
        return mean_problems(parts, {"form": "likelihood"}) if self.form == "normalized" else ()

    def columns(self, table: ProcessTable) -> Mapping[str, F64]:
        """Return the coefficients that turn a shift of x_s into one of x_start."""
        return step_columns(table) if self.form == "normalized" else {}

    def guide(self, evaluate: Evaluate, x: Tensor, level: Level, conditions: Conditions) -> Estimate:
        """Return the estimate, and DPS's shift to apply after clipping."""
        estimate, pullback = estimate_and_pullback(evaluate, x, level, conditions)
        missing, back = value_and_pullback(lambda at: residual(self.operator, at, conditions), estimate.x_start)
        # d |r|^2 / 2 by x_t, r being the residual
        gradient = pullback(back(missing))
        if self.form == "likelihood":
            assert self.noise_std is not None, "the constructor refuses this form without noise_std"
            shift = -self.step / self.noise_std**2 * safe_reach(level) * gradient
            return estimate.with_x_start(estimate.x_start + shift)
        if level.coefficients is None or X_START not in level.coefficients:
            raise OptionError(
                "moves a step, and none starts here", option="form", value="normalized", fix={"form": "likelihood"}
            )
        size = like_rows(dot(missing, missing), x).sqrt()
        shift = -2 * self.step * gradient / size.where(size > 0, 1) / level.coefficients[X_START]
        before = estimate.after_clipping
        return Estimate(estimate.x_start, estimate.raw, shift if before is None else before + shift)
