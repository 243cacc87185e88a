"""Conditions to call a network with besides x and time: the caller's, or those found from the network itself."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from diffkit.errors import OptionError
from diffkit.protocols import Backbone, ConditionalBackbone
from diffkit.testing._check import Given, LawError, Where, given_conditions
from diffkit.testing._close import map_tree, tree_leaves

Make = Callable[[int], Any]
"""A condition of n examples."""

_MANY = 4  # conditions of which every selection is tried

_UNKNOWN = (
    "a condition that the kit cannot generate (return what means none of it from null_conditions(), or pass the kit "
    "conditions={name: tensor}), or an error inside the network"
)
_UNFIT = (
    "conditions that are not what the network takes; one of the data's own shape is given by a function of n and shape"
)


class NoAnswerError(LawError):
    """Error of the conformance kit: a network cannot be called with any of the conditions that were tried."""


def check_conditions(kind: str, conditions: Any) -> None:
    """Raise `OptionError` unless conditions have a form that the kit can pass to a network."""
    if conditions is None:
        return
    if kind not in ("backbone", "guidance"):
        raise OptionError(f"conditions are for calls of a backbone or a guidance; a {kind} takes none")
    if callable(conditions):
        return
    if not isinstance(conditions, Mapping):
        expected = "a mapping of names to tensors, or a function of n that returns one"
        raise OptionError(f"conditions must be {expected}, got {type(conditions).__name__}")
    for name, value in conditions.items():
        rows = {len(leaf) for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.ndim}
        if len(rows) != 1 or rows == {0}:
            raise OptionError(f"condition {name!r} must be a tensor with a row for each example, got {value!r}")


@frozen(eq=False)
class Conditions:
    """Conditions with which the conformance kit calls a network.

    Attributes:
        makers: How each condition is made, by name.
        optional: The network answers without any of them, too.
    """

    makers: Mapping[str, Make]
    optional: bool = False

    def __call__(self, n: int) -> dict[str, Any]:
        """Return the conditions of n examples, the same for every call."""
        return {name: make(n) for name, make in self.makers.items()}

    def others(self, name: str, n: int, row: int) -> Iterator[Any]:
        """Yield one condition of n examples, of which one has another value."""
        value = self.makers[name](n)
        for i in range(n):
            index = torch.arange(n)
            index[row] = i
            other = map_tree(lambda leaf, index=index: leaf[index], value)
            if not _equal_trees(other, value):
                yield other
        if (
            isinstance(value, Tensor)
            and not value.is_floating_point()
            and _equal_trees(value, value[:1].expand_as(value))
        ):
            for number in (1, 0):  # of numbers that are alike, only guesses
                other = value.clone()
                other[row] = number
                if not _equal_trees(other, value):
                    yield other


def null_conditions_of(backbone: Backbone) -> Mapping[str, Any]:
    """Return the null conditions that a recipe declares: what means "none", by condition."""
    return (backbone.null_conditions() or {}) if isinstance(backbone, ConditionalBackbone) else {}


def find_conditions(backbone: Backbone, network: nn.Module, shape: tuple[int, ...]) -> Conditions:
    """Return the conditions to call a network with: the caller's, or those of its signature and recipe.

    Labels y, a smaller image low_res and a context are generated, and floating-point conditions of null_conditions()
    are noise of that shape. As many as the network takes are used, also those that it can do without.

    Args:
        backbone: Its recipe.
        network: The network, in evaluation mode.
        shape: Of one example.
    Raises:
        LawError: It answers to none.
    """
    where, given = Where(detail=f"data {shape}"), given_conditions()
    if given is not None:
        expected, cause = "an answer to x, time and the conditions that were given", _UNFIT
        try:
            makers = _given_makers(given, shape)
        except Exception as error:
            target = "conditions of one example from the function that was given"
            raise NoAnswerError(target, f"{type(error).__name__}: {error}", where, cause) from error
        tries, declared = [tuple(makers)], tuple(makers)
    else:
        expected, cause = "an answer to x and time, or with y, low_res or what null_conditions() names", _UNKNOWN
        null = {name: value for name, value in null_conditions_of(backbone).items() if value is not None}
        makers = {"y": _labels, "low_res": _images(shape)} | {
            n: _maker_like_null(n, value) for n, value in null.items()
        }
        if isinstance(backbone, ConditionalBackbone) and (width := backbone.context_width()):
            makers["context"] = lambda n: _noise(n, (3, width))
        tries, declared = list(_condition_selections(network, makers, tuple(null))), tuple(null)
    first: Exception | None = None
    for names in tries:
        found = Conditions({name: makers[name] for name in names})
        try:
            _call(network, shape, found(2))
        except Exception as error:
            first = first or error
            continue
        found = _drop_unused(network, shape, found, keep=declared)
        return Conditions(found.makers, bool(found.makers) and _can_be_called(network, shape, {}))
    assert first is not None
    raise NoAnswerError(expected, f"{type(first).__name__}: {first}", where, cause) from first


def _condition_selections(
    network: nn.Module, makers: Mapping[str, Make], declared: tuple[str, ...]
) -> Iterator[tuple[str, ...]]:
    """Yield selections of conditions to try, the largest first; that of the recipe first if **kwargs are taken."""
    parameters = inspect.signature(network.forward).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = [name for name in makers if name in parameters or (anything and name in declared)]
    counts = range(len(named), -1, -1) if len(named) <= _MANY else (len(named), len(declared), 0)
    for count in counts:
        yield from itertools.combinations(named, count)
    if anything:
        yield from (("y",), ("low_res",), ("y", "low_res"))


def _drop_unused(network: nn.Module, shape: tuple[int, ...], found: Conditions, keep: Iterable[str]) -> Conditions:
    """Return the conditions without the unused: those that change no output and through which no weight is trained.

    This distinguishes a signature shared by many networks from a condition that the network forgets.
    """
    for name in set(found.makers) - set(keep):
        rest = Conditions({n: make for n, make in found.makers.items() if n != name})
        if not _can_be_called(network, shape, rest(2)) or not _all_trained(network, shape, rest(2)):
            continue
        tried = [rest(2), found(2), *({**found(2), name: other} for other in found.others(name, 2, 1))]
        answers = [
            _call(network, shape, conditions) for conditions in tried if _can_be_called(network, shape, conditions)
        ]
        if all(torch.equal(answer, answers[0]) for answer in answers):
            found = rest
    return found


def _call(network: nn.Module, shape: tuple[int, ...], conditions: Mapping[str, Any]) -> Tensor:
    with torch.no_grad():
        out: Tensor = network(torch.zeros(2, *shape), torch.ones(2), **conditions)
    return out


def _can_be_called(network: nn.Module, shape: tuple[int, ...], conditions: Mapping[str, Any]) -> bool:
    try:
        _call(network, shape, conditions)
    except Exception:
        return False
    return True


def _all_trained(network: nn.Module, shape: tuple[int, ...], conditions: Mapping[str, Any]) -> bool:
    """Return whether the gradient of the network's output reaches every weight."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    if not weights:
        return True
    out = network(torch.ones(2, *shape), torch.ones(2), **conditions)
    return all(gradient is not None for gradient in torch.autograd.grad(out.sum(), weights, allow_unused=True))


def _labels(n: int) -> Tensor:
    return torch.zeros(n, dtype=torch.int64)


def _images(shape: tuple[int, ...]) -> Make:
    small = (shape[0], *(max(1, side // 2) for side in shape[1:]))
    return lambda n: _noise(n, small)


def _noise(n: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(8)
    return torch.randn(n, *shape, generator=generator).to(dtype)


def _maker_like_null(name: str, value: Any) -> Make:
    """Return a maker of conditions like a null one: noise for floating-point numbers, other values unchanged."""
    one = value if isinstance(value, Tensor) else torch.as_tensor(value) if isinstance(value, int | float) else None
    if name == "y" and one is not None and one.ndim < 2 and not one.is_floating_point():
        return _labels

    def of(leaf: Tensor, n: int) -> Tensor:
        shape = tuple(leaf.shape[1:])
        if leaf.is_floating_point():
            return _noise(n, shape, leaf.dtype)
        return leaf.reshape(-1, *shape)[:1].expand(n, *shape).clone()

    return lambda n: map_tree(lambda leaf: of(leaf, n), value if one is None else one)


def given_rows(given: Given, shape: tuple[int, ...], n: int) -> dict[str, Any]:
    """Return the caller's conditions of n examples.

    Args:
        given: As the caller gave them.
        shape: Of one example.
        n: Number of examples.
    """
    return {name: make(n) for name, make in _given_makers(given, shape).items()}


def _given_makers(given: Given, shape: tuple[int, ...]) -> dict[str, Make]:
    """Return makers of the caller's conditions for n examples; tensors with fewer rows are repeated."""
    if not callable(given):

        def rows(value: Any) -> Make:
            return lambda n: map_tree(lambda leaf: leaf[torch.arange(n) % len(leaf)], value)

        return {name: rows(value) for name, value in given.items()}

    def called(n: int) -> Mapping[str, Any]:
        return given(n, shape) if len(inspect.signature(given).parameters) > 1 else given(n)

    def named(name: str) -> Make:
        return lambda n: called(n)[name]

    return {name: named(name) for name in called(1)}


def _equal_trees(one: Any, other: Any) -> bool:
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)
