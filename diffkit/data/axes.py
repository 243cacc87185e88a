"""Which axis of an example is that of the channels: recognized by shape, also where it is missing or stands last.

An axis of at most four entries is taken for the channels, as colours and the usual latents have; of two such axes, or
two larger ones, the one that leaves equal sides. Where both are possible, ``layout`` decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from diffkit.errors import DataError, Message, OptionError, problem

Place = Literal["first", "last", "missing", "unknown"]
LAYOUTS = ("channels_first", "channels_last")
_FEW = 4
"""Numbers of channels that images have: grey, two, colour, with transparency."""
_LONG = 8
"""A signal is longer than its number of channels by more than this factor; the sides of most pictures are not."""


def channels_in(shape: Sequence[int], *, integers: bool) -> Place:
    """Return where the channels of an example are.

    Args:
        shape: Of one example, without the axis over examples.
        integers: Its values are integers, as pixels are.
    """
    if len(shape) < 2:
        return "first"
    first, last = shape[0], shape[-1]
    if len(shape) == 2 and _is_picture(first, last, integers):
        return "missing"
    found = _smaller(first, last)
    return _by_sides(shape, integers) if len(shape) > 2 and found == "unknown" and first > _FEW else found


def _is_picture(height: int, width: int, integers: bool) -> bool:
    """Whether two axes look like the sides of a grey picture, not like channels and length of a signal."""
    if integers and height > _FEW:
        return True
    return width <= _LONG * height and (height > 1 if integers else height > _FEW and width > _FEW)


def _smaller(first: int, last: int) -> Place:
    """The only one of two axes that has few entries."""
    if (first <= _FEW) == (last <= _FEW):
        return "unknown"
    return "first" if first <= _FEW else "last"


def _by_sides(shape: Sequence[int], integers: bool) -> Place:
    """Of two large axes the channels are the one without which all sides are equal."""
    first, last = len(set(shape[1:])) == 1, len(set(shape[:-1])) == 1
    if first != last:
        return "first" if first else "last"
    return "missing" if first or integers else "unknown"


def check_channels(shape: Sequence[int], layout: str | None, *, integers: bool, what: str) -> None:
    """Refuse an example that does not look like channels first, unless a layout is given.

    Args:
        shape: Of one example.
        layout: "channels_first", "channels_last" or None.
        integers: Its values are integers.
        what: Start of the error message, such as "item 0 has".
    Raises:
        DataError: It looks like something else; the text names the layouts that decide it.
        OptionError: There is no such layout.
    """
    if layout is not None and layout not in LAYOUTS:
        raise OptionError("must be 'channels_first' or 'channels_last'", option="layout", value=layout)
    place = channels_in(shape, integers=integers)
    if layout is None and place in ("last", "missing"):
        raise DataError(f"{what} shape {tuple(shape)}, {_contradiction(shape, place)}")


def check_file(shape: Sequence[int], *, integers: bool) -> str:
    """Return the layout of a file's examples: channels last, as in published files, unless the shape shows them first.

    Raises:
        DataError: They could be grey pictures or signals, or volumes; the text names the layouts that decide it.
    """
    shape = tuple(shape)
    if len(shape) == 2 and min(shape) <= _FEW < max(shape):
        raise DataError(
            f"examples have shape {shape}, which may be grey pictures of {shape[0]}x{shape[1]} or signals of "
            f"{shape[0]} channels",
            fix=_LAYOUTS,
        )
    place = channels_in(shape, integers=integers)
    if place == "missing" and len(shape) > 2:
        raise DataError(Message(f"examples have shape {shape}, ", _contradiction(shape, place)))
    return "channels_first" if place == "first" else "channels_last"


def moved_first(array: NDArray[Any], layout: str | None) -> NDArray[Any]:
    """Return examples (N, ...) as (N, C, *S); with channels last, (N, H, W) is grey."""
    if layout != "channels_last" or array.ndim < 3:
        return array
    return array[:, None] if array.ndim == 3 else np.moveaxis(array, -1, 1)


def example_moved_first(x: Tensor, layout: str | None) -> Tensor:
    """Return one example as (C, *S); with channels last, (H, W) is grey."""
    if layout != "channels_last" or x.ndim < 2:
        return x
    return x[None] if x.ndim == 2 else x.movedim(-1, 0)


_LAYOUTS = ({"layout": "channels_last"}, {"layout": "channels_first"})


def _contradiction(shape: Sequence[int], place: Place) -> str:
    """Why a shape does not look like channels first, and the layouts that decide it."""
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
        return problem(
            f"which looks like grey pictures of {n}x{rest}, or is {n} channels of length {rest}", fix=_LAYOUTS
        )
    return problem(
        f"where no axis is certainly that of the channels, {n} or {shape[-1]}; volumes need an axis for one channel",
        fix=_LAYOUTS,
    )
