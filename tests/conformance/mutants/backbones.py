"""Backbones with one mistake each."""

from __future__ import annotations

from typing import Any

import torch
from attrs import frozen
from torch import nn

from diffkit._errors import OptionError
from diffkit.backbones._embedding import timestep_embedding
from diffkit.protocols import Backbone
from mutants import Mutant


class Net(nn.Module):
    """A small convolutional network over one axis or two, with one place for every mistake."""

    def __init__(self, data_shape, out_channels, labels=0):
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d}[len(data_shape) - 1]
        self.axes = len(data_shape) - 1
        self.first = conv(data_shape[0], 8, 3, padding=1)
        self.embed = nn.Linear(16, 8)
        self.label = nn.Embedding(labels, 8) if labels else None
        self.last = conv(8, out_channels, 3, padding=1)

    def time(self, time):
        return self.embed(timestep_embedding(time, 16).to(self.embed.weight.dtype))

    def forward(self, x, time, y=None):
        emb = self.time(time)
        if self.label is not None:
            emb = emb + self.label(y)
        return self.last(torch.tanh(self.first(x) + emb[(..., *[None] * self.axes)]))


@frozen
class Recipe(Backbone):
    labels: int = 0
    network: Any = Net

    def build(self, data_shape, out_channels):
        if len(data_shape) not in (2, 3):
            raise OptionError("one or two spatial axes only")
        return self.network(data_shape, out_channels, self.labels)

    def problems(self, composition):
        if len(composition.data_shape) not in (2, 3):
            yield "one or two spatial axes only"


class NoTime(Net):
    def time(self, time):
        return 0 * super().time(time)


class FirstTimeForAll(Net):
    def time(self, time):
        return super().time(time[:1].expand_as(time))


class TimeInBfloat16(Net):
    def time(self, time):
        return super().time(time.to(self.embed.weight.dtype))


class BatchNorm(Net):
    def __init__(self, data_shape, out_channels, labels=0):
        super().__init__(data_shape, out_channels, labels)
        norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[self.axes]
        self.first = nn.Sequential(self.first, norm(8))


class DeadWeight(Net):
    def __init__(self, data_shape, out_channels, labels=0):
        super().__init__(data_shape, out_channels, labels)
        self.unused = nn.Linear(4, 4)


class ThreeChannels(Net):
    def __init__(self, data_shape, out_channels, labels=0):
        super().__init__(data_shape, 3, labels)


class HostRead(Net):
    def time(self, time):
        return super().time(time if time.max().item() > 0 else time + 1)


class LabelsIgnored(Net):
    def forward(self, x, time, y=None):
        return super().forward(x, time, None if y is None else 0 * y)


class ChangesX(Net):
    def forward(self, x, time, y=None):
        return super().forward(x.detach().mul_(0.5) + 0 * x, time, y)


class OddSides(Net):
    """Halves and doubles: odd sides come back one short."""

    def forward(self, x, time, y=None):
        mean = nn.functional.avg_pool1d if self.axes == 1 else nn.functional.avg_pool2d
        out = super().forward(mean(x, 4), time, y)
        return nn.functional.interpolate(out, scale_factor=4.0)


@frozen
class RawError(Recipe):
    """A KeyError from inside where an OptionError belongs."""

    def build(self, data_shape, out_channels):
        return self.network(data_shape, out_channels, self.labels)


@frozen
class UnspokenRefusal(Recipe):
    """build() refuses what problems() lets pass, so that it fails after composing."""

    def problems(self, composition):
        return ()


def _of(network, caught_by, labels=0, found_at=""):
    return Mutant("backbone", Recipe(labels, network), Recipe(labels), caught_by, found_at)


MUTANTS = [
    _of(NoTime, "uses_time"),
    _of(FirstTimeForAll, "uses_time"),
    _of(TimeInBfloat16, "tells_times_apart_in_bfloat16", found_at="999"),
    _of(BatchNorm, "rows_are_independent", found_at="training mode"),
    _of(DeadWeight, "every_weight_is_trained", found_at="unused"),
    _of(ThreeChannels, "channels_as_asked"),
    _of(HostRead, "reads_no_value"),
    _of(LabelsIgnored, "labels_are_used", 3),
    _of(ChangesX, "pure_forward"),
    _of(OddSides, "channels_as_asked"),
    Mutant("backbone", RawError(), Recipe(), "refuses_by_name", "KeyError"),
    Mutant("backbone", UnspokenRefusal(), Recipe(), "refuses_by_name"),
]
