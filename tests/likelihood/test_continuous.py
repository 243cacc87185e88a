"""The bound in continuous time: the limit of many levels, on a mixture whose denoiser is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import diffkit
from diffkit.errors import OptionError
from diffkit.likelihood import continuous_bound
from diffkit.testing import SeparableMixtureOracle

ENDS = dict(log_snr_max=6.0, log_snr_min=-6.0)
ORACLE = SeparableMixtureOracle(means=(-0.6, 0.5), stds=(0.1, 0.2), weights=(0.4, 0.6))


def composed(schedule: str, num_steps: int = 100) -> diffkit.System:
    timed = schedule == "monotone"
    return diffkit.compose(
        **dict(schedule=(schedule, ENDS), mean="x_start", var="fixed_large", num_steps=num_steps, bins=None),
        **dict(loss="continuous_vlb" if timed else "simple", timesteps="uniform_time" if timed else "uniform"),
        **dict(data_shape=(2,), backbone=None),
    )


def exact(x, time):
    """The ideal denoiser, at any time."""
    log_snr = (ENDS["log_snr_max"] - time.double() / 1000 * 12.0)[:, None]
    return ORACLE.x_start(x.double(), log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()).to(x.dtype)


def information() -> float:
    """The diffusion part's mean in bits: what the clean end knows of the data more than the noisy one, by quadrature.

    The derivative of the mutual information by the SNR is half the least mean squared error (Guo et al. 2005).
    """
    x, known = torch.linspace(-6, 6, 24001, dtype=torch.float64)[:, None], []
    for log_snr in (torch.tensor(end, dtype=torch.float64) for end in ENDS.values()):
        log_p = ORACLE.at(log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()).log_prob(x)
        entropy = -float((log_p.exp() * log_p).sum()) * 12 / 24000
        known.append(entropy - float((-log_snr).sigmoid().log()) / 2)
    return (known[0] - known[1]) / float(np.log(2))


def moved(system: diffkit.System) -> diffkit.System:
    """Other weights: most of the time is spent at the noisy end."""
    with torch.no_grad():
        system.learned["schedule"].height[40:] = 1.0
    return system


@pytest.mark.parametrize("schedule", ["log_linear", "monotone"])
def test_it_is_the_limit_of_many_levels_within_its_error(schedule):
    """The bound of T levels is that of the limit plus a term of 1 / T, for the same examples."""
    x = ORACLE.sample(torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    found = [composed(schedule, steps).bits_per_dim(x, model=exact, seed=0, rows_per_call=4096) for steps in (100, 200)]
    limit = 2 * found[1].terms[:, 1:].sum(1) - found[0].terms[:, 1:].sum(1)
    system = composed(schedule)
    bound = continuous_bound(system if schedule == "log_linear" else moved(system), x, model=exact)
    gap = bound.diffusion - limit.numpy()
    assert abs(gap.mean()) < 3 * gap.std(ddof=1) / 200**0.5
    assert bound.estimate_error == pytest.approx(gap.std(ddof=1) / 200**0.5, rel=0.5)
    assert abs(bound.diffusion.mean() - information()) < 3 * bound.diffusion.std(ddof=1) / 200**0.5
    np.testing.assert_allclose(bound.prior, found[0].prior.numpy())
    entropy = -ORACLE.log_prob(x).numpy() / (2 * np.log(2))
    assert (bound.total - entropy).mean() > -3 * bound.estimate_error


def test_an_examples_bound_depends_on_its_index_and_the_seed_alone(tmp_path):
    x = torch.randn(3, 2)
    system = composed("log_linear")
    whole = continuous_bound(system, x, model=exact, times_per_example=4)
    alone = continuous_bound(system, x[2:], model=exact, times_per_example=4, indices=[2], rows_per_call=1)
    np.testing.assert_allclose(alone.total, whole.total[2:], rtol=1e-6)
    assert "4 times each" in str(whole)
    assert np.load(whole.save(tmp_path / "bound"))["total"].shape == (3,)


def test_what_has_no_continuous_time_is_refused():
    system = diffkit.compose(schedule="cosine", data_shape=(2,), backbone=None, bins=None)
    with pytest.raises(OptionError, match="needs a schedule and a mean that are defined between levels, not schedule"):
        continuous_bound(system, torch.zeros(1, 2), model=exact)
    with pytest.raises(OptionError, match="times_per_example must be >= 2, got 1"):
        continuous_bound(composed("log_linear"), torch.zeros(1, 2), model=exact, times_per_example=1)
