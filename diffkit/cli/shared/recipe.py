"""RUN/config.toml: all options of a run, given and found, so that it can be repeated exactly."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from diffkit.cli.parsing import config as _config
from diffkit.cli.parsing.options import Option, options_of
from diffkit.cli.parsing.parts import part_options
from diffkit.cli.shared.composition import PARTS, SOURCES, Composition
from diffkit.runtime.files import write_atomically
from diffkit.runtime.run_layout import RECIPE
from diffkit.training.config import TrainConfig
from diffkit.training.trackers import Tracker

if TYPE_CHECKING:
    import torch

    from diffkit.system.module import System


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
    system: System,
    composition: Mapping[str, Any],
    config: TrainConfig,
    chosen: Mapping[str, tuple[str, Mapping[str, Any]]],
    low_res: tuple[int, ...] | None,
    init: Path | None,
    init_entry: str | None,
) -> str:
    """Return options of ``diffkit train`` as TOML text, every default included, but ``out`` and the device.

    Args:
        system: As composed.
        composition: What it was composed from.
        config: How it is trained.
        chosen: Name or path, and options, of data and held-out data.
        low_res: Size of small images, or None.
        init: File of the weights that it begins with, or None.
        init_entry: Which set of weights in that file, or None.
    """
    settings = {field.name: composition.get(field.name, field.default) for field in attrs.fields(Composition)}
    begun = {"init": None if init is None else str(init), "init_entry": init_entry}
    values = {**begun, "low_res": low_res, **attrs.asdict(config), **settings}
    spec = system.spec()["parts"]
    parts = {kind: (composition[kind][0], spec[kind]["options"]) for kind in PARTS if kind in spec}
    if "decoder" in composition:
        parts["decoder"] = composition["decoder"]
        del values["bins"]
    return written("train", system.device, values, (TrainConfig, Composition), parts, sources_in(chosen))


def sources_in(chosen: Mapping[str, tuple[str, Mapping[str, Any]]]) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Return those of the parts that were chosen which are data."""
    return {kind: source for kind, source in chosen.items() if kind in SOURCES}


def written(
    command: str,
    device: torch.device,
    values: Mapping[str, Any],
    classes: Sequence[type[Any]],
    parts: Mapping[str, tuple[str, Mapping[str, Any]]],
    sources: Mapping[str, tuple[str, Mapping[str, Any]]],
) -> str:
    """Return options of a command that trains as TOML text.

    Args:
        command: Its name.
        device: Where it trains.
        values: Options by name.
        classes: Where they are described.
        parts: Kind -> (name, options).
        sources: Kind of data -> (name or path, options).
    """
    data = {kind: _source(*source) for kind, source in sources.items()}
    return _heading(command, device) + _config.written(
        _without_none(values, [option for cls in classes for option in options_of(cls)]),
        {
            kind: (name, _without_none(chosen, part_options(kind, name)))
            for kind, (name, chosen) in {**data, **parts}.items()
        },
        {},
    )


def _without_none(values: Mapping[str, Any], options: Sequence[Option]) -> dict[str, Any]:
    """Values without those that are None by default: TOML has no null, and a text could be "none"."""
    otherwise = {option.path[-1] for option in options if option.default is not None}
    return {name: value for name, value in values.items() if value is not None or name in otherwise}


def _source(name: str, options: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Name or whole path of the data, and all its options, paths whole as well."""
    from diffkit.data.loading import registered_name, source_for

    source: Any = source_for(name, **options)
    found = {key: value for key, value in attrs.asdict(source).items() if key != "path"}
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
