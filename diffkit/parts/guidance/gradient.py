"""Guidance by the gradient of a log-likelihood of noisy data."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import field, frozen

from diffkit.options import choice, flag, python_object
from diffkit.parts.guidance._gradient import AlongGradient, check_function
from diffkit.parts.guidance._networks import networks_among
from diffkit.parts.guidance._share import ByLevel, by_level, interval
from diffkit.parts.guidance._weight import Scale, place_field, scale
from diffkit.protocols import Conditions, Level, Prediction
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor, nn

LogProb = Callable[["Tensor", "Tensor", Conditions], "Tensor"]
"""``log_prob(x, time, conditions) -> (B,)``: of data at a level, nats, up to a constant."""


@registry("guidance").register("gradient")
@frozen
class GradientGuidance(AlongGradient):
    """Move the reverse step along the gradient of a log-likelihood of noisy data.

    With g the gradient, after clipping:

    * shift="score": ``x_start + scale sigma^2 / alpha g``, that is ``eps - scale sigma g``;
    * shift="mean": ``x_start + scale variance / coef_x_start g``, which adds ``scale variance g`` to the mean of an
      ancestral step; the variance is the system's own, learned or not, and stays as it is.

    Attributes:
        log_prob: ``log_prob(x, time, conditions) -> (B,)``, differentiable by x.
        scale: Strength; 1 is Bayes' rule if the likelihood is exact; a number, or a tensor (B,).
        at: Where g is taken: "x_t", as in guided-diffusion, or "mean", the mean of the step and the level it goes to
            (at the last step: the time of level 1), as the paper derives it.
        shift: "score" is for every sampler, "mean" the ancestral step's own form.
        clip: Clip x_start to [-1, 1] once more after shift="score"; guided-diffusion does not.
        own: Names of conditions that are not passed to the network.
        interval: As in 'cfg'.
        by_level: As in 'cfg'.
    Source: Dhariwal & Nichol 2021, arXiv:2105.05233, algorithms 1 (mean) and 2 (score).
    Deviates: guided-diffusion sets the fixed small variance to 0 at level 1, so that it does not move the last step;
    here the variance is that of the log-variance, which is clipped there.
    """

    log_prob: LogProb = python_object(check_function)
    scale: Scale = scale(1.0)
    at: str = choice("x_t", ("x_t", "mean"))
    shift: str = choice("score", ("score", "mean"))
    clip: bool = flag(False)
    own: frozenset[str] = field(default=frozenset(), converter=frozenset)
    interval: tuple[float, float] | None = interval()
    by_level: ByLevel = by_level()
    _place: int = place_field()

    @property
    def own_conditions(self) -> frozenset[str]:
        """Names of conditions that are not passed to the network."""
        return self.own | super().own_conditions

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The likelihood, if it is a network."""
        return networks_among(self.log_prob)

    def correct(self, prediction: Prediction, x: Tensor, level: Level, conditions: Conditions) -> Prediction:
        """Return the prediction with x_start shifted along the gradient of log_prob."""
        from diffkit.tensors import precision_of

        precision = precision_of(self.log_prob)

        def log_prob(x: Tensor, time: Tensor) -> Tensor:
            if precision is None:
                return self.log_prob(x, time, conditions)
            return self.log_prob(x.to(precision), time, conditions).to(x.dtype)

        return self.shifted(log_prob, prediction, x, level, conditions)
