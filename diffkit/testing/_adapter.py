"""Laws of adapters, on a small network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import diffkit
from diffkit.errors import OptionError
from diffkit.protocols import Adapter
from diffkit.system.attached import attach
from diffkit.system.module import System
from diffkit.testing._check import NotApplicableError, check
from diffkit.testing._close import require, require_close
from diffkit.weights._merge import merged

_UNET = {"channels": 8, "groups": 4, "num_res_blocks": 1, "channel_mult": (1,), "num_heads": 2}
_SHAPE = (1, 4, 4)


def _system() -> System:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        system = diffkit.compose(backbone=("unet", _UNET), schedule="cosine", num_steps=10, data_shape=_SHAPE)
        for parameter in _network(system).parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape)
    return system.eval()


def _network(system: System) -> nn.Module:
    assert system.network is not None
    return system.network


def _attached(part: Adapter) -> System:
    system = _system()
    try:
        attach(_network(system), part, "base")
    except OptionError as error:
        raise NotApplicableError(f"it does not fit a small U-Net: {error}") from error
    return system


@torch.no_grad()
def _output(system: System) -> Tensor:
    x = torch.randn(2, *_SHAPE, generator=torch.Generator().manual_seed(4))
    out: Tensor = _network(system)(x, torch.tensor([3.0, 8.0]))
    return out


def _moved(system: System) -> System:
    """A system whose trained parameters have other values."""
    generator = torch.Generator().manual_seed(5)
    for parameter in _network(system).parameters():
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return system


@check("adapter")
def starts_as_nothing(part: Adapter) -> None:
    """A network to which it is attached computes what it did.

    Usually: two random matrices, of which the last should start at zero.
    """
    require_close(_output(_attached(part)), _output(_system()), 1e-6, "output")


@check("adapter")
def its_parameters_are_trained(part: Adapter) -> None:
    """It adds parameters, which change the output and get a gradient; those of the network do not get one.

    Usually: a parameter in a plain list, or one that nothing reads.
    """
    system = _moved(_attached(part))
    require(bool(_network(system).state_dict()), "parameters of its own in the state dict", "none")
    require(bool((_output(system) - _output(_system())).abs().max() > 1e-6), "another output", "the same")
    _network(system)(torch.ones(2, *_SHAPE), torch.tensor([3.0, 8.0])).square().sum().backward()
    for name, parameter in _network(system).named_parameters():
        got = parameter.grad is not None
        require(got == parameter.requires_grad, "a gradient exactly if it is its own", f"{name}: {got}")


@check("adapter")
def merged_it_is_the_same(part: Adapter) -> None:
    """After merging, the network has its own parameters only, and computes what it did with the adapter.

    Usually: a scale that only one of both has.
    """
    system = _moved(_attached(part))
    expected = _output(system)
    plain = merged(system)
    require_close(_output(plain), expected, 1e-5, "output")
    require_close(_output(system), expected, 0.0, "output before")
    names = _network(_system()).state_dict().keys()
    require(
        _network(plain).state_dict().keys() == names, "the network's own names", sorted(_network(plain).state_dict())
    )
