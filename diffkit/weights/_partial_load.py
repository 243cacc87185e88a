"""Load part of a file's weights into a network that differs from it, for fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from attrs import field, frozen
from torch import Tensor, nn

from diffkit.errors import CheckpointError, OptionError
from diffkit.runtime.files import unwrap_module
from diffkit.runtime.run_layout import weights_file
from diffkit.system.module import System
from diffkit.weights._names import find_weight_sets, strip_wrappers
from diffkit.weights._read_state_dict import FileWeights, read_weights_file
from diffkit.weights._values import check_tensor_values


@frozen
class Loaded:
    """Result of `load_matching`; ``print`` shows it.

    Attributes:
        taken: Tensors of the network that were copied from the file.
        left: Tensors of the network that the file does not have, not changed.
        reshaped: Tensors of the network that were not changed, as the file's have another shape: (file, network).
        unused: Tensors of the file that the network does not have.
        entry: Name of the set of weights, if the file has several or a prefix before names.
        entries: All sets in the file that fit.
    """

    taken: tuple[str, ...]
    left: tuple[str, ...]
    reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(hash=False)
    unused: tuple[str, ...]
    entry: str | None = None
    entries: tuple[str, ...] = ()

    def __str__(self) -> str:
        others = [repr(name) for name in self.entries if name != (self.entry or "")]
        of = f" from {self.entry!r}" if self.entry else ""
        of += f" (and not from {', '.join(others)})" if others else ""
        lines = [f"{len(self.taken)} tensors taken{of}, {len(self.left) + len(self.reshaped)} left as they were"]
        lines += [f"left: {name} is {file} in the file, {own} here" for name, (file, own) in self.reshaped.items()]
        lines += [f"left: {name} is not in the file" for name in self.left]
        lines += [f"not used: {name}" for name in self.unused]
        return "\n  ".join(lines)


def load_matching(target: System | nn.Module, path: str | Path, *, entry: str | None = None) -> Loaded:
    """Load those weights of a file into a network that match by name and shape, for fine-tuning.

    Parts of names that trainers, running means and wrappers add ("model.", "ema_model.module.", "_orig_mod.") are
    ignored, on both sides.

    Args:
        target: A system or a network; changed in place.
        path: The file, or the folder of a run or a saved system.
        entry: Name of the set of weights, if several fit; by default a running mean ("ema"), if there is one.
    Returns:
        The names of the tensors that were copied and that were not.
    Raises:
        CheckpointError: The file cannot be read, or no tensor of it matches.
        OptionError: The system has no network, or several sets of weights fit equally well.
    """
    network, path = target_network(target), weights_file(Path(path))
    if isinstance(target, System) and target.learned:
        network = target.trained or network
    own = network.state_dict()
    weights = read_weights_file(path, entry, {name: tuple(tensor.shape) for name, tensor in own.items()})
    names = _names_in_file(network, weights)
    found = {name: weights.tensors[plain] for name, plain in names.items() if plain in weights.tensors}
    taken = {name: tensor for name, tensor in found.items() if own[name].shape == tensor.shape}
    if not taken:
        raise CheckpointError(_no_match_text(path, network, weights, found))
    check_tensor_values(path, taken, network)
    network.load_state_dict(taken, strict=False)
    return Loaded(
        taken=tuple(taken),
        left=tuple(name for name in own if name not in found),
        reshaped={
            name: (tuple(tensor.shape), tuple(own[name].shape)) for name, tensor in found.items() if name not in taken
        },
        unused=tuple(name for name in weights.tensors if name not in names.values()),
        entry=weights.entry,
        entries=weights.entries,
    )


def _names_in_file(network: nn.Module, weights: FileWeights) -> dict[str, str]:
    """Return the name in the file of each tensor of a network, which may be wrapped."""
    own = network.state_dict()
    names = {name: name if name in weights.tensors else strip_wrappers(name) for name in own}
    if weights.tensors.keys() & names.values():
        return names
    inner = max(find_weight_sets(own, weights.shapes), key=lambda place: place.rank, default=None)
    prefix = "" if inner is None else inner.prefix
    return {name: strip_wrappers(name.removeprefix(prefix)) for name in own if name.startswith(prefix)}


def _no_match_text(path: Path, network: nn.Module, weights: FileWeights, found: Mapping[str, Tensor]) -> str:
    """Return the text of an error with a tensor of the file and one of the network, if possible of the same name."""
    own = network.state_dict()
    name = next(iter(found), next(iter(own), None))
    text = f"nothing in {path} has the name and shape of a tensor of this {type(network).__name__}"
    if name is None:
        return f"{text}, which has none"
    there, tensor = (name, found[name]) if name in found else next(iter(weights.tensors.items()))
    return f"{text}: the file has {there!r} {tuple(tensor.shape)}, the network {name!r} {tuple(own[name].shape)}"


def target_network(target: System | nn.Module) -> nn.Module:
    """Return the network to load weights into or export: that of a system, or a network itself, unwrapped."""
    if not isinstance(target, System):
        return unwrap_module(target)
    if target.network is None:
        raise OptionError("this system was composed with backbone=None, so there is no network with weights")
    return unwrap_module(target.network)
