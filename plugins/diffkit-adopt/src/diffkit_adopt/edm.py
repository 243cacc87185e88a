"""EDM, EDM2 and descendants: a network ``net(x, sigma, class_labels)`` that returns clean data, or its weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from diffkit import OptionError
from diffkit.system.adopting import AdoptedModel
from diffkit_adopt._levels import along, karras

_SIGMA_DATA = 0.5
"""Of EDM and EDM2 alike; Karras et al. 2022, arXiv:2206.00364, table 1."""
_PREFIXES = ("", "model.", "unet.")
"""What EDM and EDM2 write before the names of the network within the preconditioning."""


class Preconditioned(nn.Module):
    """A network within EDM's preconditioning.

    ``c_skip x + c_out net(c_in x, log(sigma) / 4)``, of which each follows from sigma and sigma_data.

    Attributes:
        net: ``net(x, noise, class_labels)``, or without labels.
        sigma_data: Standard deviation of the data.
        label_dim: Width of its one-hot labels, 0 for none.
    Source: Karras et al. 2022, arXiv:2206.00364, table 1.
    """

    def __init__(self, net: nn.Module, sigma_data: float, label_dim: int):
        super().__init__()
        self.net, self.sigma_data, self.label_dim = net, sigma_data, label_dim
        self.takes_labels = "class_labels" in inspect.signature(net.forward).parameters

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Return the estimate of clean data; labels of zeros stand for no class."""
        if class_labels is None and self.label_dim:
            class_labels = x.new_zeros(len(x), self.label_dim)
        given = {"class_labels": class_labels} if self.takes_labels else {}
        at = along(sigma, x)
        total = (at.square() + self.sigma_data**2).sqrt()
        out: Tensor = self.net(x / total, sigma.log() / 4, **given)
        return (self.sigma_data / total) ** 2 * x + at * self.sigma_data / total * out


class Denoised(nn.Module):
    """A preconditioned network under diffkit's calling convention."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, time: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Return the estimate of clean data; class_labels are one-hot, or None for no class."""
        given = () if class_labels is None else (class_labels,)
        out: Tensor = self.net(x, time.to(x.dtype), *given)
        return out.to(x.dtype)


def read(
    obj: Any,
    *,
    times: Any = None,
    levels: int = 1000,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    sigma_data: float | None = None,
    label_dim: int = 0,
) -> AdoptedModel:
    """Read a preconditioned network; its own range of sigma counts where it is narrower.

    Args:
        obj: The network; or (network, state_dict), whose weights are loaded into the network. A network that is not
            preconditioned is that within the preconditioning.
        times: Sigmas of the levels, rising.
        levels: How many, evenly spaced in sigma^(1/7).
        sigma_min, sigma_max: The ends of these.
        sigma_data: Of the preconditioning, where the network has none; 0.5 beside a state dict.
        label_dim: Width of its one-hot labels, likewise.
    """
    net, weights = obj if isinstance(obj, tuple) and len(obj) == 2 else (obj, None)
    if isinstance(net, Mapping):
        raise OptionError(f"a state dict of {len(net)} tensors has no network; give (network, state_dict)")
    if not isinstance(net, nn.Module):
        raise OptionError(f"{type(net).__name__} is not a module; give a network, or (network, state_dict)")
    if weights is not None:
        _load(net, weights)
        sigma_data = _SIGMA_DATA if sigma_data is None else sigma_data
    if not hasattr(net, "sigma_data"):
        if sigma_data is None:
            raise OptionError(
                f"{type(net).__name__} has no sigma_data, and so no preconditioning; adopt the network that holds it, "
                f"or give sigma_data={_SIGMA_DATA} for EDM's"
            )
        net = Preconditioned(net, sigma_data, label_dim)
    low = max(sigma_min, float(getattr(net, "sigma_min", 0.0)))
    high = min(sigma_max, float(getattr(net, "sigma_max", float("inf"))))
    sigma = karras(low, high, levels).numpy() if times is None else np.asarray(times, dtype=np.float64)
    nulls = {"class_labels": None} if getattr(net, "label_dim", 0) else None
    return AdoptedModel(Denoised(net), np.ones_like(sigma), sigma, sigma, "x_start", "EDM", nulls)


def _load(net: nn.Module, weights: Any) -> None:
    """Load a state dict, of the preconditioned network or of that within, into a network."""
    own = net.state_dict().keys()
    if not isinstance(weights, Mapping) or not all(isinstance(each, Tensor) for each in weights.values()):
        raise OptionError(f"the weights are {type(weights).__name__}, not a state dict; give name -> tensor")
    for prefix in _PREFIXES:
        found = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        others = [name for name in weights if not name.startswith(prefix) or name.removeprefix(prefix) not in own]
        if own <= found.keys() and all(name.startswith("logvar") for name in others):  # EDM2's, for training alone
            try:
                net.load_state_dict({name: found[name] for name in own})
            except RuntimeError as error:
                raise OptionError(f"the state dict does not fit {type(net).__name__}: {error}") from error
            return
    lacks, extra = ([*names][:1] for names in (own - weights.keys(), weights.keys() - own))
    raise OptionError(
        f"the state dict is not one of {type(net).__name__}: it lacks {lacks}, and has {extra} in addition; "
        "make the network with the options it was trained with"
    )
