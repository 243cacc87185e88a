"""Map-style datasets of torch, and arrays with labels, as data; other objects are refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import diffkit
from diffkit.data import from_dataset
from diffkit.data.base import Data, scale_images
from diffkit.data.loading import as_data
from diffkit.errors import DataError
from diffkit.training import read_metrics

X = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (12, 1, 4, 6), dtype=np.uint8))
Y = torch.arange(12) % 3


class Made(Dataset):
    """Items that a function of the index makes."""

    def __init__(self, item, **more):
        self.item = item
        vars(self).update(more)

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return self.item(index)


FORMS = {
    "tensors": TensorDataset(X, Y),
    "pair": (X, Y),
    "arrays": (X.numpy(), Y.numpy()),
    "list of labels": (X, Y.tolist()),
    "tuple": Made(lambda i: (X[i], int(Y[i]))),
    "numpy": Made(lambda i: [X[i].numpy(), np.int64(Y[i])]),
    "conditions": Made(lambda i: (X[i], {"y": int(Y[i])})),
    "entries": Made(lambda i: {"image": X[i], "label": Y[i], "name": str(i)}),
    "list": [(X[i], int(Y[i])) for i in range(12)],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_data(form):
    data = from_dataset(FORMS[form], classes=3)
    assert isinstance(data, Data) and len(data) == 12
    assert (data.shape, data.bins, data.classes) == ((1, 4, 6), 256, ("0", "1", "2"))
    batch = data.batch([3, 1])
    assert batch.images.dtype == torch.uint8 and torch.equal(batch.images, X[[3, 1]])
    assert torch.equal(batch.conditions["y"], Y[[3, 1]]) and batch.conditions.keys() == {"y"}
    unwrap_module = from_dataset(FORMS[form], labels=False) if form != "conditions" else data
    assert unwrap_module.batch([0]).conditions == {} or form == "conditions"


@pytest.mark.parametrize("dataset", [X, TensorDataset(X), Made(lambda i: X[i]), Made(lambda i: (X[i], None))])
def test_without_labels(dataset):
    data = from_dataset(dataset)
    assert data.classes is None and data.batch([5]).conditions == {} and torch.equal(data.batch([5]).images, X[[5]])


def test_classes_are_those_of_the_dataset():
    names = ("a", "b", "c")
    assert from_dataset(Made(FORMS["tuple"].item, classes=list(names))).classes == names
    assert from_dataset(Made(FORMS["tuple"].item, classes=torch.arange(3))).classes is None
    assert from_dataset(Made(lambda i: X[i], classes=names)).classes is None
    assert from_dataset(FORMS["tuple"], classes=names).classes == names


def test_entries_of_other_names():
    dataset = Made(lambda i: {"pixels": X[i], "kind": Y[i]})
    assert torch.equal(from_dataset(dataset, image="pixels", labels="kind").batch([4]).conditions["y"], Y[[4]])
    with pytest.raises(DataError, match="item 0 has no entry 'image', but 'pixels', 'kind'; name them with image="):
        from_dataset(dataset)
    with pytest.raises(DataError, match="item 0 has no entry 'sort', but 'pixels', 'kind'"):
        from_dataset(dataset, image="pixels", labels="sort")


def test_floating_point_is_continuous_unless_it_has_bins():
    values = scale_images(X, 256).double()
    data = from_dataset(TensorDataset(values))
    assert data.bins is None and data.batch([2]).images.dtype == torch.float32
    assert from_dataset(TensorDataset(values), bins=256).bins == 256
    assert from_dataset(TensorDataset(X.float() / 255)).bins is None
    with pytest.raises(DataError, match=r"12 of the items lie in \[0, 1\], as ToTensor leaves them"):
        from_dataset(TensorDataset(X.float() / 255), bins=256)


def test_other_integers_and_dimensions():
    grey = Made(lambda i: np.full((1, 2, 2), 1000 * i, np.uint16))
    assert from_dataset(grey, bins=65536).batch([11]).images.max() == 11000
    assert from_dataset(TensorDataset(torch.randn(5, 2))).shape == (2,)
    assert from_dataset(TensorDataset(torch.randn(5, 3, 7))).shape == (3, 7)
    assert from_dataset(TensorDataset(torch.randn(5, 2, 3, 3, 3))).shape == (2, 3, 3, 3)
    assert from_dataset(TensorDataset(X[:, 0]), shape=(4, 6)).shape == (4, 6)


def test_examples_without_a_class_are_minus_one():
    for none in (None, -1):
        labels = [none if i % 2 == 0 else i % 3 for i in range(12)]
        wanted = torch.tensor([-1 if i % 2 == 0 else i % 3 for i in range(12)])
        for dataset in (
            Made(lambda i, given=labels: (X[i], given[i])),
            Made(lambda i, given=labels: {"image": X[i], "label": given[i]}),
            Made(lambda i, given=labels: (X[i], {"y": given[i]})),
            (X, labels),
        ):
            data = from_dataset(dataset, classes=3)
            assert torch.equal(data.batch(range(12)).conditions["y"], wanted)
    assert data.describe()["without_class"] == 6 and data.describe()["class_counts"] == [2, 2, 2]


def test_a_loop_over_the_data_ends():
    assert [conditions["y"] for _, conditions in from_dataset(FORMS["list"])] == Y.tolist()


def test_a_class_where_none_was_seen_is_refused():
    data = from_dataset([(torch.zeros(1, 4, 6), 2 if i == 1 else None) for i in range(100)])
    with pytest.raises(DataError, match="item 1 has the label 2, but the items checked before have None; pass the"):
        data.batch([1])
    told = from_dataset([(torch.zeros(1, 4, 6), 2 if i == 1 else None) for i in range(100)], classes=3)
    assert told.batch([0, 1]).conditions["y"].tolist() == [-1, 2]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(X)


REFUSED = [
    (Made(lambda i: Image.new("RGB", (5, 4))), {}, "item 0 is a picture of Pillow, 5x4 RGB; give the dataset a transf"),
    (Made(lambda i: (Image.new("L", (5, 4)), 1)), {}, "item 0 is a picture of Pillow, 5x4 L; give the dataset a trans"),
    (
        Stream(),
        {},
        "Stream cannot be read in any order; give it to diffkit.data.from_iterable, which reads it in its own",
    ),
    (iter([1]), {}, "list_iterator cannot be read in any order"),
    (DataLoader(TensorDataset(X)), {}, "a DataLoader has an order and batches of its own; give its dataset: from_data"),
    ([], {}, "list is empty"),
    (Made(lambda i: [0.5]), {}, "item 0 is a float; an example must be a tensor or an array (C, *S)"),
    (Made(lambda i: (X[i], 1, 2)), {}, "item 0 has 3 parts instead of an example and its class"),
    (Made(lambda i: (X[i], "cat")), {}, "item 0 has the label 'cat', which is not a class number 0, 1, ...; let the"),
    (Made(lambda i: (X[i], 0.5)), {}, "item 0 has the label 0.5, which is not a class number"),
    (Made(lambda i: (X[i], -2)), {}, "item 0 has the label -2, which is not a class number"),
    (Made(lambda i: (X[i], torch.zeros(3))), {}, "item 0 has the label of shape (3,), which is not a class number"),
    (Made(lambda i: (X[i], i)), {"classes": 3}, "item 3 has class 3, but there are 3 classes"),
    (Made(lambda i: X[i] > 3), {}, "item 0 is of torch.bool; give integers by x.to(torch.uint8), and pass bins=2"),
    (Made(lambda i: X[i].long()), {}, "item 0 is of torch.int64, from which the number of values is unknown; pass"),
    (Made(lambda i: X[i, 0, 0, 0]), {}, "item 0 is one number; an example has a shape (C, *S)"),
    (
        Made(lambda i: X[i, 0]),
        {},
        "item 0 has shape (4, 6), which looks like grey images of 4x6",
    ),
    (Made(lambda i: torch.zeros(8, 6, 3)), {}, "item 0 has shape (8, 6, 3), which looks like channels last"),
    (Made(lambda i: X[i]), {"shape": (1, 6, 4)}, "example 0 has shape (1, 4, 6), but the data has shape (1, 6, 4)"),
    (Made(lambda i: torch.zeros(1, 2 + i)), {}, "example 1 has shape (1, 3), but the data has shape (1, 2)"),
    ((X, Y), {"shape": (1, 6, 4)}, "examples have shape (1, 4, 6), not shape=(1, 6, 4)"),
]


@pytest.mark.parametrize(("dataset", "options", "text"), REFUSED)
def test_objects_that_are_not_data(dataset, options, text):
    with pytest.raises(DataError, match=re.escape(text)):
        from_dataset(dataset, **options)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (
            TensorDataset(X),
            "TensorDataset is not data: it has no shape, bins, classes; make it data with diffkit.data.f",
        ),
        (DataLoader(TensorDataset(X)), "; give the loader's dataset as diffkit.data.from_dataset(loader.dataset)"),
        ((X, Y), "make it data with diffkit.data.from_dataset((X, y))"),
    ],
)
def test_what_is_near_to_data_is_recognized_how_to_be_it(data, text):
    with pytest.raises(DataError, match=re.escape(text)):
        as_data(data)


def test_a_run_on_it_resumes(tmp_path):
    def run(out, steps, workers=0):
        data = from_dataset(Made(lambda i: (X[i].roll(int(torch.randint(4, ())), -1), int(Y[i]))), classes=3)
        torch.manual_seed(0)
        backbone = ("mlp", {"hidden": 8, "depth": 1, "num_classes": 3})
        system = diffkit.compose(backbone=backbone, data_shape=data.shape, bins=data.bins, num_steps=25)
        more = dict(batch_size=4, log_every=1, progress=False)
        diffkit.train(system, data, out=out, steps=steps, workers=workers, **more)
        return [line["loss"] for line in read_metrics(out)]

    whole = run(tmp_path / "whole", 5)
    assert run(tmp_path / "parts", 2) == whole[:2]
    assert run(tmp_path / "parts", 5, workers=2) == whole
