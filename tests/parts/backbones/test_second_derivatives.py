"""Networks with attention can be differentiated twice, and in forward mode, where one asks for it."""

from __future__ import annotations

import pytest
import torch

from diffkit.parts.backbones.dit import DiT
from diffkit.parts.backbones.unet import UNet
from diffkit.tensors import differentiable_twice

UNET = UNet(channels=8, groups=8, num_res_blocks=1, channel_mult=(1,), attention_resolutions=(4,), num_heads=2)
RECIPES = {"unet": UNET, "dit": DiT(patch=2, hidden=16, depth=1, heads=2)}


@pytest.fixture(params=RECIPES)
def slope(request):
    """The gradient of a sum of squares at x, as a function of x."""
    network = RECIPES[request.param].build((1, 4, 4), 1).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    time = torch.tensor([3.0, 5.0], dtype=torch.float64)

    def value(x):
        return network(x, time).square().sum()

    def slope(x, create_graph=False):
        return torch.autograd.grad(value(x), x, create_graph=create_graph)[0]

    slope.value = value
    return slope


def test_twice(slope):
    x, along, other = torch.randn(3, 2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with differentiable_twice():
        at = x.clone().requires_grad_()
        (got,) = torch.autograd.grad((slope(at, create_graph=True) * along).sum(), at)
    ends = [slope((x + step * other).requires_grad_()) for step in (1e-5, -1e-5)]
    wanted = ((ends[0] - ends[1]) * along).sum() / 2e-5
    torch.testing.assert_close((got * other).sum(), wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own decompositions
def test_in_forward_mode(slope):
    x, along = torch.randn(2, 2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with differentiable_twice():
        _, got = torch.func.jvp(slope.value, (x,), (along,))
    torch.testing.assert_close(got, (slope(x.clone().requires_grad_()) * along).sum(), rtol=1e-9, atol=1e-12)
