"""Checks that the tensors of a checkpoint are a state of this run, before any of them is restored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from diffkit.errors import CheckpointError
from diffkit.runtime.strict_json import word
from diffkit.training.checkpoint import Files


def check_state(step: int, files: Files, own: Files, network: nn.Module) -> None:
    """Raise unless the files of a checkpoint have the tensors of the trainer's own state.

    Args:
        step: Of the checkpoint, for the message.
        files: Its tensors, shares joined.
        own: The trainer's current state; moments and the window may be missing, as before the first update.
        network: The trained network; moments are those of its parameters.
    Raises:
        CheckpointError: A file or a tensor is missing, or of another shape or kind.
    """
    problem = next(_problems(files, own, dict(network.named_parameters())), None)
    if problem:
        raise CheckpointError(
            f"the checkpoint of step {step} is not one of this run: {problem}; remove its folder to resume from the "
            "one before"
        )


def _problems(files: Files, own: Files, parameters: Mapping[str, Tensor]) -> Iterator[str]:
    for label, tensors in own.items():
        if label not in files:
            yield f"it has no {label}"
            return
        for name, tensor in tensors.items() if label != "optimizer" else ():
            if name not in files[label] and name != "window":
                yield f"{label} has no {name}"
            elif name in files[label] and name != "window":
                yield from _difference(f"{name} of {label}", files[label][name], tensor)
    moments = dict[str, set[str]]()
    for full, value in files["optimizer"].items():
        kind, _, name = full.partition("/")
        moments.setdefault(name, set()).add(kind)
        if name not in parameters:
            yield f"optimizer has {word(full)}, of no parameter of the network"
        elif value.ndim:
            yield from _difference(f"{full} of optimizer", value, parameters[name])
    every = set().union(*moments.values())
    for name, kinds in moments.items():
        if kinds != every:
            yield f"optimizer has no {min(every - kinds)} of {name}"


def _difference(what: str, there: Tensor, own: Tensor) -> Iterator[str]:
    if there.shape != own.shape:
        yield f"{what} has shape {tuple(there.shape)}, not {tuple(own.shape)}"
    if there.dtype != own.dtype:
        yield f"{what} holds {there.dtype}, not {own.dtype}"
