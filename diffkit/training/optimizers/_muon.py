"""The torch optimizer of `muon`, and which parameters it makes orthogonal steps of."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.adamw import adamw

from diffkit.training.parameter_groups import matching

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial of degree 5 that brings singular values to about 1 fastest; Jordan et al. 2024."""
_SMALLEST = 1e-7
"""The least norm that a gradient is divided by; that of `torch.optim.Muon`."""


def hidden_matrices(network: nn.Module, others: Sequence[str] = ()) -> Iterator[nn.Parameter]:
    """Yield the matrices and convolutions of a network's hidden layers.

    Args:
        network: The network.
        others: Patterns of names that are left out.
    Raises:
        OptionError: A pattern matches no parameter.
    """
    named = dict(network.named_parameters())
    embeddings = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
    matrices = {name: p for name, p in named.items() if p.ndim >= 2}
    layers = {name: p for name, p in matrices.items() if id(p) not in embeddings and "embed" not in name}
    first = next((name for name, p in matrices.items() if p.ndim > 2), next(iter(layers), None))
    outermost = dict(zip(matrices, _outermost(matrices), strict=True))
    last = next(reversed(outermost.values()), None)
    left_out = {name for pattern in others for name in matching(pattern, named, "adamw")}
    ends = {first, *left_out, *(name for name, module in outermost.items() if module == last)}
    yield from (parameter for name, parameter in layers.items() if name not in ends)


def _outermost(names: Collection[str]) -> list[str]:
    """For each name the outermost module that not all of them have in common."""
    paths = [name.split(".") for name in names]
    depth = 0
    while paths and all(len(path) > depth + 1 and path[depth] == paths[0][depth] for path in paths):
        depth += 1
    return [path[depth] for path in paths]


def orthogonalized(matrix: Tensor, iterations: int) -> Tensor:
    """Return a matrix with about the same singular vectors and singular values near 1, in bfloat16."""
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.bfloat16()
    x = x.T if tall else x
    x = x / x.norm().clamp(min=_SMALLEST)
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for groups with ``muon=True``, torch's fused AdamW for the others.

    An update with the attribute `found_inf` above 0 changes nothing, as of torch's fused optimizers. Sharded parameters
    are gathered for the iterations, in every process; the momentum stays sharded.

    Args:
        groups: With "params", "lr", "weight_decay" and "muon".
        momentum, nesterov, iterations: As of the part.
        spectral: Steps of size ``sqrt(max(1, rows / columns))``, not of AdamW's.
        betas, eps: Of AdamW.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        momentum: float,
        nesterov: bool,
        iterations: int,
        spectral: bool,
        betas: tuple[float, float],
        eps: float,
    ):
        super().__init__(groups, {"fused": True})  # torch then restores the number of steps to the device
        self.momentum, self.nesterov, self.iterations, self.spectral = momentum, nesterov, iterations, spectral
        self.betas, self.eps = betas, eps
        self._step_supports_amp_scaling = True  # as torch marks its optimizers that heed `found_inf`

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take a step of every parameter that has a gradient."""
        for group in self.param_groups:
            given = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not group["muon"]:
                self._step_by_adamw(given, group["lr"], group["weight_decay"])
            for parameter in given if group["muon"] else ():
                self._step_matrix(parameter, group["lr"], group["weight_decay"])

    def _step_by_adamw(self, parameters: list[Tensor], lr: float, weight_decay: float) -> None:
        if not parameters:
            return
        for parameter in parameters:
            if not self.state[parameter]:
                moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                step = torch.zeros((), dtype=torch.float32, device=parameter.device)
                self.state[parameter] = {"step": step, **moments}
        state = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [each["exp_avg"] for each in state],
            [each["exp_avg_sq"] for each in state],
            [],
            [each["step"] for each in state],
            fused=True,
            found_inf=getattr(self, "found_inf", None),
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=lr,
            weight_decay=weight_decay,
            eps=self.eps,
            maximize=False,
        )

    def _step_matrix(self, parameter: Tensor, lr: float, weight_decay: float) -> None:
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer, skip = state["momentum_buffer"], getattr(self, "found_inf", None)
        mean = buffer.lerp(gradient, 1 - self.momentum)
        step = self._orthogonal(gradient.lerp(mean, self.momentum) if self.nesterov else mean)
        stepped = parameter.mul(1 - lr * weight_decay).add_(step, alpha=-lr * self._size(parameter))
        if skip is not None:
            mean, stepped = (torch.where(skip > 0, old, new) for old, new in ((buffer, mean), (parameter, stepped)))
        buffer.copy_(mean)
        parameter.copy_(stepped)

    def _orthogonal(self, tensor: Tensor) -> Tensor:
        """The orthogonalized matrix, in the shape and with the shards of the tensor."""
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        found = orthogonalized(whole.flatten(1), self.iterations).reshape(whole.shape)
        if isinstance(tensor, DTensor):
            return distribute_tensor(found, tensor.device_mesh, tensor.placements, src_data_rank=None)
        return found

    def _size(self, parameter: Tensor) -> float:
        rows, columns = parameter.shape[0], math.prod(parameter.shape[1:])
        return math.sqrt(max(1, rows / columns)) if self.spectral else 0.2 * math.sqrt(max(rows, columns))
