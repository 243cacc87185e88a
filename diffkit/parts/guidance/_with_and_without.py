"""Guidance by the estimates with a condition and with the null condition."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
from attrs import field

from diffkit.errors import OptionError
from diffkit.parts.guidance._together import evaluate_together, joint_problem
from diffkit.parts.guidance._weight import Weighted
from diffkit.protocols import Composition, Conditions, Estimate, Evaluate, Guidance, Level

if TYPE_CHECKING:
    from torch import Tensor


def null_option() -> Any:
    """Field for the option ``null``: conditions that mean "none"."""
    return field(default=None, validator=_check_null, eq=_comparable)


def _check_null(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not (isinstance(value, Mapping) and value):
        raise OptionError("must be a mapping such as {'y': 10}", option="null", value=value)


def _comparable(null: Any) -> Any:
    """Null conditions as a value that can be compared and hashed; tensors by identity."""
    if isinstance(null, Mapping):
        return tuple((name, _comparable(entry)) for name, entry in sorted(null.items()))
    if isinstance(null, list | tuple):
        return tuple(map(_comparable, null))
    return null if _is_plain(null) else id(null)


class WithAndWithout(Weighted):
    """Base of guidance that combines both estimates: options ``null`` and ``joint`` besides those of a scale."""

    null: Mapping[str, Any] | None
    joint: bool

    @abstractmethod
    def combined(self, with_it: Tensor, without: Tensor, weight: float | Tensor, x: Tensor, level: Level) -> Tensor:
        """Return an estimate of x_start from those with the condition and with the null condition, (B, C, *S).

        The weight is the scale at this level, a number, 0-d or (B,1..).
        """

    @property
    def own_conditions(self) -> frozenset[str]:
        """Null conditions other than numbers and texts, which have one row per example."""
        rows = frozenset(self._null_rows(name) for name, null in (self.null or {}).items() if not _is_plain(null))
        return rows | super().own_conditions

    def row_conditions(self, conditions: Conditions, n: int) -> Conditions:
        """Return the null conditions other than numbers and texts, and the scales that are no number, by example.

        Raises:
            OptionError: One has another form than the condition, or cannot be evaluated with it in one call; or
                there is not one scale for each example.
        """
        from diffkit.parts.guidance._null_rows import none_of

        null = self.null or {}
        found = {name: none_of(name, value, conditions.get(name), n) for name, value in null.items()}
        for name, value in found.items() if self.joint else ():
            if problem := joint_problem(name, [conditions.get(name), value], n):
                raise OptionError(problem)
        rows = {self._null_rows(name): value for name, value in found.items() if not _is_plain(null[name])}
        return {**super().row_conditions(conditions, n), **rows}

    @property
    def required_conditions(self) -> frozenset[str]:
        """Those that the null condition replaces."""
        return frozenset(self.null or ())

    def problems(self, parts: Composition) -> Iterable[str]:
        """Return why there is no estimate without the condition."""
        if self.null is not None:
            yield from _label_problem(self.null.get("y"), parts)
        elif parts.null_conditions is None and parts.backbone is None:
            yield (
                "a network of your own has no known null condition; pass null, such as null={'y': 10}, or "
                "compose with null_conditions={'y': 10}"
            )
        elif parts.null_conditions is None:
            yield (
                f"{parts.label('backbone')} has no null class; build it with num_classes and null_class=True and train "
                "with that label on a share of the data (diffkit train --label-dropout 0.1 does both), or pass null, "
                "such as null={'y': 10}"
            )

    def bind(self, parts: Composition) -> Guidance:
        """Return this guidance with the null conditions of the network, and unique names for its rows."""
        null = parts.null_conditions if self.null is None else self.null
        known: WithAndWithout = attrs.evolve(self, null=null)  # type: ignore[misc]  # every part is an attrs class
        return super(WithAndWithout, known).bind(parts)

    def _null_rows(self, name: str) -> str:
        """Name under which it passes the null rows of a condition."""
        return self.own_name(f"null rows of {name}")

    def guide(self, evaluate: Evaluate, x: Tensor, level: Level, conditions: Conditions) -> Estimate:
        """Return the combined estimate, with the variance of that with the condition."""
        sets = (conditions, self._without(conditions, x))
        if self.joint:
            with_it, without = evaluate_together(evaluate, x, level, sets)
        else:
            with_it, without = (evaluate(x, level, given) for given in sets)
        weight = self.weight_at(x, level, conditions)
        return with_it.with_x_start(self.combined(with_it.x_start, without.x_start, weight, x, level))

    def _without(self, conditions: Conditions, x: Tensor) -> Conditions:
        assert self.null is not None, "composition refuses guidance without a null condition"
        from diffkit.parts.guidance._null_rows import none_of

        found = dict(conditions)
        for name, null in self.null.items():
            found[name] = conditions.get(self._null_rows(name))
            if found[name] is None:  # the caller has not added the rows of `row_conditions`
                found[name] = none_of(name, null, conditions.get(name), x.shape[0])
        return {name: value for name, value in found.items() if value is not None}


def _is_plain(null: Any) -> bool:
    """True for null conditions that need no copy to the device: numbers and texts."""
    return null is None or isinstance(null, str | bool | int | float)


def _label_problem(label: Any, parts: Composition) -> Iterable[str]:
    """Yield a problem if the network does not have the null label."""
    known = parts.classes
    own = (parts.null_conditions or {}).get("y")
    if not known or isinstance(label, bool) or not isinstance(label, int) or 0 <= label < known or label == own:
        return
    also = f", and {own} for no class" if isinstance(own, int) else "; build it with null_class=True for one more"
    yield f"null={{'y': {label}}} is not a label of {parts.label('backbone')}, which has 0..{known - 1}{also}"
