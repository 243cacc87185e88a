"""Evaluate the same data under several sets of conditions in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diffkit.errors import OptionError
from diffkit.protocols import Coefficients, Conditions, Estimate, Evaluate, Level

if TYPE_CHECKING:
    from torch import Tensor

_PLAIN = (str, bytes, bool, int, float)
"""Types compared by value rather than by identity."""


def evaluate_together(
    evaluate: Evaluate, x: Tensor, level: Level, conditions: Sequence[Conditions]
) -> tuple[Estimate, ...]:
    """Evaluate the same x under several sets of conditions in one call on a larger batch.

    Args:
        evaluate: As in `Guidance.guide`.
        x: Noisy data, (B, C, *S).
        level: Its level.
        conditions: The sets, which hold the same names.
    Returns:
        One estimate for each set, as if each had been evaluated alone.
    Raises:
        OptionError: A condition cannot be joined: it is in some sets only, or differs and is not a (B, ...) tensor.
    """
    import torch

    count, batch = len(conditions), x.shape[0]
    names = dict.fromkeys(name for given in conditions for name in given)
    joined = {name: _joined(name, [given.get(name) for given in conditions], batch) for name in names}
    estimate = evaluate(torch.cat([x] * count), _repeated(level, count), joined)
    # not tensor_split, which would fix the batch of an exported program
    pieces = ((None,) * count if p is None else p.reshape(count, batch, *p.shape[1:]).unbind() for p in estimate)
    return tuple(Estimate(*parts) for parts in zip(*pieces, strict=True))


def _repeated(level: Level, count: int) -> Level:
    import torch

    def repeat(value: Tensor) -> Tensor:
        return value if value.ndim == 0 else torch.cat([value] * count)

    known = level.coefficients
    if known is not None:
        by_owner = {o: {name: repeat(column) for name, column in own.items()} for o, own in known.by_owner.items()}
        known = Coefficients(by_owner, known.owner)
    return Level(
        repeat(level.alpha),
        repeat(level.sigma),
        repeat(level.log_snr),
        repeat(level.c_skip),
        repeat(level.c_out),
        repeat(level.c_in),
        repeat(level.time),
        known,
    )


def _joined(name: str, values: Sequence[Any], batch: int) -> Any:
    import torch

    first = values[0]
    if all(isinstance(value, Mapping) and value.keys() == first.keys() for value in values):
        return {key: _joined(name, [value[key] for value in values], batch) for key in first}
    if all(isinstance(value, tuple) and len(value) == len(first) for value in values):
        return tuple(_joined(name, entries, batch) for entries in zip(*values, strict=True))
    if problem := joint_problem(name, values, batch):
        raise OptionError(problem)
    if isinstance(first, list):
        return [entry for value in values for entry in value]
    if isinstance(first, torch.Tensor) and first.ndim > 0:
        return torch.cat(list(values))
    return first


def joint_problem(name: str, values: Sequence[Any], batch: int) -> str | None:
    """Return why values of a condition cannot be evaluated in one call on a larger batch; None if they can.

    Args:
        name: Name of the condition.
        values: Its value in each set.
        batch: Number of examples in each set.
    """
    from torch import Tensor

    first, text = values[0], f"condition {name!r} cannot be evaluated with and without in one call: "
    if all(isinstance(value, Mapping) and value.keys() == first.keys() for value in values):
        inside = (joint_problem(name, [value[key] for value in values], batch) for key in first)
        return next(filter(None, inside), None)
    if all(isinstance(value, tuple) and len(value) == len(first) for value in values):
        inside = (joint_problem(name, entries, batch) for entries in zip(*values, strict=True))
        return next(filter(None, inside), None)
    if all(isinstance(value, list) and len(value) == batch for value in values):
        return None
    if all(isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == batch for value in values):
        shapes = [tuple(value.shape[1:]) for value in values]
        other = next((shape for shape in shapes if shape != shapes[0]), None)
        return None if other is None else f"{text}its shapes are {shapes[0]} and {other}; use joint=False"
    if all(value is first or (isinstance(value, _PLAIN) and value == first) for value in values):
        return None
    return f"{text}it needs one row for each of {batch} examples in both; use joint=False"
