"""The loss's weights are the paper's, for every mean, at discrete and continuous levels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from attrs import frozen
from diffkit_minsnr import MinSNR

import diffkit
from diffkit.protocols import ContinuousSchedule, ContinuousTimestepSampler, NoiseSchedule, State
from diffkit.system.coefficients import scalings
from diffkit.testing import Check, parametrize_checks

SNR = Callable[[np.ndarray, float], np.ndarray]

PAPER: dict[str, SNR] = {
    "x_start": lambda snr, gamma: np.minimum(snr, gamma),
    "eps": lambda snr, gamma: np.minimum(snr, gamma) / snr,
    "v": lambda snr, gamma: np.minimum(snr, gamma) / (snr + 1),
}
"""Weights of the squared error of each output: Hang et al. 2023, arXiv:2303.09556, section 3.4."""


@parametrize_checks("loss", MinSNR(), MinSNR(0.5), MinSNR(100))
def test_it_conforms(check: Check):
    check()


def terms(system: diffkit.System, level: torch.Tensor) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x_start, noise, out = (torch.randn(len(level), 2, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    return system.loss_terms(lambda x, time: out, x_start, level, noise)


def compose(**slots: object) -> diffkit.System:
    return diffkit.compose(backbone=None, data_shape=(2, 3), bins=None, **slots)  # type: ignore[arg-type]


@pytest.mark.parametrize("mean", PAPER)
@pytest.mark.parametrize("gamma", [5.0, 1.0, 1e-3, 1e5])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_weights_are_the_papers(mean: str, gamma: float, schedule: str):
    system = compose(schedule=schedule, mean=mean, loss=MinSNR(gamma), num_steps=50)
    found = terms(system, torch.arange(1, 51))
    alpha_bar = system.table.alpha_bar[1:]
    expected = PAPER[mean](alpha_bar / (1 - alpha_bar), gamma)
    np.testing.assert_allclose((found["loss"] / found["mse"]).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("mean", ["eps", "x_start", "v", "x_prev"])
def test_the_objective_is_that_of_x_start_whatever_the_mean(mean: str):
    """One estimate of x_start, written in any mean, costs min(snr, gamma) times its squared error."""
    system = compose(schedule="cosine", mean=mean, loss=MinSNR(2.0), num_steps=20)
    level = torch.arange(1, 21)
    x_start, noise, wrong = torch.randn(3, 20, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    table, (c_skip, c_out, _) = system.table, scalings(system.parts.mean, system.table)
    columns = (c_skip, c_out, table.alpha, table.sigma)
    c_skip, c_out, alpha, sigma = (torch.from_numpy(column[1:, None, None]) for column in columns)
    x_t = alpha * x_start + sigma * noise
    out = (wrong - c_skip * x_t) / c_out
    loss = system.loss_terms(lambda x, time: out, x_start, level, noise)["loss"]
    weight = (alpha / sigma).square().clamp(max=2.0).flatten()
    torch.testing.assert_close(loss, weight * (wrong - x_start).square().mean((1, 2)), rtol=1e-10, atol=0)


def test_a_level_without_signal_weighs_nothing():
    table = diffkit.ProcessTable.from_betas([0.1, 0.5, 1.0])
    assert table.log_snr[-1] == -np.inf

    @frozen
    class Ends(NoiseSchedule):
        def table(self, num_steps: int) -> diffkit.ProcessTable:
            return table

    system = compose(schedule=Ends(), mean="v", loss="minsnr", num_steps=3)
    found = terms(system, torch.tensor([1, 2, 3]))["loss"]
    assert found.isfinite().all()
    assert found[2] == 0
    assert (found[:2] > 0).all()


@frozen
class Anywhere(ContinuousSchedule):
    """A variance-preserving path whose levels are any log_snr."""

    def table(self, num_steps: int) -> diffkit.ProcessTable:
        log_snr = np.linspace(5, -5, num_steps)
        return diffkit.ProcessTable.from_alpha_bar(np.concatenate([[1], 1 / (1 + np.exp(-log_snr))]))

    def level(self, log_snr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones_like(log_snr), -log_snr


@frozen
class Even(ContinuousTimestepSampler):
    """Levels with an even log_snr."""

    def sample(self, state: State, u: torch.Tensor, num_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        return 10 * u - 5, torch.ones_like(u, dtype=torch.float32)


@pytest.mark.parametrize("mean", PAPER)
def test_weights_are_the_papers_at_continuous_levels_too(mean: str):
    system = compose(schedule=Anywhere(), timesteps=Even(), mean=mean, loss="minsnr", num_steps=5)
    log_snr = torch.linspace(-8, 8, 33, dtype=torch.float64)
    found = terms(system, log_snr)
    expected = PAPER[mean](log_snr.exp().numpy(), 5.0)
    np.testing.assert_allclose((found["loss"] / found["mse"]).numpy(), expected, rtol=1e-12)
    drawn = system(torch.randn(4, 2, 3), model=lambda x, time: torch.zeros_like(x))
    assert drawn["loss"].shape == (4,)
    assert drawn["loss"].isfinite().all()


def test_gradients_are_weighted_alike():
    system = compose(schedule="cosine", loss="minsnr", num_steps=10)
    out = torch.zeros(10, 2, 3, requires_grad=True)
    noise = torch.ones(10, 2, 3)
    found = system.loss_terms(lambda x, time: out, torch.zeros(10, 2, 3), torch.arange(1, 11), noise)
    found["loss"].sum().backward()
    assert out.grad is not None
    torch.testing.assert_close(out.grad[:, 0, 0], -2 / 6 * found["loss"] / found["mse"])


def test_it_is_found_by_its_name_and_saved_with_its_origin():
    system = compose(loss=("minsnr", {"gamma": 3}), num_steps=50)
    spec = system.spec()["parts"]["loss"]
    assert (spec["name"], spec["options"], spec["origin"]) == ("minsnr", {"gamma": 3.0}, "diffkit-minsnr")
    assert diffkit.from_spec(system.spec()).parts.loss == MinSNR(3.0)


@pytest.mark.parametrize("var", ["learned", "learned_range"])
def test_it_says_that_a_learned_variance_would_stay_untrained(var: str):
    with pytest.raises(diffkit.CompositionError) as caught:
        compose(loss="minsnr", var=var)
    assert f"loss 'minsnr' has no term that trains var {var!r}; use loss='hybrid' or var='fixed_large'" in str(
        caught.value
    )


@pytest.mark.parametrize("gamma", [0, -1.0, float("nan"), "five", True])
def test_gamma_is_a_positive_number(gamma: object):
    with pytest.raises(diffkit.OptionError, match="gamma must be"):
        MinSNR(gamma)  # type: ignore[arg-type]
