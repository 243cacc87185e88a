"""Options that lie beneath those of the command line: a published preset, and over it a TOML file."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from attrs import frozen

from diffkit.cli.parsing.slots import named_in_file, named_on_line
from diffkit.cli.parsing.takes import CommandSpec
from diffkit.cli.parsing.values import from_text
from diffkit.errors import OptionError
from diffkit.presets import preset
from diffkit.runtime.strict_json import parse_toml, read_bytes
from diffkit.training.config import RETIRED


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
        return named_in_file(self.table, list(kinds))


def layers(tokens: Sequence[str], takes: CommandSpec) -> tuple[Layer, ...]:
    """Return what ``--preset`` and ``--config`` name on a command line, the lower one first.

    Raises:
        OptionError: The file cannot be read.
        UnknownComponentError: There is no such preset.
    """
    named = named_on_line(tokens, ["preset", "config"])
    found = []
    if "preset" in named and takes.preset:
        found.append(_from_preset(named["preset"], takes))
    if "config" in named and takes.config:
        path = _path(named["config"])
        found.append(Layer(str(path), _read(path)))
    return tuple(found)


def _from_preset(name: str, takes: CommandSpec) -> Layer:
    chosen = preset(name)
    if takes.classifier and not chosen.classifier:
        raise OptionError(f"preset {name!r} is a system, not a classifier; diffkit list presets shows those that are")
    if chosen.classifier and not takes.classifier:
        raise OptionError(f"preset {name!r} is a classifier, which guides sampling; diffkit train-classifier takes it")
    return Layer(
        f"preset {name}", {key: value for field in takes.preset for key, value in getattr(chosen, field).items()}
    )


def _path(word: str) -> Path:
    try:
        return cast("Path", from_text(word, Path))
    except OptionError as error:
        raise OptionError(f"--config {error}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        return {key: value for key, value in parse_toml(read_bytes(path)).items() if key not in RETIRED}
    except OSError as error:
        raise OptionError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise OptionError(f"{path} is not a TOML file: {error}") from error
