"""Arguments that make no sense, or are far too large: one error of diffkit's, at once."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import diffkit

NETWORK = ("mlp", {"hidden": 4, "depth": 1})


def _system(**keywords):
    return diffkit.compose(
        **{"backbone": NETWORK, "data_shape": (2,), "num_steps": 50, "bins": None, **keywords}
    ).eval()


@pytest.fixture(scope="module")
def system():
    return _system()


X = torch.zeros(2, 2)
SAMPLED = dict(steps=2, seed=0, progress=False)
FAR_TOO_LARGE = (10**20, 2**63, 2**64, np.uint64(2**63))
NO_NUMBERS = (
    None,
    True,
    "a",
    b"a",
    [],
    {},
    (1.0,),
    1j,
    Ellipsis,
    float("nan"),
    1.5,
    -(2**70),
    np.datetime64("2026-01-01"),
)


@pytest.mark.parametrize("value", [*FAR_TOO_LARGE, *NO_NUMBERS], ids=repr)
def test_numbers(system, value):
    calls = [
        lambda: system.sample(value, **SAMPLED),
        lambda: _system(num_steps=value),
        lambda: _system(data_shape=(value, 2)),
        lambda: _system(backbone=("mlp", {"hidden": value})),
        lambda: _system(backbone=("mlp", {"depth": value})),
        lambda: system.draw_levels(value),
    ]
    for call in calls:
        with pytest.raises(diffkit.DiffkitError):
            call()
    if value is not None:
        with pytest.raises(diffkit.DiffkitError):
            system.sample(2, steps=value, seed=0, progress=False)
        with pytest.raises(diffkit.DiffkitError):
            system.bits_per_dim(X, steps=2, seed=0, rows_per_call=0 if isinstance(value, int | np.integer) else value)
        with pytest.raises(diffkit.DiffkitError):
            system.sample(2, **{**SAMPLED, "seed": -1 if isinstance(value, int | np.integer) else value})


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda s: s.sample(10**20, **SAMPLED), "n 100000000000000000000 is more than memory holds"),
        (lambda s: s.sample(10**13, **SAMPLED), "n 10000000000000 is more than memory holds; make at most"),
        (lambda s: s.sample(10**7, **SAMPLED), "10000000 examples with a seed at once are more than 1000000, as each"),
        (lambda s: s.sample(2, **{**SAMPLED, "seed": range(10**12)}), "one for each of 2 examples, got 1000000000000"),
        (lambda s: s.sample(2, **{**SAMPLED, "steps": range(10**12)}), "levels must lie in 1..50, got range(0, 10"),
        (lambda s: s.sample(2, **{**SAMPLED, "steps": "1" * 5000}), "steps must be <= 50, got a number of 5000 digits"),
        (lambda s: s.sample(2, **SAMPLED, clip=2), "clip must be True or False, got 2"),
        (lambda s: s.sample(2, **SAMPLED, model=3), "model must be a function, called as model(x, time, **conditions)"),
        (lambda s: s.sample(2, **SAMPLED, x_transform=3), "x_transform must be a function, called as x_transform(x_st"),
        (
            lambda s: s(X, generator=7),
            "generator must be a torch.Generator, got a int; torch.Generator().manual_seed(0)",
        ),
        (lambda s: s.loss_terms(None, X, 3, X), "level must be a tensor with an entry for each example, got a int"),
        (lambda s: s.loss_terms(None, X, X[:, 0].long(), None), "noise must be a tensor with an entry for each"),
        (
            lambda s: s.sample_from(None, None, None),
            "x must be a tensor with an entry for each example, got a NoneType",
        ),
        (lambda s: s.sample_from(None, X, 3), "noise_fn must be a function, called as noise_fn(), got a int"),
        (lambda s: s.sample_from(None, X, lambda: X, 20), "table must be a ProcessTable, such as System.table_for(20)"),
        (lambda s: _system(num_steps=10**7), "num_steps 10000000 is more than a table holds; use at most 1000000"),
        (lambda s: _system(data_shape=(2**40, 2)), "is 2199023255552 values; an example has at most 2147483648"),
        (lambda s: _system(rescale_time="no"), "rescale_time must be True or False, got 'no'"),
        (lambda s: _system(clip_x_start=X), "clip_x_start must be True or False"),
        (lambda s: _system(train_spacing=range(10**12)), "is more levels than a table holds, 1000000"),
        (lambda s: _system(device="nowhere"), "device 'nowhere' cannot be used"),
    ],
)
def test_the_error_contains_a_fix(system, call, text):
    with pytest.raises(diffkit.DiffkitError, match=re.escape(text)):
        call(system)


def test_the_remedies_work(system):
    assert system.sample(3, steps=2, seed=0, progress=False, batch_size=1000).shape == (3, 2)
    assert system.sample_from(None, X, lambda: X, system.table_for(20)).shape == (2, 2)
    assert system(X, generator=torch.Generator().manual_seed(0))["loss"].shape == (2,)


@pytest.mark.parametrize("seed", [np.int64(3), np.array([1, 2]), torch.tensor([1, 2]), 2**64, range(2)], ids=repr)
def test_seeds_of_other_kinds(system, seed):
    assert system.sample(2, steps=2, seed=seed, progress=False).isfinite().all()


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        (dict(schedule=("linear", {"end": 0.5}), num_steps=1000), "mean 'eps' cannot recover x_start"),
        (
            dict(loss=("p2", {"gamma": 1e6, "k": 0.5}), schedule="sigmoid"),
            "loss 'p2' is not finite in float32 at level",
        ),
        (dict(loss=("huber", {"delta": 10**400})), "delta must be finite, got 1000"),
        (
            dict(loss=("huber", {"delta": 1e300})),
            "delta must be 0 or of a size from 1e-18 to 1e+18, got 1e+300",
        ),
        (
            dict(schedule=("shifted_cosine", {"log_snr_min": -1e9})),
            "the table of schedule ShiftedCosine cannot be computed",
        ),
        (dict(timesteps=("loss_second_moment", {"history": 10**6})), "history must be >= 1 and <= 1000, got 1000000"),
        (dict(backbone=("mlp", {"depth": 10**6})), "depth must be >= 1 and <= 10000, got 1000000"),
    ],
)
def test_extreme_options(keywords, text):
    with pytest.raises(diffkit.DiffkitError, match=re.escape(text)):
        _system(**keywords)


def test_a_part_of_ones_own_whose_arithmetic_overflows_is_named():
    from attrs import frozen

    from diffkit.protocols import NoiseSchedule

    @frozen
    class Steep(NoiseSchedule):
        def table(self, num_steps):
            return 10.0**num_steps**9

    with pytest.raises(diffkit.OptionError, match="the table of schedule Steep cannot be computed"):
        _system(schedule=Steep())
