"""Laws of noise: example i is the same in any batch, in any order."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

import diffkit
from diffkit.system.randomness import example_seed, noise_for

CPU = torch.device("cpu")
seeds = st.integers(0, 2**40)


@given(seeds, st.lists(st.integers(0, 10_000), min_size=1, max_size=5, unique=True), st.integers(1, 3))
def test_noise_of_an_example_is_independent_of_its_batch(seed, indices, draws):
    together = noise_for(seed, indices, (2, 3), CPU)
    alone = [noise_for(seed, [i], (2, 3), CPU) for i in indices]
    backwards = noise_for(seed, indices[::-1], (2, 3), CPU)
    for _ in range(draws):
        drawn = together()
        assert torch.equal(drawn, torch.cat([one() for one in alone]))
        assert torch.equal(drawn, backwards().flip(0))


@given(seeds, st.integers(0, 10_000))
def test_draws_and_neighbours_are_unrelated(seed, i):
    noise = noise_for(seed, [i, i + 1], (64,), CPU)
    first, second = noise(), noise()
    for a, b in ((first[0], first[1]), (first[0], second[0]), (first[0], second[1])):
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.6
    assert len({example_seed(seed, i), example_seed(seed, i + 1), example_seed(seed + 1, i)}) == 3


@given(st.integers(1, 5), st.integers(0, 3))
def test_a_seeded_sample_does_not_depend_on_how_many_are_made_with_it(n, seed):
    system = diffkit.compose(schedule="cosine", num_steps=4, backbone=None, data_shape=(2,), bins=None)
    options = dict(seed=seed, progress=False, model=lambda x, time: 0.3 * x)
    five = system.sample(5, **options)
    assert torch.equal(system.sample(n, **options), five[:n])
    assert torch.equal(system.sample(5, batch_size=2, **options), five)
