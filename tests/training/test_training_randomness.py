"""Order of data, levels, noise and dropped labels depend on (seed, step, position) and nothing else."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_support import point_system, system

from diffkit.system.draws import Draws, seeded_draws
from diffkit.training.augmentation import drop_conditions
from diffkit.training.data_order import DataOrder

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


def draw(composed, seed: int, step: int, batch: int) -> Draws:
    return seeded_draws(composed.parts, (), seed, step, batch, slice(None), composed.device)


def test_draws_depend_on_seed_step_and_position():
    composed = system()
    a, b = draw(composed, 0, 7, 9), draw(composed, 0, 7, 9)
    assert all(torch.equal(p, q) for p, q in zip(a[:3], b[:3], strict=True))
    assert not torch.equal(a.noise, draw(composed, 1, 7, 9).noise)
    assert not torch.equal(a.noise, draw(composed, 0, 8, 9).noise)
    fewer = draw(composed, 0, 7, 4)
    assert torch.equal(fewer.noise, a.noise[:4]) and torch.equal(fewer.level, a.level[:4])
    assert a.noise.shape == (9, 1, 4, 4) and a.level.dtype == torch.int64
    assert draw(point_system(), 0, 0, 3).noise.shape == (3, 2)


def test_all_levels_are_visited_alike():
    level = torch.cat([draw(system(), 0, step, 200).level for step in range(50)])
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
