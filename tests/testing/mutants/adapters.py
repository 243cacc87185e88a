"""Adapters with one mistake each."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import nn
from torch.nn.utils import parametrize

from diffkit.options import number
from diffkit.protocols import Adapter
from mutants import Mutant


class Scaled(nn.Module):
    """A bias times a number."""

    def __init__(self, start):
        super().__init__()
        self.factor = nn.Parameter(start)

    def forward(self, bias):
        return bias * self.factor


@frozen
class Factor(Adapter):
    """Trains a factor of every bias of a linear layer."""

    start: float = number(1.0)

    def attach(self, network):
        for layer in list(network.modules()):
            if isinstance(layer, nn.Linear):
                parametrize.register_parametrization(layer, "bias", Scaled(torch.tensor(self.start)))

    def merge(self, network):
        for layer in list(network.modules()):
            if parametrize.is_parametrized(layer, "bias"):
                parametrize.remove_parametrizations(layer, "bias", leave_parametrized=True)


@frozen
class Elsewhere(Factor):
    """Adds a parameter that nothing reads."""

    def attach(self, network):
        network.register_parameter("unread", nn.Parameter(torch.ones(1)))

    def merge(self, network):
        del network.unread


@frozen
class Forgetful(Factor):
    """Merges by taking the adapter away."""

    def merge(self, network):
        for layer in list(network.modules()):
            if parametrize.is_parametrized(layer, "bias"):
                parametrize.remove_parametrizations(layer, "bias", leave_parametrized=False)


MUTANTS = [
    Mutant("adapter", Factor(2.0), Factor(), "starts_as_nothing", "output"),
    Mutant("adapter", Elsewhere(), Factor(), "its_parameters_are_trained", "another output"),
    Mutant("adapter", Forgetful(), Factor(), "merged_it_is_the_same", "output"),
]
