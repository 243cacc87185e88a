"""Weights of parts: modules built by their recipes, trained with the network, or frozen and only moved and saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffkit.errors import OptionError, ProtocolError, naming
from diffkit.protocols import LearnedPart
from diffkit.registry.kinds import KINDS
from diffkit.runtime.files import unwrap_module
from diffkit.system.building import bounded

LEARNED = "learned"
"""First part of the names of the weights of parts; those of the network have no prefix."""


class FrozenModules(nn.ModuleDict):
    """Modules of parts by kind that are not trained: always in eval mode, without gradients of their weights."""

    def __init__(self, modules: Mapping[str, nn.Module] | None = None):
        super().__init__({kind: module.requires_grad_(False) for kind, module in (modules or {}).items()})
        self.train()

    def train(self, mode: bool = True) -> FrozenModules:
        """Stay in eval mode."""
        super().train(False)
        return self


class Trained(nn.Module):
    """What a system trains, as one module: its network, and the modules of its parts by kind.

    Weights of the network have the names that they have in the network, those of parts "learned.KIND." before them:
    in state dicts, files, and patterns of names. Its call is the whole loss, so that DDP sees one forward pass,
    however often the loss calls the modules.
    """

    def __init__(self, network: nn.Module | None, learned: Mapping[str, nn.Module] | None = None):
        super().__init__()
        self.network = network
        self.learned = nn.ModuleDict(learned)
        self.register_state_dict_post_hook(_without_prefix)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_with_prefix)  # type: ignore[no-untyped-call]

    def forward(self, compute: Callable[[], Any]) -> Any:
        """Return what a function of the modules computes."""
        return compute()

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters by their names in state dicts."""
        start = f"{prefix}." if prefix else ""
        for name, parameter in super().named_parameters("", recurse, remove_duplicate):
            yield start + name.removeprefix("network."), parameter


def _without_prefix(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name in [name for name in state if name.startswith(prefix)]:  # all of them, to keep their order
        state[prefix + name.removeprefix(prefix).removeprefix("network.")] = state.pop(name)


def _with_prefix(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        own = name.removeprefix(prefix)
        if not own.startswith(f"{LEARNED}."):
            state[f"{prefix}network.{own}"] = state.pop(name)


def roots(module: nn.Module) -> list[nn.Module]:
    """Return the modules that are called one by one: the network and the modules of parts of a `Trained`."""
    if not isinstance(module, Trained):
        return [module]
    return [root for root in (module.network, *module.learned.values()) if root is not None]


def build_modules(
    parts: Mapping[str, tuple[Any, str]],
    given: Mapping[str, nn.Module] | None,
    data_shape: tuple[int, ...],
    device: torch.device | None,
) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Return the modules of the parts that have weights, by kind: those that are trained, and the frozen ones.

    They are those given, and others built.

    Args:
        parts: Part and name by kind.
        given: Modules of the caller's own, by kind.
        data_shape: Shape of one example, (C, *S).
        device: Where they are; by default where they are given or on the CPU, also in place of "meta", as tables are
            computed from their values.
    Raises:
        OptionError: A module is given to a part without weights, or not given to one that does not build its own.
        ProtocolError: A part of a kind that is given no weights has some, or builds no module.
    """
    given, place = _checked(given, parts), None if device is None or device.type == "meta" else device
    trained, frozen = dict[str, nn.Module](), dict[str, nn.Module]()
    for kind, (part, name) in parts.items():
        if isinstance(part, LearnedPart):
            _check_kind(kind, name)
            module = given[kind] if kind in given else _built(kind, name, part, data_shape)
            (trained if part.trained else frozen)[kind] = module if place is None else module.to(place)
    return trained, frozen


def _checked(given: Mapping[str, nn.Module] | None, parts: Mapping[str, tuple[Any, str]]) -> Mapping[str, nn.Module]:
    """Modules of the caller's own, or `OptionError`."""
    with_weights = [kind for kind, (part, _) in parts.items() if isinstance(part, LearnedPart)]
    for kind, module in (given or {}).items():
        if not isinstance(module, nn.Module):
            raise OptionError(f"modules[{kind!r}] must be a torch.nn.Module, got {type(module).__name__}")
        if kind not in with_weights:
            known = ", ".join(with_weights) or "none"
            raise OptionError(f"modules has {kind!r}, which has no weights here; leave it out (with weights: {known})")
    return given or {}


def _check_kind(kind: str, name: str) -> None:
    if not KINDS[kind].weights:
        kinds = ", ".join(each.name for each in KINDS.values() if each.weights)
        raise ProtocolError(
            f"{kind} {name!r} is a LearnedPart, but no method of a {kind} is given a module; parts with weights are: "
            f"{kinds}"
        )


def _built(kind: str, name: str, part: LearnedPart, data_shape: tuple[int, ...]) -> nn.Module:
    cpu = torch.device("cpu")
    try:
        with naming(f"{kind} {name!r}"), bounded(cpu), cpu:
            module = part.build(data_shape)
    except OptionError as error:
        raise error.in_part(kind, name) from error
    if module is None:
        raise OptionError(f"{kind} {name!r} builds no module of its own; give compose modules={{{kind!r}: module}}")
    if not isinstance(module, nn.Module):
        raise ProtocolError(f"{kind} {name!r}: build must return a torch.nn.Module, got {type(module).__name__}")
    return module


def check_no_clash(network: nn.Module | None, learned: Mapping[str, nn.Module] | None) -> None:
    """Raise `OptionError` if weights of a network have the names that those of parts have."""
    if learned and network is not None and hasattr(unwrap_module(network), LEARNED):
        raise OptionError(f"the network has a module named {LEARNED!r}, as weights of parts are called; rename it")
