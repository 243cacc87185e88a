"""The optimizer of a network's trained parameters, by the options of training."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from diffkit.errors import OptionError, ProtocolError, naming
from diffkit.runtime.strict_json import reason
from diffkit.training.config import TrainConfig
from diffkit.training.parameter_groups import as_groups, freezing, torch_groups


def build_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimizer of the parameters of a network that require a gradient.

    Raises:
        OptionError: A pattern matches nothing; the optimizer needs a closure, or whole parameters where they are
            sharded.
        ProtocolError: The part does not build a torch optimizer of all parameters.
    """
    name = config.optimizer_name
    part = config.optimizer_part
    if config.strategy == "fsdp" and not (part.elementwise or part.gathers):
        raise OptionError(
            f"shares parameters among processes, but optimizer {name!r} needs them whole",
            option="strategy",
            value="fsdp",
            fix=[{"strategy": "ddp"}, {"optimizer": "adamw"}],
        )
    groups = torch_groups(network, as_groups(config.param_groups), lr=config.lr, weight_decay=config.weight_decay)
    wanted = _ids(groups)
    try:
        with naming(f"optimizer {name!r}"):
            made = part.build(groups, network)
    except OptionError as error:
        raise error.in_part("optimizer", name) from error
    if not isinstance(made, torch.optim.Optimizer):
        raise ProtocolError(f"optimizer {name!r}: build must return a torch.optim.Optimizer, got {type(made).__name__}")
    if _ids(made.param_groups) != wanted:
        raise ProtocolError(f"optimizer {name!r}: build must return an optimizer of each parameter, once")
    if _needs_closure(made):
        raise OptionError(
            f"calls the loss itself ({type(made).__name__}.step needs a closure), which a training with one batch per "
            "update cannot give",
            option="optimizer",
            value=name,
            fix={"optimizer": "adamw"},
        )
    return made


def check_optimizer(network: nn.Module, config: TrainConfig) -> None:
    """Raise what `build_optimizer` would raise in training, where some parameters are frozen; nothing is changed."""
    if not (config.optimizer or config.param_groups or config.freeze):
        return
    with freezing(network, config.freeze):
        if any(parameter.requires_grad for parameter in network.parameters()):  # else `check_training` raises
            build_optimizer(network, config)


def optimizer_state_bytes(network: nn.Module, config: TrainConfig) -> int:
    """Return the bytes that the optimizer of a network on the meta device keeps after an update there, without counts.

    Raises:
        OptionError, ProtocolError: As `build_optimizer`, or the optimizer cannot be run on the meta device.
    """
    optimizer = build_optimizer(network, config)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    try:
        with _ValuesAreOne():
            optimizer.step()
    except Exception as error:  # of whatever kind an operation without values raises
        raise OptionError(
            f"cannot be sized: its step cannot be run on the meta device ({reason(error)}); a dry run measures memory",
            option="optimizer",
            value=config.optimizer_name,
        ) from error
    finally:
        optimizer.zero_grad()
    states = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.nbytes for value in states if isinstance(value, torch.Tensor) and value.dim())


class _ValuesAreOne(TorchFunctionMode):
    """Gives 1 to an optimizer that reads a number from a tensor without values."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.item and args[0].is_meta:
            return 1.0
        return func(*args, **(kwargs or {}))


def _ids(groups: Iterable[Mapping[str, Any]]) -> list[int]:
    return sorted([id(parameter) for group in groups for parameter in group["params"]])


def _needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty
