"""From a command line to the options of a command, in two passes.

First the names of parts are read, on the line and in its layers, and only those parts are imported. Then the
options of the command and of those parts are put together, and the line is parsed for real.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import NOTHING, field, frozen

from diffkit.cli.parsing import commands
from diffkit.cli.parsing.layers import Layer, layers
from diffkit.cli.parsing.line import build, normalized, parse
from diffkit.cli.parsing.options import Option, options_of, plain, spelled
from diffkit.cli.parsing.slots import (
    check_name,
    lasting_options,
    named_on_line,
    part_options,
    slot_options,
    unknown_option,
)
from diffkit.cli.parsing.takes import CommandSpec, ParsedOptions
from diffkit.errors import OptionError
from diffkit.registry import canonical
from diffkit.registry.aliases import TRAINING_ALIASES
from diffkit.training.config import TrainConfig

_CONFIG = (
    Option(("config",), Path, None, "Take options from a TOML file; the command line wins.", "Options"),
    Option(("print_config",), bool, False, "Print the resolved options as TOML, and stop.", "Options"),
)
_PRESET = Option(
    ("preset",),
    str,
    None,
    "Start from a published configuration, such as iddpm/cifar10-uncond; diffkit list presets shows all.",
    "Options",
    metavar="NAME",
)


@frozen
class Request:
    """A command line after the first pass.

    Attributes:
        name: The command.
        takes: Its options.
        tokens: The words after its name.
        layers: The layers beneath it: a preset, and over it a file.
        parts: Kind -> name of the part, chosen or default.
        chosen: Kinds whose part was named.
        options: Every option, those of these parts included.
    """

    name: str
    takes: CommandSpec
    tokens: Sequence[str]
    layers: Sequence[Layer]
    parts: Mapping[str, str]
    chosen: frozenset[str]
    options: Sequence[Option] = field(repr=False)

    def app(self) -> Any:
        """Return its cyclopts application, which shows its help."""
        text = plain(commands.docstring(self.name))
        return build(self.name, text, self.options, self.takes.defaults)


def look(name: str, takes: CommandSpec, tokens: Sequence[str]) -> Request:
    """First pass: find the names of the parts, and with them all options.

    Raises:
        OptionError: The file cannot be read.
        UnknownComponentError: No such part.
    """
    tokens = normalized(tokens)
    beneath = layers(tokens, takes)
    named = {kind: part for layer in beneath for kind, part in layer.names(takes.slots).items()}
    named |= named_on_line(tokens, list(takes.slots))
    for kind, part in named.items():
        check_name(kind, part)
    filled = _filled(takes, named)
    return Request(name, takes, tokens, beneath, filled, frozenset(named), _all_options(takes, filled))


def resolve(request: Request) -> tuple[ParsedOptions, bool]:
    """Second pass: return the parsed options, and whether to print them only.

    Raises:
        OptionError: An unknown option, or values that are wrong; all of them at once where the values are.
    """
    from diffkit.cli.parsing import config

    line = parse(request.name, request.tokens, request.options, lambda flag: _explain_unknown(request, flag))
    print_only = bool(line.pop("print_config", False))
    usable = [option for option in request.options if not _is_special(option)]
    special = {option.key for option in request.options if _is_special(option)}
    line = {key: value for key, value in line.items() if key not in special}
    checked = config.check(_tables(line, request.parts), usable, label=lambda key: spelled(tuple(key.split("."))))
    merged: dict[str, Any] = {}
    for given in (*(_check_layer(request.takes, layer) for layer in request.layers), {k: checked[k] for k in line}):
        merged = _without_replaced(merged, given, request.takes) | given
    _require(usable, merged, request)
    return _given(request, merged), print_only


def as_toml(request: Request, given: ParsedOptions) -> str:
    """Return the options of a command, every default included, as a configuration file."""
    from diffkit.cli.parsing import config

    resolved = {o.key: _printed(request, given, o) for o in request.options if not _is_special(o)}
    resolved = {key: value for key, value in resolved.items() if value is not NOTHING}
    values = {key: value for key, value in resolved.items() if "." not in key and key not in request.takes.slots}
    parts = {kind: (name, _within(resolved, kind)) for kind, (name, _) in given.parts.items()}
    later = {name: text for name, text in request.takes.defaults.items() if name not in values}
    return config.written(values, parts, later)


def _printed(request: Request, given: ParsedOptions, option: Option) -> Any:
    """The value an option has, or NOTHING if it has none or the command computes it."""
    kind, _, name = option.key.partition(".")
    chosen = given.parts[kind][1] if name else given.values
    default = NOTHING if option.key in request.takes.defaults or option.default is None else option.default
    return chosen.get(name or kind, default)


def _check_layer(takes: CommandSpec, layer: Layer) -> dict[str, Any]:
    """Options of a layer; its own parts may be others than those of the command line."""
    from diffkit.cli.parsing import config

    options = _all_options(takes, _filled(takes, layer.names(takes.slots)))
    table = {key: value for key, value in layer.table.items() if not _is_default(takes, key, value)}
    return config.check(table, [o for o in options if not _is_special(o)], layer.place)


def _is_default(takes: CommandSpec, key: str, value: Any) -> bool:
    """True for an option that the command does not take, at its default: files of earlier versions list those, too."""
    if key not in takes.without:
        return False
    return value in [o.default for cls in takes.options.values() for o in options_of(cls) if o.key == key]


def _filled(takes: CommandSpec, named: Mapping[str, str]) -> dict[str, str]:
    """The part of each slot, named or by default; a slot may be empty."""
    parts = {kind: named.get(kind, default) for kind, default in takes.slots.items()}
    return {kind: part for kind, part in parts.items() if part}


def _all_options(takes: CommandSpec, parts: Mapping[str, str]) -> list[Option]:
    options = [each for group, cls in takes.options.items() for each in options_of(cls, group=group)]
    options = [each for each in options if each.key not in takes.without]
    options += [_PRESET] if takes.preset else []
    options += list(_CONFIG) if takes.config else []
    options += slot_options(takes.slots, takes.required)
    return options + [each for kind, name in parts.items() for each in part_options(kind, name)]


def _tables(line: Mapping[str, Any], parts: Mapping[str, str]) -> dict[str, Any]:
    """Option keys as a file would have them: the options of a part in a table with its name."""
    tables = {key: value for key, value in line.items() if "." not in key}
    for kind in {key.partition(".")[0] for key in line if "." in key}:
        tables[kind] = {"name": parts[kind]} | _within(line, kind)
    return tables


def _within(values: Mapping[str, Any], kind: str) -> dict[str, Any]:
    return {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{kind}.")}


def _without_replaced(below: Mapping[str, Any], above: Mapping[str, Any], takes: CommandSpec) -> dict[str, Any]:
    """The lower layer's options, without those of a part that the upper one replaces.

    Size and labels of data stay where the other data has such options; a file that belongs to it does not.
    """
    replaced = [k for k in takes.slots if k in above and canonical(above[k]) != canonical(str(below.get(k, "")))]
    lasting = {key for kind in replaced if kind in below for key in lasting_options(kind, below[kind], above[kind])}
    return {key: value for key, value in below.items() if key.partition(".")[0] not in replaced or key in lasting}


def _is_special(option: Option) -> bool:
    return option == _PRESET or option in _CONFIG


def _require(options: Sequence[Option], merged: Mapping[str, Any], request: Request) -> None:
    """Refuse a line that lacks a required option, naming all that are missing."""
    defaults = request.takes.defaults
    missing = [o.flag for o in options if o.default is NOTHING and o.key not in merged and o.key not in defaults]
    if missing:
        raise OptionError(f"diffkit {request.name} needs {' and '.join(missing)}")


def _given(request: Request, merged: Mapping[str, Any]) -> ParsedOptions:
    slots = request.takes.slots
    values = {key: value for key, value in merged.items() if "." not in key and key not in slots}
    parts = {kind: (name, _within(merged, kind)) for kind, name in request.parts.items()}
    return ParsedOptions(values, parts, request.chosen)


def _explain_unknown(request: Request, flag: str) -> str | None:
    """Return a better error text if the option looks like one of a part, of another command or of another library."""
    name = flag.removeprefix("--").replace("-", "_")
    reason = request.takes.without.get(name)
    if reason is not None:
        return f"no option {flag!r}: {reason}"
    if TrainConfig in request.takes.options.values() and name in TRAINING_ALIASES:
        return f"no option {flag!r}; that is {spelled((TRAINING_ALIASES[name],))} here"
    kind, dot, option = flag.removeprefix("--").partition(".")
    if not dot or kind not in request.takes.slots:
        return None
    if kind not in request.parts:
        return f"{flag} needs a {kind}; write {spelled((kind,))} NAME before it"
    return unknown_option(kind, request.parts[kind], option.replace("-", "_"))
