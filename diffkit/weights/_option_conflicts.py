"""Conflicts between the options of preset or caller and a file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from diffkit.errors import Message, Setting, problem
from diffkit.parts.backbones.dit import SIZES
from diffkit.registry.resolve import resolve
from diffkit.weights._infer_options import InferredOptions


def option_conflicts(found: InferredOptions, known: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each option that conflicts with the file."""
    fixed = dict(found.options)
    if "size" in known and not {"depth", "hidden"} & known.keys():
        size = published_size(found)
        if size != known["size"]:
            here = repr(size) if size else f"depth={fixed['depth']}, hidden={fixed['hidden']}"
            yield Message(Setting("size"), f" is {here} in the file, {known['size']!r} given")
    for name, value in fixed.items():
        if name in known and known[name] != value:
            yield Message(Setting(name), f" is {value_text(value)} in the file, {value_text(known[name])} given")
    yield from _class_differences(found, known)
    yield from _shape_differences(found, known)


def _class_differences(found: InferredOptions, known: Mapping[str, Any]) -> Iterator[str]:
    if found.family == "classifier":
        if known.get("num_classes", found.channels_out) != found.channels_out:
            yield Message(Setting("num_classes"), f" is {found.channels_out} in the file, {known['num_classes']} given")
        return
    if "num_classes" not in known:
        return
    null = bool(known.get("null_class", False))
    rows = (known["num_classes"] or 0) + null
    if rows != found.label_rows:
        here = found.label_rows - null if found.label_rows else None
        also = " and one label for no class" if null and here else ""
        one_more = {"null_class": True} if found.label_rows == rows + 1 > 1 else ()
        text = Message(Setting("num_classes"), f" is {here}{also} in the file, {known['num_classes']} given")
        yield problem(text, fix=one_more)


def _shape_differences(found: InferredOptions, known: Mapping[str, Any]) -> Iterator[str]:
    shape = known.get("data_shape")
    if shape is None:
        return
    if len(shape) != found.axes + 1:
        yield Message(
            Setting("data_shape"),
            f" must have {found.axes + 1} sizes for the file's {found.axes} spatial axes, got {shape}",
        )
        return
    yield from _channel_differences(found, known, shape[0])
    yield from _size_differences(found, known, tuple(shape))


def _channel_differences(found: InferredOptions, known: Mapping[str, Any], channels: int) -> Iterator[str]:
    low_res, extra = found.channels_in - channels, found.channels_out - channels
    if found.family != "unet" and low_res:
        yield Message(Setting("data_shape"), f" has {found.channels_in} channels in the file, {channels} given")
    elif found.family == "unet" and "low_res_channels" in known and known["low_res_channels"] != low_res:
        yield Message(Setting("low_res_channels"), f" is {low_res} in the file, {known['low_res_channels']} given")
    elif low_res < 0 or (found.family != "classifier" and extra not in (0, channels)):
        yield (
            f"data_shape has {channels} channels, but the file's network reads {found.channels_in} and returns "
            f"{found.channels_out}"
        )
    elif found.family != "classifier" and "var" in known:
        part, name = resolve("var", known["var"])
        if part.extra_outputs != extra // channels:
            kind = "a learned" if extra else "no learned"
            yield Message(
                Setting("var"),
                f" is {name!r}, but the file has {kind} variance: it returns {found.channels_out} channels",
            )


def _size_differences(found: InferredOptions, known: Mapping[str, Any], shape: tuple[int, ...]) -> Iterator[str]:
    if found.data_shape is not None and shape[1:] != found.data_shape[1:]:
        yield Message(Setting("data_shape"), f" is {found.data_shape} in the file, {shape} given")
        return
    if found.family == "dit":
        patches = math.prod(side // found.options["patch"] for side in shape[1:])
        if patches != found.positions:
            yield f"data_shape {shape} has {patches} patches, the file has {found.positions}"
        return
    expected = known.get("attention_resolutions")
    if expected is not None:
        here = attention_resolutions(found, shape)
        if set(expected) != set(here):
            yield f"attention_resolutions is {value_text(here)} in the file, {value_text(tuple(expected))} given"


def attention_resolutions(found: InferredOptions, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sizes of the levels with attention, for examples of a shape."""
    side = min(shape[1:][-2:])
    return tuple(side // 2**level for level, attends in enumerate(found.attention) if attends)


def published_size(found: InferredOptions) -> str | None:
    """Return the name of the published DiT size with the inferred depth and width; None if there is none."""
    dimensions = (found.options["depth"], found.options["hidden"])
    return next((name for name, (depth, hidden, _) in SIZES.items() if (depth, hidden) == dimensions), None)


def value_text(value: Any) -> str:
    """Return the value of an option as Python code, a part as a pair."""
    if isinstance(value, Mapping):
        return repr((value["name"], {name: each for name, each in value.items() if name != "name"}))
    return repr(value)
