"""Decoders with one mistake each."""

from __future__ import annotations

import math

import torch
from attrs import frozen

from diffkit.protocols import Decoder
from mutants import Mutant


@frozen
class Density(Decoder):
    """A normal density, written out."""

    @property
    def bins(self):
        return None

    @property
    def bounded(self):
        return False

    def log_prob(self, x_start, mean, log_variance):
        return self.made(x_start, mean, log_variance, (x_start - mean) ** 2 * torch.exp(-log_variance))

    def made(self, x_start, mean, log_variance, squared):
        return -0.5 * (squared + log_variance + math.log(2 * math.pi))


@frozen
class WithoutTheConstant(Density):
    def made(self, x_start, mean, log_variance, squared):
        return -0.5 * (squared + log_variance)


@frozen
class LogOfTheDensity(Density):
    """exp first, log after: 0 in float32's tails."""

    def made(self, x_start, mean, log_variance, squared):
        return Density.made(self, x_start, mean, log_variance, squared).exp().log()


@frozen
class SumOverElements(Density):
    def made(self, x_start, mean, log_variance, squared):
        found = Density.made(self, x_start, mean, log_variance, squared)
        return found.sum() if found.ndim > 1 else found


@frozen
class InPlace(Density):
    def made(self, x_start, mean, log_variance, squared):
        return Density.made(self, x_start.neg_(), mean, log_variance, squared)


@frozen
class TwoValues(Density):
    @property
    def bins(self):
        return 2

    @property
    def bounded(self):
        return True


@frozen
class Unbounded(TwoValues):
    @property
    def bounded(self):
        return False


MUTANTS = [
    Mutant("decoder", WithoutTheConstant(), Density(), "probabilities_sum_to_one", "a sum of 1"),
    Mutant("decoder", LogOfTheDensity(), Density(), "finite_in_the_tails", "float32"),
    Mutant("decoder", SumOverElements(), Density(), "each_element_on_its_own", "(2, 3, 4)"),
    Mutant("decoder", Unbounded(), TwoValues(), "bounded_data_has_bounds", "bounded"),
    Mutant("decoder", InPlace(), Density(), "pure", "unchanged"),
]
