"""Conditions that are sequences of vectors, such as texts: padded to one length, with a mask of what is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from diffkit.protocols import Composition, Guidance
from diffkit.system.signatures import names_condition

Masked = tuple[Tensor, Tensor | None]
"""Sequences (B, L, width), and where they are, (B, L); None everywhere."""


def are_sequences(values: Sequence[Any]) -> bool:
    """Return whether conditions of examples are sequences of vectors, (L, width) each, of one width."""
    first = values[0] if values else None
    if not isinstance(first, Tensor) or first.ndim != 2:
        return False
    return all(isinstance(v, Tensor) and v.ndim == 2 and v.shape[1] == first.shape[1] for v in values)


def pad_sequences(values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return sequences, (L, ...) each, padded with zeros to the longest, (B, L, ...), and where they are, (B, L) bool.

    The longest is at least 1, so that there is something to attend to, or to mask.
    """
    found = pad_sequence(list(values), batch_first=True)
    if not found.shape[1]:
        found = found.new_zeros(len(values), 1, *found.shape[2:])
    lengths = torch.tensor([[len(value)] for value in values])
    return found, torch.arange(found.shape[1]) < lengths


def with_padded(model: Callable[..., Any], conditions: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return conditions with lists of sequences padded, where the network takes a mask for them, ``NAME_mask``."""
    lists = [name for name, value in conditions.items() if type(value) is list and _mask(name) not in conditions]
    padded: dict[str, Any] = {}
    for name in lists:
        found = _sequences(conditions[name])
        if found is not None and names_condition(model, _mask(name)):
            padded[name], padded[_mask(name)] = found
    return {**conditions, **padded} if padded else conditions


def with_prompts_alike(
    parts: Composition, model: Callable[..., Any], conditions: Mapping[str, Any]
) -> tuple[Composition, Mapping[str, Any]]:
    """Return guidance and conditions of a call with prompts and negative prompts of one length, with a mask each.

    Unchanged where they are so already, or the network takes no mask. A mask of the prompt is not one of the negative
    prompt, nor the other way round.
    """
    nulls = [_nulls(guidance) for guidance in parts.guidance]
    changed: list[dict[str, Tensor]] = [{} for _ in nulls]
    for name in dict.fromkeys(name for null in nulls for name in null):
        prompt = _sequences(conditions.get(name), conditions.get(_mask(name)))
        negatives = [_sequences(null.get(name), null.get(_mask(name))) for null in nulls]
        found = [each for each in (prompt, *negatives) if each is not None]
        alike = len({value.shape[1] for value, _ in found}) == 1 and all(mask is None for _, mask in found)
        if prompt is None or len(found) == 1 or alike or not names_condition(model, _mask(name)):
            continue
        longest = max(value.shape[1] for value, _ in found)
        conditions = {**conditions, **_padded(name, prompt, longest)}
        for own, negative in zip(changed, negatives, strict=True):
            own |= {} if negative is None else _padded(name, negative, longest)
    if any(changed):
        parts = attrs.evolve(parts, guidance=tuple(map(_with_null, parts.guidance, nulls, changed)))
    return parts, conditions


def _nulls(guidance: Guidance) -> Mapping[str, Any]:
    """Its null conditions: the option ``null`` of all guidance that compares with them."""
    null = getattr(guidance, "null", None)
    return null if isinstance(null, Mapping) else {}


def _with_null(guidance: Guidance, null: Mapping[str, Any], changed: Mapping[str, Tensor]) -> Guidance:
    """The guidance with some null conditions in place of its own."""
    if not changed:
        return guidance
    found = copy(guidance)  # not attrs.evolve, which forgets its place in the list
    object.__setattr__(found, "null", {**null, **changed})
    return found


def _mask(name: str) -> str:
    return f"{name}_mask"


def _sequences(value: Any, mask: Any = None) -> Masked | None:
    """Sequences of one example or of several; None for anything else."""
    if isinstance(value, list):
        entries = [torch.as_tensor(each) if isinstance(each, np.ndarray) else each for each in value]
        return pad_sequences(entries) if are_sequences(entries) else None
    if isinstance(value, np.ndarray) and value.ndim in (2, 3):
        value = torch.as_tensor(value)
    if not isinstance(value, Tensor) or value.ndim not in (2, 3) or not value.is_floating_point():
        return None
    found = value if value.ndim == 3 else value[None]
    if mask is None:
        return found, None
    mask = torch.as_tensor(mask)
    return found, mask if mask.ndim == 2 else mask[None]


def _padded(name: str, found: Masked, length: int) -> dict[str, Tensor]:
    """The condition and its mask, of a length."""
    value, mask = found
    mask = torch.ones(value.shape[:2], dtype=torch.bool, device=value.device) if mask is None else mask != 0
    more = length - value.shape[1]
    return {
        name: pad(value, (0, 0, 0, more)),
        _mask(name): pad(mask, (0, more)),
    }
