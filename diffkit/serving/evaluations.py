"""Evaluations of a network that share one call: rows of several steps, put together and taken apart again.

Two evaluations can share a call if data and conditions have the same form, row by row; numbers and texts, which the
network gets once for all rows, have to be equal.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn

from diffkit.protocols import Model
from diffkit.system.conditions import rows_of


@frozen(eq=False)
class Evaluation:
    """One call of a network that a step needs.

    Attributes:
        model: The network.
        inputs: Its data "x", "time", and conditions, with a row for each example.
        rows: Number of rows.
        form: Equal for evaluations that can share a call.
    """

    model: Model
    inputs: Mapping[str, Any]
    rows: int = field(init=False)
    form: Hashable = field(init=False)

    @rows.default
    def _count(self) -> int:
        return len(self.inputs["x"])

    @form.default
    def _find_form(self) -> Hashable:
        return id(self.model), _form(self.inputs, self.rows)


class StepNetwork(nn.Module):
    """The network as the steps of one request see it: known outputs, until one is needed that is not known.

    Then `Needed` leaves the step, which is run again once the output is there. A step is a pure function, so it arrives
    at the same place; what it computed before is computed twice. Guidance that differentiates the network has it called
    at once, from then on: ``direct``.

    Args:
        model: The network.
        direct: Call it at once from the start.
    """

    def __init__(self, model: Model, direct: bool):
        super().__init__()
        self.model = model
        self.direct = direct
        self.known: list[Any] = []
        self._next = 0

    def rewind(self) -> None:
        """Give the known outputs again, from the first on."""
        self._next = 0

    def forget(self) -> None:
        """Forget the outputs of a step that is done."""
        self.known, self._next = [], 0

    def forward(self, x: Tensor, time: Tensor, **conditions: Any) -> Any:
        """Return the network's output, or raise `Needed`."""
        if self.direct or (x.requires_grad and torch.is_grad_enabled()):
            self.direct = True
            return self.model(x, time, **conditions)
        if self._next == len(self.known):
            raise Needed(Evaluation(self.model, {"x": x, "time": time, **conditions}))
        self._next += 1
        return self.known[self._next - 1]


class Needed(Exception):  # noqa: N818  # it is how a step pauses, and no error
    """A step cannot go on without this evaluation."""

    def __init__(self, evaluation: Evaluation):
        super().__init__()
        self.evaluation = evaluation


def call_together(evaluations: Sequence[Evaluation], most: int) -> list[Any]:
    """Call the network once for evaluations of one form, and return the output of each.

    Args:
        evaluations: At least one.
        most: Rows of a call; one evaluation with more is called in several.
    """
    first = evaluations[0]
    if len(evaluations) == 1:
        return [_in_slices(first, most)]
    out = _called(first.model, _joined([each.inputs for each in evaluations]))
    sizes = [each.rows for each in evaluations]
    if isinstance(out, Tensor) and out.ndim and len(out) == sum(sizes):
        return list(out.split_with_sizes(sizes))
    return [out] * len(evaluations)  # each request refuses it with its own message


def _in_slices(evaluation: Evaluation, most: int) -> Any:
    if evaluation.rows <= most:
        return _called(evaluation.model, evaluation.inputs)
    slices = [range(i, min(i + most, evaluation.rows)) for i in range(0, evaluation.rows, most)]
    return torch.cat([_called(evaluation.model, rows_of(evaluation.inputs, rows)) for rows in slices])


def _called(model: Model, inputs: Mapping[str, Any]) -> Any:
    """The output in memory of its own: a network may write its next output into the same."""
    out = model(inputs["x"], inputs["time"], **{k: v for k, v in inputs.items() if k not in ("x", "time")})
    return out.clone() if isinstance(out, Tensor) else out


def _form(value: Any, rows: int) -> Hashable:
    if isinstance(value, Tensor):
        if value.ndim and len(value) == rows:
            return value.shape[1:], value.dtype, value.device
        return id(value)
    if isinstance(value, Mapping):
        return tuple((name, _form(entry, rows)) for name, entry in value.items())
    if isinstance(value, tuple):
        return tuple(_form(entry, rows) for entry in value)
    if isinstance(value, list):
        return "list" if len(value) == rows else id(value)
    return (type(value), value) if value is None or isinstance(value, str | bytes | int | float) else id(value)


def _joined(values: Sequence[Any]) -> Any:
    """Values of one form as one, row after row."""
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values)) if first.ndim else first
    if isinstance(first, Mapping):
        return {name: _joined([value[name] for value in values]) for name in first}
    if isinstance(first, tuple):
        return tuple(_joined(entries) for entries in zip(*values, strict=True))
    if isinstance(first, list):
        return [entry for value in values for entry in value]
    return first
