"""Schedules against the formulas of their papers; that their tables are sound is the kit's to check."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import diffkit
from diffkit.errors import CompositionError, OptionError, UnknownComponentError
from diffkit.registry import registry
from diffkit.table import ProcessTable


def make(name, **options):
    return registry("schedule").create(name, **options)


def test_tables_from_log_snr_lose_no_digits():
    log_snr = np.array([60.0, 20.0, 0.0, -20.0, -np.inf])
    table = ProcessTable.from_log_snr(log_snr)
    np.testing.assert_array_equal(table.log_snr[1:], log_snr)
    assert np.all(table.total_std == 1) and table.alpha_bar[-1] == 0
    np.testing.assert_allclose(table.sigma[1], np.exp(-30), rtol=1e-15)
    shifted = ProcessTable.from_log_snr(log_snr[:3], total_std=[1.0, 2.0, 3.0], time=[5.0, 6.0, 7.0])
    assert shifted.total_std.tolist() == [1, 1, 2, 3] and shifted.time.tolist() == [0, 5, 6, 7]


def test_sigmoid():
    def gamma(u, start=-3.0, end=3.0, tau=1.0):
        g = lambda x: 1 / (1 + np.exp(-x / tau))  # noqa: E731
        return (g(end) - g(start + u * (end - start))) / (g(end) - g(start))

    table = make("sigmoid").table(500)
    np.testing.assert_allclose(table.alpha_bar[:-1], gamma(np.arange(500) / 500), rtol=1e-10)
    assert table.alpha_bar[-1] == pytest.approx(1e-9, rel=1e-6)
    assert make("sigmoid", clip_min=0.0).table(10).alpha_bar[-1] == 0
    other = make("sigmoid", start=0.0, tau=0.3).table(500)
    np.testing.assert_allclose(other.alpha_bar[:-1], gamma(np.arange(500) / 500, 0.0, 3.0, 0.3), rtol=1e-9)
    with pytest.raises(OptionError, match=r"start must be below end, 3\.0, got 3\.0"):
        make("sigmoid", start=3.0)


def test_sqrt():
    table = make("sqrt").table(2000)
    f = 1 - np.sqrt(np.arange(2001) / 2000 + 1e-4)
    np.testing.assert_allclose(table.alpha_bar[:-1], f[:-1] / f[0], rtol=1e-9)
    assert table.beta[-1] == 0.999


def test_laplace_has_the_distribution_of_its_name():
    part = make("laplace", mean=0.4, width=0.7)
    log_snr = part.table(100_000).log_snr[1:]
    edges = np.linspace(-3, 3, 25)
    cdf = lambda x: np.where(x < 0.4, 0.5 * np.exp((x - 0.4) / 0.7), 1 - 0.5 * np.exp(-(x - 0.4) / 0.7))  # noqa: E731
    counts = np.histogram(log_snr, edges)[0] / 100_000
    np.testing.assert_allclose(counts, np.diff(cdf(edges)), atol=3e-5)


def test_shifted_cosine():
    table = make("shifted_cosine", size=512, base=64).table(1000)
    u = np.arange(1, 1001) / 1000
    first, last = np.arctan(np.exp(-7.5)), np.arctan(np.exp(7.5))
    wanted = -2 * np.log(np.tan(first + u * (last - first))) + 2 * np.log(64 / 512)
    np.testing.assert_allclose(table.log_snr[1:], wanted, rtol=1e-9, atol=1e-9)
    plain = make("shifted_cosine", size=64).table(1000)
    np.testing.assert_allclose(plain.alpha_bar[1:-1], np.cos(u[:-1] * np.pi / 2) ** 2, atol=2e-3)


def test_log_linear():
    table = make("log_linear").table(50)
    np.testing.assert_allclose(table.log_snr[1:], np.linspace(13.3, -5, 50), rtol=1e-12)
    sigma = make("log_linear", path="ve").table(50)
    np.testing.assert_allclose(sigma.alpha[1:], 1, rtol=1e-12)
    ratio = sigma.sigma[2:] / sigma.sigma[1:-1]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-10)
    assert make("log_linear").table(1).log_snr[1] == -5


@pytest.mark.parametrize("name", ["log_linear", "shifted_cosine"])
def test_ranges_the_wrong_way_round_are_refused(name):
    with pytest.raises(OptionError, match=r"log_snr_min must be below log_snr_max, got 3\.0 and 2\.0"):
        make(name, log_snr_min=3.0, log_snr_max=2.0)


@pytest.mark.parametrize(("of", "options"), [("linear", {}), ("cosine", {"s": 0.02}), ("sigmoid", {"tau": 0.5})])
def test_zero_snr_preserves_the_first_level_and_the_proportions(of, options):
    table, inner = make("zero_snr", of=of, of_options=options).table(100), make(of, **options).table(100)
    root, before = np.sqrt(table.alpha_bar[1:]), np.sqrt(inner.alpha_bar[1:])
    assert root[-1] == 0 and table.sigma[-1] == 1
    np.testing.assert_allclose(root[0], before[0], rtol=1e-12)
    np.testing.assert_allclose(np.diff(root) / np.diff(before), (root[0] / (before[0] - before[-1])), rtol=1e-6)
    np.testing.assert_array_equal(table.time, inner.time)


def test_zero_snr_twice_is_zero_snr():
    once = make("zero_snr").table(30)
    twice = make("zero_snr", of="zero_snr", of_options={"of": "linear"}).table(30)
    np.testing.assert_allclose(twice.alpha_bar, once.alpha_bar, rtol=1e-12)


def test_zero_snr_takes_options_as_json_has_them():
    part = make("zero_snr", of="cosine", of_options={"s": 0.01})
    again = make("zero_snr", **json.loads(json.dumps({"of": part.of, "of_options": part.of_options})))
    assert again == part and hash(again) == hash(part)
    assert part == make("zero_snr", of="cosine", of_options=[["s", 0.01]])


def test_zero_snr_errors():
    with pytest.raises(UnknownComponentError, match="no schedule named 'cosin'; did you mean 'cosine'"):
        make("zero_snr", of="cosin")
    with pytest.raises(OptionError, match="schedule 'cosine' has no option 'z'"):
        make("zero_snr", of="cosine", of_options={"z": 1})
    with pytest.raises(OptionError, match="of_options must be a mapping of options, got 3"):
        make("zero_snr", of_options=3)
    with pytest.raises(OptionError, match="needs num_steps >= 2, got 1"):
        make("zero_snr", of="cosine").table(1)
    with pytest.raises(CompositionError, match=r"mean 'eps' cannot recover x_start where alpha_bar = 0 \(level 50 of"):
        diffkit.compose(schedule="zero_snr", num_steps=50, backbone=None)


def test_a_system_without_signal_at_the_end_trains_saves_and_samples(tmp_path):
    system = diffkit.compose(
        schedule=("zero_snr", {"of": "cosine", "of_options": {"s": 0.01}}),
        mean="v",
        num_steps=40,
        data_shape=(1, 4, 4),
        backbone=("mlp", {"hidden": 8, "depth": 1}),
    )
    assert system(torch.rand(4, 1, 4, 4) * 2 - 1)["loss"].isfinite().all()
    for sampler in ("heun", "dpmpp_3m", "unipc", "sde_dpmpp_2m", "churn"):
        assert system.sample(2, steps=5, sampler=sampler, seed=0, progress=False).isfinite().all()
    again = diffkit.load(system.save(tmp_path / "s"))
    assert again.parts.schedule == system.parts.schedule and again.table == system.table


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_zero_snr_against_diffusers():
    ddim = pytest.importorskip("diffusers.schedulers.scheduling_ddim")
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    wanted = torch.cumprod(1 - ddim.rescale_zero_terminal_snr(betas), 0)
    np.testing.assert_allclose(make("zero_snr").table(1000).alpha_bar[1:], wanted.numpy(), rtol=1e-9, atol=1e-12)
