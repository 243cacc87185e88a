"""Examples that cannot be read: named where they stop a run, or replaced by the next, the same for everyone."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

import diffkit
from diffkit.data import from_dataset
from diffkit.data.loading import load
from diffkit.errors import DataError, OptionError
from diffkit.training import read_metrics

BAD = (7, 8, 34)
"""The first is among the items that are looked at beforehand, the last is not."""


class Sometimes(Dataset):
    """Forty items, of which some raise errors that no process can send to another."""

    def __init__(self, bad=BAD, kind=OSError):
        self.bad, self.kind = bad, kind

    def __len__(self):
        return 40

    def __getitem__(self, i):
        if i in self.bad:
            raise OddError(i) if self.kind is None else self.kind("image file is truncated")
        return torch.full((1, 8, 8), i, dtype=torch.uint8), i % 3


class OddError(Exception):
    def __init__(self, number):
        super().__init__(lambda: number)

    def __str__(self):
        return "odd"

    def __reduce__(self):
        raise TypeError("no pickle of this")


def system(**options):
    torch.manual_seed(0)
    return diffkit.compose(backbone=("mlp", {"hidden": 8, "depth": 1} | options), data_shape=(1, 8, 8), num_steps=25)


def train(data, out, steps=20, **more):
    diffkit.train(system(num_classes=3), data, out=out, steps=steps, batch_size=4, log_every=1, progress=False, **more)
    return [line["loss"] for line in read_metrics(out)]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("kind", "words"), [(OSError, "OSError: image file is truncated"), (None, "OddError: odd")])
def test_the_item_is_named_where_it_stops_a_run(tmp_path, workers, kind, words):
    data = from_dataset(Sometimes((34,), kind), classes=3)
    with pytest.raises(
        DataError, match=f"^item 34 cannot be read: {words}; correct it, or skip it, .*; use on_error='skip'"
    ) as caught:
        train(data, tmp_path / "r", workers=workers)
    assert "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_the_next_item_stands_in(capsys):
    data = from_dataset(Sometimes(), on_error="skip", classes=3)
    batch = data.batch([6, 7, 8, 34, 39])
    assert batch.images[:, 0, 0, 0].tolist() == [6, 9, 9, 35, 39] and batch.indices.tolist() == [6, 7, 8, 34, 39]
    assert batch.conditions["y"].tolist() == [0, 0, 0, 2, 0]
    data.batch([7])
    assert capsys.readouterr().err.count("skipped item 7 cannot be read: OSError: image file is truncated") == 1
    assert data.describe() == from_dataset(Sometimes(()), classes=3).describe()
    with pytest.raises(OptionError, match="on_error must be 'stop' or 'skip', got 'ignore'"):
        from_dataset(Sometimes(), on_error="ignore")


@pytest.mark.slow
def test_a_run_resumes_the_same_with_any_reader(tmp_path):
    """A run that stopped at an item goes on once such items are skipped; workers see the same examples."""
    data = from_dataset(Sometimes(), on_error="skip", classes=3)
    whole = train(data, tmp_path / "whole")
    assert train(data, tmp_path / "parts", 9) == whole[:9]
    assert train(data, tmp_path / "parts", workers=1) == whole


def test_all_bad_and_more_than_allowed():
    with pytest.raises(
        DataError, match=r"none of 40 examples can be read; the first: item 0 cannot be read|more than 20"
    ):
        from_dataset(Sometimes(range(40)), on_error="skip")
    data = from_dataset(Sometimes(), on_error="skip", max_skipped=0.05, classes=3)
    data.batch([7])
    with pytest.raises(DataError, match=r"more than 2 of 40 examples cannot be read, the last: item 34.*max_skipped"):
        data.batch([34])
    assert len(from_dataset(Sometimes(), on_error="skip", max_skipped=0.9, classes=3).batch([34]).images) == 1


def pictures(root, packed):
    root.mkdir()
    for i in range(24):
        Image.fromarray(np.full((8, 8), 10 * i, np.uint8)).save(root / f"{'ab'[i % 2]}_{i:02}.png")
    (root / "a_10.png").write_bytes((root / "a_10.png").read_bytes()[:50])
    if not packed:
        return root
    with zipfile.ZipFile(root.with_suffix(".zip"), "w") as archive:
        for path in sorted(root.iterdir()):
            archive.write(path, path.name)
    return root.with_suffix(".zip")


@pytest.mark.parametrize("packed", [False, True])
def test_unchecked_pictures(tmp_path, packed, capsys):
    source, options = pictures(tmp_path / "p", packed), dict(size=8, channels=1, labels="prefix")
    stop = load(source, check=False, **options)
    skip = load(source, check=False, on_error="skip", **options)
    at = next(i for i in range(24) if stop.pictures.name(i) == "a_10.png")
    with pytest.raises(DataError, match=r"a_10\.png: OSError.*; correct it, or skip it, .*; use on_error='skip'"):
        stop.batch([at])
    found = skip.batch([at, at + 1])
    assert torch.equal(found.images[0], found.images[1]) and "a_10.png" in capsys.readouterr().err
    assert skip.describe() == stop.describe()
    sent = pickle.loads(pickle.dumps(skip))
    assert torch.equal(sent.batch([at]).images, found.images[:1])


def test_a_run_that_began_with_a_file_resumes_without_it(tmp_path):
    """As the error says: with check=False and on_error="skip"."""
    source, options = pictures(tmp_path / "p", False), dict(size=8, channels=1)
    whole = (tmp_path / "p/a_10.png").read_bytes()
    (tmp_path / "p/a_10.png").write_bytes((tmp_path / "p/a_12.png").read_bytes())
    more = dict(batch_size=4, progress=False)
    diffkit.train(system(), load(source, **options), out=tmp_path / "r", steps=2, **more)
    (tmp_path / "p/a_10.png").write_bytes(whole)
    with pytest.raises(
        DataError, match="a run that began with these files can be resumed; use check=False and on_error='skip'"
    ):
        load(source, **options)
    with pytest.raises(OptionError, match="holds a run that differs from this one"):
        diffkit.train(system(), load(source, on_error="skip", **options), out=tmp_path / "r", steps=8, **more)
    data = load(source, on_error="skip", check=False, **options)
    diffkit.train(system(), data, out=tmp_path / "r", steps=8, **more)


class Dies(Dataset):
    """Its worker process ends without a word, as one that is out of memory does."""

    def __len__(self):
        return 64

    def __getitem__(self, i):
        if torch.utils.data.get_worker_info() is not None:
            os._exit(9)
        return torch.zeros(1, 8, 8, dtype=torch.uint8), 0


def test_a_worker_that_dies(tmp_path):
    with pytest.raises(DataError, match=r"a process that reads data was killed, .*; use workers=0"):
        train(from_dataset(Dies(), classes=3), tmp_path / "r", workers=1)


def test_data_that_cannot_be_sent_to_workers(tmp_path):
    data = from_dataset([(torch.zeros(1, 8, 8, dtype=torch.uint8), 0)] * 8, classes=3)
    data.data.items.dataset.append(lambda: 0)
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    try:
        with pytest.raises(DataError, match=r"the data cannot be sent to worker processes: .*use workers=0"):
            train(data, tmp_path / "r", workers=1)
    finally:
        multiprocessing.set_start_method(before, force=True)


def test_items_of_several_types():
    made = [torch.zeros(1, 2, 2) if i else torch.zeros(1, 2, 2, dtype=torch.uint8) for i in range(3)]
    with pytest.raises(DataError, match=r"example 1 is of torch\.float32, example 0 of torch\.uint8; give one type"):
        from_dataset(made)
    with pytest.raises(DataError, match=r"example 1 has c of shape \(3,\), example 0 of shape \(2,\); give one form"):
        from_dataset([(torch.zeros(1, 2, 2), {"c": torch.zeros(2 + i)}) for i in range(3)])
