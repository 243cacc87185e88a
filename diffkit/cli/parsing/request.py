"""From a command line to the options of a command, in two passes.

First the names of parts are read, on the line and in its layers, and only those parts are imported. Then the options
of the command and of those parts are its signature, and cyclopts parses the line.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import NOTHING, field, frozen
from cyclopts import App

from diffkit.cli.parsing import signature
from diffkit.cli.parsing.config import Layer, Merged, Place, checked, layers, written
from diffkit.cli.parsing.options import Option, options_of, special, spelled
from diffkit.cli.parsing.parts import (
    check_name,
    empty_slot,
    is_empty,
    lasting_options,
    named_on_line,
    part_options,
    slot_options,
    unknown_option,
)
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.errors import OptionError
from diffkit.registry import canonical
from diffkit.registry.aliases import TRAINING_ALIASES
from diffkit.training.config import TrainConfig


@frozen
class _Special:
    """Options of the parser itself.

    Attributes:
        preset: Start from a published configuration, such as iddpm/cifar10-uncond; diffkit list presets shows all.
        config: Take options from a TOML file; the command line wins.
        print_config: Print the resolved options as TOML, and stop.
    """

    preset: str | None = field(default=None, metadata=special("NAME"))
    config: Path | None = field(default=None, metadata=special())
    print_config: bool = field(default=False, metadata=special())


@frozen
class Request:
    """A command line after the first pass.

    Attributes:
        name: The command.
        spec: Its options.
        words: The words after its name.
        layers: The layers beneath it: a preset, and over it a file.
        parts: Kind -> name of the part, chosen or default.
        chosen: Kinds whose part was named.
        options: Every option, those of these parts included.
    """

    name: str
    spec: CommandSpec
    words: Sequence[str]
    layers: Sequence[Layer]
    parts: Mapping[str, str]
    chosen: frozenset[str]
    options: Sequence[Option] = field(repr=False)

    def sign_for_help(self, app: App) -> None:
        """Give the command's application all that its help shows."""
        signature.sign_for_help(app, self.name, self.options, self.spec.defaults)


def look(name: str, spec: CommandSpec, words: Sequence[str]) -> Request:
    """First pass: find the names of the parts, and with them all options.

    Raises:
        OptionError: The file cannot be read.
        UnknownComponentError: No such part.
    """
    beneath = layers(words, spec)
    named = {kind: layer.values[kind,] for layer in beneath for kind in spec.slots if (kind,) in layer.values}
    named |= named_on_line(words, spec.slots)
    for kind, part in named.items():
        if not part or not is_empty(kind, part):
            check_name(kind, part)
    filled = _filled(spec, named)
    return Request(name, spec, words, beneath, filled, frozenset(named), _all_options(spec, filled))


def resolve(request: Request, app: App | None = None) -> tuple[ParsedOptions, bool]:
    """Second pass: return the parsed options, and whether to print them only.

    Args:
        request: The result of the first pass.
        app: The application of the command, which gets its signature; by default one of its own.
    Raises:
        OptionError: An unknown option, or values that are wrong; all of them at once where the values are.
    """
    app = App() if app is None else app
    signature.sign(app, request.options)
    found = signature.parse(app, request.words, request.options, lambda flag: _explain_unknown(request, flag))
    print_only = bool(found.pop(("print_config",), False))
    special = {option.path for option in request.options if option.special}
    line = {path: value for path, value in found.items() if path not in special}
    merged: Merged = {}
    for layer, own in [*((layer, layer.values) for layer in request.layers), (None, line)]:
        below = _without_replaced(merged, own, request.spec)
        merged = {**below, **{place: (value, layer) for place, value in own.items()}}
    values = checked(merged, request.layers, request.options)
    _require(values, request)
    return _parsed(request, values), print_only


def as_toml(spec: CommandSpec, parsed: ParsedOptions) -> str:
    """Return the options of a command, every default included, as a configuration file."""
    own = {option.key: option for option in _all_options(spec, {}) if not (option.special or option.chooses)}
    values = _with_defaults(own, parsed.values, spec.defaults)
    parts = {kind: (name, _whole(kind, name, chosen)) for kind, (name, chosen) in parsed.parts.items()}
    later = {name: text for name, text in spec.defaults.items() if name not in values and name not in parts}
    return written(values, parts, later)


def _whole(kind: str, name: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a part."""
    return _with_defaults({".".join(o.path[1:]): o for o in part_options(kind, name)}, chosen, ())


def _with_defaults(
    options: Mapping[str, Option], chosen: Mapping[str, Any], computed: Collection[str]
) -> dict[str, Any]:
    """The values of options by name: those chosen and, unless the command computes them, the defaults."""
    defaults = {name: None if name in computed else option.default for name, option in options.items()}
    return {
        name: chosen.get(name, default)
        for name, default in defaults.items()
        if name in chosen or default not in (None, NOTHING)
    }


def _filled(spec: CommandSpec, named: Mapping[str, str]) -> dict[str, str]:
    """The part of each slot, named or by default; a slot may be empty."""
    parts = {kind: named.get(kind, default) for kind, default in spec.slots.items()}
    return {kind: part for kind, part in parts.items() if part and not is_empty(kind, part)}


def _all_options(spec: CommandSpec, parts: Mapping[str, str]) -> list[Option]:
    own = [option for group, cls in spec.options.items() for option in options_of(cls, group=group)]
    own = [option for option in own if option.key not in spec.without and option.key not in spec.slots]
    names = ("preset",) * bool(spec.preset) + ("config", "print_config") * spec.config
    of_parser = [option for option in options_of(_Special) if option.key in names]
    of_parts = [option for kind, name in parts.items() for option in part_options(kind, name)]
    return [*own, *of_parser, *slot_options(spec.slots, spec.required), *of_parts]


def _without_replaced(below: Merged, above: Mapping[Place, Any], spec: CommandSpec) -> Merged:
    """The lower layer's options, without those of a part that the upper one replaces.

    Size and labels of data stay where the other data has such options; a file that belongs to it does not.
    """
    was = {kind: str(below[kind,][0]) if (kind,) in below else "" for kind in spec.slots if (kind,) in above}
    replaced = {kind: name for kind, name in was.items() if canonical(above[kind,]) != canonical(name)}
    lasting = {path for kind, name in replaced.items() if name for path in lasting_options(kind, name, above[kind,])}
    return {path: value for path, value in below.items() if path[0] not in replaced or path in lasting}


def _require(values: Mapping[Place, Any], request: Request) -> None:
    """Refuse a line that lacks a required option, naming all that are missing."""
    needed = [option for option in request.options if option.default is NOTHING and option.path not in values]
    missing = [option.flag for option in needed if option.key not in request.spec.defaults]
    if missing:
        raise OptionError(f"diffkit {request.name} needs {' and '.join(missing)}")


def _parsed(request: Request, values: Mapping[Place, Any]) -> ParsedOptions:
    own = {place[0]: value for place, value in values.items() if not place[1:] and place[0] not in request.spec.slots}
    of_parts = [(*place, value) for place, value in values.items() if place[1:]]
    parts = {
        kind: (name, {".".join(own): value for owner, *own, value in of_parts if owner == kind})
        for kind, name in request.parts.items()
    }
    return ParsedOptions(own, parts, request.chosen)


def _explain_unknown(request: Request, flag: str) -> str | None:
    """Return a better error text if the option looks like one of a part, of another command or of another library."""
    kind, dot, name = flag.removeprefix("--").replace("-", "_").partition(".")
    if kind in request.spec.without:
        return f"no option {flag!r}: {request.spec.without[kind]}"
    if TrainConfig in request.spec.options.values() and kind in TRAINING_ALIASES:
        return f"no option {flag!r}; that is {spelled((TRAINING_ALIASES[kind],))} here"
    if is_empty(slot := kind.removeprefix("no_"), "none") and slot in request.spec.slots and not dot:
        return f"no option {flag!r}; write {spelled((slot,))} none"
    if not dot or kind not in request.spec.slots:
        return None
    if kind not in request.parts:
        return empty_slot(kind, flag, name)
    return unknown_option(kind, request.parts[kind], name)
