"""Means by decay rate and of any width, made from what a run keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from training_support import content, lines, train

import diffkit
from diffkit.__main__ import main
from diffkit.errors import OptionError
from diffkit.training import averaged
from diffkit.training.checkpoint import newest_first, read
from diffkit.training.ema import Ema
from diffkit.training.power_ema import Profile, nearest_mixture, power_ema_decay, power_exponent

WIDTHS = (0.05, 0.1)


@given(st.floats(0.005, 0.28))
def test_the_exponent_has_the_width(width):
    g = power_exponent(width)
    assert (g + 1) ** 0.5 / ((g + 2) * (g + 3) ** 0.5) == pytest.approx(width, rel=1e-9)
    assert g >= 0


def test_published_exponents():
    """Table of the paper's section 3.1: 5 % is 16.97, 10 % is 6.94."""
    assert power_exponent(0.05) == pytest.approx(16.97, abs=5e-3)
    assert power_exponent(0.1) == pytest.approx(6.94, abs=5e-3)


@given(st.floats(0.02, 0.28), st.integers(1, 40))
def test_the_mean_weights_the_past_by_a_power(width, steps):
    network = nn.Linear(1, 1, bias=False).double()
    ema = Ema(network, (), warmup=True, widths=(width,))
    values = np.random.default_rng(steps).standard_normal(steps)
    for step, value in enumerate(values):
        network.weight.data.fill_(value)
        ema.update(step)
    g, k = power_exponent(width), np.arange(1, steps + 1)
    weights = (k ** (g + 1) - (k - 1) ** (g + 1)) / steps ** (g + 1)
    assert float(ema.means[0][0]) == pytest.approx(float(weights @ values), rel=1e-4, abs=1e-5)
    assert power_ema_decay(width, 0) == 0


def test_what_is_stored_is_its_own_mixture():
    stored = [Profile(w, t) for t in (100, 200, 400) for w in WIDTHS]
    factors, off = nearest_mixture(stored, stored[3])
    assert off < 1e-6
    np.testing.assert_allclose(factors, np.eye(6)[3], atol=1e-6)


@pytest.mark.parametrize(("width", "step"), [(0.03, 1000), (0.07, 1000), (0.15, 1000), (0.08, 900)])
def test_other_widths_and_moments_are_near(width, step):
    stored = [Profile(w, t) for t in range(50, 1001, 50) for w in WIDTHS]
    factors, off = nearest_mixture(stored, Profile(width, step))
    assert off < 0.03
    assert factors.sum() == pytest.approx(1, abs=1e-12)
    k = np.arange(1, 1001)

    def profile(p: Profile) -> np.ndarray:
        g = power_exponent(p.width)
        return np.where(k <= p.step, (k ** (g + 1.0) - (k - 1) ** (g + 1.0)) / float(p.step) ** (g + 1), 0)

    made = sum(f * profile(p) for f, p in zip(factors, stored, strict=True))
    wanted = profile(Profile(width, step))
    assert np.linalg.norm(made - wanted) < 0.05 * np.linalg.norm(wanted)


@pytest.mark.parametrize("width", [0.045, 0.06, 0.07, 0.08, 0.103])
def test_what_never_moved_stays_as_it_is(width, tmp_path):
    """A weight that is not trained, and buffers, integers among them: whatever the width, and from one checkpoint."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)
            self.frozen = nn.Parameter(torch.tensor([1.0, -3.7]), requires_grad=False)
            self.register_buffer("table", torch.arange(10))
            self.register_buffer("statistics", torch.tensor([5.0, 0.1]))

        def forward(self, x, time):
            return self.conv(x) + 0 * self.frozen.sum()

    network = Own()
    started = {name: value.clone() for name, value in network.state_dict().items()}
    system = diffkit.compose(schedule="cosine", backbone=network, data_shape=(1, 8, 8), bins=None, num_steps=20)
    options = dict(steps=20, save_every=20, label_dropout=0.0)
    train(tmp_path, system=system, data=torch.zeros(16, 1, 8, 8), lr=0.0, ema_power=WIDTHS, **options)
    found = averaged(tmp_path, width=width, backbone=Own()).network.state_dict()
    for name, value in started.items():
        torch.testing.assert_close(found[name], value, rtol=1e-7, atol=0)


def test_a_weight_with_two_names_is_averaged(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(1, 1, 1)
            self.second = self.first

        def forward(self, x, time):
            return self.second(self.first(x))

    system = diffkit.compose(schedule="cosine", backbone=Tied(), data_shape=(1, 8, 8), bins=None, num_steps=20)
    train(tmp_path, system=system, data=torch.zeros(16, 1, 8, 8), lr=0.1, ema_power=WIDTHS, steps=20, label_dropout=0.0)
    found = averaged(tmp_path, width=0.1, backbone=Tied()).network.state_dict()
    newest = read(next(newest_first(tmp_path / "checkpoints"))).files
    assert not torch.allclose(newest["power_0.1"]["first.weight"], newest["model"]["first.weight"])
    torch.testing.assert_close(found["second.weight"], newest["power_0.1"]["first.weight"])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("averages") / "run"
    train(out, steps=60, save_every=4, keep_every=4, ema_power=WIDTHS, lr=1e-3)
    return out


def test_any_width_is_made_of_what_a_run_keeps(run, tmp_path):
    direct = tmp_path / "direct"
    train(direct, steps=60, save_every=60, ema_power=(0.08,), lr=1e-3)
    wanted = read(next(newest_first(direct / "checkpoints"))).files["power_0.08"]
    found = averaged(run, width=0.08).network.state_dict()
    newest = read(next(newest_first(run / "checkpoints"))).files
    for name, value in wanted.items():
        moved = (newest["power_0.1"][name] - newest["power_0.05"][name]).norm()
        assert (found[name] - value).norm() <= 0.2 * moved + 1e-6, name


def test_a_width_or_rate_that_was_tracked_is_itself(run):
    newest = read(next(newest_first(run / "checkpoints"))).files
    for asked, label in ((dict(width=0.1), "power_0.1"), (dict(rate=0.99), "ema_0.99")):
        found = averaged(run, **asked).network.state_dict()
        for name, value in newest[label].items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_a_run_resumes_to_the_bit(tmp_path):
    train(tmp_path / "whole", ema_power=WIDTHS)
    train(tmp_path / "parts", ema_power=WIDTHS, steps=5)
    train(tmp_path / "parts", ema_power=WIDTHS)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({}, "give either rate, one of those that the run was trained with, or width"),
        (dict(rate=0.9, width=0.1), "give either rate"),
        (dict(rate=0.5), "the run stores no mean of rate 0.5; it stores 0.9, 0.99"),
        (dict(rate=0.9, step=59), "there is no checkpoint of step 59; there are those of 4, 8, "),
        (
            dict(width=0.005),
            "with an error of .* keep more of them .keep_every., or take a width nearer to 0.05, 0.1",
        ),
    ],
)
def test_what_a_run_does_not_hold_is_named(run, asked, text):
    with pytest.raises(OptionError, match=text):
        averaged(run, **asked)


def test_a_run_without_power_means_reports_how_to_get_them(tmp_path):
    train(tmp_path)
    with pytest.raises(OptionError, match=r"use ema_power=\(0.05, 0.1\)"):
        averaged(tmp_path, width=0.1)


def test_the_command_writes_a_system(run, tmp_path, capsys):
    assert main(["average", str(run), "--width", "0.12", "--out", str(tmp_path / "wide")]) == 0
    assert capsys.readouterr().out == f"system: {tmp_path / 'wide'}/\n"
    assert main(["average", str(run), "--width", "0.12", "--out", str(tmp_path / "wide")]) == 2
    assert "is not empty; name another folder" in capsys.readouterr().err
    loaded = diffkit.load(tmp_path / "wide")
    expected = averaged(run, width=0.12)
    for a, b in zip(loaded.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)
