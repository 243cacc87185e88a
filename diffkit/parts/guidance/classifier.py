"""Guidance towards a class by the gradient of a classifier of noisy data."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs
from attrs import field, frozen

from diffkit.errors import OptionError
from diffkit.options import choice, flag, python_object
from diffkit.parts.guidance._gradient import AlongGradient, check_function
from diffkit.parts.guidance._labels import checked_labels
from diffkit.parts.guidance._networks import networks_among
from diffkit.parts.guidance._share import ByLevel, by_level, interval
from diffkit.parts.guidance._weight import Scale, place_field, scale
from diffkit.protocols import Conditions, Level, Prediction
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor, nn


@registry("guidance").register("classifier")
@frozen
class ClassifierGuidance(AlongGradient):
    """Move the reverse step towards a class by the gradient of a classifier's log-probability of it.

    The classifier is one of noisy data, such as `diffkit.guidance.Classifier` builds; see `gradient` for
    the use of its gradient.

    Attributes:
        classifier: ``classifier(x, time) -> logits (B, N)``, given x_t, not scaled by c_in, and the network's time.
        scale: Strength; 1 is Bayes' rule, published models use up to 10; a number, or a tensor (B,).
        at: Where the gradient is taken: of the noisy data, "x_t", or of the mean of the step, "mean"; see `gradient`.
        shift: "score" is for every sampler, "mean" is guided-diffusion's, for ancestral sampling.
        clip: Clip the estimate of clean data once more after shift "score".
        label: Condition that holds the class of each example, (B,) integers. "y" is passed to the network too; any
            other name to the classifier alone.
        interval: As in 'cfg'.
        by_level: As in 'cfg'.
    Source: Dhariwal & Nichol 2021, arXiv:2105.05233, section 4.
    """

    classifier: Callable[..., Tensor] = python_object(check_function)
    scale: Scale = scale(1.0)
    at: str = choice("x_t", ("x_t", "mean"))
    shift: str = choice("score", ("score", "mean"))
    clip: bool = flag(False)
    label: str = field(default="y", validator=attrs.validators.instance_of(str))
    interval: tuple[float, float] | None = interval()
    by_level: ByLevel = by_level()
    _place: int = place_field()

    @property
    def own_conditions(self) -> frozenset[str]:
        """The label, unless it is passed to the network too."""
        return super().own_conditions | (frozenset() if self.label == "y" else frozenset([self.label]))

    @property
    def required_conditions(self) -> frozenset[str]:
        """The label."""
        return frozenset([self.label])

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The classifier."""
        return networks_among(self.classifier)

    def correct(self, prediction: Prediction, x: Tensor, level: Level, conditions: Conditions) -> Prediction:
        """Return the prediction with x_start shifted along the classifier's gradient."""
        from torch import Tensor

        from diffkit.tensors import precision_of

        y, precision = conditions[self.label], precision_of(self.classifier)

        def log_prob(x: Tensor, time: Tensor) -> Tensor:
            given = x if precision is None else x.to(precision)
            logits = self.classifier(given, time.expand(x.shape[0]))
            if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != x.shape[0]:
                found = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
                raise OptionError(f"the classifier must return logits, ({x.shape[0]}, classes), got {found}")
            logits = logits.to(x.dtype)
            return logits.log_softmax(1).gather(1, checked_labels(self.label, y, logits)[:, None])[:, 0]

        return self.shifted(log_prob, prediction, x, level, conditions)
