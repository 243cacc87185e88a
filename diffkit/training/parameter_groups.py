"""Parameters by their names in the network: which are frozen, and which have a learning rate of their own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import attrs
from attrs import field, frozen

from diffkit.errors import OptionError, did_you_mean
from diffkit.options import number

if TYPE_CHECKING:
    from torch import nn

_SHOWN = 12
"""Names of modules that an error lists at most."""


def _check_pattern(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str) or not value:
        raise OptionError("must be a text such as '*.bias'", option=attribute.name, value=value)


@frozen
class ParameterGroup:
    """Parameters that are trained with a learning rate or weight decay of their own.

    Attributes:
        pattern: Pattern of their names in the network, as of file names: "*" is any text, "?" one character, "[ab]" one
            of these.
        lr: Their learning rate in place of that of the run, >= 0; warm-up and schedule apply to it as well.
        weight_decay: Their weight decay in place of that of the run, >= 0.
    """

    pattern: str = field(validator=_check_pattern)
    lr: float | None = number(None, optional=True, ge=0)
    weight_decay: float | None = number(None, optional=True, ge=0)

    def __str__(self) -> str:
        """Return it as a command line spells it: ``*.bias:weight_decay=0``."""
        settings = [
            f":{name}={value:g}" for name in ("lr", "weight_decay") if (value := getattr(self, name)) is not None
        ]
        return self.pattern + "".join(settings)

    @classmethod
    def of(cls, value: object) -> ParameterGroup:
        """Return the group that a group, a mapping or a text such as ``"*.bias:weight_decay=0"`` describes."""
        if isinstance(value, cls):
            return value
        options = _options_of_text(value) if isinstance(value, str) else value
        known = [each.name for each in attrs.fields(cls)]
        if not isinstance(options, Mapping) or "pattern" not in options:
            raise OptionError(
                'must each have a pattern, such as {"pattern": "*.bias", "weight_decay": 0}',
                option="param_groups",
                value=value,
            )
        for name in options:
            if name not in known:
                near = did_you_mean(str(name), known)
                raise OptionError(f"param_groups have no option {name!r}{near} (options: {', '.join(known)})")
        return cls(**options)


def _options_of_text(text: str) -> dict[str, Any]:
    """The options in ``"PATTERN:lr=0.1:weight_decay=0"``."""
    pattern, *settings = text.split(":")
    pairs = [setting.partition("=") for setting in settings]
    try:
        return {"pattern": pattern, **{name.replace("-", "_"): float(value) for name, _, value in pairs}}
    except ValueError as error:
        raise OptionError('must be written as "*.bias:weight_decay=0"', option="param_groups", value=text) from error


def as_groups(value: Any) -> Any:
    """Return groups of parameters given as one or several; commas separate those in a text."""
    several = value if isinstance(value, tuple | list) else (value,)
    split = (each.split(",") if isinstance(each, str) else (each,) for each in several)
    return tuple(ParameterGroup.of(each.strip() if isinstance(each, str) else each) for some in split for each in some)


def matching(pattern: str, names: Collection[str], option: str) -> list[str]:
    """Return the names that a pattern matches.

    Args:
        pattern: As of file names; upper and lower case differ.
        names: Names of parameters.
        option: Name of the option that holds the pattern, for the message.
    Raises:
        OptionError: It matches none; similar patterns are suggested.
    """
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        near = did_you_mean(pattern, _patterns_of(names))
        outermost = list(dict.fromkeys(name.partition(".")[0] for name in names))
        more = ", ..." if outermost[_SHOWN:] else ""
        raise OptionError(
            f"matches no parameter of the network{near} (its modules: {', '.join(outermost[:_SHOWN])}{more})",
            option=option,
            value=pattern,
        )
    return found


def _patterns_of(names: Iterable[str]) -> set[str]:
    """Patterns that match something: whole names, all of a module, and a module wherever it is."""
    found: set[str] = set()
    for name in names:
        path = name.split(".")
        found |= {name, *(f"{'.'.join(path[:i])}.*" for i in range(1, len(path)))}
        found |= {f"*.{module}.*" for module in path[1:-1]} | {f"*.{path[-1]}"}
    return found


def frozen_names(network: nn.Module, patterns: Collection[str]) -> set[str]:
    """Return the names of the parameters that patterns freeze.

    Raises:
        OptionError: A pattern matches nothing, or nothing is left to train.
    """
    if not patterns:
        return set()
    named = dict(network.named_parameters())
    found = {name for pattern in patterns for name in matching(pattern, named, "freeze")}
    if not any(p.requires_grad for name, p in named.items() if name not in found):
        raise OptionError("leaves no parameter to train", option="freeze", value=tuple(patterns))
    return found


@contextmanager
def freezing(network: nn.Module, patterns: Collection[str]) -> Iterator[None]:
    """Context in which the parameters that patterns match require no gradient."""
    if not patterns:
        yield
        return
    names = frozen_names(network, patterns)
    chosen = [p for name, p in network.named_parameters() if name in names and p.requires_grad]
    try:
        for parameter in chosen:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in chosen:
            parameter.requires_grad_(True)


def torch_groups(
    network: nn.Module, groups: Collection[ParameterGroup], *, lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Return the parameters that require a gradient, as groups of a torch optimizer.

    A parameter belongs to the first group whose pattern matches its name; those that none matches are the last one.

    Args:
        network: The network.
        groups: Groups with options of their own.
        lr, weight_decay: Those of all others.
    Raises:
        OptionError: A pattern matches nothing, or nothing that is trained and not of a group before.
    """
    left = {name: p for name, p in network.named_parameters() if p.requires_grad}
    every = [name for name, _ in network.named_parameters()] if groups else []
    found = []
    for group in groups:
        names = [name for name in matching(group.pattern, every, "param_groups") if name in left]
        if not names:
            raise OptionError(
                "matches parameters that are frozen or of a group before only; put it before them, or leave it out",
                option="param_groups",
                value=group.pattern,
            )
        found.append(
            {
                "params": [left.pop(name) for name in names],
                "lr": lr if group.lr is None else group.lr,
                "weight_decay": weight_decay if group.weight_decay is None else group.weight_decay,
            }
        )
    return [*found, {"params": [*left.values()], "lr": lr, "weight_decay": weight_decay}] if left else found
