"""Forms of conditions: one row for all, entries of each example, conditions side by side, and odd labels."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from networks import Tiny

import diffkit
from diffkit.errors import OptionError

SHAPE = (3, 8, 8)
POINTS = [torch.zeros(5, 2), torch.ones(7, 2)]
CLASSES = ("mlp", {"hidden": 8, "depth": 1, "num_classes": 3})


class Seeing(Tiny):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__(3, 3)
        self.seen = []

    def forward(self, x, time, text=None, context=None):
        self.seen.append((text, context))
        return super().forward(x, time)


def system_of(network=None):
    torch.manual_seed(0)
    return diffkit.compose(schedule="cosine", backbone=network or Seeing(), data_shape=SHAPE, num_steps=10)


def labelled():
    return diffkit.compose(backbone=CLASSES, data_shape=(2,), num_steps=50, bins=None, schedule="cosine")


def draw(system, n=4, **more):
    return system.sample(n, **(dict(steps=2, seed=1, progress=False) | more))


def test_one_row_is_for_all():
    system, prompt = system_of(), torch.randn(1, 5, 2)
    whole = draw(system, text=["a photo"], context={"text": prompt, "more": (prompt, prompt)})
    for text, context in system.network.seen:
        assert text == ["a photo"] * 4
        assert all(torch.equal(e, prompt.expand(4, 5, 2)) for e in (context["text"], *context["more"]))
    system.network.seen.clear()
    cut = draw(system, batch_size=3, text="a photo", context={"text": prompt.numpy(), "more": [prompt] * 2})
    torch.testing.assert_close(cut, whole)
    assert [len(context["more"][1]) for _, context in system.network.seen] == [3, 3, 1, 1]


def test_one_row_is_for_all_in_training_and_scoring():
    system, prompt, x = system_of(), torch.randn(1, 5, 2), torch.zeros(3, *SHAPE)
    system(x, text=prompt)
    system.bits_per_dim(x, steps=2, rows_per_call=2, text=prompt)
    system.encode(x, steps=2, text=prompt)
    assert all(text.shape[1:] == (5, 2) for text, _ in system.network.seen)
    assert {text.shape[0] for text, _ in system.network.seen} == {2, 3}


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize("form", [torch.clone, torch.Tensor.numpy, lambda t: {"points": t}], ids=["t", "array", "map"])
def test_a_list_with_a_tensor_of_its_own_length_for_each_example(kind, form):
    system = system_of()
    draw(system, 2, batch_size=1, text=kind(form(points) for points in POINTS))
    seen = [text[0]["points"] if isinstance(text[0], dict) else text[0] for text, _ in system.network.seen]
    assert all(len(text) == 1 for text, _ in system.network.seen)
    assert [tuple(points.shape) for points in seen] == [(5, 2)] * 2 + [(7, 2)] * 2


def test_as_many_rows_in_some_as_there_are_examples():
    system, sets = system_of(), [torch.zeros(2, 2), torch.ones(2, 2), torch.ones(5, 2)]
    draw(system, 3, batch_size=2, text=sets)
    assert [[len(points) for points in text] for text, _ in system.network.seen] == [[2, 2]] * 2 + [[5]] * 2


def test_a_list_of_tensors_that_may_mean_two_things_is_refused_with_code_that_runs():
    system, two = system_of(), [torch.zeros(2, 5), torch.ones(2, 5)]
    with pytest.raises(OptionError, match=r"condition 'text' is ambiguous: a list of 2 tensors.*padded, with a mask"):
        draw(system, 2, text=two)
    assert not system.network.seen
    draw(system, 2, batch_size=1, text=tuple(two), context=torch.stack(two))
    side_by_side, stacked = system.network.seen[0]
    assert [tuple(each.shape) for each in side_by_side] == [(1, 5)] * 2 and torch.equal(stacked, two[0][None])


def test_a_list_with_a_wrong_number_of_tensors_is_an_error_with_padding_advice():
    text = (
        "condition 'text' must have one tensor for each of 4 examples, or tensors with a row for each example, got 2 "
    )
    with pytest.raises(OptionError, match=re.escape(text + "with 5, 7 rows; pad them to one length, stack them, and")):
        draw(system_of(), text=POINTS)


def test_mappings_of_each_example_are_cut_with_it():
    system = system_of()
    draw(system, 2, batch_size=1, text=[{"caption": "a"}, {"caption": "b"}])
    assert [text for text, _ in system.network.seen] == [[{"caption": "a"}]] * 2 + [[{"caption": "b"}]] * 2
    with pytest.raises(OptionError, match="condition 'text' must have one value for each of 3 examples, got 2"):
        draw(system, 3, text=[{"caption": "a"}, {"caption": "b"}])
    system.network.seen.clear()
    draw(system, 3, batch_size=2, text=[{"caption": "a"}], context=[torch.zeros(5, 2)])
    assert [len(text) for text, _ in system.network.seen] == [2, 2, 1, 1]
    assert [len(points) for _, points in system.network.seen] == [2, 2, 1, 1]


def test_conditions_inside_of_others_are_given_in_the_precision_of_the_network():
    system, e = system_of(Seeing().to(torch.bfloat16)), torch.randn(4, 5)
    draw(system, context={"text": e, "more": [e, e]})
    context = system.network.seen[0][1]
    assert {t.dtype for t in (context["text"], *context["more"])} == {torch.bfloat16}


ODD_LABELS = [
    ("a", "y must be class numbers 0..2, one for each example, got 'a'"),
    ({}, "y must be class numbers 0..2"),
    (None, "y is missing, but the network has 3 classes; pass y, class numbers 0..2"),
    ([True, False], "y must be class numbers 0..2, one for each example, got bool of shape (2,)"),
    ([None, 1], "y has None for example 0, but the network has no null class"),
    ([10**20, 0], "condition 'y' has 100000000000000000000, which is more than 64 bits hold"),
    (-(10**20), "condition 'y' is -100000000000000000000, which is more than 64 bits hold; use a smaller number"),
    (float("nan"), "y must be class numbers"),
    ([1.5, 0.0], "y must be class numbers 0..2, one for each example, got float32 of shape (2,)"),
    (1.5, "y must be class numbers 0..2, one for each example, got 1.5"),
    ([[0], [1]], "y must be class numbers 0..2, one for each example, got int64 of shape (2, 1)"),
    ([[0], [1, 2]], "y must be class numbers"),
    ([0, 3], "y has label 3, but the network has 3 classes; labels are 0..2"),
    ([0, -1], "y has label -1, but the network has 3 classes; labels are 0..2"),
    (np.array([1 + 1j, 0]), "y must be class numbers"),
    (np.array(["a", "b"]), "y must be class numbers"),
    (object(), "y must be class numbers"),
    ([0, 1, 2], "must have one value for each of 2 examples, got 3"),
    ([], "must have one value for each of 2 examples, got 0"),
    (iter([0, 1]), "condition 'y' is a list_iterator, which has no rows; make it a list"),
    ({0, 1}, "condition 'y' is a set, which has no rows; make it a list"),
]


@pytest.mark.parametrize(("y", "text"), ODD_LABELS, ids=[str(i) for i in range(len(ODD_LABELS))])
def test_odd_labels_are_refused_before_any_work(y, text):
    system = labelled()
    with pytest.raises(OptionError, match=re.escape(text)):
        system.sample(2, steps=2, progress=False, y=y)
    with pytest.raises(OptionError):
        system(torch.zeros(2, 2), y=y)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint64, ">i8"])
def test_labels_of_any_whole_numbers_are_taken(dtype):
    system, call = labelled(), dict(steps=2, seed=0, progress=False)
    assert torch.equal(system.sample(2, y=np.array([2, 1], dtype), **call), system.sample(2, y=[2, 1], **call))
