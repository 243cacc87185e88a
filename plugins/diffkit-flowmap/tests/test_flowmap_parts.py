"""The parts conform, compose with what they can be defined for, and train; `flow_map` with the exact map is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffkit_flow import Flow, FlowLinear
from diffkit_flowmap import Consistency, Distill, FlowMap, FlowMapLevelPairs, FlowMapPairs, MeanFlow, Shortcut
from flowmap_support import DATA, output
from flowmap_support import Path as NoisePath
from torch import Tensor

import diffkit
from diffkit import CompositionError, OptionError
from diffkit.testing import Check, parametrize_checks

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own decompositions


@pytest.mark.slow
@parametrize_checks(
    "loss",
    MeanFlow(),
    MeanFlow(derivative="difference", power=1.0, teacher="system"),
    Shortcut(),
    Shortcut(teacher="ema"),
    Consistency(),
    Consistency(steps=3, power=0.5, teacher="system"),
    Distill(),
    Distill(steps=5),
)
def test_loss(check: Check):
    check()


@pytest.mark.slow
@parametrize_checks("timesteps", FlowMapLevelPairs(), FlowMapLevelPairs(0.0), FlowMapPairs(), FlowMapPairs(clean=0.3))
def test_timesteps(check: Check):
    check()


@pytest.mark.slow
@parametrize_checks("sampler", FlowMap(), FlowMap(times=1))
def test_sampler(check: Check):
    check()


def exact(x: Tensor, time: Tensor, time_to: Tensor | None = None) -> Tensor:
    """The exact flow map as a network on the straight path with mean='flow' and times of 0 to 1."""
    path = NoisePath("linear", "flow")
    t, s = path(time.double()), path((torch.zeros_like(time) if time_to is None else time_to).double())
    return output(DATA(x.double(), t, s).x_start, x.double(), t).to(x.dtype)


def system_of(num_steps: int = 32, **slots: Any) -> diffkit.System:
    """A system on the straight path with times of 0 to 1, without a network."""
    given: dict[str, Any] = dict(schedule=FlowLinear(1.0), mean=Flow(), var="fixed_small", backbone=None)
    return diffkit.compose(**given | slots, data_shape=(1,), num_steps=num_steps, bins=None)


NOISE = torch.randn(500, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("steps", "times"), [(1, 1), (1, 2), (2, 2), (7, 2)])
def test_any_number_of_steps_of_the_exact_map_is_exact(steps: int, times: int):
    found = system_of(steps).sample_from(exact, NOISE, None, sampler=FlowMap(times=times))
    torch.testing.assert_close(found, DATA.sample(NOISE), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("times", [1, 2])
def test_stochastic_steps_of_the_exact_map_keep_its_law(times: int):
    """Whatever the noise of the later steps: every step ends in data, as quantiles of the mixture tell."""
    generator = torch.Generator().manual_seed(1)
    sampler = FlowMap(stochastic=True, times=times)
    noise_fn = lambda: torch.randn(4000, 1, dtype=torch.float64, generator=generator)  # noqa: E731
    found = system_of(3).sample_from(exact, noise_fn(), noise_fn, sampler=sampler)
    found, wanted = found.flatten().sort().values, DATA.sample(noise_fn()).flatten().sort().values
    assert (found - wanted).abs().mean() < 0.04


def test_a_student_of_two_exact_half_steps_is_distilled():
    """Value and gradient of `distill` are zero where one step is two of the teacher's."""
    system = system_of(8, loss=Distill(steps=2), timesteps="uniform")
    path, gap = NoisePath("linear", "flow"), 2 / 8

    def steps(share: float) -> Any:
        def network(x: Tensor, time: Tensor) -> Tensor:
            t, s = path(time), path((time - share).clamp(min=0))
            return output(DATA(x, t, s).x_start, x, t)

        return network

    from diffkit.system.loss_network import NetworkCall

    teacher = NetworkCall(steps(gap), system.parts, False, {})
    off = torch.zeros((), dtype=torch.float64, requires_grad=True)
    x_start, noise = DATA.sample(NOISE[:40]), NOISE[40:80]
    level = torch.arange(40) % 8 + 1
    terms = system.loss_terms(
        lambda x, time: steps(2 * gap)(x, time) + off * torch.cos(x), x_start, level, noise, teacher=teacher
    )
    assert terms["loss"].max() < 1e-16
    (pull,) = torch.autograd.grad(terms["loss"].sum(), off)
    assert abs(float(pull)) < 1e-9


MLP: dict[str, Any] = {"hidden": 16, "depth": 1}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "levels without neighbours": (dict(loss="consistency", timesteps="flow_logit_normal"), "continuous"),
    "a second time": (dict(loss="consistency", backbone=("mlp", MLP | {"times": 2})), "times=1"),
    "more than all levels": (dict(loss=("consistency", {"steps": 40})), "steps"),
    "one time": (dict(loss="mean_flow", timesteps="flowmap_pairs", backbone=("mlp", MLP)), "times=2"),
    "one level": (dict(loss="shortcut", backbone=("mlp", MLP | {"times": 2})), "flowmap|pairs"),
    "an odd number of levels": (dict(loss=("distill", {"steps": 5})), "num_steps=30"),
    "a sampler of two times": (dict(loss="consistency", backbone=("mlp", MLP), sampler="flow_map"), "times=1"),
    "a learned variance": (dict(loss="consistency", var="learned_range"), "learned_range"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_with_what_would(name: str):
    slots, words = REFUSED[name]
    with pytest.raises((CompositionError, OptionError), match=words):
        diffkit.compose(**{"schedule": "flow_linear", "mean": "flow", "data_shape": (2,), "bins": None} | {
            "num_steps": 32, "var": "fixed_small", "backbone": ("mlp", MLP)} | slots)  # fmt: skip


TRAINED: dict[str, dict[str, Any]] = {
    "consistency": dict(loss="consistency", sampler=("flow_map", {"times": 1})),
    "mean_flow": dict(loss="mean_flow", timesteps="flowmap_pairs", sampler="flow_map"),
    "shortcut": dict(loss=("shortcut", {"teacher": "ema"}), timesteps="flowmap_level_pairs", sampler="flow_map"),
    "distill": dict(loss="distill", sampler=("flow_map", {"times": 1})),
}


def to_train(name: str) -> diffkit.System:
    torch.manual_seed(0)
    slots, times = TRAINED[name], 2 if name in ("mean_flow", "shortcut") else 1
    return diffkit.compose(
        schedule=("flow_linear", {"time_scale": 4}), mean="flow", var="fixed_small", num_steps=16, bins=None,
        data_shape=(2,), backbone=("mlp", MLP | {"times": times}), **slots,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_a_run_that_is_cut_goes_on_to_the_bit(name: str, tmp_path: Path):
    """Also with microbatches; samples are those of the system that is loaded."""
    data = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = dict(batch_size=16, microbatch=8, ema=(0.9,), progress=False, save_every=4)
    if name == "distill":
        teacher = to_train("consistency")
        teacher.save(tmp_path / "teacher")
        options["teacher"] = tmp_path / "teacher"
    whole = diffkit.train(to_train(name), data, out=tmp_path / "whole", steps=8, **options)
    diffkit.train(to_train(name), data, out=tmp_path / "cut", steps=4, **options)
    cut = diffkit.train(to_train(name), data, out=tmp_path / "cut", steps=8, **options)
    for key, value in whole.network.state_dict().items():
        assert torch.equal(value, cut.network.state_dict()[key]), key
    again = diffkit.load(tmp_path / "cut")
    assert torch.equal(again.sample(4, steps=1, seed=1, progress=False), cut.sample(4, steps=1, seed=1, progress=False))


@pytest.mark.parametrize("sampler", [FlowMapLevelPairs(0.5), FlowMapPairs(equal=0.5, clean=0.2)])
def test_the_shares_of_pairs_are_those_that_were_set(sampler: Any):
    u = torch.rand(20_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t, s, weight = sampler.sample((), u, 10)
    assert abs(float((t == s).double().mean()) - 0.5) < 0.02
    assert torch.equal(weight, torch.ones(20_000))
    clean = (s == 0) if t.dtype == torch.int64 else (s == np.inf)
    assert t.dtype == torch.int64 or abs(float(clean.double().mean()) - 0.2) < 0.02
