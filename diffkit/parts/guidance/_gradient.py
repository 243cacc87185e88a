"""Guidance along a gradient: how it moves an estimate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from diffkit.errors import OptionError
from diffkit.parts.guidance._linear import reach
from diffkit.parts.guidance._pullback import row_gradient
from diffkit.parts.guidance._step import TIME, X_START, X_T, mean_problems, step_columns
from diffkit.parts.guidance._weight import Weighted
from diffkit.protocols import Composition, Conditions, Level, NetworkGuidance, Prediction

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, ProcessTable


def check_function(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Validator of a network or function."""
    if not callable(value) or isinstance(value, type):
        raise OptionError("must be a network or a function", option=attribute.name, value=value)


class AlongGradient(Weighted, NetworkGuidance):
    """Base of guidance by a gradient: the options, and how the gradient moves an estimate.

    Attributes:
        at, shift, clip: As in `GradientGuidance`.
    """

    neutral: ClassVar[tuple[str, float]] = ("scale", 0.0)

    at: str
    shift: str
    clip: bool

    def __attrs_post_init__(self) -> None:
        """Raise `OptionError` for options of a gradient guidance that contradict each other."""
        if self.at == "mean" and self.shift == "score":
            raise OptionError(
                "is of the step's mean; the score is that of x_t",
                option="at",
                value="mean",
                fix=[{"shift": "mean"}, {"at": "x_t"}],
            )
        if self.clip and self.shift == "mean":
            raise OptionError(
                "has no effect on the mean", option="clip", value=True, fix=[{"clip": False}, {"shift": "score"}]
            )

    def problems(self, parts: Composition) -> Iterable[str]:
        """Return why the variance that a mean shift needs is unknown."""
        return mean_problems(parts, {"shift": "score"}) if self.shift == "mean" else ()

    def columns(self, table: ProcessTable) -> Mapping[str, F64]:
        """Return the coefficients of the step that a mean shift needs."""
        return step_columns(table) if self.shift == "mean" else {}

    def shifted(
        self,
        log_prob: Callable[[Tensor, Tensor], Tensor],
        prediction: Prediction,
        x: Tensor,
        level: Level,
        conditions: Conditions,
    ) -> Prediction:
        """Return the prediction with x_start moved along the gradient of ``log_prob(x, time)``."""
        weight = self.weight_at(x, level, conditions)
        return Prediction(self._x_start(log_prob, weight, prediction, x, level), prediction.log_variance)

    def _x_start(
        self,
        log_prob: Callable[[Tensor, Tensor], Tensor],
        weight: float | Tensor,
        prediction: Prediction,
        x: Tensor,
        level: Level,
    ) -> Tensor:
        if self.shift == "score":
            gradient = row_gradient(lambda at: log_prob(at, level.time.expand(x.shape[0])), x)
            moved = prediction.x_start + weight * reach(level) * gradient
            return moved.clamp(-1, 1) if self.clip else moved
        known = level.coefficients
        if known is None or X_START not in known or prediction.log_variance is None:
            raise OptionError(
                "needs the step's variance, which is not known here",
                option="shift",
                value="mean",
                fix={"shift": "score"},
            )
        at, time = x, level.time
        if self.at == "mean":
            at, time = known[X_START] * prediction.x_start + known[X_T] * x, known[TIME].flatten()
        gradient = row_gradient(lambda at: log_prob(at, time.expand(x.shape[0])), at)
        return prediction.x_start + weight * prediction.log_variance.exp() / known[X_START] * gradient
