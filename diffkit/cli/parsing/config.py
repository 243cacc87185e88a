"""Options that lie beneath those of the command line: a saved system's or a published preset, and over it a TOML file.

num_steps = 4000

[schedule]
name = "cosine"
s = 0.008

They are read strictly: every fault is reported, each with its place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from diffkit.cli.parsing.options import Option, spelled
from diffkit.cli.parsing.parts import named_in_table, named_on_line, names_of
from diffkit.cli.parsing.spec import CommandSpec
from diffkit.cli.parsing.spelling import toml_spelling
from diffkit.cli.parsing.values import check_path, conform, read, toml
from diffkit.errors import Message, OptionError, Setting, SpecError, Spelling, did_you_mean, joined, nearest
from diffkit.presets import preset
from diffkit.registry import KINDS
from diffkit.runtime.run_layout import SPEC
from diffkit.runtime.strict_json import parse_toml, read_bytes, read_json
from diffkit.training.config import RETIRED

_FEW = 3
"""Unknown options that are each compared with those there are."""


@frozen
class Layer:
    """Options from one place.

    Attributes:
        place: Its name in messages.
        table: As a TOML file has them: parts are names, or tables with a name.
    """

    place: str
    table: Mapping[str, Any]

    def names(self, kinds: Collection[str]) -> dict[str, str]:
        """Return the part names it has, by kind."""
        return named_in_table(self.table, kinds)


def layers(words: Sequence[str], spec: CommandSpec) -> list[Layer]:
    """Return what ``--preset`` and ``--config`` name on a command line, the lower one first.

    Where the line has only options of a part, such as ``--guidance.scale 2``, the part is that of the saved system.

    Raises:
        OptionError: The file cannot be read.
        SpecError: The saved system cannot be read.
        UnknownComponentError: There is no such preset.
    """
    named = named_on_line(words, ["preset", "config"])
    found = [_from_file(named["config"])] if "config" in named and spec.config else []
    if "preset" in named and spec.preset:
        set_above = {key for layer in found for key in layer.table} | {word.partition("=")[0] for word in words}
        found.insert(0, _from_preset(named["preset"], spec, {key.lstrip("-").replace("-", "_") for key in set_above}))
    chosen = {*named_on_line(words, spec.composed)}.union(*(layer.names(spec.composed) for layer in found))
    changed = [k for k in spec.composed if k not in chosen and any(w.startswith(f"{spelled((k,))}.") for w in words)]
    return [_from_system(words, changed), *found] if changed else found


def _from_system(words: Sequence[str], kinds: Collection[str]) -> Layer:
    """The sampler and the default guidance of the saved system that a line names."""
    files = [Path(word, SPEC) for word in words if not word.startswith("-")]
    file = next((file for file in files if _is_file(file)), None)
    if file is None:
        return Layer("", {})
    saved = read_json(file, SpecError)
    parts, settings = (each if isinstance(each := saved.get(name), Mapping) else {} for name in ("parts", "settings"))
    sampler, sampling = parts.get("sampler"), settings.get("sampling")
    found = {
        "sampler": {**sampler.get("options", {}), "name": sampler.get("name")} if isinstance(sampler, dict) else None,
        "guidance": sampling.get("guidance") if isinstance(sampling, Mapping) else None,
    }
    return Layer(str(file), {kind: part for kind in kinds if isinstance(part := found[kind], Mapping)})


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a word that is too long for a name
        return False


def _from_preset(name: str, spec: CommandSpec, set_above: Collection[str]) -> Layer:
    """The options of a preset; its steps of sampling are for its own levels, which others above may replace."""
    chosen = preset(name)
    if spec.classifier and not chosen.classifier:
        raise OptionError(f"preset {name!r} is a system, not a classifier; diffkit list presets shows those that are")
    if chosen.classifier and not spec.classifier:
        raise OptionError(f"preset {name!r} is a classifier, which guides sampling; diffkit train-classifier takes it")
    table = {
        key: value for field in spec.preset if field != "sampling" for key, value in getattr(chosen, field).items()
    }
    sampling = chosen.sampling_with(set_above) if "sampling" in spec.preset else None
    return Layer(f"preset {name}", table | {f"sampling_{key}": value for key, value in (sampling or {}).items()})


def _from_file(word: str) -> Layer:
    try:
        check_path(path := read(word, Path))
        table = parse_toml(read_bytes(path)).items()
        return Layer(str(path), {key: _listed(key, value) for key, value in table if key not in RETIRED})
    except OptionError as error:
        raise OptionError(f"--config {error}") from error
    except OSError as error:
        raise OptionError(f"cannot read {word}: {error.strerror or error}") from error
    except ValueError as error:
        raise OptionError(f"{word} is not a TOML file: {error}") from error


def _listed(kind: str, value: Any) -> Any:
    """A list of parts, of a kind that a command takes several of, as a table of them; anything else as it is."""
    if not (kind in KINDS and KINDS[kind].several and isinstance(value, list)):
        return value
    parts = [{"name": each} if isinstance(each, str) else each for each in value]
    if not parts or not all(isinstance(each, Mapping) and isinstance(each.get("name"), str) for each in parts):
        raise OptionError(f"{kind} must be a list of names, or of tables with a name, got {value!r}")
    if len(parts) == 1:
        return parts[0]
    tables = {each["name"]: {key: option for key, option in each.items() if key != "name"} for each in parts}
    return {"name": ",".join(tables), **tables}


# ---- checking --------------------------------------------------------------------------------------------------------


def check_table(layer: Layer, options: Sequence[Option]) -> dict[str, Any]:
    """Return the options of a layer by key, as their types.

    Raises:
        OptionError: One or more faults: unknown keys, wrong types, values out of range.
    """
    slots = {option.path[0] for option in options if option.chooses}
    known, faults = {option.path: option.key for option in options}, list[Message]()
    flat = dict(_flat(layer.table, slots, faults))
    found = checked({known[path]: value for path, value in flat.items() if path in known}, options, conform, faults)
    for part in dict.fromkeys([(), *((slot,) for slot in sorted(slots)), *(path[:-1] for path in flat)]):
        unknown = sorted(path[-1] for path in flat if path[:-1] == part and path not in known)
        if unknown:
            among = [path[-1] for path in known if path[:-1] == part]
            faults.append(Message(_unknown(unknown, among, "".join(f"{name}." for name in part))))
    refuse(faults, toml_spelling, layer.place)
    return found


def checked(
    values: Mapping[str, Any], options: Sequence[Option], convert: Callable[[Any, Any], Any], faults: list[Message]
) -> dict[str, Any]:
    """Return values as the fields of their options take them; what is wrong is added to the faults.

    Args:
        values: Key -> value.
        options: Every option there is.
        convert: Called with a value and its type first.
        faults: Receives a message for each value that is wrong.
    """
    known, found = {option.key: option for option in options}, {}
    for key, value in values.items():
        option = known[key]
        try:
            found[key] = _validated(option, convert(value, option.kind))
        except OptionError as error:
            between = " " if str(error).startswith("must ") else ": "
            text = error.message if error.option else Message(Setting(option.path[-1]), between, str(error))
            faults.append(text.of(option.path[0] if option.path[1:] else ""))
    return found


def refuse(faults: Sequence[Message], spelling: Spelling | None = None, place: str = "") -> None:
    """Raise one `OptionError` for all faults, if there are any."""
    if not faults:
        return
    text = joined("\n  ", [f"{len(faults)} faults:", *faults] if faults[1:] else faults)
    message = Message(text.spelled(spelling)) if spelling else text
    raise OptionError(Message(f"{place}: " if place else "", message))


def _flat(
    table: Mapping[str, Any], slots: Collection[str], faults: list[Message]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Path of an option -> value; a part's name goes by its kind."""
    for key, value in table.items():
        if key not in slots or isinstance(value, str):
            yield (key,), value
        elif not isinstance(value, Mapping):
            faults.append(Message(Setting(key), f" must be a name or a table with a name, got {value!r}"))
        elif "name" not in value:
            faults.append(Message(Setting(key), " needs a name"))
        else:
            yield (key,), value["name"]
            for name, each in value.items():
                if isinstance(each, Mapping) and name in names_of(key, value["name"]):  # one of several parts
                    yield from (((key, name, option), chosen) for option, chosen in each.items())
                elif name != "name":
                    yield (key, name), each


def _validated(option: Option, value: Any) -> Any:
    """A value after the converter and validator of the option's own field."""
    check_path(value)
    field = option.field
    if field is None:
        return value
    value = field.converter(value) if callable(field.converter) else value
    try:
        if field.validator is not None:
            field.validator(None, field, value)
    except OptionError:
        raise
    except (ValueError, TypeError) as error:
        raise OptionError(str(error.args[0]) if error.args else str(error)) from error
    except AttributeError:
        pass  # a validator that reads other options: it runs again when the part is made
    return value


def _unknown(keys: Sequence[str], known: Sequence[str], start: str) -> str:
    """One line for all unknown keys of a table; where they are many, the table is for something else."""
    if len(keys) == 1:
        fault = f"{start}{keys[0]} is not an option{did_you_mean(keys[0], known)}"
    else:
        near = [repr(each) for key in keys if (each := nearest(key, known))] if len(keys) <= _FEW else []
        fault = f"{', '.join(start + key for key in keys)} are not options"
        fault += f"; did you mean {' and '.join(near)}?" if near else ""
    return f"{fault} (known: {', '.join(known)})"


# ---- writing ---------------------------------------------------------------------------------------------------------


def written(
    values: Mapping[str, Any], parts: Mapping[str, tuple[str, Mapping[str, Any]]], later: Mapping[str, str]
) -> str:
    """Return options as TOML text that `check_table` reads back.

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
