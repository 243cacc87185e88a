"""Options of a call: declared once, shown by ``help`` and refused alike everywhere."""

from __future__ import annotations

import inspect

import pytest
import torch

import diffkit
from diffkit import tasks
from diffkit.errors import OptionError
from diffkit.likelihood import score
from diffkit.system.call_options import SampleOptions
from diffkit.system.module import System

SHAPE = (1, 4, 4)
TASKS = ("exact_decode", "exact_encode", "image_to_image", "inpaint", "interpolate", "invert", "solve", "super_resolve")
CALLS = {name: getattr(System, name) for name in ("sample", "trajectory", "encode", "prepare", "bits_per_dim")}
CALLS |= {name: getattr(tasks, name) for name in TASKS} | {"score": score}


def network(x, time):
    return 0.1 * x


@pytest.fixture(scope="module")
def system():
    return diffkit.compose(schedule="cosine", backbone=None, data_shape=SHAPE, num_steps=12)


@pytest.mark.parametrize("name", CALLS)
def test_help_names_and_explains_every_option(name):
    parameters, text = inspect.signature(CALLS[name]).parameters, CALLS[name].__doc__
    assert {"steps", "guidance", "clip", "model"} <= parameters.keys() and "options" not in parameters
    assert parameters["conditions"].kind is inspect.Parameter.VAR_KEYWORD
    unexplained = [option for option in parameters if option in SampleOptions.__annotations__ and option not in text]
    assert not unexplained


def test_the_default_that_help_shows_is_that_of_the_function():
    assert inspect.signature(System.sample).parameters["progress"].default is True
    assert inspect.signature(System.encode).parameters["sampler"].default == "ddim"
    assert inspect.signature(tasks.invert).parameters["sampler"].default == "heun"


@pytest.mark.parametrize("call", ["sample", "trajectory", "prepare"])
def test_a_misspelt_option_is_refused_alike(system, call):
    with pytest.raises(OptionError, match="takes no condition 'stesp'; did you mean 'steps'"):
        getattr(system, call)(2, stesp=3, model=network)


@pytest.mark.parametrize("call", ["trajectory", "prepare"])
def test_an_option_of_another_call_is_no_condition(system, call):
    with pytest.raises(OptionError, match="'batch_size' is an option of other calls, not of this one"):
        getattr(system, call)(2, batch_size=1, model=network)


def test_options_of_the_caller_are_left_as_they_are(system):
    options = {"steps": 3, "model": network, "progress": False}
    before = dict(options)
    tasks.invert(system, torch.zeros(SHAPE), **options)
    assert options == before
