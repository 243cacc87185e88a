"""Null conditions (the null label, an empty text, an embedding): as JSON data, and in place of dropped conditions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffkit.errors import OptionError
from diffkit.parts.guidance._null_rows import LARGEST, is_whole, none_of
from diffkit.protocols import NO_CLASS

_MOST = 2**18
"""Largest size of a null condition, which is written into every spec: three times CLIP's text embedding."""


# ---- as JSON data ----------------------------------------------------------------------------------------------------


def plain_nulls(value: Any) -> dict[str, Any] | None:
    """Return null conditions as plain JSON data: numbers, texts, None, lists and mappings.

    Raises:
        OptionError: They are not a mapping of names to such values.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping) or not value or not all(isinstance(name, str) for name in value):
        raise OptionError("must be a mapping such as {'y': 10}", option="null_conditions", value=value)
    return {name: _plain(f"null_conditions[{name!r}]", entry) for name, entry in value.items()}


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, Tensor | np.ndarray | np.generic):
        size = value.numel() if isinstance(value, Tensor) else value.size
        if size > _MOST:
            raise OptionError(
                f"{name} has {size} numbers, and a spec holds up to {_MOST}; give one number, which fills a condition "
                "of any shape"
            )
        value = value.tolist()
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(f"{name}[{key!r}]", entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(name, entry) for entry in value]
    if isinstance(value, int) and abs(value) > LARGEST:
        raise OptionError(f"{name} is {value}, which is more than 64 bits hold; use a smaller number")
    if isinstance(value, float) and not math.isfinite(value):
        raise OptionError(f"{name} has {value!r}, which JSON cannot hold; use a finite number")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise OptionError(
        f"{name} is a {type(value).__name__}; give a number, a text, a tensor, a mapping or list of such, or None"
    )


def nulls_of(owner: str, value: Any) -> Mapping[str, Any] | None:
    """Return null conditions with tensors for lists of numbers, ready for use.

    Args:
        owner: Their owner, for the message.
        value: As a backbone's `null_conditions` or `plain_nulls` returned them.
    Raises:
        OptionError: They are not a mapping of names.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise OptionError(f"{owner}: null_conditions() must return a mapping such as {{'y': 10}}, got {value!r}")
    return {name: _ready(entry) for name, entry in value.items()} or None


def _ready(value: Any) -> Any:
    if isinstance(value, int) and abs(value) > LARGEST:
        raise OptionError(f"null conditions have {value}, which is more than 64 bits hold; use a smaller number")
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor) and value.ndim == 0:
        return value.item()
    if isinstance(value, Mapping):
        return {key: _ready(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        try:
            return torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):  # texts, or a tuple of conditions
            return [_ready(entry) for entry in value]
    return value


# ---- dropped conditions ----------------------------------------------------------------------------------------------


def with_null(conditions: Mapping[str, Any], null: Mapping[str, Any], n: int) -> dict[str, Any]:
    """Return conditions with the null condition in place of None, and of the label -1 in ``y``.

    Args:
        conditions: As `diffkit.system.conditions` reads them.
        null: Null conditions.
        n: Number of examples.
    """
    return {name: _filled(name, value, null.get(name), n) for name, value in conditions.items()}


def _filled(name: str, value: Any, null: Any, n: int) -> Any:
    if null is None:
        return value
    if value is None:
        return none_of(name, null, None, n)
    if isinstance(value, list) and any(entry is None for entry in value):
        return _filled_list(name, value, null, n)
    if isinstance(value, Mapping) and isinstance(null, Mapping):
        return {key: _filled(f"{name}[{key!r}]", entry, null.get(key), n) for key, entry in value.items()}
    if name == "y" and isinstance(value, Tensor) and is_whole(value) and isinstance(null, int):
        return value.long().masked_fill(value == NO_CLASS, null)
    return value


def _filled_list(name: str, value: list[Any], null: Any, n: int) -> Any:
    """A list with None among its entries; of numbers, a tensor."""
    if isinstance(null, int) and all(entry is None or isinstance(entry, int) for entry in value):
        return _filled(name, torch.tensor([null if entry is None else entry for entry in value]), null, n)
    none = none_of(name, null, value, n)
    return [one if entry is None else entry for one, entry in zip(none, value, strict=True)]


def drop(
    conditions: Mapping[str, Any], null: Mapping[str, Any], n: int, chosen: Callable[[torch.device], Tensor]
) -> dict[str, Any]:
    """Return conditions with the null condition in the chosen examples, the same for every condition that has one.

    Args:
        conditions: As `diffkit.system.conditions` reads them.
        null: Null conditions; conditions without one are not changed.
        n: Number of examples.
        chosen: Function of a device that returns the mask of examples, (n,) bool.
    Raises:
        OptionError: A null condition has another form than the condition, or applies to all examples only.
    """
    return {
        name: _dropped(name, value, none_of(name, null[name], value, n), chosen)
        if null.get(name) is not None
        else value
        for name, value in conditions.items()
    }


def _dropped(name: str, given: Any, none: Any, chosen: Callable[[torch.device], Tensor]) -> Any:
    if isinstance(given, Mapping) and isinstance(none, Mapping):
        missing = [key for key in given if key not in none]
        if missing:
            raise OptionError(
                f"the null condition of {name!r} leaves out {missing[0]!r}, which cannot be done for one example alone"
            )
        return {key: _dropped(f"{name}[{key!r}]", entry, none[key], chosen) for key, entry in given.items()}
    if isinstance(given, tuple) and isinstance(none, tuple):
        pairs = zip(given, none, strict=True)
        return tuple(_dropped(f"{name}[{i}]", entry, own, chosen) for i, (entry, own) in enumerate(pairs))
    if isinstance(given, list) and isinstance(none, list):
        picked = chosen(torch.device("cpu")).tolist()
        return [own if drops else entry for entry, own, drops in zip(given, none, picked, strict=True)]
    if isinstance(given, Tensor) and isinstance(none, Tensor) and given.ndim:
        if given.shape != none.shape:
            raise OptionError(
                f"the null condition of {name!r} has shape {tuple(none.shape[1:])}, but an example's condition "
                f"{tuple(given.shape[1:])}; dropping needs the same, so pad one of them"
            )
        return torch.where(chosen(given.device).view(-1, *(1,) * (given.ndim - 1)), none, given)
    if given is none:
        return given
    raise OptionError(f"condition {name!r} is one for all examples, so it cannot be dropped for one")
