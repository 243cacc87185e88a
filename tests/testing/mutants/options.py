"""Parts whose options are not what options must be."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import torch
from attrs import frozen

from diffkit.options import number
from diffkit.parts.samplers.ddim import DDIM
from diffkit.protocols import Sampler
from mutants import Mutant

_GOOD = DDIM()


@frozen
class Good(Sampler):
    """DDIM's step, so that only the options are wrong below."""

    eta: float = number(0.0, ge=0)

    def plan(self, steps):
        return _GOOD.plan(steps)

    def step(self, denoise, x, state, row, noise, last):
        return _GOOD.step(denoise, x, state, row, noise, last)


@attrs.define(eq=True, unsafe_hash=True)
class NotFrozen(Good):
    weight: float = number(1.0)

    __setattr__ = object.__setattr__


@frozen
class ListOption(Good):
    sigmas: Any = attrs.field(factory=lambda: [1.0, 2.0])


@frozen
class TensorOption(Good):
    sigmas: Any = attrs.field(factory=lambda: torch.tensor([1.0]), eq=False)


@frozen
class CacheOnClass(Good):
    cache: ClassVar[dict[int, float]] = {}


@frozen
class TuplesOnly(Good):
    """A tuple that comes back from JSON as a list, which is neither converted nor equal."""

    sigmas: tuple[float, ...] = (1.0, 2.0)


@frozen
class FunctionOption(Good):
    warp: Any = attrs.field(factory=lambda: lambda x: x)


@frozen
class Unchecked(Good):
    eta: float = 0.0


@frozen
class Degrees(Good):
    """A converter that changes the value each time it is made again."""

    eta: float = attrs.field(default=0.5, converter=lambda degrees: degrees / 2)


@frozen
class HidesAnOption(Good):
    eta: float = attrs.field(default=0.25, repr=False)
    other: float = attrs.field(default=1.0)


@frozen
class MissingArgument(Good):
    def step(self, denoise, x, state, row, noise):
        return x, state


@frozen
class OrderAsText(Good):
    order: ClassVar[Any] = "2"


def _of(broken, caught_by, found_at=""):
    return Mutant("sampler", broken, Good(), caught_by, found_at)


MUTANTS = [
    _of(NotFrozen(), "frozen_options"),
    _of(ListOption(), "equal_when_rebuilt"),
    _of(ListOption(), "plain_options", "list"),
    _of(TensorOption(), "plain_options", "Tensor"),
    _of(CacheOnClass(), "plain_options", "cache"),
    _of(TuplesOnly(), "json_round_trip"),
    _of(FunctionOption(), "copies", "pickle"),
    _of(Unchecked(), "refuses_nonsense", "eta"),
    _of(Degrees(), "equal_when_rebuilt"),
    _of(HidesAnOption(0.75), "repr_round_trip"),
    _of(MissingArgument(), "contract", "step"),
    _of(OrderAsText(), "contract", "order"),
]
