"""Numbers by counters: where one is used decides it; uniforms are uniform, normals normal."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffkit.system.randomness import Purpose, key, keys, normals, uniforms

SEEDS = st.integers(0, 2**63 - 1)


def test_keys_are_all_different():
    places = [key(s, p, step) for s in range(20) for p in Purpose for step in range(20)]
    assert len(set(places)) == len(places)
    many = torch.cat([keys(k, 100) for k in places])
    assert len(many.unique()) == len(many)


@given(SEEDS, st.integers(1, 40), st.integers(0, 39), st.sampled_from([(1,), (2,), (3, 5), (1, 4, 4), (2, 3, 3, 3)]))
def test_a_numbers_place_decides_it(seed, count, start, shape):
    """Any part of a batch, down to one example, has the bits that it has in the whole."""
    start = min(start, count - 1)
    whole = keys(key(seed, Purpose.NOISE, 3), count)
    part = keys(key(seed, Purpose.NOISE, 3), count - start, start=start)
    assert torch.equal(part, whole[start:])
    assert torch.equal(normals(part, shape), normals(whole, shape)[start:])
    assert torch.equal(uniforms(part), uniforms(whole)[start:])


def test_normals_are_normal():
    """Moments and tails to five standard errors; no correlation along or across examples."""
    x = normals(keys(key(0, Purpose.NOISE, 0), 1000), (1, 32, 32)).flatten(1).double()
    n = x.numel()
    assert abs(x.mean()) < 5 / math.sqrt(n)
    assert abs(x.square().mean() - 1) < 5 * math.sqrt(2 / n)
    assert abs(x.pow(4).mean() - 3) < 5 * math.sqrt(96 / n)
    for threshold, share in ((1.0, 0.317311), (2.0, 0.045500), (3.0, 0.0026998), (4.0, 6.334e-5)):
        assert abs((x.abs() > threshold).double().mean() - share) < 5 * math.sqrt(share / n)
    for other in (x.roll(1, 0), x.roll(1, 1), x.roll(512, 1)):
        assert abs((x * other).mean()) < 5 / math.sqrt(n)
    assert x.abs().max() < 6.8  # what 32 bits of radius can reach


@pytest.mark.parametrize("shape", [(1,), (7,), (1, 3, 3)])
def test_an_odd_number_of_normals(shape):
    x = normals(keys(5, 2000), shape)
    assert x.shape == (2000, *shape)
    assert x.dtype == torch.float32
    assert abs(x.std() - 1) < 0.1


def test_uniforms_are_uniform():
    u = uniforms(keys(key(0, Purpose.LEVEL, 0), 100_000))
    assert u.dtype == torch.float64
    assert u.min() >= 0 and u.max() < 1
    counts = torch.histc(u, 20, 0, 1)
    assert (counts - 5000).abs().max() < 5 * math.sqrt(5000)
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 5 / math.sqrt(len(u))
