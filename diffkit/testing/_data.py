"""Laws of data sources."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from diffkit.data import Data, Source
from diffkit.testing._check import LawError, NotApplicableError, Where, check
from diffkit.testing._close import require, require_same, tree_leaves

_SOME = 16
"""Number of examples that are read, evenly spread."""


def _opened(part: Source) -> Data:
    data = part.open()
    require(isinstance(data, Data), "a diffkit.data.Data, such as from_array returns", type(data).__name__)
    return data


def _some(data: Data) -> list[int]:
    return sorted({int(i) for i in np.linspace(0, len(data) - 1, _SOME)})


def _items(data: Data) -> list[tuple[torch.Tensor, Mapping[str, Any], Where]]:
    """Some examples, each with its conditions and where it is."""
    read = ((i, data[i]) for i in _some(data))
    return [(torch.as_tensor(image), conditions, Where(detail=f"example {i}")) for i, (image, conditions) in read]


@check("data")
def opens(part: Source) -> None:
    """A source opens data with at least one example, and a shape, bins and classes of the right types.

    Usually: a file that is not there, or a shape that is a list.
    """
    data = _opened(part)
    require(len(data) >= 1, "one example or more", len(data))
    sizes = isinstance(data.shape, tuple) and all(isinstance(n, int) and n >= 1 for n in data.shape)
    require(sizes and bool(data.shape), "a shape (C, *S), a tuple of integers >= 1", repr(data.shape))
    require(data.bins is None or (type(data.bins) is int and data.bins >= 2), "bins, None or >= 2", repr(data.bins))
    named = data.classes is None or (isinstance(data.classes, tuple) and all(isinstance(c, str) for c in data.classes))
    require(named, "classes, None or a tuple of names", repr(data.classes))


@check("data")
def examples_as_declared(part: Source) -> None:
    """Each example has the declared shape, and integers 0..bins-1 or floats in [-1, 1]; without bins, finite floats.

    Usually: channels last, bytes scaled to [0, 255] as floats, or a wrong number of bins.
    """
    data = _opened(part)
    for image, _, where in _items(data):
        require(tuple(image.shape) == data.shape, f"shape {data.shape}", tuple(image.shape), where)
        if not image.is_floating_point():
            require(data.bins is not None, "floating point, as there are no bins", image.dtype, where)
        require(bool(image.isfinite().all()), "finite values", "inf or nan", where)
        if data.bins is not None:
            low, high = (-1.0, 1.0) if image.is_floating_point() else (0, data.bins - 1)
            found = image.min().item(), image.max().item()
            require(low <= found[0] and found[1] <= high, f"values in {low}..{high}", f"{found[0]}..{found[1]}", where)


@check("data")
def batch_equals_items(part: Source) -> None:
    """A batch holds the examples with the given indices, in their order, and their conditions.

    Usually: indices that are sorted, or labels that are read in another order than the examples.
    """
    data = _opened(part)
    indices = [*reversed(_some(data)), 0]
    batch = data.batch(np.array(indices))
    require(batch.indices.tolist() == indices, f"the indices {indices}", batch.indices.tolist())
    for row, index in enumerate(indices):
        where = Where(detail=f"example {index}")
        image, conditions = data[index]
        require_same(batch.images[row], torch.as_tensor(image), "the example as it is alone", where)
        require(batch.conditions.keys() == conditions.keys(), str(set(conditions)), set(batch.conditions), where)
        for name, value in conditions.items():
            if isinstance(value, int | float | np.number | torch.Tensor | np.ndarray):
                require_same(batch.conditions[name][row], value, f"condition {name!r} as it is alone", where)


@check("data")
def same_when_opened_again(part: Source) -> None:
    """A source that is opened twice gives the same data in the same order, with the same description.

    Usually: a draw without a seed, or files in the order of the disk; a resumed run would train on other data.
    """
    first, again = _opened(part), _opened(part)
    require(len(first) == len(again), f"{len(first)} examples again", len(again))
    _require_same_examples(first, again, "the same example again")
    require(first.describe() == again.describe(), "the same description again", again.describe())


@check("data")
def labels_within_classes(part: Source) -> None:
    """The class y is an integer from 0 on, below the number of classes if they are named; -1 is none.

    Usually: classes that are counted from 1, or names of fewer classes than there are.
    """
    data = _opened(part)
    end = np.inf if data.classes is None else len(data.classes)
    labels = [(conditions["y"], where) for _, conditions, where in _items(data) if "y" in conditions]
    if not labels:
        raise NotApplicableError("its examples have no y")
    for label, where in labels:
        number = torch.as_tensor(label)
        whole = number.ndim == 0 and not number.is_floating_point() and number.dtype != torch.bool
        require(whole, "an integer y", label, where)
        wanted = "a class from 0 on, or -1" if data.classes is None else f"a class in 0..{end - 1}, or -1"
        require(-1 <= int(number) < end, wanted, int(number), where)


@check("data")
def conditions_alike(part: Source) -> None:
    """All examples have the same conditions, of the same shapes.

    Usually: a condition that is left out where it is unknown.
    """
    (_, first, _), *others = _items(_opened(part))
    for _, conditions, where in others:
        require(conditions.keys() == first.keys(), f"conditions {sorted(first)}", sorted(conditions), where)
        for name in first:
            shapes = [[np.shape(leaf) for leaf in tree_leaves(each[name])] for each in (first, conditions)]
            require(shapes[0] == shapes[1], f"{name!r} of shape {shapes[0]}", shapes[1], where)


@check("data")
def works_in_other_processes(part: Source) -> None:
    """The data can be pickled, and its copy has the same examples: processes that read it get one.

    Usually: an open file, a lock or a lambda that the data holds.
    """
    data = _opened(part)
    try:
        copy = pickle.loads(pickle.dumps(data))
    except Exception as error:
        raise LawError("data that can be pickled", f"{type(error).__name__}: {error}") from error
    _require_same_examples(data, copy, "the same example in the copy")


def _require_same_examples(one: Data, other: Data, what: str) -> None:
    for (image, conditions, where), (image_again, again, _) in zip(_items(one), _items(other), strict=True):
        require_same(image_again, image, what, where)
        require(conditions.keys() == again.keys(), str(sorted(conditions)), sorted(again), where)
        require_same(again, conditions, what, where)
