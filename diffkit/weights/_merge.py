"""Merge an adapter into the weights of its network."""

from __future__ import annotations

import copy

from torch import nn
from torch.nn.utils import parametrize

from diffkit.errors import OptionError
from diffkit.runtime.files import unwrap_module
from diffkit.system.attached import adapter_of, forget_adapter
from diffkit.system.module import System


def merged(system: System) -> System:
    """Return a system whose network computes without an adapter what that of the system computes with it.

    Args:
        system: The system, such as `diffkit.load` returns of a run with an adapter; it is not changed.
    Raises:
        OptionError: It has no adapter.
    """
    attached = adapter_of(system.network)
    if attached is None or system.network is None:
        raise OptionError("the system has no adapter, so there is nothing to merge")
    network = unwrap_module(copy.deepcopy(system.network))
    _unshare_classes(network)
    attached.adapter.merge(network)
    forget_adapter(network)
    return system.with_network(network.requires_grad_(True)).eval()


def _unshare_classes(network: nn.Module) -> None:
    """Give parametrized layers classes of their own: torch changes the class, which copies share."""
    for layer in network.modules():
        if parametrize.is_parametrized(layer):
            own = type(layer)
            layer.__class__ = type(own.__name__, own.__bases__, dict(vars(own)))
