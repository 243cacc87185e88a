"""The network as a loss calls it again, and networks of two times."""

from __future__ import annotations

import pytest
import torch
from attrs import frozen
from torch import nn

import diffkit
from diffkit.errors import CompositionError, OptionError
from diffkit.gaussian import mean_flat
from diffkit.protocols import NetworkLoss, Tangent
from diffkit.system.loss_network import JVP_METHODS
from diffkit.testing._paths import LINEAR, ContinuousLevels, LevelPairs, LevelsOnly

NETWORKS = {
    "mlp": ((2,), {"hidden": 16, "depth": 1}),
    "unet": ((3, 8, 8), {"channels": 8, "groups": 4, "num_res_blocks": 1, "channel_mult": (1, 2)}),
    "dit": ((3, 8, 8), {"hidden": 32, "depth": 1, "heads": 2}),
}


@frozen
class Look(NetworkLoss):
    """Shows what it is given."""

    found: list

    def __call__(self, at, network):
        self.found.append((at, network))
        return {"loss": mean_flat(at.out.square())}


def looked(system_of, batch: int = 3, dtype=torch.float64):
    """The inputs and the network of a loss, of a system with random weights."""
    found: list = []
    system = system_of(Look(found)).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in system.network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p))
    found.clear()
    x = torch.randn(batch, *system.data_shape, generator=generator, dtype=torch.float64).to(dtype)
    system(x, generator=generator)
    return system, *found[-1]


def composed(name: str, times: int = 2, **more):
    shape, options = NETWORKS[name]
    settings = dict(schedule=LINEAR, mean="v", timesteps=LevelPairs(), bins=None, num_steps=20, rescale_time=False)
    settings |= dict(data_shape=shape, backbone=(name, options | {"times": times}))
    return lambda loss: diffkit.compose(loss=loss, **(settings | more))


def derivatives(at, network) -> dict[str, torch.Tensor]:
    rate = network.rate_at(network.t)
    along = Tangent(rate.alpha * at.x_start + rate.sigma * at.noise, rate)
    return {method: network.jvp(at.x_t, at.level, at.to, along, method=method)[1] for method in JVP_METHODS}


@pytest.mark.parametrize("name", NETWORKS)
def test_derivatives_agree(name):
    _, at, network = looked(composed(name))
    found = derivatives(at, network)
    size = found["forward"].abs().max()
    assert (found["forward"] - found["backward"]).abs().max() <= 1e-10 * size
    assert (found["forward"] - found["difference"]).abs().max() <= 1e-6 * size
    _, at, network = looked(composed(name), dtype=torch.float32)
    found = derivatives(at, network)
    assert (found["forward"] - found["backward"]).abs().max() <= 1e-5 * size


def test_the_scale_of_the_input_moves_with_the_level():
    """c_in is not constant for noise on a path whose variance grows; a difference of two calls by hand agrees."""
    _, at, network = looked(composed("mlp", mean="eps", schedule="cosine"))
    bent = at.level._replace(c_in=0.5 * torch.ones_like(at.level.c_in))
    rate = network.rate_at(network.t)._replace(c_in=0.01 * torch.ones_like(at.level.c_in))
    network.call.scales_input = True
    along = Tangent(torch.zeros_like(at.x_t), rate)
    found = {m: network.jvp(at.x_t, bent, at.to, along, method=m)[1] for m in JVP_METHODS}
    still = network.jvp(at.x_t, bent, at.to, Tangent(along.x, rate._replace(c_in=torch.zeros_like(rate.c_in))))[1]
    assert (found["forward"] - still).abs().max() > 1e-6
    for other in found.values():
        assert torch.allclose(found["forward"], other, rtol=1e-6, atol=1e-9)


def test_the_first_output_is_not_computed_again():
    _, at, network = looked(composed("mlp"))
    assert network.predict(at.x_t, at.level, at.to) is at.out
    assert network.jvp(at.x_t, at.level, at.to, Tangent(at.noise))[0] is at.out
    assert torch.equal(network.predict(at.x_t.clone(), at.level, at.to), at.out)
    assert network.predict(at.x_t, at.level) is not at.out
    with torch.no_grad():
        assert not network.predict(at.x_t, at.level, at.to).requires_grad
    still = Tangent(torch.zeros_like(at.x_t))
    assert all(not network.jvp(at.x_t, at.level, at.to, still, method=m)[1].any() for m in JVP_METHODS)
    with pytest.raises(OptionError, match="method must be one of 'forward', 'backward', 'difference'"):
        network.jvp(at.x_t, at.level, at.to, Tangent(at.noise), method="magic")


@pytest.mark.parametrize("schedule", [LINEAR, LevelsOnly(LINEAR)], ids=str)
def test_rates_are_those_of_a_straight_line(schedule):
    """On the linear path with time 1000 sigma^2 / (alpha^2 + sigma^2): d alpha / d sigma = -1."""
    more = {"timesteps": ContinuousLevels()} if schedule is LINEAR else {}
    _, at, network = looked(composed("mlp", schedule=schedule, num_steps=200, **more))
    rate = network.rate_at(network.t)
    assert torch.allclose(rate.alpha, -rate.sigma, rtol=1e-6)
    assert torch.allclose(rate.time, torch.ones_like(rate.time), rtol=1e-12)
    alpha, sigma = at.level.alpha.flatten(), at.level.sigma.flatten()
    by_hand = 2000 * sigma * alpha / (alpha**2 + sigma**2) ** 2  # d time / d sigma, as alpha = 1 - sigma
    assert torch.allclose(rate.sigma.flatten(), 1 / by_hand, rtol=1e-6 if more else 2e-2)


def test_level_0_has_a_time_of_its_own_for_networks_of_two():
    *_, network = looked(composed("mlp", schedule="cosine", rescale_time=True, num_steps=100))
    clean, first = (network.level_at(torch.full_like(network.t, k)) for k in (0, 1))
    assert float(clean.time[0]) == -10.0 and float(first.time[0]) == 0.0
    assert float(clean.alpha.min()) == 1.0 and float(clean.c_skip.min()) == 1.0
    assert torch.equal(network.next_level(3).alpha, network.level_at((network.t - 3).clamp(min=0)).alpha)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_of_one_time_load_and_compute_the_same(name, tmp_path):
    one, two = (composed(name, times, timesteps="uniform", schedule="cosine")("simple") for times in (1, 2))
    one.save(tmp_path)
    diffkit.runtime.files.load_weights(two.network, diffkit.load(tmp_path).network.state_dict())
    found = [each.sample(2, steps=3, seed=0, progress=False) for each in (one, two)]
    assert torch.equal(*found)
    two.save(tmp_path / "two")
    assert diffkit.load(tmp_path / "two").network.state_dict().keys() == two.network.state_dict().keys()


class Foreign(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x, t, r, scale=1.0):
        return self.weight * x * scale + (t - r)[:, None]


def test_a_foreign_network_names_its_second_time(tmp_path):
    system = diffkit.compose(backbone=Foreign(), time_to_argument="r", data_shape=(2,), bins=None)
    x, denoise = torch.ones(3, 2), system.denoiser(scale=0.0)
    t, s = (system.objective.level(torch.full((3,), k), x) for k in (9, 4))
    assert system.parts.times == 2
    assert torch.equal(denoise(x, t).x_start, denoise(x, t, to=t).x_start)
    assert not torch.equal(denoise(x, t).x_start, denoise(x, t, to=s).x_start)
    system.save(tmp_path)
    assert diffkit.load(tmp_path, backbone=Foreign()).settings.time_to_argument == "r"
    with pytest.raises(OptionError, match=r"has no argument 'q' for the time that a step goes to \(arguments: x, t, r"):
        diffkit.compose(backbone=Foreign(), time_to_argument="q", data_shape=(2,), bins=None)
    with pytest.raises(OptionError, match="time_to_argument is for a network of your own"):
        diffkit.compose(backbone="mlp", time_to_argument="r", data_shape=(2,), bins=None)


def test_a_network_of_one_time_is_not_told_where_a_step_goes():
    system = composed("mlp", 1, timesteps="uniform")("simple")
    x = torch.ones(2, 2)
    at = system.objective.level(torch.tensor([3, 4]), x)
    with pytest.raises(OptionError, match="the network takes one time; compose with a backbone that has times=2"):
        system.denoiser()(x, at, to=at)
    with pytest.raises(OptionError, match="the network takes one time; leave it out, or build with times=2"):
        system.network(x, torch.ones(2), time_to=torch.ones(2))
    with pytest.raises(OptionError, match="draws one level for each example; leave level_to out"):
        system.loss_terms(None, x, torch.tensor([3, 4]), x, level_to=torch.tensor([3, 4]))
    with pytest.raises(CompositionError, match="draws pairs of levels, but loss 'simple' reads one"):
        composed("mlp")("simple")
    pairs = composed("mlp")(Look([]))
    with pytest.raises(OptionError, match=r"level_to must lie in 0..level"):
        pairs.loss_terms(None, x, torch.tensor([3, 4]), x, level_to=torch.tensor([3, 5]))
    with pytest.raises(OptionError, match="level_to must be a tensor with an entry for each example"):
        pairs.loss_terms(None, x, torch.tensor([3, 4]), x)
