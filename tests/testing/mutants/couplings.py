"""Couplings with one mistake each."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from attrs import field, frozen

from diffkit.options import flag
from diffkit.protocols import Coupling, Pairing
from mutants import Mutant


@frozen
class ByNorm(Coupling):
    """The largest example gets the largest noise: an exchange, written out."""

    down: bool = flag(False)

    def pair(self, x_start, noise, conditions, generator):
        order = x_start.flatten(1).square().sum(1).argsort(descending=self.down)
        size = noise.flatten(1).square().sum(1).argsort(descending=self.down)
        columns = torch.empty_like(order)
        columns[order] = size
        return Pairing(noise[columns])


@frozen
class Nearest(ByNorm):
    """Each example takes the nearest noise of the batch."""

    def pair(self, x_start, noise, conditions, generator):
        return Pairing(noise[torch.cdist(x_start.flatten(1), noise.flatten(1)).argmin(1)])


@frozen
class Shifted(ByNorm):
    """Noise is moved a little towards the data."""

    def pair(self, x_start, noise, conditions, generator):
        return Pairing(noise + 0.1 * x_start)


@frozen
class Narrow(ByNorm):
    """Noise is averaged with other noise, and narrower than before."""

    def pair(self, x_start, noise, conditions, generator):
        return Pairing(0.9 * noise)


@frozen
class Flat(ByNorm):
    """Noise is not put back into the shape of the data."""

    def pair(self, x_start, noise, conditions, generator):
        return Pairing(ByNorm.pair(self, x_start, noise, conditions, generator).noise.flatten(1))


@frozen
class Counting(ByNorm):
    """Turns the order around at every third call."""

    calls: Any = field(factory=lambda: [0], init=False, eq=False)

    def pair(self, x_start, noise, conditions, generator):
        self.calls[0] += 1
        return Pairing(noise.flip(0) if self.calls[0] % 3 == 1 else noise)


@frozen
class GlobalDraws(ByNorm):
    """Shuffles by the global generator."""

    def pair(self, x_start, noise, conditions, generator):
        return Pairing(noise[torch.randperm(len(noise))])


@frozen
class InPlace(ByNorm):
    """Sorts the caller's noise."""

    def pair(self, x_start, noise, conditions, generator):
        return Pairing(noise.copy_(noise.flip(0)))


@frozen
class SaysRow(ByNorm):
    """Looks at the whole batch, though it says that it does not."""

    scope: ClassVar[str] = "row"


@frozen
class OneRow(ByNorm):
    """Keeps the noise of each row, or its negative."""

    scope: ClassVar[str] = "row"

    def pair(self, x_start, noise, conditions, generator):
        return Pairing(-noise)


MUTANTS = [
    Mutant("coupling", Nearest(), ByNorm(), "noise_stays_normal", "moment"),
    Mutant("coupling", Shifted(), ByNorm(), "noise_stays_normal", "moment 1"),
    Mutant("coupling", Narrow(), ByNorm(), "noise_stays_normal", "moment 2"),
    Mutant("coupling", Flat(), ByNorm(), "noise_for_each_example", "noise"),
    Mutant("coupling", Counting(), ByNorm(), "same_arguments_same_noise", "the same noise"),
    Mutant("coupling", GlobalDraws(), ByNorm(), "same_arguments_same_noise", "the same noise"),
    Mutant("coupling", InPlace(), ByNorm(), "same_arguments_same_noise", "unchanged"),
    Mutant("coupling", SaysRow(), OneRow(), "rows_as_declared", "one row alone"),
]
