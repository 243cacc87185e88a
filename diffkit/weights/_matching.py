"""Part of a file's weights into a network that is not quite the same, for fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from attrs import field, frozen
from torch import nn

from diffkit._errors import CheckpointError, OptionError
from diffkit.files import bare
from diffkit.system import System
from diffkit.weights._reading import read


@frozen
class Loaded:
    """What `load_matching` did; ``print`` shows it.

    Attributes:
        taken: Tensors of the network that now have the file's values.
        left: Tensors of the network that the file does not have, left as they were.
        reshaped: Tensors left as they were because the file's have another shape: (file, network).
        unused: Tensors of the file that the network does not have.
    """

    taken: tuple[str, ...]
    left: tuple[str, ...]
    reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(hash=False)
    unused: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.taken)} tensors taken, {len(self.left) + len(self.reshaped)} left as they were"]
        lines += [f"left: {name} is {file} in the file, {own} here" for name, (file, own) in self.reshaped.items()]
        lines += [f"left: {name} is not in the file" for name in self.left]
        lines += [f"not used: {name}" for name in self.unused]
        return "\n  ".join(lines)


def load_matching(target: System | nn.Module, path: str | Path, *, entry: str | None = None) -> Loaded:
    """Copy those weights of a file into a network that have the same name and shape, for fine-tuning.

    Args:
        target: A system or a network; changed in place.
        path: The file.
        entry: Which set of weights, if it holds several; "ema" if it has one.
    Returns:
        What was taken and what was left.
    Raises:
        CheckpointError: The file cannot be read, or nothing in it matches.
        OptionError: The system has no network.
    """
    network = network_of(target)
    weights, own = read(path, entry), network.state_dict()
    both = [name for name in own if name in weights.tensors]
    taken = tuple(name for name in both if own[name].shape == weights.tensors[name].shape)
    if not taken:
        raise CheckpointError(f"nothing in {path} has the name and shape of a tensor of this {type(network).__name__}")
    network.load_state_dict({name: weights.tensors[name] for name in taken}, strict=False)
    return Loaded(
        taken=taken,
        left=tuple(name for name in own if name not in weights.tensors),
        reshaped={
            name: (tuple(weights.tensors[name].shape), tuple(own[name].shape)) for name in both if name not in taken
        },
        unused=tuple(name for name in weights.tensors if name not in own),
    )


def network_of(target: System | nn.Module) -> nn.Module:
    """Return the network of a system, or a network itself."""
    if not isinstance(target, System):
        return bare(target)
    if target.backbone is None:
        raise OptionError("this system was composed with backbone=None, so there is no network with weights")
    return bare(target.backbone)
