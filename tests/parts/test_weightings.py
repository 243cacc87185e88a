"""Losses with a weight by level: the declared curve, the published special cases, every mean, zero terminal SNR."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import diffkit
from diffkit.errors import CompositionError
from diffkit.explain import explain
from diffkit.explain.describe import loss_weights
from diffkit.registry import registry

WEIGHTED = [
    "p2",
    ("p2", {"gamma": 0.5, "k": 3.0}),
    "snr_plus_one",
    "truncated_snr",
    "soft_min_snr",
    ("soft_min_snr", {"gamma": 1.0}),
    ("sigmoid", {"measure": "level"}),
    ("sigmoid", {"measure": "level", "bias": -1.0}),
]
MEANS = ("eps", "x_start", "v", "x_prev")


def make(loss, **more):
    parts = dict(schedule="cosine", num_steps=60, backbone=None, data_shape=(1, 4, 4)) | more
    return diffkit.compose(loss=loss, **parts)


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("loss", WEIGHTED, ids=str)
def test_the_declared_curve_is_the_measured_one(loss, mean):
    system = make(loss, mean=mean)
    declared = system.parts.loss.weight(torch.from_numpy(system.table.log_snr[1:].copy())).numpy()
    np.testing.assert_allclose(loss_weights(system.parts, system.decoder), declared, rtol=1e-5)


@pytest.mark.parametrize(
    ("loss", "curve"),
    [
        ("p2", lambda snr: snr / (1 + snr)),
        (("p2", {"gamma": 0.0}), lambda snr: snr),
        ("snr_plus_one", lambda snr: 1 + snr),
        ("truncated_snr", lambda snr: np.maximum(snr, 1)),
        ("soft_min_snr", lambda snr: 4 * snr / (4 + snr)),
        (("sigmoid", {"measure": "level"}), lambda snr: snr / (1 + snr * math.exp(-2))),
    ],
    ids=["p2", "p2_gamma_0", "snr_plus_one", "truncated_snr", "soft_min_snr", "sigmoid"],
)
def test_the_published_curves(loss, curve):
    system = make(loss)
    snr = np.exp(system.table.log_snr[1:])
    np.testing.assert_allclose(loss_weights(system.parts, system.decoder), curve(snr), rtol=1e-5)


def test_p2_without_gamma_is_the_simple_loss_of_eps():
    ours, plain = (loss_weights(s.parts, s.decoder) for s in (make(("p2", {"gamma": 0.0})), make("simple")))
    np.testing.assert_allclose(ours, plain, rtol=1e-5)


def test_snr_plus_one_is_the_simple_loss_of_v():
    ours = make("snr_plus_one", mean="eps")
    plain = make("simple", mean="v")
    np.testing.assert_allclose(
        loss_weights(ours.parts, ours.decoder), loss_weights(plain.parts, plain.decoder), rtol=1e-5
    )
    asked = make(("simple", {"space": "v"}), mean="eps", bins=None)
    ours = make("snr_plus_one", mean="eps", bins=None)
    x, noise = (torch.randn(60, 1, 4, 4, dtype=torch.float64) for _ in range(2))
    of_v, of_both = (s.loss_terms(lambda x, time: x, x, torch.arange(1, 61), noise)["loss"] for s in (asked, ours))
    torch.testing.assert_close(of_v, of_both, rtol=1e-12, atol=0)


def test_the_sigmoid_loss_does_not_depend_on_the_schedule():
    """Summed over levels it is an integral over log_snr: the same for a constant error, whatever the spacing."""
    totals = []
    for schedule in ("cosine", "linear"):
        system = make("sigmoid", schedule=schedule, num_steps=4000)
        inside = np.abs(system.table.log_snr[1:]) < 6  # both schedules go that far
        weight = loss_weights(system.parts, system.decoder) / np.exp(system.table.log_snr[1:])  # of eps
        totals.append((weight * inside).mean())
    low, high = (np.logaddexp(0, 2 + 6), np.logaddexp(0, 2 - 6))  # integral of sigmoid(2 - l) over -6..6
    np.testing.assert_allclose(totals, (low - high) / 2, rtol=2e-3)


@pytest.mark.parametrize("loss", ["p2", "snr_plus_one", "truncated_snr", "soft_min_snr", "sigmoid", "huber"])
def test_a_level_without_signal_has_a_finite_loss(loss):
    system = make(loss, schedule="linear", num_steps=20, mean="v")  # beta is 1 at its last level
    assert system.table.alpha_bar[-1] == 0
    x, noise = torch.rand(20, 1, 4, 4) - 0.5, torch.randn(20, 1, 4, 4)
    terms = system.loss_terms(lambda x, time: x * 0.1, x, torch.arange(1, 21), noise)
    assert terms["loss"].isfinite().all()


def quantity(space, x_t, x_start, row):
    """A space's quantity from an estimate of clean data, by its definition."""
    eps = (x_t - row.alpha * x_start) / row.sigma
    return {
        "eps": eps,
        "x_start": x_start,
        "v": row.alpha * eps - row.sigma * x_start,
        "velocity": eps - x_start,
        "score": -eps / row.sigma,
    }[space]


@pytest.mark.parametrize("space", ["network", "eps", "x_start", "v", "velocity"])
@pytest.mark.parametrize("mean", ["eps", "x_start", "v", "score"])
@pytest.mark.parametrize("schedule", ["cosine", "log_linear"])
def test_a_loss_is_the_error_of_the_space_it_names(schedule, mean, space):
    """Against the definition of each quantity, on a path that preserves variance and on one that does not."""
    generator = np.random.default_rng(0)
    x, noise, out = generator.normal(size=(3, 3, 1, 4, 4))
    level = np.array([1, 7, 12])
    plain = make("simple", schedule=schedule, num_steps=12, mean=mean, bins=None, clip_x_start=False)
    row = type(plain.table.at(level))(*(c[:, None, None, None] for c in plain.table.at(level)))
    x_t = row.alpha * x + row.sigma * noise
    by = plain.parts.mean.scalings(row, None)
    estimate = by.c_skip * x_t + by.c_out * out
    named = mean if space == "network" else space
    error = quantity(named, x_t, estimate, row) - quantity(named, x_t, x, row)

    def loss(name, **options):
        parts = dict(schedule=schedule, num_steps=12, mean=mean, bins=None, clip_x_start=False)
        if name == "hybrid":
            parts["var"] = "learned_range"
        system = make((name, {"space": space, **options}), **parts)
        channels = torch.from_numpy(np.concatenate([out, 0 * out], 1) if name == "hybrid" else out)
        given = (torch.from_numpy(value) for value in (x, level, noise))
        return system.loss_terms(lambda x, time: channels, *given)["loss"].double().numpy()

    squared = (error**2).mean((1, 2, 3))
    np.testing.assert_allclose(loss("simple"), squared, rtol=1e-10)
    np.testing.assert_allclose(loss("hybrid", vb_weight=0.0), squared, rtol=1e-10)
    huber = (2 * 0.5**2 * (np.sqrt(1 + (error / 0.5) ** 2) - 1)).mean((1, 2, 3))
    np.testing.assert_allclose(loss("huber", delta=0.5), huber, rtol=1e-9)


def test_a_huber_loss_that_was_saved_with_its_former_option_loads():
    system = make(("huber", {"space": "network", "delta": 0.5}))
    spec = system.spec()
    del spec["parts"]["loss"]["options"]["space"]
    spec["parts"]["loss"]["options"]["error"] = "output"
    assert diffkit.from_spec(spec).spec() == system.spec()


@pytest.mark.parametrize("name", ["p2", "snr_plus_one", "truncated_snr", "soft_min_snr", "sigmoid", "huber"])
def test_a_learned_variance_needs_the_bound(name):
    with pytest.raises(CompositionError, match=r"use vb_weight=0\.001 or loss='hybrid' or var='fixed_large'"):
        make(name, var="learned_range")
    with pytest.raises(CompositionError, match=f"loss '{name}' trains the variance, but var 'fixed_large' has none"):
        make((name, {"vb_weight": 1e-3}))
    system = make((name, {"vb_weight": 1e-3}), var="learned_range")
    hybrid = make("hybrid", var="learned_range")
    x, noise = torch.rand(3, 1, 4, 4).double() - 0.5, torch.randn(3, 1, 4, 4).double()
    level = torch.tensor([1, 20, 60])
    model = lambda x, time: torch.cat([x * 0.3, x * 0.1], 1)  # noqa: E731
    ours, theirs = (s.loss_terms(model, x, level, noise) for s in (system, hybrid))
    torch.testing.assert_close(ours["vb"], theirs["vb"])
    torch.testing.assert_close(ours["mse"], theirs["mse"])
    plain = make(name).loss_terms(lambda x, time: x * 0.3, x, level, noise)["loss"]
    torch.testing.assert_close(ours["loss"] - plain, theirs["loss"] - theirs["mse"], rtol=1e-9, atol=1e-9)


def test_explain_shows_the_curve():
    found = explain(schedule="cosine", loss="p2", num_steps=100, data_shape=(3, 32, 32))
    assert "1 / (k + snr)^gamma" in str(found)
    np.testing.assert_allclose(found.weight, found.snr / (1 + found.snr), rtol=1e-5)


def test_the_sigmoid_loss_needs_neighbours():
    from diffkit.testing._paths import VP, ContinuousLevels

    settings = dict(schedule=VP, num_steps=20, timesteps=ContinuousLevels(), mean="v", data_shape=(2,), bins=None)
    with pytest.raises(CompositionError, match="counts levels by the log_snr they cover"):
        diffkit.compose(loss="sigmoid", backbone=None, **settings)
    diffkit.compose(loss=("sigmoid", {"measure": "level"}), backbone=None, **settings)


def test_every_weighted_loss_declares_its_curve():
    for name in ("p2", "snr_plus_one", "truncated_snr", "soft_min_snr", "sigmoid"):
        weight = registry("loss").create(name).weight(torch.linspace(-20, 20, 9, dtype=torch.float64))
        assert weight.isfinite().all() and (weight > 0).all()
