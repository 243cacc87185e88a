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
from diffkit.errors import CompositionError, DiffkitError, OptionError, ProtocolError
from diffkit.guidance import DPS, MMPS
from diffkit.likelihood import continuous_bound, ode_likelihood, score
from diffkit.parts.codecs._autoencoder import AutoencoderNetwork
from diffkit.protocols import Codec
from diffkit.serving import Loop
from diffkit.system.cascade import Cascade

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


def test_every_way_to_samples_ends_in_data(tmp_path):
    system, plain = pair((1, 4, 4), sampler="ddim")
    unet = {"channels": 8, "channel_mult": (1,), "num_res_blocks": 1, "groups": 4, "low_res_channels": 1}
    larger = diffkit.compose(**SMALL | {"data_shape": (1, 8, 8), "backbone": ("unet", unet)})
    how = {"steps": 5, "seed": 0}

    def ways(one):
        yield one.sample(3, **how, resume=tmp_path / "resume", progress=False)
        with Loop(one) as loop:
            yield loop.submit(3, **how).result()
        yield tasks.rollout(one, 3, **how).samples
        yield tasks.sample_adaptive(one, 3, seed=0, rtol=0.5).samples
        yield next(Cascade([one, larger]).each_stage(3, seed=0, stages=[{"steps": 5}, {"steps": 1}]))

    for found, wanted in zip(ways(system), ways(plain), strict=True):
        torch.testing.assert_close(found, 5 + 2 * wanted)


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
    levels = system.table.at(slice(1, None))
    alpha, sigma = (torch.from_numpy(a)[:, None] for a in (levels.alpha, levels.sigma))
    error = network.variance * sigma**2 / (alpha**2 * network.variance + sigma**2)  # of the network, at every level
    best = diffkit.recompose(system, var=("analytic", {"x_start_mse": error.mean(1).tolist()}))
    found = score(best, x[:, None].float(), levels_per_example=100)
    gap, error = found.nats + normal.log_prob(x).numpy(), found.total_error * found.values * math.log(2)
    assert abs(gap.mean()) < 3 * np.sqrt((error**2).sum()) / 4 + 0.02  # what one variance for all directions costs


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


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Linear(8, 8), r"data of shape \(1, 8, 8\) \('Linear' object has no attribute 'encode'\)"),
        (AutoencoderNetwork(3, 2, (4, 4), 2), r"data of shape \(1, 8, 8\) \("),
        (AutoencoderNetwork(1, 2, (4, 4), 3), r"encode must return torch.float32 of shape \(2, 2, 4, 4\), got"),
        (AutoencoderNetwork(1, 2, (4, 4, 4), 2), r"encode must return torch.float32 of shape \(2, 2, 4, 4\), got"),
    ],
    ids=["no encoder", "data", "channels of latents", "size of latents"],
)
def test_a_module_that_does_not_fit_is_refused_before_work(module, reason):
    codec = ("autoencoder", {"channels": (4, 4), "latent_channels": 2})
    with pytest.raises(DiffkitError, match=reason):
        pair((1, 8, 8), codec, bins=256, modules={"codec": module})


def test_inpainting_replaces_latents_of_known_values_alone():
    """An autoencoder that gives means of blocks: blocks that are known in whole are those of a system of the means."""

    class Means(nn.Module):
        def encode(self, x):
            mean = nn.functional.avg_pool2d(x, 2)
            return torch.cat([mean, torch.zeros_like(mean)], 1)

        def decode(self, z):
            return z.repeat_interleave(2, -1).repeat_interleave(2, -2)

    codec = ("autoencoder", {"channels": (4, 4), "latent_channels": 1})
    system, plain = pair((1, 8, 8), codec, bins=256, modules={"codec": Means()}, sampler="ddim")
    x = latents((2, 1, 8, 8)).clamp(-1, 1)
    known = torch.ones(8, 8, dtype=torch.bool)
    known[:, 5:] = False
    how = {"steps": 4, "resample": 1, "seed": 0, "progress": False}
    painted = tasks.inpaint(system, x, known, **how)
    assert torch.equal(painted[..., :5], x[..., :5])
    inside = torch.arange(4).expand(4, 4) < 2
    means = tasks.inpaint(plain, nn.functional.avg_pool2d(x * known, 2), inside, **how)
    torch.testing.assert_close(painted[..., 5:], means.repeat_interleave(2, -1).repeat_interleave(2, -2)[..., 5:])
    with pytest.raises(OptionError, match=r"no latent is known, .* diffkit\.tasks\.solve with method=\('dps'"):
        tasks.inpaint(system, x, torch.arange(64).view(8, 8) == 9, **how)


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
