"""The state of a torch optimizer as named tensors, for checkpoints, and back.

    KIND/NAME            tensor KIND of the parameter NAME: "exp_avg/out.weight"
    KIND:int/NAME        a number of Python; also bool and float
    KIND:float/.GROUP    a number of the optimizer's group GROUP that has changed since it was made

A tensor is sharded as its parameter is if it has its shape; every process has all of any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffkit.errors import OptionError

_TYPES = {"int": int, "float": float, "bool": bool}
_DTYPES = {int: torch.int64, float: torch.float64, bool: torch.bool}
_OF_TRAINER = ("params", "lr", "initial_lr", "param_names")
"""Entries of a group that are not its state."""


class OptimizerState:
    """Stores and restores the state of a torch optimizer.

    Args:
        optimizer: The optimizer, as it was made.
        network: The network, whose parameters it changes.
    Attributes:
        trained: The parameters that it changes, by name.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, network: nn.Module):
        self.optimizer = optimizer
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        changed = {id(parameter): position for position, parameter in enumerate(parameters)}
        named = {name: p for name, p in network.named_parameters() if id(p) in changed}
        self.trained = named
        self._positions = {name: changed[id(p)] for name, p in named.items()}
        self._first = [_numbers(group) for group in optimizer.param_groups]

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name; numbers become tensors of one element."""
        found: dict[str, Tensor] = {}
        for name, parameter in self.trained.items():
            for kind, value in self.optimizer.state.get(parameter, {}).items():
                if value is not None:
                    found |= dict([_named(kind, name, value)])
        for i, (group, first) in enumerate(zip(self.optimizer.param_groups, self._first, strict=True)):
            for kind, value in _numbers(group).items():
                if kind not in first or first[kind] != value or type(first[kind]) is not type(value):
                    found |= dict([_named(kind, f".{i}", value)])
        return found

    def restore(self, tensors: Mapping[str, Tensor], shard_like: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Restore a state that `tensors` returned.

        Args:
            tensors: The state, shards joined.
            shard_like: Returns a whole tensor with the shards of another one.
        Raises:
            OptionError: It has parameters that the optimizer does not change.
        """
        entries = [(*full.partition("/")[::2], value) for full, value in tensors.items()]
        frozen = sorted({name for _, name, _ in entries if not name.startswith(".")} - self.trained.keys())
        if frozen:  # runs of earlier versions do not record which parameters are trained
            raise OptionError(
                f"{len(frozen)} parameters that the run trained are frozen now (the first is {frozen[0]}); train "
                "the same, or choose another folder"
            )
        state: dict[int, dict[str, Any]] = {}
        groups = self.optimizer.state_dict()["param_groups"]
        for kind, name, value in entries:
            kind, _, type_name = kind.partition(":")
            if type_name:
                value = _TYPES[type_name](value.item())
            if name.startswith("."):
                groups[int(name[1:])][kind] = value
                continue
            parameter = self.trained[name]
            if isinstance(value, Tensor) and value.ndim and value.shape == parameter.shape:
                value = shard_like(value, parameter)
                if not parameter.is_contiguous():  # fused optimizers read memory in order
                    value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            state.setdefault(self._positions[name], {})[kind] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self._restore_dtypes(state)

    def _restore_dtypes(self, state: Mapping[int, Mapping[str, Any]]) -> None:
        """Give tensors the dtype that was stored, as torch takes that of the parameter."""
        for name, parameter in self.trained.items():
            own = self.optimizer.state.get(parameter, {})
            for kind, value in state.get(self._positions[name], {}).items():
                found = own.get(kind)
                if kind != "step" and isinstance(found, Tensor) and found.dtype != value.dtype:
                    own[kind] = value.to(found.device)


def _numbers(group: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of a group that may be state: numbers."""
    return {k: v for k, v in group.items() if k not in _OF_TRAINER and type(v) in _DTYPES}


def _named(kind: str, name: str, value: Any) -> tuple[str, Tensor]:
    """Name and tensor of one entry of the state."""
    if isinstance(value, Tensor):
        return f"{kind}/{name}", value if type(value) is Tensor else _whole_or_sharded(value)
    if type(value) not in _DTYPES:
        raise OptionError(
            f"the optimizer holds a {type(value).__name__} as {kind!r} of {name}, which no checkpoint can hold; let it "
            "be a tensor or a number"
        )
    return f"{kind}:{type(value).__name__}/{name}", torch.tensor(value, dtype=_DTYPES[type(value)])


def _whole_or_sharded(tensor: Tensor) -> Tensor:
    """A tensor that is whole, or sharded along its first axis, as files of checkpoints are."""
    from torch.distributed.tensor import DTensor

    sharded = isinstance(tensor, DTensor) and all(place.is_shard(0) for place in tensor.placements)
    return tensor.full_tensor() if isinstance(tensor, DTensor) and not sharded else tensor
