"""The check that a checkpoint has the tensors of the trainer's state, before any of them is restored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from diffkit.errors import CheckpointError
from diffkit.runtime.strict_json import word
from diffkit.training.checkpoint import Files


def check_checkpoint_state(step: int, files: Files, own: Files, network: nn.Module, *, alike: bool = True) -> None:
    """Raise unless a checkpoint has the tensors of the trainer's state.

    Args:
        step: Step of the checkpoint, for the message.
        files: Its tensors, shards joined.
        own: The trainer's current state; before the first update it has no moments and no window of metrics.
        network: The network, whose parameters the moments belong to.
        alike: Whether the optimizer has the same moments of each parameter, of its shape.
    Raises:
        CheckpointError: A file or a tensor is missing, or has another shape or dtype.
    """
    problem = next(_state_problems(files, own, dict(network.named_parameters()), alike), None)
    if problem:
        raise CheckpointError(
            f"the checkpoint of step {step} is not one of this run: {problem}; remove its folder to resume from the "
            "one before"
        )


def _state_problems(files: Files, own: Files, parameters: Mapping[str, Tensor], alike: bool) -> Iterator[str]:
    for label, tensors in own.items():
        if label not in files:
            yield f"it has no {label}"
            return
        for name, tensor in tensors.items() if label != "optimizer" else ():
            if name not in files[label] and name != "window":
                yield f"{label} has no {name}"
            elif name in files[label] and name != "window":
                yield from _tensor_difference(f"{name} of {label}", files[label][name], tensor)
    yield from _moment_problems(files["optimizer"], parameters, alike)


def _moment_problems(moments: Mapping[str, Tensor], parameters: Mapping[str, Tensor], alike: bool) -> Iterator[str]:
    kinds_of = dict[str, set[str]]()
    for full, value in moments.items():
        kind, _, name = full.partition("/")
        if name.startswith("."):  # a number of a group of parameters
            continue
        kinds_of.setdefault(name, set()).add(kind)
        if name not in parameters:
            yield f"optimizer has {word(full)}, of no parameter of the network"
        elif value.ndim and (alike or value.shape == parameters[name].shape):
            yield from _tensor_difference(f"{full} of optimizer", value, parameters[name])
    every = set().union(*kinds_of.values())
    for name, kinds in kinds_of.items() if alike else ():
        if kinds != every:
            yield f"optimizer has no {min(every - kinds)} of {name}"


def _tensor_difference(what: str, there: Tensor, own: Tensor) -> Iterator[str]:
    if there.shape != own.shape:
        yield f"{what} has shape {tuple(there.shape)}, not {tuple(own.shape)}"
    if there.dtype != own.dtype:
        yield f"{what} holds {there.dtype}, not {own.dtype}"
