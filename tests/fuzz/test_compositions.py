"""Whatever is composed of whatever parts and options: it works, or an error of diffkit's says why not."""

from __future__ import annotations

import time

import pytest
import torch
from compositions import composition
from lanes import in_lanes

import diffkit

CASES = range(5000)
LONGEST = 5.0
"""Seconds that a case may take of the processor."""


@pytest.fixture
def _all_plugins(monkeypatch):
    """Lift the list of plugins that `conftest` keeps empty."""
    monkeypatch.delenv("DIFFKIT_PLUGINS")


@in_lanes(default=40, slow=400, parts=2)
@pytest.mark.usefixtures("_all_plugins")
def test_it_works_or_says_why_not(chosen, capfd):
    wrong = [f"case {number}: {problem}" for number in chosen(CASES) for problem in _problems(number, capfd)]
    assert not wrong, "\n".join(wrong)


def _problems(number: int, capfd: pytest.CaptureFixture[str]) -> list[str]:
    """What is wrong with one composition: other errors than diffkit's, infinities without a word, or its time."""
    began = time.process_time()
    found = []
    try:
        found = _silent(number, capfd)
    except diffkit.DiffkitError as error:
        if not str(error):
            found.append("an error without a word")
    except Exception as error:
        found.append(f"{type(error).__name__}: {error}")
    took = time.process_time() - began
    return [*found, f"it takes {took:.1f} s"] if took > LONGEST else found


def _silent(number: int, capfd: pytest.CaptureFixture[str]) -> list[str]:
    """Which results of a composition are not finite though nothing says so."""
    keywords = composition(number)
    steps = keywords.pop("steps")
    torch.manual_seed(number)
    system = diffkit.compose(**keywords).eval()
    _roughen(system, number)
    x_start = _data(system)
    capfd.readouterr()
    loss = system(x_start, generator=torch.Generator().manual_seed(0))["loss"]
    results = {"the loss": loss, "the bound": system.bits_per_dim(x_start[:1], steps=steps, seed=0).total}
    results["the samples"] = system.sample(2, steps=steps, seed=0, progress=False)
    silent = "warning: " not in capfd.readouterr().err
    return [
        f"{name} not finite: {keywords}" for name, found in results.items() if silent and not found.isfinite().all()
    ]


def _roughen(system: diffkit.System, seed: int) -> None:
    """Move weights away from 0, where an untrained network says nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in system.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))


def _data(system: diffkit.System) -> torch.Tensor:
    x = torch.rand(3, *system.data_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    bins = system.decoder.bins
    return x if bins is None else ((x + 1) / 2 * (bins - 1)).round() / (bins - 1) * 2 - 1


class Loud(torch.nn.Module):
    """A network whose output is larger than its input by a factor."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self.factor * x


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "heun", "dpmpp_3m"])
@pytest.mark.parametrize("factor", [1e4, 1e30, float("nan")])
def test_samples_that_are_not_finite_are_an_error(sampler, factor):
    system = diffkit.compose(
        schedule="cosine", backbone=Loud(factor), data_shape=(2,), num_steps=20, clip_x_start=False, sampler=sampler
    )
    with pytest.raises(diffkit.DivergedError, match="none of 3 samples is finite"):
        system.sample(3, seed=0, progress=False)


def test_some_samples_that_are_not_finite_are_a_warning(capsys):
    class Moody(torch.nn.Module):
        def forward(self, x, time, y):
            return x * y[:, None]

    y = torch.tensor([0.0, float("nan"), 0.0])
    system = diffkit.compose(schedule="cosine", backbone=Moody(), data_shape=(2,), num_steps=5)
    system.sample(3, seed=0, progress=False, y=y)
    assert "warning: 1 of 3 samples are not finite (1)" in capsys.readouterr().err
    system.bits_per_dim(torch.zeros(3, 2), seed=0, y=y)
    assert "warning: the bits/dim of 1 of 3 examples are not finite" in capsys.readouterr().err
