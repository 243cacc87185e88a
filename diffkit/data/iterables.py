"""Iterables of a declared length as data that is trained on in its own order."""

from __future__ import annotations

import hashlib
import inspect
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader

from diffkit.data.base import Data, MapData
from diffkit.data.skipping import Skipping
from diffkit.data.torch_datasets import (
    DatasetData,
    DatasetItems,
    DatasetMapData,
    check_items,
    class_names_of,
    default_bins,
    example_shape,
)
from diffkit.errors import DataError, DiffkitError
from diffkit.options import check_integer

T = TypeVar("T")
_LOOKED_AT = 8
"""Number of examples that are read to check the data; preflight checks of training read as many."""
_FAR = 1000
"""Examples further ahead than this are reached by ``make(start)``, if it takes that, and nearer ones by reading on."""


def from_iterable(
    make: Any,
    *,
    length: int | None = None,
    shape: Sequence[int] | None = None,
    bins: int | None = None,
    classes: Sequence[str] | int | None = None,
    labels: bool | str = True,
    image: str | None = None,
    layout: str | None = None,
) -> Data:
    """Return data from an iterable, which is trained on in the iterable's own order, without being shuffled.

    A run that resumes goes on at its position: by ``make(start)``, or by reading and dropping the examples before it.
    Every process and worker reads all of the iterable and takes its own rows, so it must not share out examples itself.

    Args:
        make: A function that returns an iterator from the first example on, or ``make(start)`` from any; or an
            iterable that begins again each time, such as an `torch.utils.data.IterableDataset`. The examples, and
            classes or conditions with them, are as in `from_dataset`; they must be the same each time.
        length: Number of examples in an epoch; further ones are not used. By default the iterable's own length.
        shape: Shape of an example, (C, *S); by default that of example 0.
        bins: How many values an example takes, as in `from_dataset`.
        classes: Names of the classes, or how many there are.
        labels: Whether to use the classes, if there are any; or the name of their entry in a dictionary.
        image: Name of the example's entry in a dictionary.
        layout: "channels_first", or "channels_last".
    Raises:
        DataError: The iterable cannot be restarted, has no length, differs when it is read again, or its first examples
            cannot be trained on.
        OptionError: An option is wrong.
    """
    names = class_names_of(classes)
    stream = ExampleStream(make, _length_of(make, length))
    items = DatasetItems(stream, image, labels, layout)
    first = range(min(_LOOKED_AT, len(stream)))
    before = _global_generators()
    read = [items[i] for i in first]
    _check_generators(before)
    _check_restart(items, stream, read)
    if names is None and all(items.has_no_label(i) for i in first):
        items = DatasetItems(stream, image, labels, layout, unlabelled=True)
    x = items[0][0]
    found = DatasetMapData(items, example_shape(x, shape, layout), default_bins(x, bins), names)
    data = IterableData(found, _name_of(make))
    check_items(data, first)
    stream.close()
    return data


class IterableData(DatasetData):
    """An iterable as data; examples are read in order, and those before the last one by a restart."""

    deterministic = True
    sequential = True

    def __init__(self, data: MapData, source: str):
        super().__init__(data, source, _ReadInOrder(len(data), "stop"))
        x, conditions = data[0]
        content = torch.as_tensor(x).numpy().tobytes() + repr(sorted(conditions.items())).encode()
        self.fingerprint = hashlib.sha256(content).hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """Return the facts of the data, and a fingerprint of its first example."""
        return {**super().describe(), "order": "own", "fingerprint": self.fingerprint}


class ExampleStream:
    """An iterable as a dataset whose items are read forwards; an item before the last one is reached by a restart.

    Args:
        make: An iterable, or a function that returns one, maybe from a given start.
        length: Number of items.
    """

    def __init__(self, make: Any, length: int):
        self.make, self.length = make, length
        self.takes_start = not isinstance(make, Iterable) and _takes_start(make)
        self.close()

    def __len__(self) -> int:
        """Return the number of items."""
        return self.length

    def __getitem__(self, index: int) -> Any:
        """Return item ``index``, after reading those before it that were not read yet."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        in_another_process = self._process != os.getpid()  # whose iterator may share an open file with this one's
        far = self.takes_start and index - self._next > _FAR
        if self._iterator is None or in_another_process or index < self._next or far:
            self.restart(index)
        while self._next < index:
            self._read()
        return self._read()

    def __getstate__(self) -> dict[str, Any]:
        """Send the iterable without its position to another process."""
        return {**vars(self), "_iterator": None}

    def close(self) -> None:
        """Forget the position, so that the next item is read from a new iterator."""
        self._iterator: Iterator[Any] | None = None
        self._next, self._process = 0, os.getpid()

    def restart(self, index: int) -> None:
        """Make a new iterator, at an item if the function takes a start, else at the first."""
        self.close()
        start = index if self.takes_start else 0
        made = self.make if isinstance(self.make, Iterable) else self.make(*[start] * self.takes_start)
        if not isinstance(made, Iterable):
            raise DataError(f"{_name_of(self.make)} returned a {type(made).__name__}; let it return an iterator")
        self._iterator, self._next = iter(made), start

    def _read(self) -> Any:
        assert self._iterator is not None
        try:
            item = next(self._iterator)
        except StopIteration:
            ended = self._next
            self.close()
            raise DataError(
                f"the iterable ended after {ended} examples, but its length was given as {self.length}; pass the "
                "number of examples that every process and worker can read from it"
            ) from None
        except Exception as error:
            at = self._next
            self.close()
            if isinstance(error, DiffkitError):
                raise
            raise DataError(f"example {at} cannot be read: {type(error).__name__}: {error}") from error
        self._next += 1
        return item


class _ReadInOrder(Skipping):
    """Lets every error through: an iterable that raised one has no next example to take its place."""

    def read(self, index: int, read: Callable[[int], T]) -> tuple[int, T]:
        return index, read(index)


def _length_of(make: Any, length: int | None) -> int:
    """Return the number of examples, after checking that the iterable can be restarted."""
    name = _name_of(make)
    if isinstance(make, DataLoader):
        raise DataError(
            "a DataLoader has batches of its own; give its dataset: from_iterable(loader.dataset, length=...)"
        )
    if isinstance(make, Iterator):
        raise DataError(
            f"{name} can be read only once, so neither a second epoch nor a resumed run could read it; pass a function "
            "that makes it anew, without calling it"
        )
    if not isinstance(make, Iterable) and not callable(make):
        raise DataError(
            f"{name} is neither an iterable nor a function that returns one; for a dataset with items pass "
            "it to diffkit.data.from_dataset"
        )
    if length is None and not hasattr(make, "__len__"):
        raise DataError(
            f"{name} has no length, from which a resumed run finds its position; pass the number of examples in an "
            "epoch as length="
        )
    return check_integer("length", len(make) if length is None else length, ge=1)


def _takes_start(make: Callable[..., Any]) -> bool:
    """Return whether a function takes the example to start at."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):  # of a class or function in C
        return False
    needed = [
        each.name
        for each in parameters
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    if needed not in ([], ["start"]):
        raise DataError(f"{_name_of(make)} needs {', '.join(needed)}; pass a function of start, or of nothing")
    return any(each.name == "start" for each in parameters)


def _check_restart(items: DatasetItems, stream: ExampleStream, read: Sequence[tuple[torch.Tensor, Any]]) -> None:
    """Raise unless the first examples are the same when they are read again."""
    for index in (0, len(read) - 1):
        stream.close()
        if not torch.equal(items[index][0], read[index][0]):
            raise DataError(
                f"example {index} is another one when {_name_of(stream.make)} is read again, so that a run could not "
                "resume; let it give the same examples each time, with random generators seeded where it begins"
            )


def _global_generators() -> dict[str, Any]:
    """Return the states of the global generators."""
    name, *numpy_state = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [name, *(np.asarray(each).tolist() for each in numpy_state)],
        "random": random.getstate(),
    }


def _check_generators(before: dict[str, Any]) -> None:
    """Raise if a global generator was drawn from: what a position then gives depends on all that was read before."""
    for name, state in _global_generators().items():
        if state != before[name]:
            raise DataError(
                f"the iterable draws from the global generator of {name}, whose state a resumed run does not have; let "
                "it draw from one of its own, seeded where it begins or by the number of the example"
            )


def _name_of(make: Any) -> str:
    return str(getattr(make, "__name__", type(make).__name__))
