"""Derivatives along a direction in (x, time): forward mode, double backward and differences agree."""

from __future__ import annotations

import pytest
import torch
from backbone_support import NETWORKS, Case
from torch import Tensor
from torch.func import jvp

from diffkit.tensors import differentiable_twice

QUICK = ("unet", "dit", "mlp")
CASES = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in NETWORKS
    if "classifier" not in name
]


def along(case: Case, dtype: torch.dtype):
    """The network as a function of (x, time), where it is evaluated, and a direction."""
    network = case.network.to(dtype)
    conditions = {k: v.to(dtype) if v.is_floating_point() else v for k, v in case.conditions.items()}
    generator = torch.Generator().manual_seed(5)
    x, time = case.x.to(dtype), torch.tensor([0.3, 2.7], dtype=dtype)
    direction = (torch.randn(x.shape, generator=generator).to(dtype), torch.tensor([1.0, -0.4], dtype=dtype))
    return lambda x, time: network(x, time, **conditions), (x, time), direction


def by_double_backward(f, at: tuple[Tensor, ...], direction: tuple[Tensor, ...]) -> Tensor:
    at = tuple(value.clone().requires_grad_() for value in at)
    out = f(*at)
    weight = torch.zeros_like(out, requires_grad=True)
    slopes = torch.autograd.grad(out, at, weight, create_graph=True)
    return torch.autograd.grad(sum((g * v).sum() for g, v in zip(slopes, direction, strict=True)), weight)[0]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own decompositions
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["f64", "f32"])
@pytest.mark.parametrize("name", CASES)
def test_forward_mode_is_double_backward(name: str, dtype: torch.dtype, tolerance: float):
    f, at, direction = along(Case(name), dtype)
    with differentiable_twice():
        _, forward = jvp(f, at, direction)
        twice = by_double_backward(f, at, direction)
    assert (forward - twice).abs().max() <= tolerance * twice.abs().max()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("name", CASES)
def test_a_central_difference_is_near_it(name: str):
    f, at, direction = along(Case(name), torch.float64)
    with differentiable_twice():
        _, forward = jvp(f, at, direction)
    ends = [f(*(a + h * v for a, v in zip(at, direction, strict=True))) for h in (1e-4, -1e-4)]
    assert ((ends[0] - ends[1]) / 2e-4 - forward).abs().max() <= 1e-6 * forward.abs().max()
