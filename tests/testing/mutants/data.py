"""Data sources with one mistake each."""

from __future__ import annotations

import numpy as np
from attrs import frozen

from diffkit.data import Source
from diffkit.data.arrays import ArrayData
from mutants import Mutant


@frozen
class Stripes(Source):
    """Eight images of stripes, in two classes."""

    data = ArrayData

    def images(self):
        rows = np.arange(8) // np.arange(1, 9)[:, None] % 2
        return np.broadcast_to(rows[:, None, None, :] * 255, (8, 1, 4, 8)).astype(np.uint8)

    def labels(self):
        return np.arange(8) % 2

    def open(self):
        return self.data(self.images(), bins=256, labels=self.labels(), classes=("even", "odd"))


@frozen
class Empty(Stripes):
    def images(self):
        return np.empty((0, 1, 4, 8), np.uint8)


@frozen
class Bytes(Stripes):
    """Bytes as floating point."""

    def images(self):
        return Stripes.images(self).astype(np.float32)


@frozen
class WithoutBins(Stripes):
    def open(self):
        return ArrayData(self.images(), bins=None)


@frozen
class NotFinite(Stripes):
    def open(self):
        return ArrayData(np.full((4, 2), np.nan, np.float32), bins=None)


class ChannelsLast(ArrayData):
    def __getitem__(self, index):
        image, conditions = super().__getitem__(index)
        return image.permute(1, 2, 0), conditions


class SortedBatch(ArrayData):
    def batch(self, indices):
        return super().batch(np.sort(indices))._replace(indices=super().batch(indices).indices)


class LabelsOfOthers(ArrayData):
    def batch(self, indices):
        found = super().batch(indices)
        return found._replace(conditions={name: rows.flip(0) for name, rows in found.conditions.items()})


class SometimesUnknown(ArrayData):
    def __getitem__(self, index):
        image, conditions = super().__getitem__(index)
        return image, conditions if index else {}


class OpenFile(ArrayData):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.read = lambda index: self.images[index]


@frozen
class Drawn(Stripes):
    """Drawn without a seed."""

    def images(self):
        return np.random.default_rng().integers(0, 256, (8, 1, 4, 8)).astype(np.uint8)


@frozen
class FromOne(Stripes):
    """Classes counted from 1."""

    def labels(self):
        return Stripes.labels(self) + 1


def _with(cls, data):
    return frozen(type(data.__name__, (cls,), {"data": data, "__doc__": data.__doc__}))()


_LAST, _SORTED, _OTHERS, _SOMETIMES, _FILE = (
    _with(Stripes, data) for data in (ChannelsLast, SortedBatch, LabelsOfOthers, SometimesUnknown, OpenFile)
)

MUTANTS = [
    Mutant("data", Empty(), Stripes(), "opens", "one example or more"),
    Mutant("data", _LAST, Stripes(), "examples_as_declared", "shape (1, 4, 8)"),
    Mutant("data", Bytes(), Stripes(), "examples_as_declared", "-1.0..1.0"),
    Mutant("data", WithoutBins(), Stripes(), "examples_as_declared", "floating point"),
    Mutant("data", NotFinite(), Stripes(), "examples_as_declared", "finite values"),
    Mutant("data", _SORTED, Stripes(), "batch_equals_items", "example"),
    Mutant("data", _OTHERS, Stripes(), "batch_equals_items", "condition 'y'"),
    Mutant("data", Drawn(), Stripes(), "same_when_opened_again", "the same example again"),
    Mutant("data", FromOne(), Stripes(), "labels_within_classes", "0..1"),
    Mutant("data", _SOMETIMES, Stripes(), "conditions_alike", "['y']"),
    Mutant("data", _FILE, Stripes(), "works_in_other_processes", "pickled"),
]
