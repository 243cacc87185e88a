"""Log-probabilities of sampling steps, against closed forms that do not use them."""

from __future__ import annotations

import math

import pytest
import torch

import diffkit
from diffkit.errors import OptionError
from diffkit.tasks import log_prob, rollout

NORMAL = [
    "ancestral",
    ("ddim", {"eta": 1.0}),
    ("ddim", {"eta": 0.3}),
    ("euler_ancestral", {"variance": "learned"}),
    "dpm2_ancestral",
    "dpmpp_2s_ancestral",
    "dpmpp_sde",
    "sde_dpmpp_2m",
    "sde_dpmpp_3m",
]
SHAPE = (1, 2, 3)


@pytest.fixture(scope="module")
def system():
    torch.manual_seed(0)
    found = diffkit.compose(
        schedule="cosine",
        var="learned_range",
        loss="hybrid",
        backbone=("mlp", {"num_classes": 3, "null_class": True}),
        data_shape=SHAPE,
        num_steps=100,
    )
    for parameter in found.network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return found.eval()


def by_noise(path, found):
    """Log-density of each step from the noise that it used: ``log N(noise) - log std``."""
    std = torch.where(found.noisy.view(*found.noisy.shape, 1, 1, 1), found.stds, 1.0)
    each = -0.5 * (path.noise.double().square() + math.log(2 * math.pi)) - std.log()
    return each.flatten(2).sum(2) * found.noisy


@pytest.mark.parametrize("sampler", NORMAL, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)], ids=["f64", "f32"])
def test_log_prob_is_that_of_the_noise(system, sampler, dtype, tolerance):
    given = {"sampler": sampler, "steps": 6, "seed": 0, "y": 1, "guidance": ("cfg", {"scale": 1.5})}
    start = torch.randn(4, *SHAPE, dtype=dtype)
    network = system.network.double() if dtype == torch.float64 else system.network.float()
    path = rollout(system, 4, start=start, **given)
    found = log_prob(path)
    system.network.float()
    assert network is system.network
    assert path.x.dtype == dtype
    assert found.noisy[:-1].all()
    assert not found.noisy[-1].any()
    error = (found.values - by_noise(path, found)).abs().max() / math.prod(SHAPE)
    assert error < tolerance
    assert torch.equal(found.values[-1], torch.zeros(4, dtype=torch.float64))


def test_samples_are_those_of_the_system(system):
    given = {"sampler": "sde_dpmpp_2m", "steps": 5, "seed": 3, "y": [0, 1, 2]}
    assert torch.equal(rollout(system, 3, **given).samples, system.sample(3, progress=False, **given))


def test_ddim_by_the_formula_of_the_paper(system):
    """Song et al. 2021, arXiv:2010.02502, eqs. 12 and 16, written out."""
    eta, k = 0.7, 2
    path = rollout(system, 3, sampler=("ddim", {"eta": eta}), steps=5, seed=1, y=0, clip=False)
    table = system.table_for(5)
    t, s = 5 - k, 4 - k
    a_t, a_s = table.alpha_bar[t], table.alpha_bar[s]
    with torch.no_grad():
        out = system.network(path.x[k], torch.full((3,), float(table.time[t])), y=torch.zeros(3, dtype=torch.long))
    eps = out[:, :1].double()
    x_t, x_s = path.x[k].double(), path.x[k + 1].double()
    x_start = (x_t - (1 - a_t) ** 0.5 * eps) / a_t**0.5
    std = eta * ((1 - a_s) / (1 - a_t)) ** 0.5 * (1 - a_t / a_s) ** 0.5
    mean = a_s**0.5 * x_start + (1 - a_s - std**2) ** 0.5 * eps
    exact = torch.distributions.Normal(mean, std).log_prob(x_s).flatten(1).sum(1)
    found = log_prob(path, steps=[k]).values[0]
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-4)


def test_the_gradient_is_that_of_a_difference(system):
    path = rollout(system, 2, sampler="ancestral", steps=4, seed=1, y=0)
    network = system.network.double()
    weight = next(p for p in network.parameters() if p.ndim == 2)
    log_prob(path, steps=[1, 2]).total.sum().backward()
    direction = torch.randn_like(weight)
    slope = (weight.grad * direction).sum()

    def total(size):
        with torch.no_grad():
            weight.add_(size * direction)
            found = log_prob(path, steps=[1, 2]).total.sum()
            weight.sub_(size * direction)
        return found

    difference = (total(1e-5) - total(-1e-5)) / 2e-5
    system.network.float()
    network.zero_grad()
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=0)


def test_kl_of_a_step(system):
    path = rollout(system, 2, sampler="ancestral", steps=4, seed=1, y=0)
    with torch.no_grad():
        mine, its = log_prob(path), log_prob(path, model=lambda x, time, y: 0.5 * system.network(x, time, y=y))
    normal = [torch.distributions.Normal(each.means[:-1], each.stds[:-1]) for each in (mine, its)]
    exact = torch.distributions.kl_divergence(*normal).flatten(2).sum(2)
    torch.testing.assert_close(mine.kl(its)[:-1], exact)
    assert torch.equal(mine.kl(its)[-1], torch.zeros(2, dtype=torch.float64))
    assert torch.equal(mine.kl(mine), torch.zeros(4, 2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ("heun", "sampler 'heun' adds no noise, so its steps have no density; sample with sampler='ancestral'"),
        ("churn", "sampler 'churn' adds noise before it evaluates the network, so its steps are not normal"),
        ("restart", "sampler 'restart' adds noise before it evaluates the network, so its steps are not normal"),
    ],
)
def test_steps_without_a_density_are_refused(system, sampler, message):
    path = rollout(system, 1, sampler=sampler, steps=3, seed=0, y=0)
    with pytest.raises(OptionError, match=message):
        log_prob(path)


def test_steps_that_are_not_there(system):
    path = rollout(system, 1, steps=3, seed=0, y=0)
    with pytest.raises(OptionError, match=r"each of steps must be .*< 3.*, got 3"):
        log_prob(path, steps=[0, 3])
    with pytest.raises(OptionError, match="steps must name at least one step"):
        log_prob(path, steps=[])
