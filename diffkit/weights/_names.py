"""Find sets of weights in a file by their tensors' names: prefixes, and the parts that wrappers have inserted.

Trainers nest dictionaries and put prefixes before names: "model.", "ema.ema_model.module.", "model.diffusion_model.".
Dictionaries are treated as prefixes: ``{"ema": {"a.weight": ...}}`` has the name "ema.a.weight".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from attrs import field, frozen
from torch import Tensor

from diffkit.errors import CheckpointError
from diffkit.runtime.strict_json import shown

Shapes = Mapping[str, tuple[int, ...] | None]
"""Names to look for, each with its shape, or None for any shape."""

_WRAPPERS = {
    *("module", "_orig_mod", "_forward_module", "base_layer"),  # DDP and averages, torch.compile, Lightning, adapters
    *("_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
}
_PARAMETRIZED = ".parametrizations."
_MEAN = re.compile(r"(?<![a-z])(ema|averaged?|avg|swa|shadow)(?![a-z])")
_RAW = re.compile(r"(?<![a-z])online(?![a-z])")  # ema_pytorch's name for the weights that are trained
_DEEPEST, _MOST_NAMES = 8, 1_000_000
_NEARLY = 0.9
"""A set of weights is one of the network if at least this share of the tensors fits that fits in the best set: running
means may lack buffers, and a part of the network in the same file (a control network) is not one."""


@frozen
class WeightSet:
    """One set of weights in a file, such as the trained weights or a running mean.

    Attributes:
        prefix: Prefix of its tensors' names.
        fits: Number of the network's tensors that it has, with their shapes.
        alike: Number of the network's tensors that it has, with any shape.
    """

    prefix: str
    fits: int
    alike: int

    @property
    def name(self) -> str:
        """Name of the set: the prefix without wrappers; "" if nothing is left."""
        return ".".join(part for part in self.prefix.split(".") if part and part not in _WRAPPERS)

    @property
    def is_running_mean(self) -> bool:
        """Whether its name is that of a running mean of weights."""
        return bool(_MEAN.search(self.name.lower())) and not _RAW.search(self.name.lower())

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Order of preference: a running mean, with which samples are drawn; then the set with more fits."""
        return self.is_running_mean, self.fits, self.alike


@frozen(eq=False)
class FlatTensors:
    """All tensors of a file by full name, and its dictionaries.

    Attributes:
        tensors: Tensors by full name.
        dictionaries: Dictionaries by the prefix of their names.
    """

    tensors: Mapping[str, Tensor]
    dictionaries: Mapping[str, Mapping[Any, Any]] = field(factory=dict)

    @property
    def nameless_mean(self) -> str | None:
        """Full name of a list of tensors that is named as a running mean, as by torch_ema; None if there is none."""
        full = (p + key for p, each in self.dictionaries.items() for key, value in each.items() if _is_list(key, value))
        return next((name for name in full if _MEAN.search(name.lower())), None)


def flatten_dictionaries(content: Mapping[Any, Any]) -> FlatTensors:
    """Return the tensors in the nested dictionaries of a file, by full name.

    Raises:
        CheckpointError: There are too many names, or one has control characters.
    """
    tensors: dict[str, Tensor] = {}
    dictionaries: dict[str, Mapping[Any, Any]] = {}
    for prefix, dictionary in _nested_dictionaries("", content, _DEEPEST):
        dictionaries[prefix] = dictionary
        named = {prefix + key: value for key, value in dictionary.items() if _is_named_tensor(key, value)}
        tensors |= named
        for name in named:
            if not name.isprintable():
                raise CheckpointError(f"it has a tensor whose name has control characters, {shown(name)}")
        if len(tensors) + len(dictionaries) > _MOST_NAMES:
            raise CheckpointError(f"it has more than {_MOST_NAMES} names")
    return FlatTensors(tensors, dictionaries)


def find_weight_sets(tensors: Mapping[str, Tensor], expected: Shapes) -> tuple[WeightSet, ...]:
    """Return the sets of weights in a file that have the expected names, in order of the file; () if there are none."""
    looked = {strip_wrappers(name): shape for name, shape in expected.items()}
    alike, fits = Counter[str](), Counter[str]()
    for full, tensor in tensors.items():
        for prefix, name in _prefix_splits(full):
            if name in looked:
                alike[prefix] += 1
                fits[prefix] += looked[name] in (None, tuple(tensor.shape))
    found = [WeightSet(prefix, fits[prefix], count) for prefix, count in alike.items()]
    most = max((place.fits for place in found), default=0)
    return tuple(place for place in found if place.fits >= _NEARLY * most)


def check_parametrized(tensors: Mapping[str, Tensor], expected: Shapes) -> None:
    """Raise `CheckpointError` if the file has parametrized weights, but plain ones are expected."""
    first = next((name for name in tensors if _PARAMETRIZED in name), None)
    if first is not None and not any(_PARAMETRIZED in name for name in expected):
        if all(_PARAMETRIZED in name for name in tensors):
            raise CheckpointError("it holds an adapter alone; merge it first: diffkit merge FOLDER --out ANOTHER")
        module, _, rest = first.partition(_PARAMETRIZED)
        raise CheckpointError(
            f"it holds {first!r}, from which a parametrization computes a weight; save it after "
            f"torch.nn.utils.parametrize.remove_parametrizations(network.get_submodule({module!r}), "
            f"{rest.partition('.')[0]!r}), and so for the others"
        )


def tensors_under_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, by names without prefix and wrappers."""
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    plain = {strip_wrappers(name): tensor for name, tensor in own.items()}
    return plain if len(plain) == len(own) else own


def strip_wrappers(name: str) -> str:
    """Return a tensor's name without the parts that wrappers have inserted."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _prefix_splits(full: str) -> Iterator[tuple[str, str]]:
    """Yield each way to split a name into a prefix and a name without wrappers."""
    parts = full.split(".")
    for i, part in enumerate(parts):
        if part not in _WRAPPERS:
            yield "".join(f"{each}." for each in parts[:i]), strip_wrappers(".".join(parts[i:]))


def _nested_dictionaries(prefix: str, found: Mapping[Any, Any], depth: int) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield a dictionary and those nested in it, each with the prefix of its names, to a limited depth."""
    yield prefix, found
    for key, value in found.items():
        if depth and isinstance(key, str) and isinstance(value, Mapping):
            yield from _nested_dictionaries(f"{prefix}{key}.", value, depth - 1)


def _is_list(key: Any, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, list | tuple) and any(isinstance(each, Tensor) for each in value)


def _is_named_tensor(key: Any, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor)
