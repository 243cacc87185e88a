"""Find the weights of a network in a file: their prefix, and the parts of their names that wrappers have inserted.

Trainers nest dictionaries and put prefixes before names: "model.", "ema.ema_model.module.", "model.diffusion_model.".
Dictionaries and prefixes are the same here: ``{"ema": {"a.weight": ...}}`` has the name "ema.a.weight".
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
"""Share of the most tensors that fit anywhere, from which another place counts as the same network: means may lack
buffers, and half a network in the same file (a control network) does not count."""


@frozen
class Place:
    """One set of weights in a file.

    Attributes:
        prefix: Prefix of its names.
        fits: How many of the wanted names it has, with their shapes.
        alike: How many it has with any shape.
    """

    prefix: str
    fits: int
    alike: int

    @property
    def name(self) -> str:
        """Its name: the prefix without wrappers; "" if nothing else is left."""
        return ".".join(part for part in self.prefix.split(".") if part and part not in _WRAPPERS)

    @property
    def is_mean(self) -> bool:
        """Whether its name is that of a running mean of weights."""
        return bool(_MEAN.search(self.name.lower())) and not _RAW.search(self.name.lower())

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Order of preference: a running mean, with which samples are drawn; then the place with more fits."""
        return self.is_mean, self.fits, self.alike


@frozen(eq=False)
class Flat:
    """All tensors of a file by full name, and its dictionaries.

    Attributes:
        tensors: Full name -> tensor.
        dictionaries: Prefix -> the dictionary that has the names after it.
    """

    tensors: Mapping[str, Tensor]
    dictionaries: Mapping[str, Mapping[Any, Any]] = field(factory=dict)

    @property
    def nameless_mean(self) -> str | None:
        """Full name of a list of tensors that is called a running mean, as torch_ema saves it; None without one."""
        full = (p + key for p, each in self.dictionaries.items() for key, value in each.items() if _is_list(key, value))
        return next((name for name in full if _MEAN.search(name.lower())), None)


def flat(content: Mapping[Any, Any]) -> Flat:
    """Return the tensors in nested dictionaries.

    Raises:
        CheckpointError: There are too many names, or one has control characters.
    """
    tensors: dict[str, Tensor] = {}
    dictionaries: dict[str, Mapping[Any, Any]] = {}
    for prefix, dictionary in _dictionaries("", content, _DEEPEST):
        dictionaries[prefix] = dictionary
        named = {prefix + key: value for key, value in dictionary.items() if _is_named_tensor(key, value)}
        tensors |= named
        for name in named:
            if not name.isprintable():
                raise CheckpointError(f"it has a tensor whose name has control characters, {shown(name)}")
        if len(tensors) + len(dictionaries) > _MOST_NAMES:
            raise CheckpointError(f"it has more than {_MOST_NAMES} names")
    return Flat(tensors, dictionaries)


def places(tensors: Mapping[str, Tensor], wanted: Shapes) -> tuple[Place, ...]:
    """Return the places that have the wanted names, in order of the file; () if there are none."""
    looked = {clean(name): shape for name, shape in wanted.items()}
    alike, fits = Counter[str](), Counter[str]()
    for full, tensor in tensors.items():
        for prefix, name in _splits(full):
            if name in looked:
                alike[prefix] += 1
                fits[prefix] += looked[name] in (None, tuple(tensor.shape))
    found = [Place(prefix, fits[prefix], count) for prefix, count in alike.items()]
    most = max((place.fits for place in found), default=0)
    return tuple(place for place in found if place.fits >= _NEARLY * most)


def check_parametrized(tensors: Mapping[str, Tensor], wanted: Shapes) -> None:
    """Raise `CheckpointError` if the file holds parametrized weights, but plain ones are wanted."""
    first = next((name for name in tensors if _PARAMETRIZED in name), None)
    if first is not None and not any(_PARAMETRIZED in name for name in wanted):
        module, _, rest = first.partition(_PARAMETRIZED)
        raise CheckpointError(
            f"it holds {first!r}, from which a parametrization computes a weight; save it after "
            f"torch.nn.utils.parametrize.remove_parametrizations(network.get_submodule({module!r}), "
            f"{rest.partition('.')[0]!r}), and so for the others"
        )


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors after a prefix, by names without prefix and wrappers."""
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    plain = {clean(name): tensor for name, tensor in own.items()}
    return plain if len(plain) == len(own) else own


def clean(name: str) -> str:
    """Return a name without the parts that wrappers have inserted."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _splits(full: str) -> Iterator[tuple[str, str]]:
    """Each way to split a name into a prefix and a name without wrappers."""
    parts = full.split(".")
    for i, part in enumerate(parts):
        if part not in _WRAPPERS:
            yield "".join(f"{each}." for each in parts[:i]), clean(".".join(parts[i:]))


def _dictionaries(prefix: str, found: Mapping[Any, Any], depth: int) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """A dictionary and those in it, each with the prefix of its names, to a limited depth."""
    yield prefix, found
    for key, value in found.items():
        if depth and isinstance(key, str) and isinstance(value, Mapping):
            yield from _dictionaries(f"{prefix}{key}.", value, depth - 1)


def _is_list(key: Any, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, list | tuple) and any(isinstance(each, Tensor) for each in value)


def _is_named_tensor(key: Any, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor)
