"""Which conditions a network takes, and keywords that are none: misspelt options end here, not inside the network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from diffkit._errors import OptionError, did_you_mean

OPTIONS = frozenset(
    [
        *("batch_size", "clip", "compile", "decoder_rows", "generator", "grad", "guidance", "level", "model", "noise"),
        *("noise_fn", "progress", "rows_per_call", "sampler", "seed", "start", "steps", "table", "timesteps_state"),
        "x_transform",
    ]
)
"""Options of a system's calls."""

_SLIPS = OPTIONS - {"grad", "level", "model", "noise", "table"}
"""Those whose slips are looked for: near to the others are words that conditions may have, such as mode."""

_ELSEWHERE = {
    "callback": "System.trajectory, which yields every step",
    "callback_on_step_end": "System.trajectory, which yields every step",
    "classifier_free_guidance": "guidance=diffkit.guidance.ClassifierFree(scale)",
    "clip_denoised": "clip=",
    "cond_fn": "guidance=diffkit.guidance.GradientGuidance(log_prob)",
    "cond_scale": "guidance=diffkit.guidance.ClassifierFree(scale)",
    "denoised_fn": "x_transform=",
    "eta": "sampler=('ddim', {'eta': 0.5})",
    "generator": "seed=",
    "guidance_scale": "guidance=diffkit.guidance.ClassifierFree(scale)",
    "model_kwargs": "keywords of their own, such as y=labels",
    "num_inference_steps": "steps=",
    "num_sampling_steps": "steps=",
    "num_steps": "steps=",
    "timestep_respacing": "steps=",
}
"""What other libraries call options of sampling -> what it is here."""

_TIMES = ("t", "time", "timestep", "timesteps", "sigma", "noise_level", "noise_labels")
"""What networks call their time."""

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

_NEAR = 0.85
"""How alike (difflib's ratio) a condition is to an option that it must be a slip of: 'step' is, 'scale' is not."""


class NamedTime(nn.Module):
    """A foreign network whose time argument goes by name."""

    def __init__(self, network: nn.Module, argument: str):
        super().__init__()
        parameters = _signature(network.forward).parameters
        keywords = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if argument not in parameters and not keywords:
            raise OptionError(
                f"{type(network).__name__}.forward has no argument {argument!r} for the time "
                f"(arguments: {', '.join(parameters)})"
            )
        self.network = network
        self.argument = argument
        names = list(parameters)
        self.data = names[1] if len(names) > 1 and names[0] == argument else None

    def forward(self, x: Tensor, time: Tensor, **conditions: Any) -> Tensor:
        """Return what the network returns."""
        named = {self.argument: time}
        out: Tensor
        if self.data is None:
            out = self.network(x, **named, **conditions)
        else:  # the time comes first
            out = self.network(**{self.data: x}, **named, **conditions)
        return out


def check_takes_time(network: nn.Module) -> None:
    """Raise `OptionError` unless a foreign network can be called as ``network(x, time)``, as far as can be told."""
    try:
        signature = _signature(network.forward)
        names = list(signature.parameters)
    except (TypeError, ValueError):  # a function without a signature
        return
    arguments, name = ", ".join(names) or "none", type(network).__name__
    if names and names[0] in _TIMES:
        raise OptionError(
            f"{name}.forward takes {names[0]!r} first, where data comes (arguments: {arguments}); pass "
            f"time_argument={names[0]!r}"
        )
    positional = [p.name for p in signature.parameters.values() if p.kind in _POSITIONAL]
    if len(positional) < 2 and not any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()):
        named = next((n for n in names if n in _TIMES), None)
        hint = f"pass time_argument={named!r}" if named else "let it take the time second, or pass time_argument="
        raise OptionError(f"{name}.forward must take data and time (arguments: {arguments}); {hint}")


@frozen
class _Taken:
    """Conditions that a network takes: those it names, and any other if ``anything``."""

    names: frozenset[str]
    anything: bool


def name_problems(model: Callable[..., Any], names: Iterable[str], own: frozenset[str]) -> Iterator[str]:
    """Say which conditions cannot be meant for a network.

    A network that names its conditions takes no others. To one that takes any, what is an option of a system's calls,
    or almost, is not handed on.

    Args:
        model: The network.
        names: Of the conditions.
        own: Those that guidance keeps to itself.
    """
    unsure = [name for name in names if name not in own]
    taken = _taken(model) if unsure and not torch.compiler.is_compiling() else None
    if taken is None:
        return
    label = f"the network {type(model).__name__}" if isinstance(model, nn.Module) else "the function given as model"
    for name in unsure:
        if name in taken.names:
            continue
        if name in _ELSEWHERE and not (taken.anything and name not in OPTIONS):
            yield f"{name!r} is no condition of {label}, and no option here; it is {_ELSEWHERE[name]}"
        elif name in OPTIONS:
            yield f"{name!r} is an option of other calls, not of this one, and no condition of {label}; leave it out"
        elif taken.anything:
            if meant := _slip_of(name):
                yield f"condition {name!r} looks like the option {meant!r}; write that, or name {name!r} in {label}"
        else:
            known = ", ".join(sorted(taken.names)) or "none"
            guess = did_you_mean(name, taken.names | OPTIONS)
            yield f"{label} takes no condition {name!r}{guess} (conditions: {known})"


@lru_cache(maxsize=256)
def _slip_of(name: str) -> str | None:
    """The option that a condition must be a slip of; kept, as every update of a training asks."""
    return next(iter(get_close_matches(name, _SLIPS, n=1, cutoff=_NEAR)), None)


def _taken(model: Callable[..., Any]) -> _Taken | None:
    """What a network takes; None if it cannot be told."""
    try:
        if isinstance(model, NamedTime):
            found = _read(model.network.forward, 1)
            return _Taken(found.names - {model.argument, model.data}, found.anything)
        if (
            isinstance(model, nn.Module)
            and not isinstance(model, torch.jit.ScriptModule)
            and "forward" not in vars(model)
        ):
            return _read_once(type(model).forward)
        return _read(model.forward if isinstance(model, nn.Module) else model, 2)
    except (TypeError, ValueError):  # a function without a signature
        return None


@lru_cache(maxsize=256)
def _read_once(forward: Callable[..., Any]) -> _Taken:
    """The same for all networks of a class."""
    return _read(forward, 3)


def _read(function: Callable[..., Any], skip: int) -> _Taken:
    """Names of a function's arguments beside the first ones, which are the data and the time."""
    parameters = list(_signature(function).parameters.values())
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:skip]
    named = (p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    return _Taken(frozenset(named) - set(positional), any(p.kind is p.VAR_KEYWORD for p in parameters))


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """A function's signature; a scripted or traced one has it in a schema, where inspect does not look."""
    if not isinstance(function, torch.ScriptMethod | torch.ScriptFunction):
        return inspect.signature(function)
    names = [argument.name for argument in function.schema.arguments if argument.name != "self"]
    return inspect.Signature([inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names])
