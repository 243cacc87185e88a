"""What steers sampling besides the network: the contract of a guidance, and what it may ask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffkit._errors import OptionError
from diffkit.protocols import Composition, Level, Prediction

if TYPE_CHECKING:
    from diffkit.table import F64, Coefs, ProcessTable

Model = Callable[..., Tensor]
"""``model(x, time, **conditions) -> (B, C * (1 + extra_outputs), *S)``."""

Conditions = Mapping[str, Any]


class Estimate(NamedTuple):
    """What is known before clipping.

    Attributes:
        x_start: Estimate of clean data, (B, C, *S).
        raw: The network's variance channels, (B, C*extra_outputs, *S), or None. A guidance hands on those of the
            evaluation under the conditions it was given: guidance never changes a learned variance.
        after_clipping: To be added to x_start once it is clipped, (B, C, *S), or None.
    """

    x_start: Tensor
    raw: Tensor | None = None
    after_clipping: Tensor | None = None

    def with_x_start(self, x_start: Tensor) -> Estimate:
        """Return this estimate with another x_start, and everything else as it is."""
        return Estimate(x_start, self.raw, self.after_clipping)


class Evaluate(Protocol):
    """The network with the guidance that comes before; what a `Guidance` may ask, any number of times."""

    def __call__(self, x: Tensor, level: Level, conditions: Conditions, model: Model | None = None) -> Estimate:
        """Return the estimate at x, (B, C, *S), for any batch; ``model`` takes the place of the system's network."""


@runtime_checkable
class Guidance(Protocol):
    """What steers sampling besides the network; a frozen attrs class, given to ``system.sample(guidance=...)``.

    Inherit from it for the defaults; override `guide`, `correct` or both.
    """

    @property
    def own_conditions(self) -> frozenset[str]:
        """Conditions that are for this guidance only: the network is not given them."""
        return frozenset()

    @property
    def required_conditions(self) -> frozenset[str]:
        """Conditions it cannot do without."""
        return frozenset()

    @property
    def row_conditions(self) -> Conditions:
        """Conditions it brings along itself, with a row for each example; some of `own_conditions`.

        Whoever works on some of the examples hands on their rows, as of the caller's conditions.
        """
        return {}

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Networks it holds; their dropout is off while the system samples."""
        return ()

    def problems(self, parts: Composition) -> Iterable[str]:
        """Return one sentence for each thing in a composition it cannot work with, with what would work."""
        return ()

    def fitted(self, parts: Composition) -> Guidance:
        """Return this guidance with what it needs to know of the composition filled in."""
        return self

    def columns(self, table: ProcessTable) -> Mapping[str, F64]:
        """Return float64 columns (T+1,) of the table in use; `Level.var` then has them, under names all share."""
        return {}

    def idle(self, at: Coefs) -> NDArray[np.bool_]:
        """Return at which levels it is certain to change nothing, of the shape of at's float64 arrays.

        A step all of whose levels are idle is taken without it, which spares its evaluations.
        """
        return np.zeros(np.shape(at.alpha), dtype=bool)

    def guide(self, evaluate: Evaluate, x: Tensor, level: Level, conditions: Conditions) -> Estimate:
        """Return the guided estimate before clipping.

        Args:
            evaluate: The network and the guidance before this one.
            x: Noisy data, (B, C, *S).
            level: Where it is.
            conditions: Everything the caller gave, `own_conditions` included.
        """
        return evaluate(x, level, conditions)

    def correct(self, prediction: Prediction, x: Tensor, level: Level, conditions: Conditions) -> Prediction:
        """Return the prediction changed after clipping; arguments as in `guide`."""
        return prediction


def evaluate_together(
    evaluate: Evaluate, x: Tensor, level: Level, conditions: Sequence[Conditions]
) -> tuple[Estimate, ...]:
    """Evaluate the same x under several sets of conditions in one call on a larger batch.

    Args:
        evaluate: As `Guidance.guide` is given.
        x: Noisy data, (B, C, *S).
        level: Where it is.
        conditions: The sets, which hold the same names.
    Returns:
        One estimate for each set, rows as if each had been asked for alone.
    Raises:
        OptionError: A condition cannot be joined: it is in some sets only, or differs and is no (B, ...) tensor.
    """
    count, batch = len(conditions), x.shape[0]
    names = dict.fromkeys(name for given in conditions for name in given)
    joined = {name: _joined(name, [given.get(name) for given in conditions], batch) for name in names}
    estimate = evaluate(torch.cat([x] * count), _repeated(level, count), joined)
    # not tensor_split, which would fix the batch of an exported program
    pieces = ((None,) * count if p is None else p.reshape(count, batch, *p.shape[1:]).unbind() for p in estimate)
    return tuple(Estimate(*parts) for parts in zip(*pieces, strict=True))


def _repeated(level: Level, count: int) -> Level:
    def repeat(value: Tensor) -> Tensor:
        return value if value.ndim == 0 else torch.cat([value] * count)

    var = None if level.var is None else {name: repeat(column) for name, column in level.var.items()}
    return Level(
        repeat(level.alpha),
        repeat(level.sigma),
        repeat(level.log_snr),
        repeat(level.c_skip),
        repeat(level.c_out),
        repeat(level.c_in),
        repeat(level.time),
        var,
    )


def _joined(name: str, values: Sequence[Any], batch: int) -> Any:
    first = values[0]
    if all(isinstance(value, Mapping) and value.keys() == first.keys() for value in values):
        return {key: _joined(name, [value[key] for value in values], batch) for key in first}
    if all(isinstance(value, list) and len(value) == batch for value in values):
        return [entry for value in values for entry in value]
    if all(isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == batch for value in values):
        return torch.cat(list(values))
    if any(value is not first for value in values):
        raise OptionError(
            f"condition {name!r} cannot be evaluated with and without in one call: it needs one row for each of "
            f"{batch} examples in both; use joint=False"
        )
    return first


def own_conditions(guidance: Iterable[Guidance]) -> frozenset[str]:
    """Return the conditions that some guidance keeps from the network."""
    return frozenset().union(*(one.own_conditions for one in guidance))


def networks_of(guidance: Iterable[Guidance]) -> tuple[nn.Module, ...]:
    """Return the networks that guidance holds."""
    return tuple(network for one in guidance for network in one.networks)


def row_conditions(guidance: Iterable[Guidance]) -> Conditions:
    """Return the conditions that guidance brings along.

    Raises:
        OptionError: Two of them bring one of the same name.
    """
    found: dict[str, Any] = {}
    for one in guidance:
        for name, value in one.row_conditions.items():
            if name in found:
                raise OptionError(f"two guidances bring rows for {name!r}; give one of them a single row for all")
            found[name] = value
    return found
