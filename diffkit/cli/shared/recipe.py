"""RUN/config.toml: all options of a run, given and found, so that it can be repeated exactly."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from diffkit.cli.parsing.request import as_toml
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.cli.shared.composition import SOURCES
from diffkit.runtime.files import write_atomically
from diffkit.runtime.run_layout import RECIPE
from diffkit.training.hook import Tracker

if TYPE_CHECKING:
    import torch

Parts = Mapping[str, tuple[str, Mapping[str, Any]]]
_OF_ONE_CALL = dict.fromkeys(("out", "device", "track", "dry_run"), "")
"""Options that another run may have otherwise."""


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
    spec: CommandSpec,
    parsed: ParsedOptions,
    device: torch.device,
    values: Mapping[str, Any],
    parts: Parts,
) -> str:
    """Return options of a command that trains as TOML text, every default included, but ``out`` and the device.

    Args:
        command: Its name.
        spec: Its options.
        parsed: Those that were given.
        device: Where it trains.
        values: Options that were found, by name.
        parts: Kind -> name and options of each part of which some were found.
    """
    sources = {kind: _source(*parsed.parts[kind]) for kind in SOURCES if kind in parsed.parts}
    found = ParsedOptions({**parsed.values, **values}, {**parsed.parts, **sources, **parts})
    lasting = attrs.evolve(spec, without={**spec.without, **_OF_ONE_CALL})
    return _heading(command, device) + as_toml(lasting, found)


def _source(name: str, options: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Name or whole path of data, and its options, paths whole as well."""
    from diffkit.data.loading import registered_name

    whole = {key: value.resolve() if isinstance(value, Path) else value for key, value in options.items()}
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
