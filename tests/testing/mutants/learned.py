"""Parts with weights with one mistake each."""

from __future__ import annotations

from typing import ClassVar

import torch
from attrs import frozen
from torch import nn

from diffkit.gaussian import mean_flat
from diffkit.parts.losses.uncertainty import Uncertainty
from diffkit.parts.schedules._monotone_network import MonotoneNetwork
from diffkit.parts.schedules.monotone import Monotone
from diffkit.protocols import LearnedPart, Loss
from mutants import Mutant


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(1, 1)

    def forward(self, log_snr):
        return self.line(log_snr[:, None] / 10)[:, 0]


class Hidden(nn.Module):
    """A layer in a list, which the module does not know."""

    def __init__(self):
        super().__init__()
        self.lines = [nn.Linear(1, 1)]

    def forward(self, log_snr):
        return self.lines[0](log_snr[:, None] / 10)[:, 0]


class Features(Line):
    """Frequencies that are no buffer."""

    def __init__(self):
        super().__init__()
        self.frequency = torch.randn(1)

    def forward(self, log_snr):
        return super().forward(torch.cos(self.frequency * log_snr))


@frozen
class Balanced(LearnedPart, Loss):
    def build(self, data_shape):
        return Line()

    def __call__(self, at):
        mse = mean_flat((at.out - at.target).square())
        u = at.learned(at.level.log_snr.flatten().float()).to(mse.dtype)
        return {"loss": mse / u.exp() + u}


@frozen
class HiddenWeights(Balanced):
    def build(self, data_shape):
        return Hidden()


@frozen
class Outside(Balanced):
    """Weights of the file that the part is written in."""

    def __call__(self, at):
        found = super().__call__(at)["loss"]
        return {"loss": found * (1 + WEIGHT.to(found.dtype))}


WEIGHT = nn.Parameter(torch.zeros(1))


@frozen
class Detached(Balanced):
    def __call__(self, at):
        mse = mean_flat((at.out - at.target).square())
        u = at.learned(at.level.log_snr.flatten().float()).to(mse.dtype).detach()
        return {"loss": mse / u.exp() + u}


@frozen
class RandomFeatures(Balanced):
    def build(self, data_shape):
        return Features()


@frozen
class BuiltOnce(Balanced):
    def build(self, data_shape):
        return ONCE


ONCE = Line()


@frozen
class WithoutAxis(Balanced):
    def build(self, data_shape):
        module = Line()
        module.scale = nn.Parameter(torch.ones(()))
        return module


class Free(MonotoneNetwork):
    """Heights that may be negative."""

    def forward(self, time):
        share, slope = super().forward(time)
        weight = self.height[0].double() + 4
        return share + weight * time * (1 - time), slope + weight * (1 - 2 * time)


class Open(MonotoneNetwork):
    """Ends that move with the weights."""

    def forward(self, time):
        share, slope = super().forward(time)
        end = 1 + 0.1 * self.height[0].double().sigmoid()
        return share * end, slope * end


class OtherRate(MonotoneNetwork):
    def forward(self, time):
        share, slope = super().forward(time)
        return share, slope.mean().expand_as(slope)


@frozen
class FreeSchedule(Monotone):
    module: ClassVar = Free

    def build(self, data_shape):
        return self.module(4)


@frozen
class OpenSchedule(FreeSchedule):
    module: ClassVar = Open


@frozen
class OtherRateSchedule(FreeSchedule):
    module: ClassVar = OtherRate


@frozen
class DetachedSchedule(Monotone):
    def log_snr_at(self, module, time):
        return tuple(each.detach() for each in super().log_snr_at(module, time))


MUTANTS = [
    Mutant("schedule", FreeSchedule(), Monotone(), "falls_for_any_weights", "falls with time"),
    Mutant("schedule", OpenSchedule(), Monotone(), "falls_for_any_weights", "ends of the table"),
    Mutant("schedule", OtherRateSchedule(), Monotone(), "falls_for_any_weights", "rate"),
    Mutant("schedule", DetachedSchedule(), Monotone(), "weights_are_trained", "none"),
    Mutant("loss", HiddenWeights(), Balanced(), "weights_are_trained", "elsewhere"),
    Mutant("loss", Outside(), Balanced(), "weights_are_trained", "elsewhere"),
    Mutant("loss", Detached(), Uncertainty(), "weights_are_trained", "none"),
    Mutant("loss", RandomFeatures(), Balanced(), "weights_are_restored"),
    Mutant("loss", BuiltOnce(), Balanced(), "builds_a_module", "the same one"),
    Mutant("loss", WithoutAxis(), Balanced(), "builds_a_module", "scale"),
]
