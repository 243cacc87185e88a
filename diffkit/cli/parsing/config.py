"""Options from a TOML file, strictly: every fault is reported, each with its place.

num_steps = 4000

[schedule]
name = "cosine"
s = 0.008
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
from cattrs import ClassValidationError, Converter
from cattrs.errors import ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn, override

from diffkit.cli.parsing.options import Option
from diffkit.cli.parsing.values import accept, toml
from diffkit.errors import OptionError, did_you_mean, nearest

_UNSET = object()
_FEW = 3
"""Unknown options that are each compared with those there are."""


def check(
    config: Mapping[str, Any], options: Sequence[Option], place: str = "", label: Callable[[str], str] = str
) -> dict[str, Any]:
    """Return the options of a table by key, with their final types.

    Args:
        config: A table; parts are names or tables within it.
        options: Every option there is.
        place: Put before the faults, such as the name of the file.
        label: Name of a key's option in the faults.
    Raises:
        OptionError: One or more faults: unknown keys, wrong types, values out of range.
    """
    kinds = {option.path[0] for option in options if len(option.path) == 2}
    slots = kinds | {option.path[0] for option in options if option.chooses}
    converter = Converter(forbid_extra_keys=True)
    structure = {kind: _slot_hook(kind, _of_part(kind, options), converter) for kind in slots}
    own = [option for option in options if len(option.path) == 1]
    cls = _shadow("Config", own, structure, converter)
    try:
        found = converter.structure(dict(config), cls)
    except ClassValidationError as error:
        faults = list(_faults(error, "", options, label))
        raise OptionError(_report(faults, place)) from error
    return _flat(found)


def written(
    values: Mapping[str, Any], parts: Mapping[str, tuple[str, Mapping[str, Any]]], later: Mapping[str, str]
) -> str:
    """Return options as TOML text that `check` reads back.

    Args:
        values: Name -> value.
        parts: Kind -> (name, options).
        later: Options that are known only when the command runs: name -> how; written as comments.
    """
    lines = [f"{name} = {toml(value)}" for name, value in values.items()]
    lines += [f"# {name}: {text}" for name, text in later.items()]
    for kind, (name, chosen) in parts.items():
        lines += ["", f"[{kind}]", f"name = {toml(name)}"]
        lines += [f"{key} = {toml(value)}" for key, value in chosen.items()]
    return "\n".join(lines).strip() + "\n"


def _of_part(kind: str, options: Sequence[Option]) -> list[Option]:
    return [option for option in options if len(option.path) == 2 and option.path[0] == kind]


def _shadow(name: str, options: Sequence[Option], hooks: Mapping[str, Any], converter: Converter) -> type[Any]:
    """A class with these options as fields, all optional, with a strict hook for each."""
    fields = {option.path[-1]: attrs.field(default=_UNSET) for option in options}
    cls = attrs.make_class(name, fields)
    strict: dict[str, Any] = {
        option.path[-1]: override(struct_hook=hooks.get(option.path[-1]) or _option_hook(option)) for option in options
    }
    converter.register_structure_hook(
        cls, make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=True, **strict)
    )
    return cls


def _option_hook(option: Option) -> Any:
    """Type, then the converter and validator of the part's own field."""

    def hook(value: Any, _: Any) -> Any:
        value = accept(value, option.kind)
        field = option.field
        if field is None:
            return value
        value = field.converter(value) if callable(field.converter) else value
        if field.validator is not None:
            _validate(field, value)
        return value

    return hook


def _validate(field: Any, value: Any) -> None:
    try:
        field.validator(None, field, value)
    except OptionError:
        raise
    except (ValueError, TypeError) as error:
        raise OptionError(str(error.args[0]) if error.args else str(error)) from error
    except AttributeError:
        return  # a validator that reads other options: it runs again when the part is made


def _slot_hook(kind: str, options: Sequence[Option], converter: Converter) -> Any:
    """A part as a name, or as a table with its name and options."""
    name = Option(("name",), str, None, "", "")
    cls = _shadow(kind, [name, *options], {}, converter)

    def hook(value: Any, _: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, Mapping):
            raise OptionError(f"must be a name or a table with a name, got {value!r}")
        if "name" not in value:
            raise OptionError("needs a name")
        return _set(converter.structure(dict(value), cls))

    return hook


def _set(shadow: Any) -> dict[str, Any]:
    values = attrs.asdict(shadow, recurse=False)
    return {name: value for name, value in values.items() if value is not _UNSET}


def _flat(found: Any) -> dict[str, Any]:
    """Option key -> value; a part's name goes by its kind."""
    flat: dict[str, Any] = {}
    for key, value in _set(found).items():
        if isinstance(value, dict) and "name" in value:
            flat[key] = value["name"]
            flat |= {f"{key}.{option}": each for option, each in value.items() if option != "name"}
        else:
            flat[key] = value
    return flat


def _faults(
    error: ClassValidationError, path: str, options: Sequence[Option], label: Callable[[str], str]
) -> Iterator[str]:
    """One line for each fault, with its path."""
    noted, others = error.group_exceptions()
    for exception, note in noted:
        key = f"{path}{note.name}"
        if isinstance(exception, ClassValidationError):
            yield from _faults(exception, f"{key}.", options, label)
        else:
            yield _placed(key, str(exception), label(key))
    for exception in others:
        if not isinstance(exception, ForbiddenExtraKeysError):
            raise exception
        known = [o.key[len(path) :] for o in options if o.key.startswith(path) and "." not in o.key[len(path) :]]
        yield _unknown(sorted(exception.extra_fields), known, lambda key: label(path + key))


def _unknown(keys: Sequence[str], known: Sequence[str], label: Callable[[str], str]) -> str:
    """One line for all unknown keys of a table; where they are many, the table is for something else."""
    if len(keys) == 1:
        fault = f"{label(keys[0])} is not an option{did_you_mean(keys[0], known)}"
    else:
        near = [repr(each) for key in keys if (each := nearest(key, known))] if len(keys) <= _FEW else []
        fault = f"{', '.join(map(label, keys))} are not options"
        fault += f"; did you mean {' and '.join(near)}?" if near else ""
    return f"{fault} (known: {', '.join(known)})"


def _placed(key: str, text: str, label: str) -> str:
    """``s must be >= 0`` becomes ``schedule.s must be >= 0``."""
    name = key.rpartition(".")[2]
    if text.startswith(f"each of {name} "):
        return f"each of {label} {text.removeprefix(f'each of {name} ')}"
    rest = text.removeprefix(name).lstrip()
    return f"{label} {rest}" if rest.startswith(("must ", "needs ")) else f"{label}: {rest}"


def _report(faults: Sequence[str], place: str) -> str:
    place = f"{place}: " if place else ""
    if len(faults) == 1:
        return place + faults[0]
    return "\n  ".join([f"{place}{len(faults)} faults:", *faults])
