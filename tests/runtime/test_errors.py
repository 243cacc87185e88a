"""Errors hold option, value and fix as data, and each surface spells them."""

from __future__ import annotations

import pickle

import pytest

import diffkit
from diffkit.errors import UNSET, CompositionError, DataError, Message, OptionError, Setting, joined, problem, within


@pytest.mark.parametrize(
    ("text", "data", "wanted"),
    [
        ("must be >= 1", dict(option="num_steps", value=0), "num_steps must be >= 1, got 0"),
        ("must be > 0", dict(option="each of data_shape", value=-1), "each of data_shape must be > 0, got -1"),
        ("does not fit", dict(option="groups", value=3, fix={"groups": 4}), "groups=3 does not fit; use groups=4"),
        (
            "trains the variance",
            dict(fix=[{"var": "x"}, {"loss": "y"}]),
            "trains the variance; use var='x' or loss='y'",
        ),
        ("draws nothing", dict(fix=[{"a": 1, "b": 2}, {"c": UNSET}]), "draws nothing; use a=1 and b=2 or leave c out"),
        ("the whole message", {}, "the whole message"),
    ],
)
def test_python_spelling(text, data, wanted):
    error = OptionError(text, **data)
    assert str(error) == wanted
    assert (error.option, error.value, error.fix) == tuple(
        data.get(n, d) for n, d in zip(("option", "value", "fix"), ("", UNSET, ()), strict=True)
    )


def test_a_message_stays_data_when_it_is_joined_named_and_pickled():
    one = problem("does not fit", option="groups", value=3, fix={"loss": "simple"})
    text = Message("backbone 'unet': ", one.of("backbone", {"groups": "norm_groups"}))
    settings = (Setting("norm_groups", 3, "backbone"), Setting("loss", "simple", "backbone"))
    assert (
        joined("\n", ["two:", text]).settings
        == settings
        == pickle.loads(pickle.dumps(DataError(text))).message.settings
    )
    assert (
        text.spelled(lambda s: f"<{s.part}.{s.option}>")
        == "backbone 'unet': <backbone.norm_groups> does not fit; use <backbone.loss>"
    )
    with pytest.raises(DataError, match=r"^size=3 ") as caught, within("data", sizes="size"):
        raise DataError("is odd", option="sizes", value=3)
    assert caught.value.message.settings == (Setting("size", 3, "data"),)


def test_library_errors_hold_what_was_wrong_and_what_works():
    with pytest.raises(OptionError) as caught:
        diffkit.compose(schedule=("cosine", {"s": -1}), backbone=None)
    assert (caught.value.option, caught.value.value) == ("s", -1.0)
    assert caught.value.message.settings == (Setting("s", part="schedule"),)
    given = dict(loss="hybrid", backbone=None)
    with pytest.raises(CompositionError) as refused:
        diffkit.compose(**given)
    for fix in refused.value.message.settings:  # the advice works
        diffkit.compose(**given | {fix.option: fix.value})
