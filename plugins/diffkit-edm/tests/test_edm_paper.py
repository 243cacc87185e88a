"""The samplers equal the EDM paper's algorithms 1 and 2, written here from the paper in NumPy, to 1e-12 in float64.

Data is a mixture of Gaussians, whose ideal denoiser has a closed form at every noise level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from attrs import frozen
from diffkit_edm import EDM, EDMHeun, EDMKarras, EDMLogNormal, EDMLoss, EDMStochastic
from numpy.typing import NDArray

import diffkit
from diffkit.protocols import NoiseSchedule

F64 = NDArray[np.float64]
Denoise = Callable[[F64, float], F64]

CENTRES = np.array([[0.7, -0.2, 0.1], [-0.4, 0.5, 0.9], [0.0, -0.8, -0.6]])
WEIGHTS = np.array([0.5, 0.3, 0.2])
SPREAD = 0.1


def ideal(x: F64, sigma: float) -> F64:
    """Mean of clean data given ``x = data + sigma eps``, data ~ sum of WEIGHTS N(CENTRES, SPREAD^2), x (B, 3)."""
    total = SPREAD**2 + sigma**2
    logits = np.log(WEIGHTS) - ((x[:, None] - CENTRES) ** 2).sum(-1) / (2 * total)
    share = np.exp(logits - logits.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    centre = share @ CENTRES
    return np.asarray(centre + SPREAD**2 / total * (x - centre))


def sigma_steps(n: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> list[float]:
    """t_0..t_N of eq. 5: from high to low, then 0."""
    if n == 1:
        return [high, 0.0]
    grid = [(high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(n)]
    return [*grid, 0.0]


def algorithm_1(x: F64, t: list[float], denoise: Denoise) -> F64:
    """Deterministic sampling, sigma(t) = t, s(t) = 1; x is x_0 ~ N(0, t_0^2)."""
    for here, there in pairwise(t):
        d = (x - denoise(x, here)) / here
        ahead = x + (there - here) * d
        if there != 0:
            ahead = x + (there - here) * (d / 2 + (ahead - denoise(ahead, there)) / there / 2)
        x = ahead
    return x


def algorithm_2(x: F64, t: list[float], denoise: Denoise, noises: list[F64], **s: float) -> F64:
    """Stochastic sampling; ``s`` holds churn, t_min, t_max and noise."""
    n = len(t) - 1
    for i, (here, there) in enumerate(pairwise(t)):
        gamma = min(s["churn"] / n, math.sqrt(2) - 1) if s["t_min"] <= here <= s["t_max"] else 0.0
        hat = here + gamma * here
        x_hat = x + math.sqrt(hat**2 - here**2) * s["noise"] * noises[i]
        d = (x_hat - denoise(x_hat, hat)) / hat
        x = x_hat + (there - hat) * d
        if there != 0:
            x = x_hat + (there - hat) * (d / 2 + (x - denoise(x, there)) / there / 2)
    return x


def network(scaled: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """The ideal denoiser as the raw network F of eq. 7 with sigma_data = 0.5, read at c_noise = ln(sigma) / 4."""
    sigma = float(torch.exp(4 * time[0].double()))
    assert torch.all(time == time[0])
    sd = 0.5
    x = scaled.double().numpy() * math.sqrt(sigma**2 + sd**2)
    c_skip, c_out = sd**2 / (sigma**2 + sd**2), sigma * sd / math.sqrt(sigma**2 + sd**2)
    return torch.from_numpy((ideal(x, sigma) - c_skip * x) / c_out).to(scaled.dtype)


def edm(num_steps: int = 18, **slots: Any) -> diffkit.System:
    """The EDM composition, without a network."""
    parts: dict[str, Any] = dict(
        schedule="edm_karras", mean="edm", loss="edm_loss", timesteps="edm_lognormal", sampler="edm_heun"
    )
    return diffkit.compose(**parts | slots, backbone=None, data_shape=(3,), num_steps=num_steps, bins=None)


def start(n: int = 64) -> F64:
    return 80.0 * np.random.default_rng(0).standard_normal((n, 3))


def difference(found: F64, expected: F64) -> float:
    """Largest difference, in units of the largest value where that is above 1 (two steps overshoot by thousands)."""
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("num_steps", [1, 2, 3, 18, 256])
def test_levels_are_the_papers(num_steps: int):
    table = edm(num_steps).table
    np.testing.assert_allclose(table.sigma[::-1], sigma_steps(num_steps), rtol=1e-12)
    np.testing.assert_allclose(table.alpha, 1.0, rtol=1e-12)
    np.testing.assert_allclose(table.time[1:], np.log(table.sigma[1:]) / 4, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("low", "high", "rho"), [(0.002, 80.0, 7.0), (0.1, 2.0, 1.0), (0.5, 0.6, 3.5)])
def test_options_of_the_levels_are_the_papers(low: float, high: float, rho: float):
    table = EDMKarras(low, high, rho).table(9)
    np.testing.assert_allclose(table.sigma[::-1], sigma_steps(9, low, high, rho), rtol=1e-12)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 18, 40])
def test_heun_is_algorithm_1(num_steps: int):
    x, system = start(), edm(num_steps)
    found = system.sample_from(network, torch.from_numpy(x), None).numpy()
    expected = algorithm_1(x, sigma_steps(num_steps), ideal)
    assert difference(found, expected) < 1e-12


CHURN = {
    "ImageNet-64": dict(churn=40.0, t_min=0.05, t_max=50.0, noise=1.003),
    "CIFAR-10": dict(churn=30.0, t_min=0.01, t_max=1.0, noise=1.007),
    "capped, everywhere": dict(churn=1e3, t_min=0.0, t_max=1e9, noise=1.0),
    "nowhere": dict(churn=40.0, t_min=1e3, t_max=1e4, noise=1.0),
}


@pytest.mark.parametrize("setting", CHURN)
@pytest.mark.parametrize("num_steps", [1, 2, 18, 40])
def test_stochastic_is_algorithm_2(num_steps: int, setting: str):
    s, x = CHURN[setting], start()
    noises = list(np.random.default_rng(1).standard_normal((num_steps, *x.shape)))
    sampler = EDMStochastic(s["churn"], s["t_min"], s["t_max"], s["noise"])
    found = edm(num_steps).sample_from(network, torch.from_numpy(x), feed(noises), sampler=sampler).numpy()
    expected = algorithm_2(x, sigma_steps(num_steps), ideal, noises, **s)
    assert difference(found, expected) < 1e-12


def feed(noises: list[F64]) -> Callable[[], torch.Tensor]:
    stream: Iterator[F64] = iter(noises)
    return lambda: torch.from_numpy(next(stream))


def test_no_churn_is_heun():
    x = torch.from_numpy(start())
    noise = feed([np.ones(x.shape)] * 18)
    found = edm().sample_from(network, x, noise, sampler=("edm_stochastic", {"churn": 0}))
    assert difference(found.numpy(), edm().sample_from(network, x, None).numpy()) < 1e-12


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 0.08])
def test_the_network_is_preconditioned_as_in_table_1(sigma_data: float):
    sigma = np.geomspace(1e-3, 100, 41)
    c_skip, c_out, c_in = EDM(sigma_data).scalings(diffkit.table.Coefs(np.ones(41), sigma, -2 * np.log(sigma)), None)
    d = sigma**2 + sigma_data**2
    np.testing.assert_allclose(c_skip, sigma_data**2 / d, rtol=1e-14)
    np.testing.assert_allclose(c_out, sigma * sigma_data / np.sqrt(d), rtol=1e-14)
    np.testing.assert_allclose(c_in, 1 / np.sqrt(d), rtol=1e-14)


def test_training_is_eq_8():
    """``lambda(sigma) |D(y + n; sigma) - y|^2`` with D of eq. 7, whatever the raw network says, sigma log-normal."""
    system, batch = edm(loss=EDMLoss(0.5)), 200
    generator = torch.Generator().manual_seed(0)
    level, weight = system.draw_levels(batch, generator=generator)
    y, eps, raw = torch.randn(3, batch, 3, dtype=torch.float64, generator=generator)
    seen: dict[str, torch.Tensor] = {}

    def model(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        seen.update(x=x, time=time)
        return raw

    found = system.loss_terms(model, y, level, eps)["loss"]
    sigma, sd = torch.exp(-level / 2)[:, None], 0.5
    total = sigma**2 + sd**2
    noisy = y + sigma * eps
    torch.testing.assert_close(seen["x"], noisy / total.sqrt(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(seen["time"], (sigma.log() / 4).flatten(), rtol=1e-12, atol=1e-12)
    denoised = sd**2 / total * noisy + sigma * sd / total.sqrt() * raw
    expected = (total / (sigma * sd) ** 2 * (denoised - y) ** 2).mean(1)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    assert torch.equal(weight, torch.ones(batch))


@pytest.mark.parametrize("mean", ["eps", "x_start", "v", "edm"])
def test_the_objective_is_the_same_in_terms_of_any_mean(mean: str):
    level = torch.linspace(-6, 10, 9, dtype=torch.float64)
    y, eps, guess = torch.randn(3, 9, 3, dtype=torch.float64)
    sigma = torch.exp(-level / 2)[:, None]
    system = edm(mean=mean)
    at = diffkit.table.Coefs(torch.ones(9, dtype=torch.float64), sigma.flatten(), level)
    c_skip, c_out, _ = (c[:, None] for c in system.parts.mean.scalings(at, None))
    out = (guess - c_skip * (y + sigma * eps)) / c_out
    found = system.loss_terms(lambda x, time: out, y, level, eps)["loss"]
    expected = ((sigma**2 + 0.25) / (0.5 * sigma) ** 2 * (guess - y) ** 2).mean(1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_levels_are_log_normal():
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    log_snr, weight = EDMLogNormal(-1.0, 0.7).sample((), u, 18)
    log_sigma = -log_snr / 2
    assert abs(log_sigma.mean() + 1.0) < 1e-9
    assert abs(log_sigma.std() - 0.7) < 1e-4
    assert log_snr.dtype == torch.float64
    assert weight.dtype == torch.float32


@pytest.mark.parametrize("u", [0.0, 2.0**-53, 0.5, 1 - 2.0**-53])
def test_every_uniform_gives_a_finite_level(u: float):
    log_snr, _ = EDMLogNormal().sample((), torch.tensor([u], dtype=torch.float64), 1)
    assert log_snr.isfinite().all()
    assert log_snr.abs().max() < 30


def test_continuous_levels_agree_with_the_table():
    table, schedule = edm().table, EDMKarras()
    total_std, time = schedule.level(torch.from_numpy(table.log_snr[1:].copy()))
    np.testing.assert_allclose(total_std.numpy(), table.total_std[1:], rtol=1e-12)
    np.testing.assert_allclose(time.numpy(), table.time[1:], rtol=1e-12, atol=1e-14)


def test_the_ideal_samples_are_data():
    x = edm(40).sample_from(network, torch.from_numpy(start(2000)), None).numpy()
    nearest = ((x[:, None] - CENTRES) ** 2).sum(-1).argmin(1)
    share = np.bincount(nearest, minlength=3) / len(x)
    # Three standard errors of a share of 0.5 among 2000.
    assert np.abs(share - WEIGHTS).max() < 3 * math.sqrt(0.25 / 2000)
    spread = (x - CENTRES[nearest]).std()
    # 6000 numbers: a standard error of about 1 %, and the error of 40 steps.
    assert abs(spread / SPREAD - 1) < 0.05


@pytest.mark.parametrize(("sampler", "count"), [("edm_heun", 35), ("edm_stochastic", 35)])
def test_18_steps_cost_35_evaluations(sampler: str, count: int):
    calls = []

    def model(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        calls.append(time)
        return network(x, time)

    edm().sample_from(model, torch.from_numpy(start(2)), feed([np.zeros((2, 3))] * 18), sampler=sampler)
    assert len(calls) == count


def gaussian_errors(sampler: Any, counts: tuple[int, ...], **slots: Any) -> list[float]:
    """Largest errors on one Gaussian, where the flow is known: ``x - mean`` grows as the spread of x does."""
    mean, spread = 0.3, 0.6
    x = torch.from_numpy(start(100))

    def model(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        variance = torch.exp(8 * time[0].double())
        return mean + spread**2 / (spread**2 + variance) * (x - mean)

    exact = mean + (x - mean) * spread / math.sqrt(spread**2 + 80.0**2)
    noise = [np.zeros(x.shape)] * max(counts)
    slots = dict(mean="x_start", schedule=("edm_karras", {"sigma_min": 1e-5})) | slots
    return [
        float((edm(n, **slots).sample_from(model, x, feed(noise), sampler=sampler) - exact).abs().max()) for n in counts
    ]


@pytest.mark.parametrize("sampler", ["edm_heun", ("edm_stochastic", {"churn": 0})])
def test_the_error_falls_with_the_square_of_the_step(sampler: Any):
    errors = gaussian_errors(sampler, (64, 128, 256))
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert 1.9 < min(orders) <= max(orders) < 2.1, orders


# ---- off the paper's own path ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["edm_heun", "edm_stochastic"])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_discrete_variance_preserving_chains_can_be_sampled(sampler: str, schedule: str):
    """The ideal noise predictor of one Gaussian on a DDPM chain gives that Gaussian."""
    mean, spread = 0.3, 0.6
    system = diffkit.compose(
        schedule=schedule, mean="x_start", backbone=None, data_shape=(3,), num_steps=400, bins=None, rescale_time=False
    )
    alpha, sigma = (torch.from_numpy(c[1:].copy()) for c in (system.table.alpha, system.table.sigma))

    def model(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        a, s = alpha[time.long()][:, None], sigma[time.long()][:, None]
        return mean + a * spread**2 / (a**2 * spread**2 + s**2) * (x - a * mean)

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    noise = lambda: torch.randn(x.shape, generator=generator, dtype=torch.float64)  # noqa: E731
    for steps in (400, "trailing50"):
        found = system.sample_from(model, x, noise, system.table_for(steps), sampler=sampler)
        # 12000 numbers: three standard errors are 0.016 of the mean and 2 % of the spread; noise_scale adds a little.
        assert abs(found.mean() - mean) < 0.03
        assert abs(found.std() / spread - 1) < 0.06


def test_raised_levels_of_a_discrete_chain_are_noisier_levels_it_has():
    system = diffkit.compose(schedule="cosine", backbone=None, data_shape=(3,), num_steps=100, bins=None)
    times = []

    def model(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        times.append(float(time[0]) / 10 + 1)
        return x

    x = torch.zeros(1, 3)
    table = system.table_for("trailing10")
    sampler = EDMStochastic(churn=4.0, churn_min=0, churn_max=1e9)
    system.sample_from(model, x, lambda: torch.zeros(1, 3), table, sampler=sampler)
    raised, reached = times[0::2], times[1::2]
    own = table.index[:0:-1].tolist()
    np.testing.assert_allclose(reached, own[1:])
    assert all(r >= level and abs(r - round(r)) < 1e-4 for r, level in zip(raised, own, strict=True))
    assert all(r > level for r, level in zip(raised[2:8], own[2:8], strict=True))


@pytest.mark.parametrize("sampler", ["edm_heun", "edm_stochastic"])
def test_a_start_without_signal_is_stepped_from_in_first_order(sampler: str):
    @frozen
    class Ends(NoiseSchedule):
        def table(self, num_steps: int) -> diffkit.ProcessTable:
            return diffkit.ProcessTable.from_alpha_bar(np.linspace(1, 0, num_steps + 1))

    system = diffkit.compose(
        schedule=Ends(), mean="v", sampler=sampler, backbone=None, data_shape=(3,), num_steps=6, bins=None
    )
    calls = []
    found = system.sample_from(
        lambda x, time: calls.append(time) or x.sin(), torch.ones(2, 3), lambda: torch.ones(2, 3)
    )
    assert found.isfinite().all()
    assert len(calls) == 11


def test_heun_runs_backwards():
    x = torch.from_numpy(start(20))
    system = edm(64)
    data = system.sample_from(network, x, None)
    back = system.encode(data, sampler="edm_heun", model=network)
    assert difference(back.numpy(), x.numpy()) < 0.05


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (lambda: EDMKarras(2.0, 1.0), "sigma_min must be < sigma_max=1, got 2.0"),
        (lambda: EDMKarras(sigma_min=0), "sigma_min must be > 0, got 0.0"),
        (lambda: EDM(-1), "sigma_data must be > 0, got -1.0"),
        (lambda: EDMLoss(0), "sigma_data must be > 0, got 0.0"),
        (lambda: EDMLogNormal(std=0), "std must be > 0 and <= 5, got 0.0"),
        (lambda: EDMStochastic(churn=-1), "churn must be >= 0, got -1.0"),
    ],
)
def test_options_out_of_range(part: Callable[[], object], text: str):
    with pytest.raises(diffkit.OptionError) as caught:
        part()
    assert str(caught.value) == text


def test_a_learned_variance_is_refused():
    with pytest.raises(diffkit.CompositionError, match="loss 'edm_loss' has no term that trains var 'learned_range'"):
        edm(var="learned_range")


def test_it_is_saved_with_its_origin():
    system = edm(sampler=EDMStochastic(churn=3))
    spec = system.spec()["parts"]
    assert {spec[kind]["origin"] for kind in ("schedule", "mean", "loss", "timesteps", "sampler")} == {"diffkit-edm"}
    assert diffkit.from_spec(system.spec()).parts.sampler == EDMStochastic(churn=3)
    assert isinstance(system.parts.schedule, EDMKarras)
    assert edm().parts.sampler == EDMHeun()
