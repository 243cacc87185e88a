"""Order of data, levels, noise and dropped labels depend on (seed, step, position) and nothing else."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_support import point_system, system

from diffkit.training.data_order import DataOrder
from diffkit.training.draws import draw, drop_conditions, tensors_of, with_tensors
from diffkit.training.randomness import Purpose, key, keys, normals, uniforms

SIZES = st.integers(1, 40).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, size)))
SEEDS = st.integers(0, 2**63 - 1)


@given(SIZES, SEEDS, st.integers(0, 5))
def test_every_epoch_visits_every_example_once(sizes, seed, number):
    size, batch_size = sizes
    epoch = DataOrder(size, batch_size, seed).epoch(number)
    assert sorted(epoch) == list(range(size))


@given(SIZES, SEEDS, st.integers(0, 60))
def test_batches_cut_the_stream_of_epochs_wherever_they_fall(sizes, seed, step):
    """Nothing dropped, nothing repeated, and asking for one batch alone gives the same as asking for all."""
    size, batch_size = sizes
    order = DataOrder(size, batch_size, seed)
    stream = np.concatenate([DataOrder(size, batch_size, seed).epoch(e) for e in range(61 * batch_size // size + 1)])
    expected = stream[step * batch_size : (step + 1) * batch_size]
    assert np.array_equal(order.batch(step), expected)
    walked = list(map(DataOrder(size, batch_size, seed).batch, range(max(0, step - 2), step + 1)))
    assert np.array_equal(walked[-1], expected)


def test_no_example_is_favoured():
    order = DataOrder(10, 7, 0)
    counts = Counter(int(i) for batch in map(order.batch, range(100)) for i in batch)
    assert set(counts.values()) == {70}


def test_epochs_and_seeds_differ():
    orders = [tuple(DataOrder(50, 5, seed).epoch(e)) for seed in (0, 1, 2) for e in (0, 1, 2)]
    assert len(set(orders)) == 9


def test_permutations_of_three_are_uniform():
    counts = Counter(tuple(DataOrder(3, 1, seed).epoch(0)) for seed in range(3000))
    assert len(counts) == 6
    assert max(abs(count - 500) for count in counts.values()) < 5 * math.sqrt(500)


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


def test_draws_depend_on_seed_step_and_position():
    composed, state = system(), ()
    a, b = draw(composed, state, 0, 7, 9), draw(composed, state, 0, 7, 9)
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
    assert not torch.equal(a.noise, draw(composed, state, 1, 7, 9).noise)
    assert not torch.equal(a.noise, draw(composed, state, 0, 8, 9).noise)
    fewer = draw(composed, state, 0, 7, 4)
    assert torch.equal(fewer.noise, a.noise[:4]) and torch.equal(fewer.level, a.level[:4])
    assert a.noise.shape == (9, 1, 4, 4) and a.level.dtype == torch.int64
    assert draw(point_system(), state, 0, 0, 3).noise.shape == (3, 2)


def test_all_levels_are_visited_alike():
    level = torch.cat([draw(system(), (), 0, step, 200).level for step in range(50)])
    counts = torch.bincount(level, minlength=21)
    assert counts[0] == 0 and len(counts) == 21
    assert (counts[1:] - 500).abs().max() < 5 * math.sqrt(500)


def test_labels_are_dropped_at_the_given_rate():
    y = torch.arange(20_000) % 3
    kept = {"y": y, "other": y}
    dropped = drop_conditions(kept, {"y": 3}, 0.25, 0, 11, len(y))
    assert torch.equal(dropped["other"], y) and torch.equal(kept["y"], torch.arange(20_000) % 3)
    share = (dropped["y"] == 3).double().mean()
    assert abs(share - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 20_000)
    assert torch.equal(dropped["y"][dropped["y"] < 3], y[dropped["y"] < 3])
    assert torch.equal(drop_conditions(kept, {"y": 3}, 1.0, 0, 0, len(y))["y"], torch.full_like(y, 3))


def test_a_state_is_taken_apart_and_put_together():
    from diffkit.parts.timesteps.loss_second_moment import History, LossSecondMoment

    state = LossSecondMoment().init(system().table)
    doubled = with_tensors(state, [2 * t for t in tensors_of(state)])
    assert isinstance(doubled, History)
    nested = (torch.ones(1), (torch.zeros(2), torch.ones(3)))
    assert [len(t) for t in tensors_of(with_tensors(nested, tensors_of(nested)))] == [1, 2, 3]
    assert with_tensors((), []) == ()
    single = torch.ones(2)
    assert with_tensors(single, [single]) is single
