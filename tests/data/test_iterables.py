"""Iterables of a declared length as data: read in their own order, resumed at their position, else refused."""

from __future__ import annotations

import pickle
import random
import re

import numpy as np
import pytest
import torch
from forks import forked, forking
from torch.utils.data import DataLoader, IterableDataset

import diffkit
from diffkit.data import LowRes, from_dataset, from_iterable
from diffkit.data.loading import as_data
from diffkit.data.matching import match_classes
from diffkit.errors import DataError, OptionError
from diffkit.training import read_metrics
from diffkit.training.data_order import DataOrder

X = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (14, 1, 4, 6), dtype=np.uint8))
LENGTH = 14


def examples(start=0):
    for i in range(start, LENGTH):
        yield X[i], i % 3


def from_the_start():
    return examples()


class Stream(IterableDataset):
    def __iter__(self):
        return ({"image": each, "label": i % 3} for i, each in enumerate(X))


MAKES = {"start": examples, "function": from_the_start, "dataset": Stream(), "list": list(examples())}


@pytest.mark.parametrize("make", MAKES)
def test_the_same_as_the_dataset_in_any_order(make):
    data, wanted = from_iterable(MAKES[make], length=LENGTH, classes=3), from_dataset(list(examples()), classes=3)
    assert (len(data), data.shape, data.bins, data.classes) == (14, (1, 4, 6), 256, ("0", "1", "2"))
    for indices in ([0, 1, 2], [5, 6], [13], [3, 2], [0]):
        found, same = data.batch(indices), wanted.batch(indices)
        assert torch.equal(found.images, same.images) and torch.equal(found.conditions["y"], same.conditions["y"])
    assert torch.equal(pickle.loads(pickle.dumps(data)).batch([4]).images, X[[4]])
    assert len(list(data)) == 14 and data.describe()["order"] == "own"


def test_an_epoch_is_read_once_in_order():
    made = []

    def make():
        made.append(0)
        for each in examples():
            made[-1] += 1
            yield each

    data = from_iterable(make, length=12, labels=False)
    order = DataOrder(12, 5, 0, data.sequential)
    made.clear()
    found = [data.batch(order.batch(step)).indices.tolist() for step in range(5)]
    assert found == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 0, 1, 2], [3, 4, 5, 6, 7], [8, 9, 10, 11, 0]]
    assert made == [12, 12, 1]


def test_far_examples_are_reached_by_start():
    starts = []

    def make(start):
        starts.append(start)
        return ((torch.tensor([float(i)]),) for i in range(start, 10**6))

    data = from_iterable(make, length=10**6)
    starts.clear()
    assert data.batch([5, 900, 10**5, 10**5 + 1]).images.tolist() == [[5], [900], [10**5], [10**5 + 1]]
    assert starts == [5, 10**5]


def run(out, steps, workers=0, make=examples):
    data = from_iterable(make, length=LENGTH, labels=False)
    torch.manual_seed(0)
    backbone = ("mlp", {"hidden": 8, "depth": 1})
    system = diffkit.compose(backbone=backbone, data_shape=data.shape, bins=data.bins, num_steps=25)
    more = dict(batch_size=4, log_every=1, progress=False)
    diffkit.train(system, data, out=out, steps=steps, workers=workers, **more)
    return [line["loss"] for line in read_metrics(out)]


@pytest.mark.parametrize("make", ["start", "function"])
def test_a_run_goes_on_at_its_position(make, tmp_path):
    whole = run(tmp_path / "whole", 6, make=MAKES[make])
    assert run(tmp_path / "parts", 2, make=MAKES[make]) == whole[:2]
    assert run(tmp_path / "parts", 6, workers=2, make=MAKES[make]) == whole
    with pytest.raises(OptionError, match="data fingerprint="):
        run(tmp_path / "parts", 8, make=lambda: reversed(list(examples())))


@pytest.mark.slow
@forking
def test_each_process_takes_its_rows(tmp_path):
    whole = run(tmp_path / "one", 5)
    forked(2, lambda rank: run(tmp_path / "two", 5, make=from_the_start) and None)
    assert [line["loss"] for line in read_metrics(tmp_path / "two")] == pytest.approx(whole, rel=1e-6)


def test_other_data_made_of_it_is_in_order_too():
    data = from_iterable(examples, length=LENGTH, classes=["a", "b", "c"])
    assert LowRes(data, 2).sequential and match_classes(data, ("c", "b", "a")).sequential
    assert not as_data(X).sequential


def jumping():
    yield from (X[i] if i != 9 else X[i, :, :3] for i in range(LENGTH))


def failing():
    for i in range(LENGTH):
        if i == 9:
            raise ValueError("the disk is on fire")
        yield X[i]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (jumping, "example 9 has shape (1, 3, 6), but the data has shape (1, 4, 6)"),
        (failing, "example 9 cannot be read: ValueError: the disk is on fire"),
        (lambda: X[:9], "the iterable ended after 9 examples, but its length was given as 14; pass the number of"),
    ],
)
def test_errors_while_reading_name_the_example(make, message):
    data = from_iterable(make, length=LENGTH)
    for indices in (range(8, 12), [9]):
        with pytest.raises(DataError, match=re.escape(message)) as caught:
            data.batch(indices)
        assert "\n" not in str(caught.value) and "on_error" not in str(caught.value)
    assert torch.equal(data.batch([3]).images, X[[3]])


SHARED = examples()


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (examples(), {}, "examples can be read only once, so neither a second epoch nor a resumed run could read it"),
        (lambda: SHARED, {}, "example 0 is another one when <lambda> is read again, so that a run could not resume"),
        (lambda start: examples(), {}, "example 7 is another one when <lambda> is read again"),
        (examples, {"length": None}, "examples has no length, from which a resumed run finds its position; pass the"),
        (lambda a, b: X, {}, "<lambda> needs a, b; pass a function of start, or of nothing"),
        (
            DataLoader(Stream()),
            {},
            "a DataLoader has batches of its own; give its dataset: from_iterable(loader.dataset",
        ),
        (lambda: 3, {}, "<lambda> returned a int; let it return an iterator"),
        (3, {}, "int is neither an iterable nor a function that returns one"),
        ([], {}, "the iterable ended after 0 examples, but its length was given as 14"),
        (lambda: (torch.rand(2, 3) for _ in range(14)), {}, "draws from the global generator of torch, whose state a"),
        (lambda: (np.random.rand(2, 3) for _ in range(14)), {}, "draws from the global generator of numpy"),  # noqa: NPY002
        (lambda: (X[0] + random.randint(0, 1) for _ in range(14)), {}, "draws from the global generator of random"),
        (lambda: (X[i].long() for i in range(14)), {}, "item 0 is of torch.int64, from which the number of values is"),
        (
            lambda: (torch.rand(1, 2, generator=torch.Generator()) for _ in X),
            {"bins": 256},
            "of the items lie in [0, 1]",
        ),
    ],
)
def test_what_cannot_resume_is_refused(make, options, message):
    with pytest.raises(DataError, match=re.escape(message)):
        from_iterable(make, **({"length": LENGTH} | options))


def test_length():
    assert len(from_iterable(list(examples()))) == 14
    with pytest.raises(OptionError, match="length"):
        from_iterable(examples, length=0)
    with pytest.raises(DataError, match=re.escape("make it data with diffkit.data.from_iterable(dataset, length=...)")):
        as_data(Stream())
