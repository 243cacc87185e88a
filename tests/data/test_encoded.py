"""Encoded texts as the condition ``context``: encoded once, cached, padded; and ragged conditions of other data."""

import numpy as np
import pytest
import torch

import diffkit
from diffkit.data import Encoded, from_array
from diffkit.data.base import BatchedData
from diffkit.errors import DataError, OptionError
from diffkit.evaluation.sampling import read_conditions

IMAGES = np.arange(6 * 16, dtype=np.uint8).reshape(6, 1, 4, 4)
TEXTS = {"cat": "a cat", "dog": "one brown dog"}


class Encoder:
    """Words as vectors of their length, and the texts that it was called with."""

    def __init__(self):
        self.seen = []

    def __call__(self, texts):
        self.seen += texts
        return [torch.tensor([[len(word), 1.0, 0.5] for word in text.split()]) for text in texts]


def labelled(labels=(0, 1, 1, 0, -1, 1)):
    return from_array(IMAGES, labels=np.array(labels), classes=["cat", "dog"])


def test_a_text_of_each_class_is_encoded_once():
    encoder = Encoder()
    data = Encoded(labelled(), encoder, TEXTS)
    batch = data.batch([0, 1, 4])
    assert encoder.seen == ["a cat", "one brown dog"] and data.width == 3
    assert batch.conditions["context"][..., 0].tolist() == [[1, 3, 0], [3, 5, 3], [0, 0, 0]]
    assert batch.conditions["context_mask"].tolist() == [[True, True, False], [True] * 3, [False] * 3]
    assert batch.conditions.keys() == {"context", "context_mask"} and data.classes is None
    assert data[0][1]["context"].shape == (2, 3)


def test_texts_of_each_example_and_names_of_classes():
    found = Encoded(from_array(IMAGES), Encoder(), ["a b"] * 5 + ["c"]).batch([5, 0]).conditions
    assert found["context_mask"].tolist() == [[True, False], [True, True]]
    assert Encoded(labelled(), Encoder()).batch([1]).conditions["context"].tolist() == [[[3, 1, 0.5]]]


def test_the_cache_is_used_for_the_same_texts_only(tmp_path):
    first = Encoded(labelled(), Encoder(), TEXTS, cache=tmp_path / "texts.npz")
    encoder = Encoder()
    again = Encoded(labelled(), encoder, TEXTS, cache=tmp_path / "texts.npz")
    assert encoder.seen == [] and again.describe() == first.describe()
    other = Encoded(labelled(), encoder, TEXTS | {"cat": "the cat"}, cache=tmp_path / "texts.npz")
    assert encoder.seen and other.describe() != first.describe()
    (tmp_path / "texts.npz").write_bytes(b"no")
    with pytest.raises(DataError, match=r"texts.npz is not a cache of encoded texts, or is damaged: .*; remove it"):
        Encoded(labelled(), encoder, TEXTS, cache=tmp_path / "texts.npz")


REFUSED = [
    (lambda: Encoded(from_array(IMAGES), Encoder()), DataError, "the data has no classes, whose names would be"),
    (lambda: Encoded(labelled(), Encoder(), {"cat": "a"}), OptionError, "texts have none for class 'dog'"),
    (lambda: Encoded(labelled(), Encoder(), ["a"]), OptionError, "texts must be one for each of 6 examples"),
    (lambda: Encoded(labelled(), lambda texts: []), DataError, "the encoder returns 0 results for 2 texts"),
    (lambda: Encoded(labelled(), lambda texts: torch.ones(2, 3)), DataError, r"the encoder returns \(3,\) for 'cat'"),
    (
        lambda: Encoded(labelled(), lambda texts: [torch.ones(1, 2), torch.ones(1, 3)]),
        DataError,
        "the encoder returns vectors of several widths: 2, 3",
    ),
]


@pytest.mark.parametrize(("make", "kind", "text"), REFUSED, ids=[text[:24] for *_, text in REFUSED])
def test_refused(make, kind, text):
    with pytest.raises(kind, match=text):
        make()


def test_data_that_does_not_fit_the_network_is_refused(tmp_path):
    data = Encoded(labelled(), Encoder(), TEXTS)
    recipe = {"channels": 8, "groups": 4, "channel_mult": (1,), "num_heads": 2}
    for found, width, text in (
        (
            data,
            0,
            "the data gives a context of width 3, but the network reads none; load the data without; use context=3",
        ),
        (from_array(IMAGES), 3, r"but the data gives none; wrap it in diffkit.data.Encoded\(data, encode, texts\)"),
        (data, 4, "the network reads a context of width 4, the data gives one of width 3; compose with that width"),
    ):
        system = diffkit.compose(backbone=("unet", recipe | {"context": width}), data_shape=(1, 4, 4))
        with pytest.raises(DataError, match=text):
            diffkit.train(system, found, out=tmp_path / "run", steps=1, batch_size=2)


class Ragged:
    """Vectors of as many rows as the example's number."""

    shape, bins, classes = (2,), None, None

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return np.zeros(2, np.float32), {"words": np.ones((index + 1, 2), np.float32)}


def test_ragged_conditions_are_padded():
    found = BatchedData(Ragged()).batch([0, 2]).conditions
    assert found["words"].sum((1, 2)).tolist() == [2, 6]
    assert found["words_mask"].tolist() == [[True, False, False], [True, True, True]]
    assert BatchedData(Ragged()).batch([1, 1]).conditions.keys() == {"words"}


def test_conditions_in_arrays_and_files(tmp_path):
    words, mask = np.random.default_rng(0).standard_normal((6, 2, 3)), np.ones((6, 2), bool)
    data = from_array(IMAGES, conditions={"context": words, "context_mask": mask})
    found = data.batch([3, 0]).conditions
    assert found["context"].equal(torch.from_numpy(words[[3, 0]]).float()) and found["context_mask"].dtype == torch.bool
    assert data[1][1]["context"].shape == (2, 3)
    assert data.describe()["fingerprint"] != from_array(IMAGES).describe()["fingerprint"]
    np.savez(tmp_path / "all.npz", arr_0=IMAGES, context=words)
    loaded = diffkit.data.load(str(tmp_path / "all.npz"), layout="channels_first", conditions=["context"])
    assert loaded.batch([2]).conditions["context"].equal(torch.from_numpy(words[[2]]).float())
    with pytest.raises(DataError, match=r"has no array text \(it has: arr_0, context\)"):
        diffkit.data.load(str(tmp_path / "all.npz"), conditions=["text"])
    with pytest.raises(DataError, match="condition 'context' must be numbers with a row for each of 6 examples"):
        from_array(IMAGES, conditions={"context": words[:2]})


def test_conditions_of_samples_in_a_file(tmp_path):
    np.savez(tmp_path / "three.npz", context=np.ones((1, 2, 3)), y=np.arange(4))
    assert read_conditions(tmp_path / "three.npz", 4).keys() == {"context", "y"}
    with pytest.raises(DataError, match=r"condition 'y' in '.*' must have 1 row, or 5, got \(4,\)"):
        read_conditions(tmp_path / "three.npz", 5)
    (tmp_path / "no.npz").write_bytes(b"no")
    with pytest.raises(DataError, match="cannot be read as a"):
        read_conditions(tmp_path / "no.npz", 5)
