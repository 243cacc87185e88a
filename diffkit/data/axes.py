"""Find the axis of the channels in the shape of an example: it may be the first, the last, or missing.

An axis of at most four entries is taken for the channels, as of colours and the usual latents. If both the first and
the last axis are so small, or neither is, the channels are the axis without which all sides are equal. If that does not
decide, the caller has to give ``layout``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from diffkit.errors import DataError, Message, OptionError, problem

ChannelAxis = Literal["first", "last", "missing", "unknown"]
LAYOUTS = ("channels_first", "channels_last")
_FEW = 4
"""Numbers of channels that images have: grey, two, colour, with transparency."""
_LONG = 8
"""A signal is longer than its number of channels by more than this factor; the sides of most pictures are not."""


def find_channels(shape: Sequence[int], *, integers: bool) -> ChannelAxis:
    """Return which axis of an example is that of the channels.

    Args:
        shape: Shape of one example, without the axis over examples.
        integers: Whether its values are integers, as pixels are.
    """
    if len(shape) < 2:
        return "first"
    first, last = shape[0], shape[-1]
    if len(shape) == 2 and _looks_like_grey_image(first, last, integers):
        return "missing"
    found = _only_small_axis(first, last)
    return _by_equal_sides(shape, integers) if len(shape) > 2 and found == "unknown" and first > _FEW else found


def _looks_like_grey_image(height: int, width: int, integers: bool) -> bool:
    """Whether two axes look like the sides of a grey image, not like channels and length of a signal."""
    if integers and height > _FEW:
        return True
    return width <= _LONG * height and (height > 1 if integers else height > _FEW and width > _FEW)


def _only_small_axis(first: int, last: int) -> ChannelAxis:
    """Return the axis of channels if it is the only one of two axes with few entries."""
    if (first <= _FEW) == (last <= _FEW):
        return "unknown"
    return "first" if first <= _FEW else "last"


def _by_equal_sides(shape: Sequence[int], integers: bool) -> ChannelAxis:
    """Return the axis of channels, of two large axes: the one without which all sides are equal."""
    first, last = len(set(shape[1:])) == 1, len(set(shape[:-1])) == 1
    if first != last:
        return "first" if first else "last"
    return "missing" if first or integers else "unknown"


def check_channels(shape: Sequence[int], layout: str | None, *, integers: bool, what: str) -> None:
    """Raise unless an example's channels seem to be its first axis, or a layout is given.

    Args:
        shape: Shape of one example.
        layout: "channels_first", "channels_last" or None.
        integers: Whether its values are integers.
        what: Start of the error message, such as "item 0 has".
    Raises:
        DataError: The channels seem to be elsewhere; the text names the layouts to choose from.
        OptionError: There is no such layout.
    """
    if layout is not None and layout not in LAYOUTS:
        raise OptionError("must be 'channels_first' or 'channels_last'", option="layout", value=layout)
    place = find_channels(shape, integers=integers)
    if layout is None and place in ("last", "missing"):
        raise DataError(f"{what} shape {tuple(shape)}, {_layout_advice(shape, place)}")


def file_layout(shape: Sequence[int], *, integers: bool) -> str:
    """Return the layout of a file's examples: channels last, as in published files, unless the shape shows them first.

    Raises:
        DataError: The shape is ambiguous; the text names the layouts to choose from.
    """
    shape = tuple(shape)
    if len(shape) == 2 and min(shape) <= _FEW < max(shape):
        raise DataError(
            f"examples have shape {shape}, which may be grey images of {shape[0]}x{shape[1]} or signals of "
            f"{shape[0]} channels",
            fix=_LAYOUTS,
        )
    place = find_channels(shape, integers=integers)
    if place == "missing" and len(shape) > 2:
        raise DataError(Message(f"examples have shape {shape}, ", _layout_advice(shape, place)))
    return "channels_first" if place == "first" else "channels_last"


def move_channels_first(array: NDArray[Any], layout: str | None) -> NDArray[Any]:
    """Return examples (N, ...) as (N, C, *S); with channels last, (N, H, W) is grey."""
    if layout != "channels_last" or array.ndim < 3:
        return array
    return array[:, None] if array.ndim == 3 else np.moveaxis(array, -1, 1)


def move_example_channels_first(x: Tensor, layout: str | None) -> Tensor:
    """Return one example as (C, *S); with channels last, (H, W) is grey."""
    if layout != "channels_last" or x.ndim < 2:
        return x
    return x[None] if x.ndim == 2 else x.movedim(-1, 0)


_LAYOUTS = ({"layout": "channels_last"}, {"layout": "channels_first"})


def _layout_advice(shape: Sequence[int], place: ChannelAxis) -> str:
    """Return a text why the first axis does not seem to be that of the channels, and which layouts to choose from."""
    n, rest = shape[0], "x".join(map(str, shape[1:]))
    if place == "last" and len(shape) == 2:
        return problem(
            f"which looks like signals with channels last; move their channels first, if there are not {n} channels of "
            f"length {rest}",
            fix={"layout": "channels_first"},
        )
    if place == "last":
        return problem(f"which looks like channels last, or is {n} channels of {rest}", fix=_LAYOUTS)
    if len(shape) == 2:
        return problem(f"which looks like grey images of {n}x{rest}, or is {n} channels of length {rest}", fix=_LAYOUTS)
    return problem(
        f"where no axis is certainly that of the channels, {n} or {shape[-1]}; volumes need an axis for one channel",
        fix=_LAYOUTS,
    )
