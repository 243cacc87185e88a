"""Operators of inverse problems that cannot be used are refused before any work; those that can are not."""

from __future__ import annotations

import re

import pytest
import torch
from gaussian_support import system_for
from torch import nn

from diffkit.errors import OptionError
from diffkit.guidance import DPS, MMPS, DiffPIR, PiGDM
from diffkit.tasks import average_pool, masked, solve

SHAPE = (1, 4, 4)
LINEAR = (MMPS, PiGDM, DiffPIR)
WEIGHTS = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0)) + 0.5


def made_by(method, operator):
    return method(operator) if method is DPS else method(operator, noise_std=0.1)


def shrunk(x, time):
    return 0.9 * x


def tried(operator, method, *, measurement=None, **how):
    """Solve with it; the network must not be called before the operator is refused."""
    calls = []

    def model(x, time):
        calls.append(1)
        return 0.9 * x

    measurement = torch.zeros(SHAPE) if measurement is None else measurement
    try:
        return solve(
            system_for(SHAPE, num_steps=10), measurement, made_by(method, operator), model=model, seed=0,
            steps=3, progress=False, **how,
        )  # fmt: skip
    except OptionError:
        assert not calls
        raise


def in_place(x):
    with torch.no_grad():
        x *= 2
    return 1 * x


def partly_constant(x):
    return torch.cat([x[..., :2], x.detach()[..., 2:]], -1)


def changed_too_late(x):
    """Overwrites what the square's gradient needs."""
    copied = 1 * x
    square = copied.square()
    copied += 1
    return x + square - square.detach()


def through_numpy(x):
    return torch.from_numpy(x.numpy())


@torch.no_grad()
def without_gradient(x):
    return 2 * x


NOT_LINEAR = {
    "absolute value": torch.abs,
    "square": torch.square,
    "relu": torch.relu,
    "Fourier magnitude": lambda x: torch.view_as_real(torch.fft.fft2(x)).norm(dim=-1),
    "clamp": lambda x: x.clamp(-1, 1),
    "nearly linear": lambda x: x + 0.01 * x**2,
    "affine": lambda x: x + 1,
    "clamp far outside of data's range": lambda x: x.clamp(-5, 5),
    "saturating late": lambda x: 1e3 * torch.tanh(1e-3 * x),
    "normalized": lambda x: x / (1 + x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)),
}
WRONG = {
    "the operator has no gradient": (lambda x: x.detach(), without_gradient, lambda x: torch.zeros_like(x)),
    "the operator fails on data of shape (3, 1, 4, 4): Can't call numpy() on Tensor that requires grad": (
        through_numpy,
    ),
    "the operator's gradient is wrong": (partly_constant,),
    "the operator has a gradient of 0 but depends on data": (lambda x: x.detach() + 0 * x,),
    "the operator changes its argument in place": (in_place,),
    "the operator measures the same data differently": (lambda x: x + 0.01 * torch.randn_like(x),),
    "the operator's rows depend on other rows": (lambda x: x - x.mean(0, keepdim=True), lambda x: x.flip(0)),
    "the operator returns shape () for 1 examples": (torch.sum,),
    "the operator returns torch.complex64, and measurements must be real": (torch.fft.fft2,),
    "the operator returns torch.float64 for torch.float32 data": (lambda x: x.double(),),
    "the operator returns torch.int64 for torch.float32 data": (lambda x: x.long(),),
    "the operator fails on data of shape (3, 1, 4, 4): one of the variables needed for gradient": (changed_too_late,),
    "the operator's gradient is not finite": (lambda x: (0 * x).square().sum((1, 2, 3)).sqrt() + x.sum((1, 2, 3)),),
    "the operator measures nothing: it returns shape (3, 0)": (lambda x: x.flatten(1)[:, :0],),
    "the operator must return a tensor, got tuple": (lambda x: (x,),),
    "the operator returns values that are not finite": (lambda x: x / torch.zeros(()),),
    "the operator fails on data of shape (1, 1, 4, 4): ": (lambda x: x @ torch.zeros(3, 3),),
}
WRONG_CASES = [(text, operator) for text, operators in WRONG.items() for operator in operators]


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_what_is_not_linear_is_for_dps(name):
    for method in LINEAR:
        with pytest.raises(OptionError, match=r"the operator is not linear: .*; use DPS, which takes any"):
            tried(NOT_LINEAR[name], method, n=2)
    assert tried(NOT_LINEAR[name], DPS, n=2).isfinite().all()


@pytest.mark.parametrize(
    ("text", "operator"), WRONG_CASES, ids=[f"{i}-{t[:40]}" for i, (t, _) in enumerate(WRONG_CASES)]
)
def test_operators_that_no_method_can_use(text, operator):
    for method in (*LINEAR, DPS):
        with pytest.raises(OptionError, match=re.escape(text)):
            tried(operator, method)


@pytest.mark.parametrize("method", [*LINEAR, DPS])
def test_an_operator_for_each_example_takes_all_at_once(method):
    operator, measurement = masked(WEIGHTS), torch.full((3, *SHAPE), 0.8) * WEIGHTS
    assert tried(operator, method, measurement=measurement).shape == (3, *SHAPE)
    assert tried(operator, method, measurement=measurement, batch_size=3).shape == (3, *SHAPE)
    assert tried(operator, method, n=3, measurement=measurement[0]).shape == (3, *SHAPE)
    for size in (1, 2):
        with pytest.raises(
            OptionError, match=f"batch_size={size} splits 3 examples, but the operator takes all of them"
        ):
            tried(operator, method, measurement=measurement, batch_size=size)
    with pytest.raises(OptionError, match=r"the operator fails on data of shape|returns shape"):
        tried(operator, method, n=2)


def test_the_advice_about_operators_for_each_example_holds():
    """One call for each example, with an operator and a seed of its own, gives what one call for all gives."""
    system, measurement = system_for(SHAPE, num_steps=10), 0.8 * WEIGHTS
    how = dict(model=shrunk, steps=3, progress=False)
    together = solve(system, measurement, MMPS(masked(WEIGHTS), 0.1), seed=[4, 5, 6], **how)
    for i in range(3):
        alone = solve(system, measurement[i], MMPS(masked(WEIGHTS[i]), 0.1), seed=[4 + i], **how)
        torch.testing.assert_close(alone[0], together[i])


@pytest.mark.parametrize(
    "operator",
    [
        masked(torch.rand(4, 4) > 0.5),
        masked(torch.zeros(1, 4, 4)),
        masked(torch.rand(1, 1, 4, 4) > 0.5),
        average_pool(2),
        nn.Conv2d(1, 2, 3, bias=False),
        lambda x: x.flatten(1)[:, ::3],
        lambda x: x.mean((1, 2, 3)),
        lambda x: torch.view_as_real(torch.fft.fft2(x)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", [*LINEAR, DPS])
def test_operators_that_can_be_used_are(method, operator):
    measurement = operator(torch.rand(4, *SHAPE)).detach()
    for size in (None, 1, 3):
        assert tried(operator, method, measurement=measurement, batch_size=size).isfinite().all()
    with torch.inference_mode():
        assert tried(operator, method, measurement=measurement[0], n=2).isfinite().all()


def test_rounding_with_a_gradient_passed_straight_through_is_for_dps():
    assert tried(lambda x: x + (x.mul(8).round() / 8 - x).detach(), DPS).isfinite().all()
    with pytest.raises(OptionError, match="a gradient of 0 but depends on data"):
        tried(torch.round, DPS)


def test_measurements_that_are_complex_or_not_finite():
    with pytest.raises(OptionError, match=r"measurement must be real, got torch.complex64; pass torch.view_as_real"):
        tried(masked(WEIGHTS[0]), MMPS, measurement=torch.zeros(SHAPE, dtype=torch.complex64))
    with pytest.raises(OptionError, match="measurement must be finite"):
        tried(masked(WEIGHTS[0]), MMPS, measurement=torch.full(SHAPE, float("nan")))


@pytest.mark.parametrize("shape", [(1, 4), (3, 1, 1, 4), (3, 4, 4), (3, 1, 4, 1)])
@pytest.mark.parametrize("method", [*LINEAR, DPS])
def test_measurements_do_not_broadcast(method, shape):
    """Without `solve`, too."""
    system, guidance = system_for(SHAPE, num_steps=10), made_by(method, masked(WEIGHTS[0]))
    with pytest.raises(OptionError, match=r"measurement has shape|condition 'measurement'|must have"):
        system.sample(
            3, model=shrunk, guidance=guidance, measurement=torch.zeros(shape), sampler="ancestral", progress=False
        )
    with pytest.raises(OptionError, match="measurement must have shape"):
        tried(masked(WEIGHTS[0]), method, measurement=torch.zeros(shape), n=3)
