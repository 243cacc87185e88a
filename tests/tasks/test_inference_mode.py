"""Every public call gives the same numbers within `torch.inference_mode` and `torch.no_grad`, and of tensors made there."""

from __future__ import annotations

import pytest
import torch

import diffkit
from diffkit import tasks
from diffkit.guidance import DPS, MMPS, ClassifierFree, ClassifierGuidance, DiffPIR, GradientGuidance, PiGDM
from diffkit.likelihood import ode_likelihood

SHAPE = (1, 4, 4)


@pytest.fixture(scope="module")
def system():
    torch.manual_seed(0)
    made = diffkit.compose(
        schedule="cosine",
        backbone=("mlp", {"hidden": 8, "depth": 1, "num_classes": 3, "null_class": True}),
        data_shape=SHAPE,
        num_steps=20,
        var="learned_range",
        loss="hybrid",
    )
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return made


def classes(x, time):
    return torch.stack([x.flatten(1).sum(1), time], 1)


POOL = tasks.average_pool(2)
HOW = dict(steps=3, seed=0, progress=False)
PULL = GradientGuidance(lambda x, time, given: -(x - given["towards"]).square().flatten(1).sum(1), own=["towards"])
SOLVERS = [MMPS(POOL, 0.1), PiGDM(POOL, 0.1), DiffPIR(POOL, 0.1), DPS(POOL)]
CALLS = {
    **{
        type(method).__name__: lambda s, x, y, method=method: tasks.solve(s, POOL(x), method, y=y, **HOW)
        for method in SOLVERS
    },
    "bound of a guided process": lambda s, x, y: s.bits_per_dim(
        x, y=y, steps=3, seed=0, guidance=SOLVERS[0], measurement=POOL(x)
    ).total,
    "masked": lambda s, x, y: tasks.solve(s, x, MMPS(tasks.masked(x > 0), 0.1), y=y, **HOW),
    "gradient": lambda s, x, y: s.sample(2, guidance=PULL, towards=x, y=y, **HOW),
    "classifier": lambda s, x, y: s.sample(2, guidance=ClassifierGuidance(classes, label="class"), y=y, **{"class": y[:2] % 2}, **HOW),
    "classifier-free": lambda s, x, y: s.sample(2, guidance=ClassifierFree(2.0), y=y, **HOW),
    "trajectory": lambda s, x, y: torch.stack(
        [point.x for point in s.trajectory(2, guidance=PULL, towards=x, y=y, steps=3, seed=0)]
    ),
    "start": lambda s, x, y: s.sample(2, start=x, y=y, guidance=PULL, towards=x, **HOW),
    "bound": lambda s, x, y: s.bits_per_dim(x, y=y, steps=3, seed=0).total,
    "encode": lambda s, x, y: s.encode(x, y=y, steps=3, guidance=PULL, towards=x),
    "edit": lambda s, x, y: tasks.image_to_image(s, x, strength=0.5, y=y, guidance=PULL, towards=x, **HOW),
    "inpaint": lambda s, x, y: tasks.inpaint(s, x, x > 0, resample=2, jump=1, y=y, guidance=PULL, towards=x, **HOW),
    "invert": lambda s, x, y: tasks.invert(s, x, y=y, steps=3, guidance=PULL, towards=x, progress=False).latent,
    "exact code": lambda s, x, y: tasks.exact_encode(s, x, y=y, steps=3, guidance=PULL, towards=x, progress=False).latent,
    "likelihood": lambda s, x, y: ode_likelihood(s, x, y=y, rtol=1e-1, atol=1e-1).bits,
    "likelihood of float64": lambda s, x, y: ode_likelihood(s, x.double(), y=y, rtol=1e-1, atol=1e-1).bits,
    "guided likelihood": lambda s, x, y: ode_likelihood(s, x, y=y, guidance=PULL, towards=x, rtol=1e-1, atol=1e-1).bits,
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_inference_mode_changes_nothing(name, system):
    call = CALLS[name]
    x = torch.linspace(-0.9, 0.9, 32).view(2, *SHAPE)
    y = torch.tensor([0, 2])
    wanted = call(system, x, y)
    with torch.no_grad():
        torch.testing.assert_close(call(system, x, y), wanted)
    with torch.inference_mode():
        own = x.clone(), y.clone()
        torch.testing.assert_close(call(system, x, y), wanted)
        torch.testing.assert_close(call(system, *own), wanted)
    torch.testing.assert_close(call(system, *own), wanted)
