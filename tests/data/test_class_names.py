"""Classes of data counted as those of a run, by name."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from diffkit.data import LowRes, from_array, from_dataset
from diffkit.data.loading import as_data
from diffkit.data.matching import match_classes
from diffkit.errors import DataError


def some(*classes: str, labels=(0, 1, 1)):
    images = np.arange(3 * 16, dtype=np.uint8).reshape(3, 1, 4, 4)
    return from_array(images, labels=np.array(labels), classes=classes or None)


def labels_of(data) -> list[int]:
    one_by_one = [int(data[i][1]["y"]) for i in range(len(data))]
    assert data.batch(range(len(data))).conditions["y"].tolist() == one_by_one
    return one_by_one


def test_classes_are_found_by_name():
    found = match_classes(some("owl", "cat"), ("cat", "dog", "owl"))
    assert labels_of(found) == [2, 0, 0] and found.classes == ("cat", "dog", "owl")
    assert (found.batch([1]).images == some().batch([1]).images).all()
    facts = found.describe()
    assert facts["class_counts"] == [2, 0, 1] and facts["classes"] == ["cat", "dog", "owl"]
    assert labels_of(match_classes(LowRes(some("owl", "cat"), 2), ("cat", "dog", "owl"))) == [2, 0, 0]


@pytest.mark.parametrize(
    ("own", "run"),
    [
        (("cat", "dog"), ("cat", "dog")),
        ((), ("cat", "dog")),
        (("cat", "dog"), ("0", "1")),
        (("cat", "dog"), None),
    ],
)
def test_the_same_classes_and_those_without_names_stay_as_they_are(own, run):
    data = some(*own)
    assert match_classes(data, run) is data


def test_folders_of_some_numbers_are_names():
    assert labels_of(match_classes(some("3", "7"), tuple("0123456789"))) == [3, 7, 7]
    assert labels_of(match_classes(some("10", "2"), ("0", "1", "10", "2"))) == [2, 3, 3]


def test_a_class_of_another_name():
    with pytest.raises(DataError) as error:
        match_classes(some("disc", "zed"), ("box", "disc"))
    assert str(error.value) == (
        "the run has classes box, disc; the data has disc, zed, and zed cannot be matched by name; give data "
        "of the same classes"
    )
    many = [f"class {i}" for i in range(12)]
    with pytest.raises(DataError, match=r"class 9 and 2 more; the data has disc, zed, and disc, zed cannot"):
        match_classes(some("disc", "zed"), many)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("cat", "dog", "cat"), "class 'cat' is named twice in classes; give each class a name of its own"),
        ((b"cat", b"dog", b"owl"), "classes must be a list of names, got b'cat'; give text, such as 'cat'"),
        ((0, 1, 2), "classes must be a list of names, got 0; give text, such as '0'"),
    ],
)
def test_names_that_are_none(classes, words):
    x, y = np.zeros((3, 1, 4, 4), np.uint8), np.arange(3)

    class Own:
        shape, bins = (1, 4, 4), 256

        def __init__(self):
            self.classes = classes

        def __len__(self):
            return 3

        def __getitem__(self, i):
            return x[i], {"y": int(y[i])}

    for make in (
        lambda: from_array(x, labels=y, classes=classes),
        lambda: from_dataset((x, y), classes=classes),
        lambda: from_dataset([(torch.from_numpy(each), i) for i, each in enumerate(x)], classes=classes),
        lambda: as_data(Own()),
    ):
        with pytest.raises(DataError, match=re.escape(words)):
            make()
