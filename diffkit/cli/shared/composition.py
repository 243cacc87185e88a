"""The keywords of `diffkit.compose` as options; a test compares them with its signature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from attrs import frozen

from diffkit.cli.parsing.spec import ParsedOptions

PARTS: Mapping[str, str | None] = {
    "schedule": "linear",
    "mean": "eps",
    "var": "fixed_large",
    "loss": "simple",
    "timesteps": "uniform",
    "sampler": "ancestral",
    "backbone": "unet",
    "decoder": None,
}
SOURCES = ("data", "val")
"""Slots of a training command that data fills."""


@frozen
class Composition:
    """The arguments of `diffkit.compose` besides the parts.

    Attributes:
        data_shape: Shape of one example, channels first.
        num_steps: T, the number of noise levels.
        train_spacing: Train on some of the levels only: "250", "10,15,20", "ddim50", "trailing50", ...
        rescale_time: Condition the network on (k - 1) 1000 / T, so that it means the same at any T.
        clip_x_start: Clip estimates of clean data to [-1, 1] in sampling and scoring; true for binned data.
        bins: How many equally spaced values in [-1, 1] data takes: 256 is 8-bit, none is continuous data. In a file, a
            table sets all options of the decoder "binned".
    """

    data_shape: tuple[int, ...] = (3, 64, 64)
    num_steps: int = 1000
    train_spacing: str | int | tuple[int, ...] | None = None
    rescale_time: bool = True
    clip_x_start: bool | None = None
    bins: int | Mapping[str, Any] | None = 256


def keywords(parsed: ParsedOptions, **from_data: Any) -> dict[str, Any]:
    """Return keywords for `diffkit.compose`: the options parsed, and ``from_data`` for others."""
    names = [field.name for field in attrs.fields(Composition)]
    chosen = {name: parsed.values[name] for name in names if name in parsed.values}
    if "decoder" in parsed.parts:  # which knows the number of values
        from_data.pop("bins", None)
    return {kind: (name, dict(options)) for kind, (name, options) in parsed.parts.items()} | from_data | chosen
