"""Options that lie beneath those of the command line: a saved system's or a published preset, and over it a TOML file.

num_steps = 4000

[schedule]
name = "cosine"
s = 0.008

They are read strictly: every fault is reported, each with its place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from diffkit.cli.parsing.options import Option, options_of, spelled
from diffkit.cli.parsing.parts import named_on_line, names_of
from diffkit.cli.parsing.spec import CommandSpec
from diffkit.cli.parsing.spelling import toml_spelling
from diffkit.cli.parsing.values import check_path, conform, read, toml
from diffkit.errors import Message, OptionError, Setting, SpecError, did_you_mean, joined, nearest
from diffkit.presets import preset
from diffkit.registry import KINDS, SLOTS
from diffkit.runtime.run_layout import SPEC
from diffkit.runtime.strict_json import parse_toml, read_bytes, read_json
from diffkit.training.config import RETIRED

_FEW = 3
"""Unknown options that are each compared with those there are."""
_LEVELS = ("num_steps", "train_spacing", "rescale_time", "clip_x_start")
"""Settings of a system that its data does not decide."""
_OF_DATA = ("num_classes", "low_res_channels")
"""Options of a backbone that the data decides."""


Place = tuple[str, ...]
"""Place of an option: ("num_steps",), ("schedule", "s"); a part's name is at ("schedule",)."""


@frozen(eq=False)
class Layer:
    """Options from one place beneath the command line.

    Attributes:
        place: Its name in messages.
        values: As they are there.
        faults: What could not be read.
    """

    place: str
    values: Mapping[Place, Any]
    faults: Sequence[Message]


Merged = Mapping[Place, tuple[Any, Layer | None]]
"""Values, each with the layer it is of; None is the command line."""


def layers(words: Sequence[str], spec: CommandSpec) -> list[Layer]:
    """Return what ``--init``, ``--preset`` and ``--config`` name on a command line, the lowest one first.

    Where the line has only options of a part, such as ``--guidance.scale 2``, the part is that of the saved system.

    Raises:
        OptionError: The file cannot be read.
        SpecError: The saved system cannot be read.
        UnknownComponentError: There is no such preset.
    """
    named = named_on_line(words, ["preset", "config"])
    found = [_from_file(named["config"], spec)] if "config" in named and spec.config else []
    if "preset" in named and spec.preset:
        set_above = {path[0] for layer in found for path in layer.values} | {word.partition("=")[0] for word in words}
        found.insert(0, _from_preset(named["preset"], spec, {key.lstrip("-").replace("-", "_") for key in set_above}))
    elif spec.begins:
        found = [*_from_init(words, found, spec), *found]
    chosen = {*named_on_line(words, spec.composed)} | {path[0] for layer in found for path in layer.values}
    changed = [k for k in spec.composed if k not in chosen and any(w.startswith(f"{spelled((k,))}.") for w in words)]
    return [_from_system(words, changed, spec), *found] if changed else found


def _from_system(words: Sequence[str], kinds: Collection[str], spec: CommandSpec) -> Layer:
    """The sampler and the default guidance of the saved system that a line names."""
    files = [Path(word, SPEC) for word in words if not word.startswith("-")]
    file = next((file for file in files if _is_file(file)), None)
    if file is None:
        return _layer("", {}, spec)
    parts, settings = _saved(file)
    sampler, sampling = parts.get("sampler"), settings.get("sampling")
    found = {
        "sampler": {**sampler.get("options", {}), "name": sampler.get("name")} if isinstance(sampler, dict) else None,
        "guidance": sampling.get("guidance") if isinstance(sampling, Mapping) else None,
    }
    return _layer(str(file), {kind: part for kind in kinds if isinstance(part := found[kind], Mapping)}, spec)


def _from_init(words: Sequence[str], above: Sequence[Layer], spec: CommandSpec) -> list[Layer]:
    """The system in the folder that ``--init`` names, but for what data decides, and parts named on the line or above.

    Beside an adapter the system itself is loaded. A run that has begun goes on with its own.
    """
    named = named_on_line(words, [*spec.slots, "init", "out"])
    taken = named.keys() | {path[0] for layer in above for path in layer.values}
    files = (Path(named.get(each, ""), SPEC) for each in ("out", "init") if each in named)
    file = next(filter(_is_file, files), None)
    if "init" not in named or "adapter" in taken or file is None:
        return []
    parts, settings = _saved(file)
    table = {name: settings[name] for name in _LEVELS if isinstance(settings.get(name), int | str | list)}
    for kind in SLOTS:
        if kind not in taken and isinstance(part := parts.get(kind), Mapping) and part.get("name"):
            own = {name: value for name, value in part.get("options", {}).items() if name not in _OF_DATA}
            table[kind] = {**own, "name": part["name"]}
    return [_layer(str(file), table, spec)]


def _saved(file: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Parts and settings of a saved system, unchecked."""
    saved = read_json(file, SpecError)
    parts, settings = (each if isinstance(each := saved.get(name), Mapping) else {} for name in ("parts", "settings"))
    return parts, settings


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
    return _layer(f"preset {name}", table | {f"sampling_{key}": value for key, value in (sampling or {}).items()}, spec)


def _from_file(word: str, spec: CommandSpec) -> Layer:
    try:
        check_path(path := read(word, Path))
        table = parse_toml(read_bytes(path)).items()
        return _layer(str(path), {key: _listed(key, value) for key, value in table if key not in RETIRED}, spec)
    except OptionError as error:
        raise OptionError(f"--config {error}") from error
    except OSError as error:
        raise OptionError(f"cannot read {word}: {error.strerror or error}") from error
    except ValueError as error:
        raise OptionError(f"{word} is not a TOML file: {error}") from error


def _layer(place: str, table: Mapping[str, Any], spec: CommandSpec) -> Layer:
    faults: list[Message] = []
    own = {key: value for key, value in table.items() if not _is_default(spec, key, value)}
    return Layer(place, dict(_flat(own, spec.slots, faults)), faults)


def _is_default(spec: CommandSpec, key: str, value: Any) -> bool:
    """True for an option that the command does not take, at its default: files of earlier versions list those, too."""
    if key not in spec.without:
        return False
    return value in [option.default for cls in spec.options.values() for option in options_of(cls) if option.key == key]


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


def checked(merged: Merged, layers: Sequence[Layer], options: Sequence[Option]) -> dict[Place, Any]:
    """Return values as the fields of their options take them.

    Args:
        merged: What a command line and its layers set.
        layers: The layers.
        options: Every option there is.
    Raises:
        OptionError: One or more faults of the line, or of a layer: unknown keys, wrong types, values out of range.
    """
    known, found = {option.path: option for option in options}, dict[Place, Any]()
    faults: dict[Layer | None, list[Message]] = {None: [], **{layer: [*layer.faults] for layer in layers}}
    unknown: dict[tuple[Layer, Place], list[str]] = {}
    for path, (value, layer) in merged.items():
        option = known.get(path)
        if layer is not None and (option is None or option.special):
            unknown.setdefault((layer, path[:-1]), []).append(path[-1])
        elif option is not None:
            try:
                found[path] = _validated(option, value if layer is None else conform(value, option.kind))
            except OptionError as error:
                faults[layer].append(_fault(option, error))
    for (layer, part), names in unknown.items():
        among = [option.path[-1] for option in options if option.path[:-1] == part and not option.special]
        faults[layer].append(Message(_unknown(sorted(names), among, "".join(f"{name}." for name in part))))
    for layer, each in faults.items():
        _refuse(each, layer)
    return found


def _fault(option: Option, error: OptionError) -> Message:
    between = " " if str(error).startswith("must ") else ": "
    text = error.message if error.option else Message(Setting(option.path[-1]), between, str(error))
    return text.of(option.path[0] if option.path[1:] else "")


def _refuse(faults: Sequence[Message], layer: Layer | None) -> None:
    """Raise one `OptionError` for all faults, if there are any."""
    if not faults:
        return
    text = joined("\n  ", [f"{len(faults)} faults:", *faults] if faults[1:] else faults)
    raise OptionError(text if layer is None else f"{layer.place}: {text.spelled(toml_spelling)}")


def _flat(table: Mapping[str, Any], slots: Collection[str], faults: list[Message]) -> Iterator[tuple[Place, Any]]:
    """Path of an option -> value; a part's name goes by its kind."""
    for key, value in table.items():
        if key not in slots or isinstance(value, str):
            yield (key,), value
        elif not isinstance(value, Mapping):
            faults.append(Message(Setting(key), f" must be a name or a table with a name, got {value!r}"))
        elif not isinstance(value.get("name"), str):
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
    """Return options as TOML text, which ``--config`` reads back.

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
