"""Classifier-free guidance: away from what the network says without the condition."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import numpy as np
import torch
from attrs import field, frozen
from numpy.typing import NDArray
from torch import Tensor

from diffkit._errors import OptionError
from diffkit.guidance._weight import extrapolate, interval, outside
from diffkit.options import flag, number
from diffkit.protocols import Composition, Level
from diffkit.steering import Conditions, Estimate, Evaluate, Guidance, evaluate_together
from diffkit.table import Coefs


def _check_null(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not (isinstance(value, Mapping) and value):
        raise OptionError(f"null must be a mapping such as {{'y': 10}}, got {value!r}")


@frozen(eq=False)
class ClassifierFree(Guidance):
    """``x_start = without + scale (with - without)``: estimates with the condition and with the null condition.

    Both are of x_start, which is the same as guiding eps or v; a learned variance is that of the estimate with the
    condition. Two evaluations for each one of the sampler.

    Attributes:
        scale: 1 is the network as it is, 0 without the condition, above 1 stronger than it was trained.
        interval: (low, high): guide only where the noise-to-signal ratio sigma / alpha is above low and at most high;
            steps outside of it cost a single evaluation.
        rescale: Share in [0, 1] of bringing the standard deviation of each example's estimate back to what it is with
            the condition, against overexposure at a large scale; 0.7 is the paper's.
        null: Conditions that mean "none": name -> a number for all, a tensor (one row, or one for each example), or
            None to leave the condition out. By default what the backbone says (``null_class=True``: the last label).
        joint: One call of twice the batch; False makes two calls and needs less memory.
    Source: Ho & Salimans 2022, arXiv:2207.12598, eq. 6, whose w is scale - 1; Kynkaanniemi et al. 2024,
        arXiv:2404.07724 (interval); Lin et al. 2023, arXiv:2305.08891, section 3.4 (rescale).
    Deviates: the last one rescales the network's output; x_start is rescaled here, so that it means the same for every
        parameterization.
    """

    scale: float = number()
    interval: tuple[float, float] | None = interval()
    rescale: float = number(0.0, ge=0, le=1)
    null: Mapping[str, Any] | None = field(default=None, validator=_check_null)
    joint: bool = flag(True)

    @property
    def own_conditions(self) -> frozenset[str]:
        """The rows that mean "none"."""
        return frozenset(self.row_conditions)

    @property
    def row_conditions(self) -> Conditions:
        """Those of the null condition that have a row for each example."""
        return {_ROWS + name: value for name, value in (self.null or {}).items() if _has_rows(value)}

    @property
    def required_conditions(self) -> frozenset[str]:
        """Those that the null condition replaces."""
        return frozenset(self.null or ())

    def problems(self, parts: Composition) -> Iterable[str]:
        """Return what is missing for the estimate without the condition."""
        if self.null is not None:
            return
        if parts.backbone is None:
            yield "a network of your own does not say what means 'no condition'; pass null, such as null={'y': 10}"
        elif parts.backbone.null_conditions() is None:
            yield (
                f"{parts.label('backbone')} has no null class; build it with num_classes and null_class=True and train "
                "with that label on a share of the data, or pass null, such as null={'y': 10}"
            )

    def fitted(self, parts: Composition) -> Guidance:
        """Return this guidance with the backbone's null condition."""
        if self.null is not None or parts.backbone is None:
            return self
        return attrs.evolve(self, null=parts.backbone.null_conditions())

    def idle(self, at: Coefs) -> NDArray[np.bool_]:
        """Return which levels lie outside of the interval."""
        return outside(self.interval, at)

    def guide(self, evaluate: Evaluate, x: Tensor, level: Level, conditions: Conditions) -> Estimate:
        """Return the estimate moved away from that without the condition."""
        sets = (conditions, self._without(conditions, x))
        if self.joint:
            with_it, without = evaluate_together(evaluate, x, level, sets)
        else:
            with_it, without = (evaluate(x, level, given) for given in sets)
        guided = extrapolate(without.x_start, with_it.x_start, self.scale, self.interval, level)
        if self.rescale:
            guided = self._rescaled(guided, with_it.x_start)
        return with_it.with_x_start(guided)

    def _without(self, conditions: Conditions, x: Tensor) -> Conditions:
        assert self.null is not None, "composition refuses guidance without a null condition"
        null = {name: conditions.get(_ROWS + name, value) for name, value in self.null.items()}
        changed = {name: _null_value(value, conditions.get(name), x.shape[0]) for name, value in null.items()}
        return {name: value for name, value in {**conditions, **changed}.items() if value is not None}

    def _rescaled(self, guided: Tensor, with_it: Tensor) -> Tensor:
        after, before = _spread(guided), _spread(with_it)
        factor = torch.where(after > 0, before / after.where(after > 0, 1), 1)
        return guided * torch.lerp(torch.ones_like(factor), factor, self.rescale)


_ROWS = "null rows of "
"""Before the name of a condition: its rows that mean "none"."""


def _has_rows(value: Any) -> bool:
    """Whether it is an array or list, and not one row for all."""
    array = isinstance(value, Tensor | np.ndarray) and value.ndim > 0
    return (array or isinstance(value, list | tuple)) and len(value) != 1


def _null_value(value: Any, given: Any, batch: int) -> Any:
    """The null condition for a batch: of the given condition's dtype and device, a row for each example."""
    if value is None:
        return value
    if isinstance(value, str | list) and isinstance(given, list):  # texts
        return [value] * batch if isinstance(value, str) else value
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {key: _null_value(entry, (given or {}).get(key), batch) for key, entry in value.items()}
    if not isinstance(value, Tensor):
        value = (
            torch.full_like(given, value) if isinstance(given, Tensor) and given.ndim < 2 else torch.as_tensor(value)
        )
    if isinstance(given, Tensor):
        value = value.to(given)
    if value.ndim == 0 or value.shape[0] == 1:
        shape = given.shape if isinstance(given, Tensor) and given.ndim else (batch, *value.shape[1:])
        value = value.expand(shape)
    return value


def _spread(x: Tensor) -> Tensor:
    """Standard deviation of each example, (B,1..)."""
    return x.flatten(1).std(1, correction=0).view(-1, *(1,) * (x.ndim - 1))
