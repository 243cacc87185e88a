"""RUN/config.toml: all options of a run, given and found, so that it can be repeated exactly."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from diffkit.cli.parsing.config import written
from diffkit.cli.shared.composition import SOURCES
from diffkit.runtime.files import write_atomically
from diffkit.runtime.run_layout import RECIPE
from diffkit.training.hook import Tracker

if TYPE_CHECKING:
    import torch

Chosen = Mapping[str, tuple[str, Mapping[str, Any]]]


class Recipe(Tracker):
    """Writes the file when a run begins, or resumes with other options; ignores metrics.

    Args:
        content: The file's content.
    """

    def __init__(self, content: str):
        self.content = content

    def begin(self, folder: Path, step: int) -> None:
        """Write the file."""
        write_atomically(folder / RECIPE, self.content.encode())

    def metrics(self, line: Mapping[str, Any]) -> None:
        """Do nothing."""

    def preview(self, step: int, path: Path) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""


def recipe(
    command: str,
    device: torch.device,
    values: Mapping[str, Any],
    parts: Mapping[str, tuple[str, object]],
    chosen: Chosen,
) -> str:
    """Return options of a command that trains as TOML text, every default included, but ``out`` and the device.

    Args:
        command: Its name.
        device: Where it trains.
        values: Options by name.
        parts: Kind -> its name, and the part.
        chosen: Kind -> name and options, of which data and held-out data are taken.
    """
    sources = {kind: _source(*chosen[kind]) for kind in SOURCES if kind in chosen}
    if "hook" in chosen:
        sources["hook"] = chosen["hook"]
    others = {kind: (name, options_in(part)) for kind, (name, part) in parts.items()}
    return _heading(command, device) + written(values, {**sources, **others}, {})


def options_in(part: object) -> dict[str, Any]:
    """Return the options of an attrs instance without those that are None by default: TOML has no null."""
    return {
        field.alias or field.name: value
        for field in attrs.fields(type(part))  # type: ignore[arg-type]
        if field.init and ((value := getattr(part, field.name)) is not None or field.default is not None)
    }


def _source(name: str, options: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Name or whole path of the data, and all its options, paths whole as well."""
    from diffkit.data.loading import registered_name, source_for

    found = {key: value for key, value in options_in(source_for(name, **options)).items() if key != "path"}
    whole = {key: value.resolve() if isinstance(value, Path) else value for key, value in found.items()}
    return (name if registered_name(name) else str(Path(name).resolve())), whole


def _heading(command: str, device: torch.device) -> str:
    import numpy as np
    import torch

    from diffkit._version import __version__

    versions = f"diffkit {__version__}, torch {torch.__version__}, numpy {np.__version__}"
    return (
        f"# diffkit {command} --config THIS_FILE --out ANOTHER_FOLDER repeats this run.\n"
        f"# It was begun with {versions}, Python {platform.python_version()}, on {device.type}.\n"
    )
