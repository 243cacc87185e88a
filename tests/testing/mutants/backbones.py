"""Backbones with one mistake each."""

from __future__ import annotations

from typing import Any

import torch
from attrs import frozen
from torch import nn

from diffkit.errors import OptionError
from diffkit.parts.backbones._embedding import timestep_embedding
from diffkit.protocols import Backbone, ConditionalBackbone
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


class OptionalLabels(Net):
    """Labels that a call may leave out."""

    def forward(self, x, time, y=None):
        emb = self.time(time)
        if y is not None:
            emb = emb + self.label(y)
        return self.answer(x, emb)

    def answer(self, x, emb):
        return self.last(torch.tanh(self.first(x) + emb[(..., *[None] * self.axes)]))


class OptionalLabelsForgotten(OptionalLabels):
    def forward(self, x, time, y=None):
        return self.answer(x, self.time(time))


class OptionalLabelsOfFirst(OptionalLabels):
    def forward(self, x, time, y=None):
        return super().forward(x, time, None if y is None else y[:1].expand_as(y))


class WeightForNone(OptionalLabels):
    """Without a label another weight takes its place, so that no call trains them all."""

    def __init__(self, data_shape, out_channels, labels=0):
        super().__init__(data_shape, out_channels, labels)
        self.none = nn.Parameter(torch.zeros(1, 8))

    def forward(self, x, time, y=None):
        return self.answer(x, self.time(time) + (self.none if y is None else self.label(y)))


class NeverNone(WeightForNone):
    """The weight for no label is there, and not used."""

    def forward(self, x, time, y=None):
        return OptionalLabels.forward(self, x, time, y)


class Context(OptionalLabels):
    """A condition that no kit can guess."""

    def __init__(self, data_shape, out_channels, labels=0):
        super().__init__(data_shape, out_channels)
        self.read = nn.Linear(6, 8)

    def forward(self, x, time, context):
        return self.answer(x, self.time(time) + self.read(context))


class FirstContextForAll(Context):
    def forward(self, x, time, context):
        return super().forward(x, time, context[:1].expand_as(context))


class AnyKeyword(Context):
    def forward(self, x, time, **conditions):
        return super().forward(x, time, conditions["context"])


class RedGreenBlue(Net):
    """Reads three channels, whatever there are."""

    def __init__(self, data_shape, out_channels, labels=0):
        super().__init__((min(data_shape[0], 3), *data_shape[1:]), out_channels, labels)

    def forward(self, x, time, y=None):
        return super().forward(x[:, :3], time, y)


class TopOnly(Net):
    """The lower half is read as zeros."""

    def forward(self, x, time, y=None):
        half = x.shape[2] // 2
        return super().forward(torch.cat([x[:, :, :half], torch.zeros_like(x[:, :, half:])], 2), time, y)


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
class WithNull(Recipe, ConditionalBackbone):
    """A recipe that says what means "no context"."""

    network: Any = Context

    def null_conditions(self):
        return {"context": torch.zeros(1, 6)}


@frozen
class NullLabel(Recipe, ConditionalBackbone):
    """A recipe that says which label means "no class"."""

    null: int = 3

    def null_conditions(self):
        return {"y": self.null}


@frozen
class Counting(Recipe, ConditionalBackbone):
    """A recipe that says how many classes there are."""

    classes: int = 3

    def count_classes(self):
        return self.classes


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
    _of(OptionalLabelsForgotten, "labels_are_used", 3),
    _of(OptionalLabelsForgotten, "every_weight_is_trained", 3, "label"),
    Mutant("backbone", Recipe(3, OptionalLabelsOfFirst), Recipe(3, OptionalLabels), "labels_are_used"),
    Mutant("backbone", Recipe(3, NeverNone), Recipe(3, WeightForNone), "every_weight_is_trained", "none"),
    Mutant("backbone", Recipe(0, Context), WithNull(), "conditions_are_known", "'context'"),
    Mutant("backbone", WithNull(0, FirstContextForAll), WithNull(), "conditions_are_used", "context of example 1"),
    Mutant("backbone", NullLabel(3), NullLabel(4), "trains_with_and_without_conditions", "null conditions"),
    Mutant("backbone", Counting(3, classes=4), Counting(3), "trains_with_and_without_conditions", "label 3, the last"),
    _of(RedGreenBlue, "reads_all_of_x", found_at="not on [3, 4]"),
    _of(TopOnly, "reads_all_of_x", found_at="place"),
    _of(ChangesX, "pure_forward"),
    _of(OddSides, "channels_as_asked"),
    Mutant("backbone", RawError(), Recipe(), "refuses_by_name", "KeyError"),
    Mutant("backbone", UnspokenRefusal(), Recipe(), "refuses_by_name"),
]

RIGHT = [
    ("backbone", part)
    for part in (
        Recipe(),
        Recipe(3),
        Recipe(0, OptionalLabels),
        Recipe(3, OptionalLabels),
        Recipe(3, WeightForNone),
        WithNull(),
        WithNull(0, AnyKeyword),
        NullLabel(4),
        Counting(4),
    )
]
