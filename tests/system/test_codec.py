"""Codecs: data in the user's units on one side, and what the network sees on the other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from attrs import frozen
from torch import nn

import diffkit
from diffkit import tasks
from diffkit.errors import CompositionError, OptionError, ProtocolError
from diffkit.guidance import DPS, MMPS
from diffkit.likelihood import continuous_bound, ode_likelihood, score
from diffkit.protocols import Codec

UNITS = ("standardize", {"mean": 5, "std": 2})
SMALL = dict(schedule="cosine", num_steps=20, mean="v", backbone=("mlp", {"hidden": 8, "depth": 1}), bins=None)


def pair(shape=(1, 8), codec=UNITS, **more):
    """A system in the user's units, and the same network in its own."""
    torch.manual_seed(0)
    system = diffkit.compose(**SMALL | {"data_shape": shape, "codec": codec} | more)
    return system, diffkit.recompose(system, codec=None, bins=None, data_shape=system.parts.data_shape)


def latents(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_all_that_a_system_does_is_in_the_units_of_data():
    system, plain = pair(sampler="ddim")
    z = latents((3, 1, 8))
    x = 5 + 2 * z
    assert (system.data_shape, system.bins, system.settings.clip_x_start) == ((1, 8), None, False)
    found, wanted = (
        one(data, generator=torch.Generator().manual_seed(1))["loss"] for one, data in ((system, x), (plain, z))
    )
    torch.testing.assert_close(found, wanted)
    level, noise = torch.tensor([1, 7, 20]), latents((3, 1, 8), 1)
    given = {"level": level, "noise": noise}
    torch.testing.assert_close(system.loss_terms(None, x, **given)["loss"], plain.loss_terms(None, z, **given)["loss"])
    how = {"steps": 5, "seed": 0, "progress": False}
    torch.testing.assert_close(system.sample(3, **how), 5 + 2 * plain.sample(3, **how))
    torch.testing.assert_close(system.encode(x, steps=5), plain.encode(z, steps=5))
    torch.testing.assert_close(system.sample_from(None, noise, None), 5 + 2 * plain.sample_from(None, noise, None))
    adapted = [tasks.sample_adaptive(one, 2, seed=0, rtol=0.5).samples for one in (system, plain)]
    torch.testing.assert_close(adapted[0], 5 + 2 * adapted[1])
    edited = [tasks.image_to_image(one, data, strength=0.5, **how) for one, data in ((system, x), (plain, z))]
    torch.testing.assert_close(edited[0], 5 + 2 * edited[1])
    assert (tasks.invert(system, x, steps=5, progress=False).reconstruction - x).abs().max() < 1
    code = tasks.exact_encode(system, x, steps=5, progress=False)
    assert (tasks.exact_decode(system, code, progress=False) - x).abs().max() < 1e-4
    known = torch.arange(8) < 4
    painted = tasks.inpaint(system, x, known, steps=5, resample=1, seed=0, progress=False)
    assert torch.equal(painted[..., :4], x[..., :4])
    expected = tasks.inpaint(plain, z, known, steps=5, resample=1, seed=0, progress=False)
    torch.testing.assert_close(painted, 5 + 2 * expected)


def test_likelihoods_are_those_of_data():
    system, plain = pair()
    z = latents((4, 1, 8))
    x, volume = 5 + 2 * z, 8 * math.log(2)
    bounds = [one.bits_per_dim(data, seed=0, progress=False) for one, data in ((system, x), (plain, z))]
    torch.testing.assert_close(bounds[0].nats, bounds[1].nats + volume)
    torch.testing.assert_close(bounds[0].terms.sum(1) + bounds[0].prior, bounds[0].total)
    scores = [score(one, data, levels_per_example=5) for one, data in ((system, x), (plain, z))]
    np.testing.assert_allclose(scores[0].nats, scores[1].nats + volume, rtol=1e-5)
    smooth = [
        continuous_bound(diffkit.recompose(one, schedule="log_linear"), data, times_per_example=4)
        for one, data in ((system, x), (plain, z))
    ]
    np.testing.assert_allclose(smooth[0].total, smooth[1].total + 1, rtol=1e-5)
    flows = [ode_likelihood(one, data, divergence="exact") for one, data in ((system, x), (plain, z))]
    torch.testing.assert_close(flows[0].nats, flows[1].nats + volume)


class Ideal(nn.Module):
    """The best network for a Gaussian autoregression of order 1, which predicts v."""

    def __init__(self, table, values, rho):
        super().__init__()
        place = torch.arange(values, dtype=torch.float64)
        self.variance, self.basis = torch.linalg.eigh(rho ** (place[:, None] - place).abs())
        self.table = table

    def forward(self, x, time):
        clock = np.interp(time.detach().double().numpy(), self.table.time[1:], self.table.log_snr[1:])
        alpha_bar = torch.as_tensor(clock).sigmoid().view(-1, 1, 1)
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        share = (x.double() @ self.basis) / (alpha**2 * self.variance + sigma**2)
        return ((alpha * sigma * (1 - self.variance) * share) @ self.basis.T).to(x.dtype)


def test_a_series_in_its_own_units_has_its_known_density():
    """Values of mean 5 and standard deviation 2: moments of samples, and nats by bound and flow."""
    table = diffkit.compose(schedule="cosine", backbone=None).table
    network = Ideal(table, 16, 0.9)
    system = diffkit.compose(
        schedule="cosine", mean="v", backbone=network, data_shape=(1, 16), bins=None, codec=UNITS, sampler="heun"
    )
    drawn = system.sample(4000, steps=100, seed=0, progress=False)[:, 0]
    assert abs(float(drawn.mean()) - 5) < 0.15 and abs(float(drawn.std()) - 2) < 0.06  # 3 standard errors each
    away = drawn - 5
    assert abs(float((away[:, 1:] * away[:, :-1]).mean() / away.square().mean()) - 0.9) < 0.02
    covariance = network.basis @ torch.diag(network.variance) @ network.basis.T
    normal = torch.distributions.MultivariateNormal(torch.full((16,), 5.0).double(), 4 * covariance)
    x = normal.sample((4,))
    flow = ode_likelihood(system, x[:, None], divergence="exact")
    assert float((flow.nats + normal.log_prob(x)).abs().max()) < 0.05
    found = score(system, x[:, None].float(), levels_per_example=100)
    gap, error = found.nats + normal.log_prob(x).numpy(), found.total_error * found.values * math.log(2)
    assert -3 * np.sqrt((error**2).sum()) / 4 < gap.mean() < 40  # a bound, with one variance for all directions


def test_measurements_are_of_data():
    """Of independent normal data and an ideal network the posterior mean is known; operators take data, not latents."""

    def network(x, time):
        return torch.zeros_like(x)  # v is 0 for standard normal data

    class Zero(nn.Module):
        forward = staticmethod(network)

    system = diffkit.compose(**SMALL | {"backbone": Zero(), "data_shape": (1, 8), "codec": UNITS})

    def operator(x):
        return 3 * x[..., :4]

    y = 3 * torch.tensor([5.0, 6.0, 7.0, 9.0]).expand(400, 1, 4)
    expected = 5 + (y[0, 0] / 3 - 5) * 36 / 37
    for method in (MMPS(operator, noise_std=1.0), MMPS(operator, noise_std=1.0, iterations=8)):
        found = tasks.solve(system, y, method, steps=20, seed=0, progress=False)
        assert (found[:, 0, :4].mean(0) - expected).abs().max() < 0.1
        assert (found[:, 0, 4:].mean(0) - 5).abs().max() < 0.4
    given = {"guidance": DPS(operator, step=0.5), "measurement": y[:2], "sampler": "ancestral", "progress": False}
    assert system.sample(2, steps=5, **given).isfinite().all()


def test_no_codec_is_none():
    named, plain = diffkit.compose(**SMALL, codec="identity"), diffkit.compose(**SMALL)
    assert named.settings.codec is None and named.parts.codec is None and named.spec() == plain.spec()
    assert "codec" not in plain.spec()["settings"]
    x = latents((2, 3, 64, 64))
    assert plain.to_latents(x) is x and plain.from_latents(x) is x


@frozen
class Halves(Codec):
    """The mean of neighbours, which loses their difference."""

    exact = False
    affine = True

    def latent_shape(self, data_shape):
        if data_shape[-1] % 2:
            raise OptionError(f"takes an even number of values, got {data_shape[-1]}")
        return (*data_shape[:-1], data_shape[-1] // 2)

    def encode(self, x):
        return x.unflatten(-1, (-1, 2)).mean(-1)

    def decode(self, z):
        return z.repeat_interleave(2, -1)


def test_latents_of_another_shape():
    system, _ = pair((1, 8), Halves(), bins=256)
    assert (system.data_shape, system.parts.data_shape, system.bins) == ((1, 8), (1, 4), 256)
    x = latents((3, 1, 8)).clamp(-1, 1)
    assert system(x)["loss"].shape == (3,) and system.sample(3, steps=2, progress=False).shape == (3, 1, 8)
    assert system.encode(x, steps=3, sampler="ddim").shape == (3, 1, 4)
    with pytest.raises(OptionError, match=r"x_start must lie in \[-1, 1\]"):
        system(9 * x)
    for scored in (
        lambda: system.bits_per_dim(x),
        lambda: score(system, x),
        lambda: ode_likelihood(system, x),
    ):
        with pytest.raises(OptionError, match="does not give data back exactly, so that data has no likelihood") as e:
            scored()
    again = eval(str(e.value).split(" by ")[1], {"diffkit": diffkit, "system": system})
    assert again.bits_per_dim(system.to_latents(x), progress=False).total.shape == (3,)
    with pytest.raises(OptionError, match=r"codec 'Halves' mixes known and unknown values .*diffkit\.tasks\.solve"):
        tasks.inpaint(system, x, torch.ones(8))
    with pytest.raises(OptionError, match=r"Halves.*takes an even number of values, got 7"):
        pair((1, 7), Halves())


def test_what_does_not_fit_is_one_error():
    with pytest.raises(CompositionError, match=r"codec 'standardize' has no mean and std yet; diffkit train measures"):
        pair(codec="standardize")
    with pytest.raises(OptionError, match=r"std=\(1, 2, 3\).*must be one number, or 1|std must be one number, or 1"):
        pair(codec=("standardize", {"mean": 0, "std": (1, 2, 3)}))
    with pytest.raises(OptionError, match=r"bins=256 are values in \[-1, 1\].*use bins=None"):
        pair(bins=256)
    with pytest.raises(OptionError, match="a codec gives the network latents; leave it out"):
        diffkit.compose(backbone=None, decoder="binned", codec=UNITS)
    system, _ = pair()
    with pytest.raises(OptionError, match=r"x_start must have shape \(B, 1, 8\), got \(3, 1, 9\)"):
        system(latents((3, 1, 9)))

    @frozen
    class Flat(Halves):
        exact = True

    with pytest.raises(ProtocolError, match=r"latent_shape must return a shape of 8 values, as the data has, got"):
        pair(codec=Flat())

    @frozen
    class Silent(Codec):
        def encode(self, x):
            return x

        def decode(self, z):
            return z

    with pytest.raises(ProtocolError, match="codec 'Silent' has no log_det, which likelihoods need; write it"):
        pair(codec=Silent())[0].bits_per_dim(latents((2, 1, 8)), progress=False)

    @frozen
    class Wrong(Halves):
        def decode(self, z):
            return z

    with pytest.raises(ProtocolError, match=r"decode must return torch.float32 of shape \(2, 1, 8\), got"):
        pair(codec=Wrong())[0].sample(2, steps=2, progress=False)
