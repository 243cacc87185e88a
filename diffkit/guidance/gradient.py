"""Guidance by the gradient of a log-likelihood of noisy data, such as a classifier's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
from attrs import field, frozen
from torch import Tensor, nn

from diffkit.errors import OptionError
from diffkit.guidance._labels import checked_labels
from diffkit.guidance._linear import reach
from diffkit.guidance._pullback import row_gradient
from diffkit.guidance._step import TIME, X_START, X_T, mean_problems, step_columns
from diffkit.options import choice, flag, number
from diffkit.protocols import Composition, ConditionalGuidance, Conditions, Level, NetworkGuidance, Prediction
from diffkit.tensors import precision_of

if TYPE_CHECKING:
    from diffkit.table import F64, ProcessTable

LogProb = Callable[[Tensor, Tensor, Conditions], Tensor]
"""``log_prob(x, time, conditions) -> (B,)``: of data at a level, nats, up to a constant."""


def _check_callable(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not callable(value) or isinstance(value, type):
        raise OptionError(f"{attribute.name} must be a network or a function, got {value!r}")


class _Gradient(ConditionalGuidance, NetworkGuidance):
    """Base of guidance by a gradient: the options, and how the gradient moves an estimate.

    Attributes:
        scale, at, shift, clip: As in `GradientGuidance`.
    """

    scale: float
    at: str
    shift: str
    clip: bool

    def __attrs_post_init__(self) -> None:
        """Refuse options that contradict each other."""
        if self.at == "mean" and self.shift == "score":
            raise OptionError("at='mean' needs shift='mean'; the score is that of x_t")
        if self.clip and self.shift == "mean":
            raise OptionError("clip=True has no effect with shift='mean'; leave it out, or use shift='score'")

    def problems(self, parts: Composition) -> Iterable[str]:
        """Return why the variance that a mean shift needs is unknown."""
        return mean_problems(parts, "shift='score'") if self.shift == "mean" else ()

    def columns(self, table: ProcessTable) -> Mapping[str, F64]:
        """Return the coefficients of the step that a mean shift needs."""
        return step_columns(table) if self.shift == "mean" else {}

    def shifted(
        self, log_prob: Callable[[Tensor, Tensor], Tensor], prediction: Prediction, x: Tensor, level: Level
    ) -> Prediction:
        """Return the prediction with x_start moved along the gradient of ``log_prob(x, time)``."""
        return Prediction(self._x_start(log_prob, prediction, x, level), prediction.log_variance)

    def _x_start(
        self, log_prob: Callable[[Tensor, Tensor], Tensor], prediction: Prediction, x: Tensor, level: Level
    ) -> Tensor:
        if self.shift == "score":
            gradient = row_gradient(lambda at: log_prob(at, level.time.expand(x.shape[0])), x)
            moved = prediction.x_start + self.scale * reach(level) * gradient
            return moved.clamp(-1, 1) if self.clip else moved
        known = level.coefficients
        if known is None or X_START not in known or prediction.log_variance is None:
            raise OptionError("shift='mean' needs the step's variance, which is not known here; use shift='score'")
        at, time = x, level.time
        if self.at == "mean":
            at, time = known[X_START] * prediction.x_start + known[X_T] * x, known[TIME].flatten()
        gradient = row_gradient(lambda at: log_prob(at, time.expand(x.shape[0])), at)
        return prediction.x_start + self.scale * prediction.log_variance.exp() / known[X_START] * gradient


@frozen(eq=False)
class GradientGuidance(_Gradient):
    """Move the reverse step along the gradient of a log-likelihood of noisy data.

    With g the gradient, after clipping:

    * shift="score": ``x_start + scale sigma^2 / alpha g``, that is ``eps - scale sigma g``;
    * shift="mean": ``x_start + scale variance / coef_x_start g``, which adds ``scale variance g`` to the mean of an
      ancestral step; the variance is the system's own, learned or not, and stays as it is.

    Attributes:
        log_prob: ``log_prob(x, time, conditions) -> (B,)``, differentiable by x.
        scale: Strength; 1 is Bayes' rule if the likelihood is exact.
        at: Where g is taken: "x_t", as in guided-diffusion, or "mean", the mean of the step and the level it goes to
            (at the last step: the time of level 1), as the paper derives it.
        shift: "score" is for every sampler, "mean" the ancestral step's own form.
        clip: Clip x_start to [-1, 1] once more after shift="score"; guided-diffusion does not.
        own: Names of conditions that are not passed to the network.
    Source: Dhariwal & Nichol 2021, arXiv:2105.05233, algorithms 1 (mean) and 2 (score).
    Deviates: guided-diffusion sets the fixed small variance to 0 at level 1, so that it does not move the last step;
    here the variance is that of the log-variance, which is clipped there.
    """

    log_prob: LogProb = field(validator=_check_callable)
    scale: float = number(1.0)
    at: str = choice("x_t", ("x_t", "mean"))
    shift: str = choice("score", ("score", "mean"))
    clip: bool = flag(False)
    own: frozenset[str] = field(default=frozenset(), converter=frozenset)

    @property
    def own_conditions(self) -> frozenset[str]:
        """Names of conditions that are not passed to the network."""
        return self.own

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The likelihood, if it is a network."""
        return (self.log_prob,) if isinstance(self.log_prob, nn.Module) else ()

    def correct(self, prediction: Prediction, x: Tensor, level: Level, conditions: Conditions) -> Prediction:
        """Return the prediction with x_start shifted."""
        precision = precision_of(self.log_prob)

        def log_prob(x: Tensor, time: Tensor) -> Tensor:
            if precision is None:
                return self.log_prob(x, time, conditions)
            return self.log_prob(x.to(precision), time, conditions).to(x.dtype)

        return self.shifted(log_prob, prediction, x, level)


@frozen(eq=False)
class ClassifierGuidance(_Gradient):
    """Move the reverse step towards a class by the gradient of a classifier's log-probability of it.

    The classifier is one of noisy data, such as `diffkit.guidance.Classifier` builds; see `GradientGuidance` for
    the use of its gradient.

    Attributes:
        classifier: ``classifier(x, time) -> logits (B, N)``, given x_t, not scaled by c_in, and the backbone's time.
        scale: Strength; 1 is Bayes' rule, published models use up to 10.
        at, shift, clip: As in `GradientGuidance`.
        label: Condition that holds the class of each example, (B,) integers. "y" is passed to the network too; any
            other name to the classifier alone.
    Source: Dhariwal & Nichol 2021, arXiv:2105.05233, section 4.
    """

    classifier: Callable[..., Tensor] = field(validator=_check_callable)
    scale: float = number(1.0)
    at: str = choice("x_t", ("x_t", "mean"))
    shift: str = choice("score", ("score", "mean"))
    clip: bool = flag(False)
    label: str = field(default="y", validator=attrs.validators.instance_of(str))

    @property
    def own_conditions(self) -> frozenset[str]:
        """The label, unless it is passed to the network too."""
        return frozenset() if self.label == "y" else frozenset([self.label])

    @property
    def required_conditions(self) -> frozenset[str]:
        """The label."""
        return frozenset([self.label])

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The classifier."""
        return (self.classifier,) if isinstance(self.classifier, nn.Module) else ()

    def correct(self, prediction: Prediction, x: Tensor, level: Level, conditions: Conditions) -> Prediction:
        """Return the prediction with x_start shifted."""
        y, precision = conditions[self.label], precision_of(self.classifier)

        def log_prob(x: Tensor, time: Tensor) -> Tensor:
            given = x if precision is None else x.to(precision)
            logits = self.classifier(given, time.expand(x.shape[0]))
            if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != x.shape[0]:
                found = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
                raise OptionError(f"the classifier must return logits, ({x.shape[0]}, classes), got {found}")
            logits = logits.to(x.dtype)
            return logits.log_softmax(1).gather(1, checked_labels(self.label, y, logits)[:, None])[:, 0]

        return self.shifted(log_prob, prediction, x, level)
