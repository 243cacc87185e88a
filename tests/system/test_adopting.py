"""Any callable as a system: levels from each kind of schedule, what is refused, and what the check of a step says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attrs import evolve
from torch import nn

import diffkit
from diffkit import OptionError
from diffkit.system import adopting
from diffkit.testing import GaussianOracle

ORACLE = GaussianOracle(0.3, 0.5)
BETAS = np.linspace(1e-3, 0.05, 100)
ALPHA_BAR = np.cumprod(1 - BETAS)


class Exact(nn.Module):
    """The exact model of normal data, on a path with one level for each time."""

    def __init__(self, predicts, scales):
        super().__init__()
        self.predicts, self.scales = predicts, scales
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x, time):
        alpha, sigma = (scale.view(-1, 1, 1, 1) for scale in self.scales(time.double()))
        x_start = ORACLE.x_start(x, alpha, sigma)
        eps = (x - alpha * x_start) / sigma
        forms = {"x_start": x_start, "eps": eps, "score": -eps / sigma, "v": alpha * eps - sigma * x_start}
        return (forms | {"velocity": eps - x_start})[self.predicts] * self.weight


def of_table(alpha_bar):
    table = torch.from_numpy(alpha_bar)
    return lambda time: (table[time.long()].sqrt(), (1 - table[time.long()]).sqrt())


def straight(time):
    return 1 - time, time


STRAIGHT = {"alpha": lambda t: 1 - t, "sigma": lambda t: t, "times": np.linspace(0.01, 0.99, 99)}


@pytest.mark.parametrize(
    ("predicts", "schedule", "scales"),
    [
        ("eps", {"betas": BETAS}, of_table(ALPHA_BAR)),
        ("v", {"alphas_cumprod": torch.from_numpy(ALPHA_BAR)}, of_table(ALPHA_BAR)),
        ("score", {"sigmas": np.geomspace(0.01, 50, 60)}, lambda time: (torch.ones_like(time), time)),
        ("x_start", STRAIGHT, straight),
        ("velocity", STRAIGHT, straight),
    ],
)
def test_an_exact_model_is_read_exactly(predicts, schedule, scales):
    system = diffkit.adopt(Exact(predicts, scales), predicts=predicts, data_shape=(1, 2, 2), **schedule)
    top = float(system.table.alpha[-1]), float(system.table.sigma[-1])
    x = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * sum(top)
    *_, before, _ = system.trajectory(3, start=x, sampler="dpmpp_3m")
    bottom = float(system.table.alpha[1]), float(system.table.sigma[1])
    assert torch.allclose(before.x, ORACLE.flow(x, top, bottom), atol=2e-3)


def test_it_is_saved_and_loaded_with_its_network(tmp_path):
    network = Exact("velocity", straight)
    system = diffkit.adopt(network, predicts="velocity", data_shape=(1, 2, 2), **STRAIGHT)
    system.save(tmp_path / "saved")
    again = diffkit.load(tmp_path / "saved", backbone=system.network)
    assert again.table == system.table


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"predicts": "epps", "betas": BETAS}, "no prediction 'epps'; did you mean 'eps'"),
        ({"betas": BETAS}, "predicts is needed beside a schedule; use predicts='eps'"),
        ({"predicts": "eps", "betas": BETAS, "sigmas": BETAS}, "betas and sigmas are two schedules; give one"),
        ({"predicts": "eps", "alpha": torch.cos}, "alpha is one of two functions; give sigma, too"),
        ({"predicts": "eps", "alphas_cumprod": ALPHA_BAR[::-1]}, "level 2 has no more noise than level 1"),
        ({"predicts": "eps", "betas": [0.5, 1.5]}, "betas must be finite numbers between 0 and 1, .* got 1.5"),
        ({"predicts": "eps", "sigmas": [[1.0]]}, r"sigmas must be finite numbers >= 0, .* got shape \(1, 1\)"),
        ({"predicts": "eps", "alpha_cumprod": BETAS}, "no option 'alpha_cumprod'; did you mean 'alphas_cumprod'"),
        ({"predicts": "eps", "sigmas": [2.0, 1.0]}, "level 2 has no more noise than level 1; order levels"),
        ({"predicts": "velocity", "betas": BETAS}, "on a straight path only"),
        ({"reader": "azulla"}, "no reader 'azulla'"),
        ({}, "no reader for Exact of 'test_adopting'"),
    ],
)
def test_what_cannot_be_read_is_refused(given, says):
    with pytest.raises(OptionError, match=says):
        diffkit.adopt(Exact("eps", straight), data_shape=(1, 2, 2), **given)


def test_a_step_that_differs_names_the_reading_in_doubt():
    alpha, sigma = np.sqrt(ALPHA_BAR), np.sqrt(1 - ALPHA_BAR)
    network, time = Exact("v", of_table(ALPHA_BAR)), np.arange(100.0)

    def home(x, t, s):
        network(x, torch.full((len(x),), t))
        ends = [(alpha[int(u)], sigma[int(u)]) for u in (t, s)]
        x_start = ORACLE.x_start(x, *ends[0])
        return ends[1][0] * x_start + ends[1][1] / ends[0][1] * (x - ends[0][0] * x_start)

    right = adopting.AdoptedModel(network, alpha, sigma, time, "v", "theirs", step=home)
    modes = []
    network.register_forward_hook(lambda module, *_: modes.append(module.training))
    adopting.check_step(adopting.compose_adopted(right, (1, 2, 2), None), right)
    assert len(modes) >= 2 and not any(modes) and network.training
    for wrong, says in (
        (evolve(right, predicts="eps"), "from that of theirs by .* so predicts='eps' is in doubt; use predicts='v'"),
        (evolve(right, time=time[::-1]), "the schedule or the time is in doubt; give the levels by times="),
    ):
        with pytest.raises(OptionError, match=says):
            adopting.check_step(adopting.compose_adopted(wrong, (1, 2, 2), None), wrong)
