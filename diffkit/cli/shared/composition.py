"""The keywords of `diffkit.compose` as options; a test compares them with its signature."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs import field, frozen

from diffkit.cli.parsing.options import STEPS, Steps
from diffkit.cli.parsing.spec import ParsedOptions, chosen

if TYPE_CHECKING:
    from diffkit.system.module import System

PARTS: Mapping[str, str | None] = {
    "schedule": "linear",
    "mean": "eps",
    "var": "fixed_large",
    "loss": "simple",
    "timesteps": "uniform",
    "sampler": "ancestral",
    "backbone": "unet",
    "decoder": None,
    "coupling": None,
    "codec": None,
}
SYSTEM = {**PARTS, "guidance": None}
"""Slots of a command that composes a system whose sampling has defaults."""
SOURCES = ("data", "val")
"""Slots of a training command that data fills."""
OF_TRAINING: Mapping[str, str | None] = {"optimizer": None, "lr_schedule": None, "hook": None}
"""Kinds of part that training takes; without one, its own default."""


@frozen
class Levels:
    """The noise levels, as `diffkit.compose` takes them.

    Attributes:
        num_steps: T, the number of noise levels.
        train_spacing: Train on some of the levels only: "250", "10,15,20", "ddim50", "trailing50", ...
        rescale_time: Condition the network on (k - 1) 1000 / T, so that it means the same at any T.
    """

    num_steps: int = 1000
    train_spacing: str | int | tuple[int, ...] | None = None
    rescale_time: bool = True


@frozen
class Composition(Levels):
    """The arguments of `diffkit.compose` besides the parts.

    Attributes:
        data_shape: Shape of one example, channels first.
        clip_x_start: Clip estimates of clean data to [-1, 1] in sampling and scoring; true for binned data.
        bins: How many equally spaced values in [-1, 1] data takes: 256 is 8-bit, none is continuous data. In a file, a
            table sets all options of the decoder "binned".
    """

    data_shape: tuple[int, ...] = (3, 64, 64)
    clip_x_start: bool | None = None
    bins: int | Mapping[str, Any] | None = 256


@frozen
class Sampling:
    """What sampling does where a call says nothing, saved with the system; the default guidance is a part's name.

    Attributes:
        sampling_steps: How many levels to visit.
    """

    sampling_steps: Steps = field(default=None, metadata=STEPS)


def keywords(parsed: ParsedOptions, **from_data: Any) -> dict[str, Any]:
    """Return keywords for `diffkit.compose`: the options parsed, and ``from_data`` for others."""
    parts: dict[str, Any] = {kind: (name, dict(options)) for kind, (name, options) in parsed.parts.items()}
    others = _settings(parsed)
    if "decoder" in parsed.parts:  # which knows the number of values
        from_data.pop("bins", None)
    sampling = chosen(steps=parsed.values.get("sampling_steps"), guidance=parts.pop("guidance", None))
    return parts | from_data | others | chosen(sampling=sampling or None)


def loaded_base(folder: Path, parsed: ParsedOptions, device: Any) -> System:
    """Return the system of a folder, with the parts and settings that were given in place of its own."""
    import diffkit
    from diffkit.registry import SLOTS

    kinds = (*SLOTS, "coupling", "codec")
    changes: dict[str, Any] = {kind: parsed.parts[kind] for kind in kinds if kind in parsed.chosen}
    return diffkit.recompose(diffkit.load(folder, device=device), **changes, **_settings(parsed))


def parts_of(system: System) -> dict[str, tuple[str, Any]]:
    """Return the parts of a system by name with options, as an options file has them."""
    return {kind: (part["name"], part["options"]) for kind, part in system.spec()["parts"].items() if part}


def settings_of(system: System) -> dict[str, Any]:
    """Return the settings of a system that are not the defaults of `Composition`."""
    found = {field.name: (getattr(system.settings, field.name), field.default) for field in attrs.fields(Composition)}
    return {name: value for name, (value, default) in found.items() if value != default}


def _settings(parsed: ParsedOptions) -> dict[str, Any]:
    """The settings of a composition that were given."""
    names = [field.name for field in attrs.fields(Composition)]
    return {name: parsed.values[name] for name in names if name in parsed.values}
