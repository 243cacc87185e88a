"""The learned schedule: its weights lower the variance of the loss, and its table follows them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import diffkit
from diffkit.errors import CompositionError, OptionError

PARTS = dict(schedule="monotone", timesteps="uniform_time", loss="continuous_vlb")


def composed(**more) -> diffkit.System:
    torch.manual_seed(0)
    settings = dict(backbone=("mlp", {"hidden": 8, "depth": 1}), data_shape=(2,), bins=None, num_steps=50)
    return diffkit.compose(**(PARTS | settings | more))


def test_at_first_log_snr_falls_almost_evenly_and_the_network_is_told_of_log_snr_alone():
    table = composed().table
    even = np.linspace(13.3, -5.0, 50)
    assert np.abs(table.log_snr[1:] - even).max() < 1.0
    np.testing.assert_allclose(table.time[1:], 1000 * (13.3 - table.log_snr[1:]) / 18.3, atol=1e-9)


def test_the_table_is_of_the_present_weights(tmp_path):
    system = composed()
    before = system.table
    program = system.prepare(1).program()
    with torch.no_grad():
        system.learned["schedule"].height[:32] += 3
    assert system.table is not before and system.table is system.table
    assert system.table_for(10).log_snr[3] != before.log_snr[system.table_for(10).index[3]]
    assert system.prepare(1).program() is not program
    again = diffkit.load(system.save(tmp_path / "a"))
    assert again.table == system.table and diffkit.recompose(again, sampler="ddim").table == system.table
    assert diffkit.recompose(again, num_steps=7).table.num_steps == 7


def test_its_gradient_is_that_of_the_squared_loss():
    """Against automatic differentiation of the squares, with the network passed through."""
    system, x = composed().double(), torch.randn(6, 2, dtype=torch.float64)
    time, noise = torch.rand(6, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    module = system.learned["schedule"]
    loss = system.loss_terms(None, x, time, noise)["loss"]
    loss.sum().backward()
    found = {name: p.grad.clone() for name, p in module.named_parameters()}
    of_network = [p.grad.clone() for p in system.network.parameters()]
    system.zero_grad()
    log_snr, rate = system.parts.schedule.log_snr_at(module, time)
    terms = system.objective.terms(system.network, x, log_snr, noise, 6, {}, rate=rate)
    (terms["loss"] ** 2).sum().backward(retain_graph=True)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-10, atol=1e-14)
    system.zero_grad()
    terms["loss"].sum().backward()
    for one, parameter in zip(of_network, system.network.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad)


def test_training_lowers_the_variance_and_keeps_the_mean():
    """Of an error that is large at a few levels only; the best density is in proportion to it."""
    system = composed()

    def model(x, time):
        size = torch.exp(-(((time - 300) / 60) ** 2)) + 0.05
        return noise + size[:, None]

    u = (torch.arange(512, dtype=torch.float64) + 0.5) / 512
    x, noise = torch.zeros(512, 2), torch.randn(512, 2)
    optimizer = torch.optim.Adam(system.learned.parameters(), lr=0.05)
    found = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = system.loss_terms(model, x, u, noise)["loss"]
        loss.mean().backward()
        optimizer.step()
        found.append((float(loss.detach().mean()), float(loss.detach().var())))
    (mean, first), (after, last) = found[0], found[-1]
    assert after == pytest.approx(mean, rel=0.02) and last < first / 5


def test_what_does_not_train_it_is_refused():
    with pytest.raises(CompositionError, match=r"has weights that times train.*use timesteps='uniform_time' or sch"):
        composed(timesteps="uniform")
    with pytest.raises(CompositionError, match=r"loss 'simple' would change with it; use loss='continuous_vlb' or"):
        composed(loss="simple")
    with pytest.raises(CompositionError, match=r"draws times, which schedule 'log_linear' does not turn into levels"):
        composed(schedule="log_linear")
    with pytest.raises(OptionError, match="train_spacing is of levels, and schedule Monotone is trained by times"):
        composed(train_spacing=10)
    with pytest.raises(OptionError, match="log_snr_min must be below log_snr_max"):
        composed(schedule=("monotone", {"log_snr_max": -6}))
