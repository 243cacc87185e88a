"""Timestep samplers: what sets each apart; that they are unbiased is the kit's to check."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import diffkit
from diffkit.errors import OptionError
from diffkit.parts.schedules.cosine import Cosine
from diffkit.registry import registry


def make(name, **options):
    return registry("timesteps").create(name, **options)


def draw(part, num_steps, batch, seed=0):
    u = torch.rand(batch, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return part.sample(part.init(Cosine().table(num_steps)), u, num_steps)


@pytest.mark.parametrize("batch", [1, 3, 8, 100, 250])
def test_a_stratified_batch_covers_the_levels_evenly(batch):
    t, weight = draw(make("stratified"), 100, batch)
    counts = torch.bincount(t - 1, minlength=100)
    assert int(counts.max()) - int(counts.min()) <= 1
    assert int((counts > 0).sum()) == min(batch, 100) and torch.equal(weight, torch.ones(batch))


def test_each_row_of_a_stratified_batch_is_uniform():
    part = make("stratified")
    t = torch.stack([part.sample((), torch.full((4,), u, dtype=torch.float64), 10)[0] for u in np.arange(0.05, 1, 0.1)])
    for row in t.T:
        assert sorted(row.tolist()) == list(range(1, 11))


def test_stratified_levels_steady_a_loss_that_grows_with_the_level():
    loss = torch.linspace(0, 1, 1000)
    means = {
        name: torch.stack([loss[draw(make(name), 1000, 64, seed)[0] - 1].mean() for seed in range(50)]).std()
        for name in ("uniform", "stratified", "antithetic")
    }
    assert means["stratified"] < means["uniform"] / 6 and means["antithetic"] < means["uniform"] / 1000


@pytest.mark.parametrize("batch", [1, 2, 7, 8])
def test_antithetic_levels_come_in_mirrored_pairs(batch):
    t, _ = draw(make("antithetic"), 50, batch)
    half = batch // 2
    assert torch.equal(t[:half] + t[batch - half :], torch.full((half,), 51))
    assert int(t.min()) >= 1 and int(t.max()) <= 50


def test_logit_normal_has_the_distribution_of_its_name():
    part = make("logit_normal", mean=0.5, std=0.8, uniform_prob=1e-12)
    p = part.init(Cosine().table(1000))
    middle = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    logit = torch.logit(middle)
    density = torch.exp(-0.5 * ((logit - 0.5) / 0.8) ** 2) / (0.8 * math.sqrt(2 * math.pi) * middle * (1 - middle))
    torch.testing.assert_close(p * 1000, density, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [-1.0, -0.4, 0.0, 0.8, 1.29, 1.75])
def test_mode_has_the_distribution_of_its_formula(scale):
    p = make("mode", scale=scale).init(Cosine().table(40))
    u = (np.arange(400_000) + 0.5) / 400_000
    time = 1 - u - scale * (np.cos(np.pi * u / 2) ** 2 - 1 + u)
    counts = np.histogram(time, bins=40, range=(0, 1))[0] / 400_000
    np.testing.assert_allclose(p.numpy(), counts, atol=2e-5)
    np.testing.assert_allclose(float(p.sum()), 1, rtol=1e-12)


def test_mode_refuses_scales_that_fold_time_back():
    with pytest.raises(OptionError, match=r"scale must be >= -1 and < 1\.75194, got 1\.8"):
        make("mode", scale=1.8)


def test_weights_stay_bounded():
    _, weight = draw(make("logit_normal", std=0.3, uniform_prob=0.2), 1000, 4096)
    assert float(weight.max()) <= 5.0001


def losses_of(t):
    return (t.double() / 100) ** 2


def test_adaptive_follows_the_losses_once_every_bin_is_warm():
    part, table = make("adaptive", bins=10, warmup=3, uniform_prob=0.1), Cosine().table(100)
    state = part.init(table)
    t = torch.arange(1, 101)
    state = part.update(state, t[:99], losses_of(t[:99]))
    state = part.update(state, t[:90], losses_of(t[:90]))
    cold = part.update(part.init(table), t[:90], losses_of(t[:90]))
    torch.testing.assert_close(part.probabilities(cold), torch.full((100,), 0.01, dtype=torch.float64))
    for _ in range(100):
        state = part.update(state, t, losses_of(t))
    p = part.probabilities(state).view(10, 10)
    torch.testing.assert_close(p, p[:, :1].expand(10, 10))  # one value for each bin
    mean = losses_of(t).view(10, 10).mean(1)
    torch.testing.assert_close(p[:, 0], 0.9 * mean / (10 * mean.sum()) + 0.001, rtol=0.02, atol=0)


def test_adaptive_starts_without_a_bias_to_zero():
    part = make("adaptive", bins=2, warmup=1, decay=0.99, uniform_prob=1e-9)
    state = part.init(Cosine().table(2))
    state = part.update(state, torch.tensor([1]), torch.tensor([4.0]))
    for _ in range(300):
        state = part.update(state, torch.tensor([2]), torch.tensor([1.0]))
    torch.testing.assert_close(part.probabilities(state), torch.tensor([0.8, 0.2]).double(), rtol=1e-6, atol=0)


def test_adaptive_never_has_more_bins_than_levels_and_leaves_out_padding():
    part = make("adaptive")
    state = part.init(Cosine().table(3))
    assert state.mean.shape == (3,) and state.bin_of.tolist() == [0, 1, 2]
    after = part.update(state, torch.tensor([0, 1, 2]), torch.tensor([9.0, float("nan"), 1.0]))
    assert after.seen.tolist() == [0, 1, 0]


@pytest.mark.parametrize("name", ["stratified", "antithetic", "logit_normal", "mode", "adaptive"])
def test_training_draws_them(name):
    system = diffkit.compose(
        schedule="cosine",
        timesteps=name,
        data_shape=(1, 4, 4),
        num_steps=30,
        backbone=("mlp", {"hidden": 8, "depth": 1}),
    )
    terms = system(torch.rand(6, 1, 4, 4) * 2 - 1, generator=torch.Generator().manual_seed(0))
    assert terms["loss"].isfinite().all() and terms["level"].min() >= 1 and terms["level"].max() <= 30
