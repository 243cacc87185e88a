"""Seeds: one for the set, or one for each example."""

from __future__ import annotations

import re

import pytest
import torch
from networks import Tiny

import diffkit
from diffkit.errors import OptionError
from diffkit.likelihood import ode_likelihood, score


@pytest.fixture
def system():
    return diffkit.compose(schedule="cosine", backbone=Tiny(2, 2), data_shape=(2, 4, 4), num_steps=6).eval()


@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_an_example_with_its_own_seed_is_what_it_is_alone(system, sampler, batch_size):
    how = dict(sampler=sampler, progress=False)
    together = system.sample(3, seed=[5, 9, 5], batch_size=batch_size, **how)
    for i, seed in enumerate((5, 9, 5)):
        torch.testing.assert_close(together[i], system.sample(1, seed=seed, **how)[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together[0], together[2])
    assert not torch.allclose(together[0], together[1], atol=1e-3)


BAD = [
    (dict(seed=-1), "seed must be >= 0, got -1"),
    (dict(seed="7"), "seed must be an integer, got '7'"),
    (dict(seed=1.5), "seed must be an integer, got 1.5"),
    (dict(seed=[1, -2]), "each seed must be >= 0, got -2"),
    (dict(seed=[1, 2, 3]), "seed must be one number, or one for each of 2 examples, got 3"),
]


@pytest.mark.parametrize(("arguments", "text"), BAD, ids=[text[:30] for _, text in BAD])
def test_wrong_seeds(system, arguments, text):
    with pytest.raises(OptionError, match=re.escape(text)):
        system.sample(2, **arguments)


def test_the_bound_of_an_example_with_its_own_seed_is_what_it_is_alone(system):
    x = torch.rand(3, 2, 4, 4) * 2 - 1
    together = system.bits_per_dim(x, seed=[5, 9, 5], rows_per_call=4).total
    for i, seed in enumerate((5, 9, 5)):
        torch.testing.assert_close(together[i], system.bits_per_dim(x[i : i + 1], seed=seed).total[0])
    assert not torch.allclose(together, system.bits_per_dim(x, seed=5).total, atol=1e-3)
    with pytest.raises(OptionError, match="seed must be one number, or one for each of 3 examples, got 2"):
        system.bits_per_dim(x, seed=[7, 7])


def test_what_takes_one_seed_refuses_several(system):
    pytest.importorskip("torchdiffeq")
    for likelihood in (score, ode_likelihood):
        with pytest.raises(OptionError, match=re.escape("seed must be an integer, got [7, 7]")):
            likelihood(system, torch.zeros(2, 2, 4, 4), seed=[7, 7])
